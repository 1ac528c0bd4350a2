"""The direction of the imports of r3l/, hardware/ and tasks/, read from the source with ast.

Imports under TYPE_CHECKING and inside functions count too. A failure lists the offending lines.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
RANKS = {
    word: rank
    for rank, words in enumerate(
        ("config", "robot", "task", "run", "models", "learner evaluation", "training", "cli"),
    )
    for word in words.split()
}
"""Rank of each folder of r3l/: a folder imports lower ranks only. Learner and evaluation stand side by side."""
DRIVERS = ("hardware", "tasks")
ALLOWED_TO_DRIVERS = re.compile(
    r"r3l$|r3l\.(hardware|tasks|robot|task|config)\b|r3l\.run$|r3l\.run\.(files|images|goals|disk_space)\b"
)
ALLOWED_TO_DRIVER_COMMANDS = re.compile(r"r3l\.cli\.options\b")
"""A driver's commands.py adds commands to the command line, and shares the types of their options."""
DRIVER_NAME = re.compile(r"\br3l\.(hardware|tasks\.)")
"""A driver or a task in the text of the core; the entry-point group `r3l.tasks` is neither."""
ENTRIES = {"__init__.py", "__main__.py", "py.typed"}
MAX_FOLDERS = 9
MAX_FLOORS = 10


@dataclass(frozen=True)
class Import:
    """One import of a module of the project."""

    source: str
    target: str
    place: str
    """FILE:LINE."""

    def __str__(self) -> str:
        return f"{self.place}: {self.source} imports {self.target}"


