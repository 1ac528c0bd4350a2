"""Tests of docs/first-night.md: its commands, in order, on the emulated stack, with shorter training."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from emulated import EmulatedClaw

from r3l.cli.main import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "first-night.md").read_text()
INSTALL = re.findall(r"```sh install\n(.*?)```", PAGE, re.DOTALL)[0].splitlines()
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "r3l", "hardware", "tasks")
BLOCKS = re.findall(r"```sh[^\n]*\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("r3l ")]
SHORT = """
evaluate_every = 0
[phases]
exploration_steps = 60
homing_steps = 2
[vae]
pretrain_updates = 2
[classifier]
pretrain_updates = 2
"""
LESS = {
    "--steps 2500": "--steps 90 --config short.toml",
    "--hours 12": "--steps 90 --config short.toml",
    "--episodes 12": "--episodes 4",
    "--episodes 3": "--episodes 1",
}


def test_the_page_goes_from_the_first_command_to_the_last() -> None:
    words = " ".join(line.split()[1] for line in COMMANDS)
    assert words == "tasks calibrate doctor goals train status train status report evaluate mark play export play"


def test_every_document_that_the_page_names_is_there() -> None:
    for name in re.findall(r"\]\(([a-z-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / name).exists()


@pytest.mark.slow
def test_the_page_installs_what_it_says(tmp_path: Path) -> None:
    """Run the page's lines in a new environment that sees the packages of this one, so that pip only builds R3L."""
    assert INSTALL[0] == "python3.11 -m venv .venv && source .venv/bin/activate"
    for name in SOURCES:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        (shutil.copytree(source, tmp_path / name, ignore=ignored) if source.is_dir() else shutil.copy(source, tmp_path))
    made = tmp_path / ".venv"
    venv.create(made, with_pip=True)
    seen = [path for path in sys.path if path.endswith("site-packages")]
    next(made.glob("lib/*/site-packages")).joinpath("packages.pth").write_text("\n".join(seen))
    script = "set -eu\nsource .venv/bin/activate\n" + "\n".join(INSTALL[1:]) + "\nwhich r3l"
    found = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert [line.split()[0] for line in found.stdout.splitlines()[-4:-1]] == ["beads", "reposition", "valve"]
    assert Path(found.stdout.splitlines()[-1]) == made / "bin" / "r3l"


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.toml").write_text(SHORT)
    claw = EmulatedClaw()
    monkeypatch.setattr("r3l.hardware.dclaw.commands.until_enter", lambda text: iter(()))
    shown: dict[str, str] = {}
    try:
        for line in COMMANDS:
            asked = line.replace("/tmp/hand", str(claw.rig.bus.port))
            for much, less in LESS.items():
                asked = asked.replace(much, less)
            monkeypatch.setattr("sys.stdin", io.StringIO("y\nn\n" * 4))
            code = main(asked.split()[1:])
            found = capsys.readouterr()
            shown[line] = found.out
            is_unmarked = (
                line.startswith("r3l mark") and "the judge is unchanged" in found.err
            )  # a judge that learned nothing
            assert code == 0 or is_unmarked, f"{asked}: {found.err}"
    finally:
        claw.end()
    for promised in (
        "ok    servos: all 9 answer, XM430-W210",
        "200 goal images for training and 50 held out are in goals/valve",
        "run directory: runs/first-hour",
        "look at runs/night/by-eye-1/contact-sheet.png; next: r3l mark runs/night",
        "episode 1: judged",
        "episode 1: done",
    ):
        assert any(promised in text for text in shown.values()), promised
    assert (tmp_path / "runs" / "night" / "report.html").exists()
