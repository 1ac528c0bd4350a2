"""The API page names what others may import: every name on it exists, and every public name is on it."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

import r3l.config
import r3l.robot
import r3l.task

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
GROUPS = {"r3l.robots", "r3l.tasks", "r3l.commands"}
NAMES = sorted(set(re.findall(r"`(r3l(?:\.\w+)+)`", PAGE)) - GROUPS - {"r3l.hardware"})
FACES = (r3l.robot, r3l.task, r3l.config)


def resolve(name: str) -> object:
    """Import the longest module in a dotted name and return what the rest of the name stands for."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_page_can_be_imported(name: str) -> None:
    assert resolve(name) is not None


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
def test_a_face_and_the_page_name_the_same(face: ModuleType) -> None:
    on_the_page = {name.rpartition(".")[2] for name in NAMES if name.rpartition(".")[0] == face.__name__}
    assert on_the_page == set(face.__all__)


def test_entry_points_are_those_of_the_page() -> None:
    for group in GROUPS:
        assert f"`{group}`" in PAGE
        for point in entry_points(group=group):
            if point.value.startswith("r3l."):
                assert callable(point.load())


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_policies"):
        resolve("r3l.load_policies")