def module_files(root: Path) -> dict[str, Path]:
    """Return the file of each module below r3l/, hardware/ and tasks/."""
    files = {}
    for folder in ("r3l", *DRIVERS):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts if folder == "r3l" else ("r3l", *parts)
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports_of(module: str, path: Path, root: Path, known: Sequence[str]) -> Iterator[Import]:
    """Yield the imports of a module that lead to other modules of the project."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            targets = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for target in targets:
            if target in known and target != module:
                yield Import(module, target, f"{path.relative_to(root)}:{node.lineno}")


@cache
def all_imports(root: Path) -> tuple[Import, ...]:
    """Return all imports between modules of the project."""
    files = module_files(root)
    known = list(files)
    return tuple(each for module, path in files.items() for each in imports_of(module, path, root, known))


def folder_of(module: str) -> str:
    """Return the folder of a module below r3l, for example `run` of r3l.run.repair.check; "" for r3l itself."""
    return [*module.split("."), ""][1]


def upward(root: Path) -> list[str]:
    """Return the imports of a folder from a folder of the same or of a higher rank."""
    found = []
    for each in all_imports(root):
        mine, theirs = folder_of(each.source), folder_of(each.target)
        if mine in RANKS and theirs in RANKS and mine != theirs and RANKS[theirs] >= RANKS[mine]:
            found.append(str(each))
    return found


def circle(root: Path) -> list[str]:
    """Return the imports along one import circle; an empty list if there is none."""
    try:
        floors(root)
    except CycleError as error:
        loop: list[str] = error.args[1]  # each module is imported by the next one
        pairs = set(zip(loop[1:], loop, strict=False))
        return [str(each) for each in all_imports(root) if (each.source, each.target) in pairs]
    return []


def floors(root: Path, name_of: Callable[[str], str] = str) -> dict[str, int]:
    """Return the floor of each module, or of each group of modules that `name_of` gives the same name.

    A floor is one above the highest floor that it imports; modules without a name do not count.
    CycleError for a circle.
    """
    graph: dict[str, set[str]] = {name_of(module): set() for module in module_files(root)}
    for each in all_imports(root):
        graph[name_of(each.source)] |= {name_of(each.target)} - {name_of(each.source), ""}
    graph.pop("", None)
    found: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[target] for target in graph[name]), default=0)
    return found


def core_names_of_drivers(root: Path) -> list[str]:
    """Return the lines of r3l/ that name a driver or a task, imported or not."""
    found = []
    for path in sorted((root / "r3l").rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if DRIVER_NAME.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()}")
    return found


def driver_imports(root: Path) -> list[str]:
    """Return the imports of drivers and tasks from parts of r3l that are not meant for them."""
    found = []
    for each in all_imports(root):
        if folder_of(each.source) not in DRIVERS or ALLOWED_TO_DRIVERS.match(each.target):
            continue
        is_command = each.source.endswith(".commands")
        if not (is_command and (each.target == "r3l.cli" or ALLOWED_TO_DRIVER_COMMANDS.match(each.target))):
            found.append(str(each))
    return found


def report(offences: Sequence[str]) -> str:
    """Return offences one per line."""
    return "\n" + "\n".join(offences)


def test_folders_import_lower_folders_only() -> None:
    offences = upward(ROOT)
    assert not offences, report(offences)


def test_no_module_imports_itself_over_others() -> None:
    offences = circle(ROOT)
    assert not offences, report(offences)


def test_the_folders_stand_on_few_floors() -> None:
    floor = floors(ROOT, folder_of)
    assert max(floor.values()) <= MAX_FLOORS, sorted(floor.items(), key=lambda item: item[1])


def test_r3l_has_few_folders() -> None:
    entries = {path.name for path in (ROOT / "r3l").iterdir()} - {"__pycache__"}
    folders = {name for name in entries if (ROOT / "r3l" / name).is_dir()}
    assert len(folders) <= MAX_FOLDERS, sorted(folders)
    assert folders == set(RANKS), "every folder of r3l/ has a rank"
    assert entries - folders == ENTRIES


def test_the_core_names_no_driver_and_no_task() -> None:
    offences = core_names_of_drivers(ROOT)
    assert not offences, report(offences)


def test_drivers_and_tasks_import_only_what_is_meant_for_them() -> None:
    offences = driver_imports(ROOT)
    assert not offences, report(offences)


def plant(root: Path, **texts: str) -> Path:
    """Write modules, named FOLDER__MODULE, below a new root."""
    for folder in ("r3l", *DRIVERS):
        (root / folder).mkdir(parents=True)
    for name, text in texts.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_checks_find_what_is_planted(tmp_path: Path) -> None:
    root = plant(
        tmp_path / "bad",
        r3l__config__schema="def late():\n    from r3l.cli import main\n",
        r3l__cli__main="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..config import schema\n",
        r3l__learner__replay="import r3l.evaluation.trials\n",
        r3l__evaluation__trials="import r3l.hardware.hand\n",
        hardware__hand="from r3l.training import actor\nfrom r3l.robot import base\nfrom r3l.cli import main\n",
        r3l__training__actor="",
        r3l__robot__base="",
    )
    assert upward(root) == [
        "r3l/config/schema.py:2: r3l.config.schema imports r3l.cli.main",
        "r3l/learner/replay.py:1: r3l.learner.replay imports r3l.evaluation.trials",
    ]
    assert sorted(circle(root)) == [
        "r3l/cli/main.py:3: r3l.cli.main imports r3l.config.schema",
        "r3l/config/schema.py:2: r3l.config.schema imports r3l.cli.main",
    ]
    assert core_names_of_drivers(root) == ["r3l/evaluation/trials.py:1: import r3l.hardware.hand"]
    assert driver_imports(root) == [
        "hardware/hand.py:1: r3l.hardware.hand imports r3l.training.actor",
        "hardware/hand.py:3: r3l.hardware.hand imports r3l.cli.main",
    ]


def test_the_checks_count_floors_and_pass_what_is_allowed(tmp_path: Path) -> None:
    root = plant(
        tmp_path / "good",
        r3l__config__schema="",
        r3l__cli__options="from r3l.config import schema\n",
        hardware__commands="from r3l.cli import options\n",
        tasks__lamp="from r3l.config import schema\n",
    )
    assert not upward(root) + circle(root) + core_names_of_drivers(root) + driver_imports(root)
    assert floors(root)["r3l.hardware.commands"] == 3
    assert floors(root, folder_of)["hardware"] == 3
