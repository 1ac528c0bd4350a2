"""Types of options, and the signals and typed lines, that several commands share."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro


def optional(metavar: str) -> Any:
    """Return the help settings of an option that may be left out: show what to write, and no None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


OptionalInt = Annotated[int | None, optional("INT")]
OptionalName = Annotated[str | None, optional("NAME")]
OptionalPath = Annotated[Path | None, optional("PATH")]


def typed_lines() -> Iterator[str]:
    """Yield the lines that a person types, without spaces around them and in lower case, until the input ends."""
    for line in sys.stdin or ():
        yield line.strip().lower()


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and on a closed terminal too, so that the code within releases its robot."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
