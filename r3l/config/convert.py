"""Dataclasses from plain JSON values and back."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from r3l.config.errors import UserError

T = TypeVar("T")


def nearest(name: str, known: Any) -> str:
    """Return a hint for an unknown name: the nearest known name, or all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON values."""
    return dataclasses.asdict(config)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key as nested tables: {"sac.tau": 0.1} as {"sac": {"tau": 0.1}}."""
    tables: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        tables = merge(tables, value)
    return tables


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with `changes` laid over them, table by table."""
    merged = dict(values)
    for key, change in changes.items():
        value = merged.get(key)
        merged[key] = merge(value, change) if isinstance(value, Mapping) and isinstance(change, Mapping) else change
    return merged


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass `kind` from plain values; nested dataclasses from nested mappings.

    Raises:
        UserError: a key is unknown (the nearest is named), missing, or of the wrong type.
    """
    types = get_type_hints(kind)
    for key in values:
        if key not in types:
            raise UserError(f"unknown config key {where + key!r}; {nearest(key, types)}")
    given = {key: _convert(types[key], value, where + key) for key, value in values.items()}
    missing = [
        f.name
        for f in fields(kind)  # type: ignore[arg-type]
        if f.name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"config key {where + missing[0]!r} is missing; add it")
    return kind(**given)


def _convert(kind: Any, value: Any, where: str) -> Any:
    expected: str
    if is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, Mapping):
            return from_dict(kind, value, where + ".")
        expected = "a table"
    elif get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        expected = "one of " + ", ".join(map(repr, get_args(kind)))
    elif get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(get_args(kind)[0], item, where) for item in value)
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        return {key: _convert(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e308 else value  # float() raises OverflowError on a greater int
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    else:
        expected = getattr(kind, "__name__", str(kind))
    raise UserError(f"config key {where!r} is {value!r}, expected {expected}")
