"""The store's writer: a thread that commits rows, so that acting never waits for the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from r3l.run.experience import FULL_SYNC_EVERY_S, ExperienceStore, Row, StoreError, require_storable

RETRY_S = 1.0


class StoreWriter:
    """Appends rows in their order and acknowledges each when it is committed. One writer per store.

    Rows that a full or missing disk does not take are kept and written later. A committed row is on the disk within
    FULL_SYNC_EVERY_S, even if no row follows.
    """

    def __init__(
        self,
        path: Path,
        image_shape: tuple[int, int, int],
        *,
        on_acknowledged: Callable[[int], None] = lambda sequence: None,
    ) -> None:
        """Open or create the store; the writer's thread calls `on_acknowledged` with each sequence number."""
        self._path, self._image_shape, self._on_acknowledged = path, image_shape, on_acknowledged
        store = ExperienceStore(path, image_shape)
        try:
            self._steps, self._last = store.steps(), store.last()
        finally:
            store.close()
        self.failure: str | None = None
        """Why nothing can be written at present, in one line; None if rows can be written."""
        self._rows: deque[Row] = deque()
        self._acknowledged = self._last[0]
        self._error: BaseException | None = None
        self._is_closing = threading.Event()
        self._has_work = threading.Event()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    @property
    def unwritten(self) -> int:
        """Rows that are not acknowledged yet."""
        return len(self._rows)

    def append(self, row: Row) -> None:
        """Queue a row and return at once.

        Raises:
            StoreError: the writer is closed, or died of an error that is not the disk's.
            ValueError: the row does not fit a store of these images.
        """
        if self._error is not None:
            raise StoreError(f"the writer of {self._path} died: {self._error!r}") from self._error
        if self._is_closing.is_set():
            raise StoreError(f"the writer of {self._path} is closed")
        require_storable(row, self._image_shape)
        self._rows.append(row)
        self._has_work.set()

    def steps(self) -> int:
        """Return the env steps in the store when this writer started."""
        return self._steps

    def last(self) -> tuple[int, int]:
        """Return sequence and segment of the newest row when this writer started."""
        return self._last

    def close(self, timeout_s: float = 5.0) -> None:
        """Write and sync the queued rows within `timeout_s`; rows that cannot be written stay `unwritten`."""
        self._is_closing.set()
        self._has_work.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        try:
            is_last = False
            while not self._write() and not is_last:
                is_last = self._is_closing.wait(RETRY_S)
        except BaseException as error:  # the next append raises it
            self._error = error
            raise

    def _write(self) -> bool:
        """Write rows until the disk fails; return whether the writer was closed and every row is written."""
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
        """Return whether this row is the newest in the store: it was committed before SQLite failed."""
        return store.last()[0] > self._acknowledged and store.newest_labels() == (row.segment, row.step)

    def _await_row(self, store: ExperienceStore) -> bool:
        """Wait for a row and sync the rows before it; return False when the writer is closed."""
        while not self._rows:
            if self._is_closing.is_set():
                store.sync()
                return False
            self._has_work.clear()
            if self._rows or self._is_closing.is_set():
                continue
            if not self._has_work.wait(max(FULL_SYNC_EVERY_S - store.unsynced_s(), 0)):
                store.sync()
        return True

    def _acknowledge(self, sequence: int) -> None:
        self._acknowledged, self.failure = sequence, None
        self._rows.popleft()
        self._on_acknowledged(sequence)
