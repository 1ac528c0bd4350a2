"""Progress bars: live on a terminal, a line every ten seconds where the output is kept."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOGGED_EVERY_S = 10.0


def progress_bar(label: str, unit: str, total: int, done: int = 0) -> tqdm[Any]:
    """Return a bar of `total` units of which `done` are done; use as a context manager, `update` moves it."""
    every_s = 0.1 if sys.stderr.isatty() else LOGGED_EVERY_S
    return tqdm(total=total, initial=done, unit=unit, desc=label, mininterval=every_s)
