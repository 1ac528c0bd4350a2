"""The whole stack without hardware: real bytes, real pictures, the twin's world."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r3l.cli.main import main
from r3l.config.errors import UserError
from r3l.hardware import twin
from r3l.hardware.dclaw import emulated
from r3l.hardware.dclaw.emulated import EmulatedClaw
from r3l.hardware.dclaw.rig import default_rig, write_rig
from r3l.robot.base import FloatArray, RobotError, SimulatedRobot
from r3l.run.directory import Run
from r3l.tasks.valve import Valve

TASK = Valve()
SHORT = """
evaluate_every = 0
[phases]
exploration_steps = 40
homing_steps = 2
[vae]
pretrain_updates = 2
[classifier]
pretrain_updates = 2
"""


@pytest.fixture
def stack() -> Iterator[EmulatedClaw]:
    with emulated.from_task(TASK) as robot:
        yield robot


def targets(count: int, seed: int = 0) -> list[FloatArray]:
    """Return poses near home, each held for some periods."""
    rng = np.random.default_rng(seed)
    offsets = np.repeat(rng.uniform(-0.25, 0.25, (count // 4 + 1, 9)), 4, 0)[:count]
    return [(TASK.rig.home_rad + offset).astype(np.float32) for offset in offsets]


def drive(robot: SimulatedRobot, poses: list[FloatArray]) -> FloatArray:
    seen = []
    for pose in poses:
        robot.command(pose)
        seen.append(robot.observe().joint_rad)
    return np.array(seen, np.float32)


def test_fingers_move_as_the_twins_do(stack: EmulatedClaw) -> None:
    poses = targets(40)
    ours = drive(stack, poses)
    with twin.from_task(TASK) as other:
        theirs = drive(other, poses)
    assert np.abs(ours - theirs).mean() < 0.02
    assert np.abs(ours - theirs).max() < 0.15


def test_the_camera_sees_what_the_twins_does(stack: EmulatedClaw) -> None:
    for pose in targets(8):
        stack.command(pose)
        image = stack.observe().image
        assert np.abs(image.astype(int) - stack.twin.camera_image()).mean() < 6, "but for what JPEG makes of it"


def test_damaged_packets_leave_gaps_and_no_wrong_value(stack: EmulatedClaw) -> None:
    assert stack.emulator is not None
    stack.emulator.faults.corrupt = 0.01
    clean_seen = drive(stack, targets(60))
    assert np.isnan(clean_seen).mean() < 0.01
    assert np.nanmax(np.abs(np.diff(clean_seen, axis=0))) < 0.6


def test_a_camera_that_is_lost_is_told_and_found_again(stack: EmulatedClaw) -> None:
    assert stack.server is not None
    stack.server.faults.refuses = True
    until_s = time.monotonic() + 20
    while not stack.troubles and time.monotonic() < until_s:
        stack.observe()
    assert [(each.name, each.action) for each in stack.troubles] == [("camera", "skip")]
    stack.server.faults.refuses = False
    while stack.troubles and time.monotonic() < until_s:
        stack.observe()
    assert stack.troubles == ()


def test_a_servo_that_browns_out_comes_back_in_the_world_too(stack: EmulatedClaw) -> None:
    assert stack.emulator is not None
    drive(stack, targets(4))
    stack.emulator.brown_out([11])
    stack.command(targets(1)[0])
    stack.observe()
    assert [each.name for each in stack.troubles] == ["restarted-finger0_curl"]
    drive(stack, targets(4))
    assert stack.troubles == ()


@pytest.mark.slow
def test_a_run_trains_through_the_stack_and_is_evaluated_on_it_and_on_the_twin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goal_folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.toml").write_text(SHORT)
    command = ["train", "valve", "--robot", "dclaw-emulated", "--goals", str(goal_folder), "--steps", "60", "--sync"]
    assert main([*command, "--config", "short.toml", "--device", "cpu", "--name", "stack"]) == 0
    run = Run.open(tmp_path / "runs" / "stack")
    assert run.newest_snapshot() == 60
    for robot, folder in ((None, "evaluation"), ("twin", "evaluation-twin")):
        options = ["--robot", robot] if robot else []
        assert main(["evaluate", str(run.folder), "--episodes", "2", "--no-baselines", *options]) == 0
        found = json.loads((run.folder / folder / "evaluation.json").read_text())
        assert found["policy"]["episodes"] == 2


@pytest.fixture
def rig_file(tmp_path: Path) -> Path:
    path = tmp_path / "rig.toml"
    write_rig(path, default_rig())
    return path


def test_a_twin_with_the_rig_moves_and_is_limited_as_the_stack_is(rig_file: Path) -> None:
    crossed = np.array(Valve().rig.home_rad, np.float32)
    crossed[[0, 3, 6]] = [1.0, 1.0, -1.0]  # fingers swing towards each other
    for poses, apart_rad in ((targets(40), 0.01), ([crossed] * 8, 0.01)):
        found = []
        for robot in (emulated.from_task(TASK, rig=rig_file), twin.from_task(TASK, rig=rig_file)):
            with robot:
                found.append(np.array([(robot.command(pose), robot.observe().joint_rad) for pose in poses]))
        assert found[0] == pytest.approx(found[1], abs=apart_rad)
    assert np.abs(found[0][-1, 0] - crossed).max() > 0.1, "they may not cross"


def test_a_twin_with_the_rig_goes_on_from_its_world(rig_file: Path) -> None:
    before, after = targets(4), targets(8)[4:]
    with twin.from_task(TASK, rig=rig_file) as robot:
        drive(robot, before)
        world = robot.save_world()
        expected = drive(robot, after)
        robot.restore_world(world)
        assert drive(robot, after) == pytest.approx(expected, abs=2e-3)
    with twin.from_task(TASK) as other, pytest.raises(RobotError, match="not of this task"):
        other.restore_world(world)


def test_a_rig_that_does_not_fit_the_twin_is_told(tmp_path: Path, rig_file: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        twin.from_task(TASK, rig=tmp_path / "nowhere.toml")
    write_rig(rig_file, replace(default_rig(), control_hz=20.0))
    with pytest.raises(UserError, match="has control_hz 20, task 'valve' 10; make them equal"):
        twin.from_task(TASK, rig=rig_file)


def test_faults_to_order_are_met_and_the_robot_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R3L_STACK_FAULTS", '{"corrupt": 0.02, "camera_lost_every": 20}')
    troubles = []
    with emulated.from_task(TASK) as robot:
        for pose in targets(32):
            robot.command(pose)
            robot.observe()
            troubles.append({each.name for each in robot.troubles})
        assert robot.emulator is not None
        assert robot.emulator.faults.corrupt == 0.02
    assert not any("camera" in names for names in troubles[:20])
    assert any("camera" in names for names in troubles[20:25])
    assert "camera" not in troubles[-1]


@pytest.mark.parametrize("text", ["{", "[]", '{"corupt": 1}', '{"corrupt": "much"}'])
def test_faults_that_cannot_be_read_are_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("R3L_STACK_FAULTS", text)
    with pytest.raises(UserError, match="R3L_STACK_FAULTS is"):
        emulated.from_task(TASK)
