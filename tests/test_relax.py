"""`r3l relax` when no supervisor listens: the command relaxes the robot itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunMaker, tiny
from emulated import EmulatedClaw

from r3l.cli.main import main
from r3l.hardware.dclaw.rig import write_rig
from r3l.run.directory import Run
from r3l.training.control_socket import ControlServer

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def claw() -> Iterator[EmulatedClaw]:
    claw = EmulatedClaw(control_hz=10.0)
    for servo in claw.servos.values():
        servo.set_counts("torque_enable", 1)  # as a process that was killed left it
    yield claw
    claw.end()


@pytest.fixture
def run(claw: EmulatedClaw, tmp_path: Path, make_run: RunMaker) -> Run:
    """A run on the hand."""
    run = make_run(tmp_path / "run", tiny(robot="dclaw"))
    write_rig(tmp_path / "rig.toml", claw.rig)
    run.keep_rig(tmp_path / "rig.toml")
    return run


def test_relax_takes_the_torque_off_without_a_supervisor(run: Run, claw: EmulatedClaw, capsys: Captured) -> None:
    assert main(["relax", str(run.folder)]) == 0
    assert capsys.readouterr().out == f"robot 'dclaw' is relaxed; no supervisor listens in {run.folder}\n"
    assert claw.has_torque == {False}


def test_a_socket_that_a_killed_supervisor_left_is_no_supervisor(run: Run, claw: EmulatedClaw) -> None:
    from r3l.training.control_socket import listen

    listen(run.control).close()
    assert main(["relax", str(run.folder)]) == 0
    assert claw.has_torque == {False}


def test_direct_asks_no_supervisor(run: Run, claw: EmulatedClaw, capsys: Captured) -> None:
    asked: list[str] = []

    def answer(word: str) -> str:
        asked.append(word)
        return "relaxing"

    with ControlServer(run.control, answer):
        assert main(["relax", "--direct", str(run.folder)]) == 0
    assert asked == []
    assert capsys.readouterr().out == "robot 'dclaw' is relaxed; no supervisor was asked\n"
    assert claw.has_torque == {False}


def test_a_process_that_still_uses_the_run_is_named(run: Run, claw: EmulatedClaw, capsys: Captured) -> None:
    with run.lock():
        assert main(["relax", str(run.folder)]) == 2
    assert f"process {os.getpid()} still uses the run" in capsys.readouterr().err
    assert claw.has_torque == {False}


def test_a_hand_that_does_not_answer_is_an_error(run: Run, claw: EmulatedClaw, capsys: Captured) -> None:
    claw.emulator.unplug()
    assert main(["relax", str(run.folder)]) == 2
    assert capsys.readouterr().err.startswith("r3l: ")


def test_the_other_words_leave_the_robot_alone(run: Run, claw: EmulatedClaw, capsys: Captured) -> None:
    for word in ("pause", "resume", "stop"):
        assert main([word, str(run.folder)]) == 2
        assert "no run is going on" in capsys.readouterr().err
    assert claw.has_torque == {True}


def test_a_simulated_robot_needs_no_relaxing(tmp_path: Path, make_run: RunMaker, capsys: Captured) -> None:
    run = make_run(tmp_path / "run", tiny())
    assert main(["relax", str(run.folder)]) == 0
    assert "robot 'fake' is simulated: nothing is to be relaxed" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["pause", "resume", "relax", "stop"])
def test_a_folder_that_is_no_run_is_said_to_be_none(word: str, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        assert main([word, str(place)]) == 2
        assert f"{place} is not a run directory" in capsys.readouterr().err
