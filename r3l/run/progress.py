"""Progress bars: live on a terminal, a line every ten seconds in a file."""

from __future__ import annotations

import select
import sys
from typing import Any, TextIO

from tqdm import tqdm

LOGGED_EVERY_S = 10.0


class Unblocked:
    """A text stream that never blocks: text that a stopped terminal does not take is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or drop it if the stream would block."""
        if self._takes_text():
            self._stream.write(text)
            self._stream.flush()  # buffered text would be written later, and could block then
        return len(text)

    def flush(self) -> None:
        """Everything was written at once."""

    def _takes_text(self) -> bool:
        try:
            return bool(select.select([], [self._stream.fileno()], [], 0)[1])
        except (OSError, ValueError):  # the stream is no file, or closed
            return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        return other is self._stream or isinstance(other, Unblocked)

    __hash__ = None  # type: ignore[assignment]


def progress_bar(label: str, unit: str, total: int | None, done: int = 0, file: Unblocked | None = None) -> tqdm[Any]:
    """Return a bar of `total` units, of which `done` are done; None: it has no end. Use it as a context manager."""
    every_s = 0.1 if sys.stderr.isatty() else LOGGED_EVERY_S
    return tqdm(
        total=total, initial=done, unit=unit, desc=label, mininterval=every_s, file=file, dynamic_ncols=file is not None
    )
