"""TODO r3l/cli/options.py."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro


def lines() -> Iterator[str]:
    """Yield what a person types, line by line, until they end it."""
    for line in sys.stdin or ():
        yield line.strip().lower()


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, do what Ctrl-C does: whatever holds a robot lets it go."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _optional(metavar: str) -> Any:
    """Return the help of an option that may be left out: what to write, and no word of None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


OptionalInt = Annotated[int | None, _optional("INT")]


OptionalName = Annotated[str | None, _optional("NAME")]


OptionalPath = Annotated[Path | None, _optional("PATH")]
