"""The store's writer: commits observations on a thread of its own, so that acting never waits for the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from r3l.run.experience import FULL_SYNC_EVERY_S, ExperienceStore, Row, StoreError, require_storable

RETRY_S = 1.0


class StoreWriter:
    """Appends rows in their order; a row is acknowledged when it is committed. One writer per store.

    What cannot be written, since the disk is full or gone, is kept and tried again until it can. Committed rows are on
    the disk after FULL_SYNC_EVERY_S at the latest, also when none follows.
    """

    def __init__(
        self,
        path: Path,
        image_shape: tuple[int, int, int],
        *,
        on_acknowledged: Callable[[int], None] = lambda sequence: None,
    ) -> None:
        """Open or create the store; `on_acknowledged` is told each sequence number, on the writer's thread."""
        self._path, self._image_shape, self._on_acknowledged = path, image_shape, on_acknowledged
        store = ExperienceStore(path, image_shape)
        try:
            self._steps, self._last = store.steps(), store.last()
        finally:
            store.close()
        self.failure: str | None = None
        """Why nothing can be written at present, in one line; None while all is well."""
        self._rows: deque[Row] = deque()
        self._acknowledged = self._last[0]
        self._error: BaseException | None = None
        self._is_closing = threading.Event()
        self._has_news = threading.Event()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    @property
    def unwritten(self) -> int:
        """Rows not acknowledged yet."""
        return len(self._rows)

    def append(self, row: Row) -> None:
        """Take a row to be written; returns at once.

        Raises:
            StoreError: the writer was closed, or has died of something that is no matter of the disk.
            ValueError: no store for these images can hold the row.
        """
        if self._error is not None:
            raise StoreError(f"the writer of {self._path} died: {self._error!r}") from self._error
        if self._is_closing.is_set():
            raise StoreError(f"the writer of {self._path} is closed")
        require_storable(row, self._image_shape)
        self._rows.append(row)
        self._has_news.set()

    def steps(self) -> int:
        """Return the env steps that were stored when this writer began."""
        return self._steps

    def last(self) -> tuple[int, int]:
        """Return the newest row's sequence and segment as they were when this writer began."""
        return self._last

    def close(self, timeout_s: float = 5.0) -> None:
        """Write and sync what is pending, for so long at most; what cannot be written stays `unwritten`."""
        self._is_closing.set()
        self._has_news.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        try:
            is_last = False
            while not self._write() and not is_last:
                is_last = self._is_closing.wait(RETRY_S)
        except BaseException as error:  # whatever it is, the next append tells
            self._error = error
            raise

    def _write(self) -> bool:
        """Write rows until the disk fails; return whether the writer was closed with nothing pending."""
        try:
            store = ExperienceStore(self._path, self._image_shape)
        except StoreError as error:
            self.failure = str(error)
            return False
        try:
            store.sync()
            if self._rows and self._is_committed(store, self._rows[0]):
                self._acknowledge(store.last()[0])
            if not self._rows:
                self.failure = None
            while self._await_row(store):
                self._acknowledge(store.append(self._rows[0]))
            return True
        except StoreError as error:
            self.failure = str(error)
            return False
        finally:
            with suppress(StoreError):
                store.close()

    def _is_committed(self, store: ExperienceStore, row: Row) -> bool:
        """Return whether the newest row in the store is this one: committed, though SQLite failed thereafter."""
        return store.last()[0] > self._acknowledged and store.newest_labels() == (row.segment, row.step)

    def _await_row(self, store: ExperienceStore) -> bool:
        """Wait for a row, syncing those before it meanwhile; return False when there will be none."""
        while not self._rows:
            if self._is_closing.is_set():
                store.sync()
                return False
            self._has_news.clear()
            if self._rows or self._is_closing.is_set():
                continue
            if not self._has_news.wait(max(FULL_SYNC_EVERY_S - store.unsynced_s(), 0)):
                store.sync()
        return True

    def _acknowledge(self, sequence: int) -> None:
        self._acknowledged, self.failure = sequence, None
        self._rows.popleft()
        self._on_acknowledged(sequence)
