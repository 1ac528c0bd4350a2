"""The page on the first night, followed on the emulated stack: its commands in order, with less to learn."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from emulated import EmulatedClaw

from r3l.cli.main import main

PAGE = (Path(__file__).parent.parent / "docs" / "first-night.md").read_text()
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
ANSWERS = "\n" * 20


def test_the_page_goes_from_the_first_command_to_the_last() -> None:
    words = " ".join(line.split()[1] for line in COMMANDS)
    assert words == "tasks calibrate doctor goals train status train status report evaluate mark play export play"


def test_every_document_that_the_page_names_is_there() -> None:
    for name in re.findall(r"\]\(([a-z-]+\.md)\)", PAGE):
        assert (Path(__file__).parent.parent / "docs" / name).exists()


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.toml").write_text(SHORT)
    claw = EmulatedClaw()
    monkeypatch.setattr("r3l.cli.devices.until_enter", lambda text: iter(()))
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
                line.startswith("r3l mark") and "it stays as it is" in found.err
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
