"""How much of the library each command imports: a command that answers at once imports no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RunMaker, tiny

HEAVY = ("torch", "pybullet", "matplotlib", "scipy", "sklearn", "cv2", "gymnasium", "serial")
LIGHT = """
import json, sys
sys.argv = ["r3l", *{words!r}]
from r3l.__main__ import main
try:
    code = main()
except SystemExit as end:
    code = end.code or 0
print(json.dumps([code, [name for name in {names!r} if name in sys.modules]]), file=sys.stderr)
"""


def imported(names: tuple[str, ...], *words: str) -> tuple[int, list[str]]:
    """Run a command in a process of its own; return its exit code and which of `names` it imported."""
    script = LIGHT.format(words=words, names=names)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, found = json.loads(done.stderr.splitlines()[-1])
    return code, found


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["config"], ["tasks"], ["robots"], ["train", "--help"], ["doctor", "--help"]]
)
def test_a_command_that_needs_no_run_imports_nothing_heavy(words: list[str]) -> None:
    assert imported(HEAVY, *words) == (0, [])


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["config"], ["train", "--help"]])
def test_help_and_settings_need_no_numpy(words: list[str]) -> None:
    assert imported(("numpy",), *words) == (0, [])


@pytest.mark.parametrize(("word", "code"), [("status", 0), ("pause", 2), ("resume", 2), ("relax", 2), ("stop", 2)])
def test_a_command_on_a_run_imports_nothing_heavy(word: str, code: int, tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny())
    if word == "relax":  # without a supervisor this command builds the robot; here there is no run either
        (run.folder / "config.json").unlink()
    assert imported(HEAVY, word, str(run.folder)) == (code, [])


ORDERS = ("import gymnasium, r3l", "import r3l, gymnasium", "import r3l.robot.env")


@pytest.mark.parametrize("imports", ORDERS)
def test_gymnasium_knows_the_environments_in_both_import_orders(imports: str) -> None:
    script = f"""{imports}
import gymnasium, sys
env = gymnasium.make("r3l/Valve-v0", robot="fake")
env.reset()
assert gymnasium.spec("r3l/Valve-v0").nondeterministic
assert gymnasium.spec("r3l/Beads-Resets-v0")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_importing_r3l_imports_neither_gymnasium_nor_torch() -> None:
    script = "import r3l, sys; print([name for name in ('gymnasium', 'torch', 'numpy') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
