"""The page on new robots, followed: its file is installed, found and tried with the contract suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from r3l.hardware.dynamixel.control_table import XL330_M288
from r3l.hardware.dynamixel.emulator import Emulator
from r3l.hardware.dynamixel.servo import Servo

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "new-robot.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the page's file in it, and what pip would say of it."""
    (tmp_path / "head.py").write_text(FILES["head.py"])
    entry_points = re.search(r'points."(r3l.robots)"\]\n(\w+) = "(\S+)"', FILES["pyproject.toml"])
    assert entry_points is not None
    group, name, place = entry_points.groups()
    about = tmp_path / "head-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: head\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {place}\n")
    return tmp_path


@pytest.fixture
def servos(folder: Path) -> Iterator[Emulator]:
    """The two servos that the page emulates."""
    with Emulator([Servo(servo, XL330_M288) for servo in (1, 2)], link=folder / "port") as emulator:
        (folder / "head.rig").write_text(f"{folder / 'port'}\n")
        yield emulator


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)


def test_a_robot_from_another_package_is_listed(folder: Path) -> None:
    assert "head\n" in run(folder, "r3l", "robots").stdout


def test_the_pages_robot_keeps_the_contract(folder: Path, servos: Emulator) -> None:
    suite = ["pytest", "tests/test_robot_contract.py", "-n", "0", "-p", "no:cacheprovider"]
    found = run(folder, *suite, "--robot", "head", "--rig", str(folder / "head.rig"), "-k", "head", "-v")
    assert found.returncode == 0, found.stdout[-3000:]
    assert found.stdout.count("PASSED") + found.stdout.count(".") >= 15
    assert not any(servo.is_on for servo in servos.servos.values())


def test_the_suite_finds_a_robot_that_breaks_it(folder: Path, servos: Emulator) -> None:
    broken = FILES["head.py"].replace("return target.copy()", "return target + 0.3")
    (folder / "head.py").write_text(broken)
    suite = ["pytest", "tests/test_robot_contract.py", "-n", "0", "-p", "no:cacheprovider"]
    found = run(folder, *suite, "--robot", "head", "--rig", str(folder / "head.rig"), "-k", "head and reach")
    assert found.returncode == 1
    assert "test_a_target_within_reach_is_sent_as_asked" in found.stdout
