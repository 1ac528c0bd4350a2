"""Commands that drivers and other installed packages add, and those of them that cannot be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = '''
"""A command of another package."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Wave:
    """Wave with the head.

    Twice by default.
    """

    times: int = 2
    """Number of waves."""

    def __call__(self) -> int:
        """Wave."""
        print("wave " * self.times)
        return 3
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed package that adds commands, some of which cannot be imported."""
    (tmp_path / "head.py").write_text(COMMAND)
    (tmp_path / "lame.py").write_text("import serial_of_another_world\n")
    (tmp_path / "wired.py").write_text("import sys; sys.modules['serial'] = None\nimport serial\n")
    about = tmp_path / "head-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: head\nVersion: 0.1\n")
    points = [
        "wave = head:Wave",
        "typo = head:Waev",
        "lame = lame:Command",
        "wired = wired:Command",
        "train = head:Wave",
    ]
    (about / "entry_points.txt").write_text("[r3l.commands]\n" + "\n".join(points) + "\n")
    return tmp_path


def r3l(package: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "r3l", *words]
    env = os.environ | {"PYTHONPATH": str(package)}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_another_package_adds_a_command(package: Path) -> None:
    done = r3l(package, "wave", "--times", "3")
    assert (done.returncode, done.stdout) == (3, "wave wave wave \n")
    assert "Number of waves." in r3l(package, "wave", "--help").stdout
    assert "did you mean 'wave'?" in r3l(package, "wavee").stderr
    assert (
        "unknown option '--tims'; did you mean '--times'?; see r3l wave --help" in r3l(package, "wave", "--tims").stderr
    )


def test_a_command_that_cannot_be_imported_costs_only_itself(package: Path) -> None:
    overview = r3l(package, "--help")
    assert overview.returncode == 0
    for line in (
        "  wave       Wave with the head.",
        "  train      Train unattended from goal images",
        "  lame       command 'lame' needs the package 'serial_of_another_world', which is not installed",
        "  wired      command 'wired' needs the package 'serial', which is not installed; in the clone: pip install "
        "'.[dynamixel]'",
        "  typo       command 'typo' cannot be loaded: head:Waev: AttributeError",
    ):
        assert f"\n{line}" in overview.stdout
    for name in ("lame", "wired", "typo"):
        done = r3l(package, name)
        assert done.returncode == 2
        assert done.stderr.startswith(f"r3l: command {name!r} ")
        assert done.stderr.count("\n") == 1
    assert r3l(package, "tasks").returncode == 0


def test_a_driver_without_its_package_is_one_line() -> None:
    script = "import sys; sys.modules['serial'] = None; from r3l.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "doctor", "rig.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = "command 'doctor' needs the package 'serial', which is not installed"
    assert (done.returncode, done.stderr) == (2, f"r3l: {told}; in the clone: pip install '.[dynamixel]'\n")


def test_the_core_imports_no_driver() -> None:
    for path in (Path(__file__).parent.parent / "r3l").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) r3l\.(hardware|tasks)\b", path.read_text(), re.MULTILINE), path
