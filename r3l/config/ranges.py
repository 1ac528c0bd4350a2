"""The allowed numbers of a setting, written beside its field: `Annotated[float, Range(0, 1)]`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from operator import attrgetter
from reprlib import repr as shortened
from typing import Annotated, Any, get_origin, get_type_hints

from r3l.config.errors import UserError

MANY = 10**9
"""The largest count. A run with this many env steps has no step limit."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, or tuples of up to `max_items` of them; NaN is outside every range."""

    low: float
    high: float
    multiple_of: int | None = None
    max_items: int | None = None

    def __contains__(self, value: Any) -> bool:
        numbers = value if self.max_items else (value,)
        return 1 <= len(numbers) <= (self.max_items or 1) and all(
            self.low <= number <= self.high and not (self.multiple_of and number % self.multiple_of)
            for number in numbers
        )

    def __str__(self) -> str:
        text = f"{self.low:,} to {self.high:,}" + (f", a multiple of {self.multiple_of}" if self.multiple_of else "")
        return f"1 to {self.max_items} numbers of {text}" if self.max_items else text


ZeroToOne = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0, 1000)]
Count = Annotated[int, Range(0, MANY)]
Positive = Annotated[int, Range(1, MANY)]
Size = Annotated[int, Range(1, 65536)]


@dataclass(frozen=True)
class Setting:
    """One key of a config: its dotted name, its type, and its range if it holds numbers."""

    key: str
    kind: Any
    range: Range | None


@cache
def settings_of(kind: type) -> tuple[Setting, ...]:
    """Return the settings of a dataclass and of the dataclasses in it, in the order of their fields."""
    return tuple(_settings(kind, "", None))


def _settings(kind: type, where: str, shared: Range | None) -> Iterator[Setting]:
    """Yield settings; a range beside a table is that of the table's numbers (`shared`)."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain, notes = (hint.__origin__, hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
        own = next((note for note in notes if isinstance(note, Range)), None)
        if is_dataclass(plain) and isinstance(plain, type):
            yield from _settings(plain, f"{where}{name}.", own)
        else:
            yield Setting(where + name, plain, own or (shared if plain is float else None))


def check_ranges(config: Any) -> None:
    """Raise UserError for the first number of a dataclass that is outside its range."""
    for setting in settings_of(config.__class__):
        value = attrgetter(setting.key)(config)
        if setting.range and value not in setting.range:
            raise UserError(f"config key {setting.key!r} is {shortened(value)}, expected {setting.range}")
