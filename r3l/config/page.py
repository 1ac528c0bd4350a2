"""The page docs/settings.md, made from the code: `python -m r3l.config.page >docs/settings.md`."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any, get_args, get_type_hints

from r3l.config.presets import CHANGES, PAPER
from r3l.config.ranges import Setting, settings_of
from r3l.config.schema import Config

INTRODUCTION = """# Settings
`r3l config` prints every key with its value. `r3l train` takes `--set KEY=VALUE`, `--config FILE` (TOML, or a run's
config.json), `--preset` and `--variant`. A value outside its range is refused. This page is made from `r3l/config/`."""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join(_lines()) + "\n"


def meaning(key: str) -> str:
    """Return the docstring of a key's field, or of the table that the key is in."""
    kind, text = Config, ""
    for name in key.split("."):
        text = _docstrings(kind).get(name, text)
        kind = get_type_hints(kind)[name]
    return text


def _docstrings(kind: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: note.value.value
        for field, note in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant) and isinstance(note.value.value, str)
    }


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    for table, settings in groupby(settings_of(Config), lambda setting: setting.key.rpartition(".")[0].split(".")[0]):
        kind = get_type_hints(Config)[table] if table else Config
        yield from ("", f"## {table or 'run'}", str(kind.__doc__), "")
        yield from _table(("key", "default", "values", "meaning"), map(_row, settings))
    yield from ("", "## Presets and variants", "A preset or a variant sets these keys.", "")
    options = {"--preset paper": PAPER} | {f"--variant {name}": changes for name, changes in CHANGES.items()}
    yield from _table(("option", "settings"), ((f"`{option}`", _given(values)) for option, values in options.items()))


def _table(titles: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    for row in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(row)} |"


def _row(setting: Setting) -> tuple[str, str, str, str]:
    default = json.dumps(attrgetter(setting.key)(Config()))
    values = str(setting.range or ", ".join(get_args(setting.kind)) or {bool: "true, false", str: "text"}[setting.kind])
    return f"`{setting.key}`", f"`{default}`", values, meaning(setting.key)


def _given(values: Mapping[str, Any]) -> str:
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return ", ".join(f"`{key}={text}`" for key, text in shown.items())


if __name__ == "__main__":
    print(page(), end="")
