"""Tests of the package metadata, of the core's imports, and of constructs that no file may use."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import r3l
from r3l.config.errors import PYBULLET, UserError
from r3l.task.registry import load_robot, load_task

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("r3l", "hardware", "tasks") for path in (ROOT / folder).rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCKED_IN_THE_CORE = ("pybullet", "pybullet_utils", "serial", "cv2", "dynamixel_sdk", "starlette", "uvicorn")
PICKLES = ("pickle", "cPickle", "dill", "joblib", "shelve", "marshal")
IMPORT_ALL = """
import sys, importlib

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED or name.startswith(("r3l.hardware", "r3l.tasks")):
            raise ImportError(f"the core imports {name}")

sys.meta_path.insert(0, Blocker())
for name in MODULES:
    importlib.import_module(name)
print("imported", len(MODULES))
"""


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def setuptools() -> dict[str, dict[str, object]]:
    tool = project()["tool"]
    assert isinstance(tool, dict)
    found: dict[str, dict[str, object]] = tool["setuptools"]
    return found


def folders() -> dict[str, Path]:
    """Return every folder with Python modules by the name of its installed package."""
    found = {}
    for top, package in (("r3l", "r3l"), ("hardware", "r3l.hardware"), ("tasks", "r3l.tasks")):
        for folder in sorted({path.parent for path in (ROOT / top).rglob("*.py")}):
            below = folder.relative_to(ROOT / top).parts
            found[".".join((package, *below))] = folder
    return found


def test_the_package_list_is_what_is_on_the_disk() -> None:
    assert set(setuptools()["packages"]) == set(folders())
    assert all((folder / "__init__.py").exists() for folder in folders().values())


def test_packages_map_to_their_folders() -> None:
    mapped = setuptools()["package-dir"]
    for package, folder in folders().items():
        # setuptools takes the longest mapped name that is the package or a parent of it; "r3l" is its own folder.
        name = max((each for each in mapped if f"{package}.".startswith(f"{each}.")), key=len, default="")
        below = package.removeprefix(name).strip(".").split(".")
        assert folder == Path(ROOT, str(mapped.get(name, "")), *below)


def test_every_file_that_is_not_python_is_packaged() -> None:
    patterns = setuptools()["package-data"]
    for package, folder in folders().items():
        files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc")]
        listed = patterns.get(package, [])
        assert isinstance(listed, list)
        left_out = [path.name for path in files if not any(fnmatch.fnmatch(path.name, pattern) for pattern in listed)]
        assert not left_out, f"{package} needs {left_out}: add them to package-data"


def test_the_version_is_one() -> None:
    table = project()["project"]
    assert isinstance(table, dict)
    assert table["version"] == r3l.__version__


def test_the_license_is_in_the_wheel_and_the_citation_names_this_version() -> None:
    table = project()["project"]
    assert isinstance(table, dict)
    assert all((ROOT / name).is_file() for name in table["license-files"])
    assert f"\nversion: {r3l.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_simulator_has_one_pin_per_python() -> None:
    table = project()["project"]
    assert isinstance(table, dict)
    pins = [line for line in table["dependencies"] if line.startswith("pybullet")]
    assert pins == ["pybullet==3.2.7; python_version < '3.12'", "pybullet-arm64==3.2.8; python_version >= '3.12'"]
    assert set(pins) <= set((ROOT / "requirements.lock").read_text().splitlines())
    assert PYBULLET in [pin.split(";")[0] for pin in pins]
    assert version(PYBULLET.split("==")[0]) == PYBULLET.split("==")[1]


def test_a_missing_simulator_is_named_with_its_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("valve")
    monkeypatch.setitem(sys.modules, "pybullet", None)
    monkeypatch.delitem(sys.modules, "r3l.hardware.twin", raising=False)
    with pytest.raises(UserError, match=f"needs the package 'pybullet', .* pip install {PYBULLET}$"):
        load_robot("twin", task)


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_every_link_of_a_document_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_core_imports_no_driver_no_simulator_and_no_web() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "r3l").rglob("*.py"))
        if "dashboard" not in path.parts
    ]
    code = f"BLOCKED = {BLOCKED_IN_THE_CORE!r}\nMODULES = {modules!r}\n{IMPORT_ALL}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == f"imported {len(modules)}"


def name_of(node: ast.expr) -> str:
    """Return the dotted name of an expression, or an empty string if it is no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""


def is_pass(body: list[ast.stmt]) -> bool:
    return all(isinstance(statement, ast.Pass) for statement in body)


def offences(tree: ast.Module) -> list[str]:
    """Return the forbidden constructs of a file, with line numbers."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any(name.split(".")[0] in PICKLES for name in names):
                found.append(f"line {node.lineno}: pickle")
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            safe = any(
                word.arg == "weights_only" and isinstance(word.value, ast.Constant) and word.value.value is True
                for word in node.keywords
            )
            if name == "torch.load" and not safe:
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            if name in ("input", "eval", "exec"):
                found.append(f"line {node.lineno}: {name}()")
            if name in ("np.load", "numpy.load") and any(word.arg == "allow_pickle" for word in node.keywords):
                found.append(f"line {node.lineno}: allow_pickle")
        elif isinstance(node, ast.ExceptHandler):
            kind = name_of(node.type) if node.type else ""
            if not node.type or (kind in ("Exception", "BaseException") and is_pass(node.body)):
                found.append(f"line {node.lineno}: bare except")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_file_pickles_asks_or_swallows(path: Path) -> None:
    assert offences(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "input('go?')",
        "try:\n    x\nexcept:\n    raise",
        "try:\n    x\nexcept Exception:\n    pass",
        "eval('1')",
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert len(offences(ast.parse(text))) == 1


def test_the_search_allows_what_is_safe() -> None:
    text = "import torch\ntorch.load('x', weights_only=True)\ntry:\n    x\nexcept OSError:\n    pass"
    assert offences(ast.parse(text)) == []
