"""A shoot: pictures one key at a time, told what is wrong with one, kept with the camera's settings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from emulated import EmulatedClaw

from r3l.cli.goal_capture import GoalCapture, babble, sharpness, take_pictures
from r3l.cli.main import main
from r3l.hardware.camera.server import CameraServer
from r3l.hardware.camera.settings import CameraSettings
from r3l.hardware.dclaw.rig import write_rig
from r3l.robot.base import Image
from r3l.robot.safety import SafeRobot
from r3l.run.goals import camera_problem, read_goals
from r3l.run.images import contact_sheet
from r3l.task.registry import load_task

RNG = np.random.default_rng(0)


def picture(seed: int, shift: int = 0) -> Image:
    """Return stripes and blobs: sharp, and another one for each seed."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(60, 200, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    return np.roll(image, shift, 1)


def blurred(image: Image) -> Image:
    small = PIL.Image.fromarray(image).resize((8, 8), PIL.Image.Resampling.BILINEAR)
    return np.asarray(small.resize((64, 64), PIL.Image.Resampling.BICUBIC))


def test_a_good_picture_is_kept_without_a_word_and_undone() -> None:
    shoot = GoalCapture(3)
    assert [shoot.take(picture(seed)) for seed in range(3)] == [[], [], []]
    assert shoot.is_enough
    assert shoot.undo()
    assert not shoot.is_enough
    assert [shoot.undo() for _ in range(3)] == [True, True, False]


def test_what_is_wrong_with_a_picture_is_told_at_once() -> None:
    shoot = GoalCapture(3)
    for seed in range(4):
        shoot.take(picture(seed))
    assert "it is dark" in shoot.take(picture(5) // 20)[0]
    assert "it is blurred" in shoot.take(blurred(picture(6)))[0]
    assert "it is nearly picture 2" in shoot.take(picture(1))[0]
    assert sharpness(picture(6)) > 3 * sharpness(blurred(picture(6)))


@pytest.fixture
def claw() -> Iterator[EmulatedClaw]:
    claw = EmulatedClaw()
    yield claw
    claw.close()
    claw.end()


def behind_safety(claw: EmulatedClaw) -> SafeRobot:
    return SafeRobot(claw, tuple(drive.joint for drive in claw.rig.drives), 0.125)


def test_keys_take_undo_and_end_when_there_are_enough(claw: EmulatedClaw) -> None:
    said: list[str] = []
    shoot = GoalCapture(2)
    with behind_safety(claw) as robot:
        take_pictures(robot, shoot, iter(["", "q", "x", "", "u", "u", "u", "", "", "q", ""]), said.append, RNG)
    assert len(shoot.images) == 2
    assert said[0].startswith("picture 1 of 2 or more")
    assert said[1].startswith("1 more are needed; Enter: take")
    assert said[2].startswith("Enter: take")
    assert said[4:7] == ["1 pictures are left", "0 pictures are left", "there is no picture"]


def test_fingers_that_babble_move_slowly_and_have_no_torque_afterwards(claw: EmulatedClaw) -> None:
    with behind_safety(claw) as robot:
        before = claw.angles
        babble(robot, np.random.default_rng(1))
        assert claw.has_torque == {False}
        assert np.abs(claw.angles - before).max() > 0.2


def test_a_contact_sheet_shows_every_picture(tmp_path: Path) -> None:
    contact_sheet([picture(seed) for seed in range(11)], tmp_path / "sheet.png")
    sheet = np.asarray(PIL.Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 96, 8 * 96, 3)
    tiles = [
        sheet[96 * (at // 8) + 10 : 96 * (at // 8) + 80, 96 * (at % 8) + 10 : 96 * (at % 8) + 80] for at in range(12)
    ]
    assert [tile.std() > 20 for tile in tiles] == [True] * 11 + [False]


class Scene:
    """Another picture each time."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> Image:
        self.number += 1
        return np.kron(picture(self.number // 3), np.ones((4, 4, 1), np.uint8))


def test_goals_are_taken_on_the_hand_with_its_camera_and_kept_with_its_settings(
    claw: EmulatedClaw, tmp_path: Path
) -> None:
    with CameraServer(Scene(), fps=30.0) as server:
        camera = CameraSettings(server.address, crop=(20, 20, 200, 200), max_age_s=5.0)
        write_rig(tmp_path / "rig.toml", dataclasses.replace(claw.rig, control_hz=10.0, camera=camera))
        command = [
            sys.executable,
            "-m",
            "r3l",
            "goals",
            "valve",
            "--robot",
            "dclaw",
            "--rig",
            str(tmp_path / "rig.toml"),
        ]
        command += ["--out", str(tmp_path / "goals")]
        too_few = subprocess.run(command, input="\n" * 3, capture_output=True, text=True, check=False)
        assert too_few.returncode == 2
        assert "3 goal images were taken, expected 20 or more; none is kept" in too_few.stderr
        assert not (tmp_path / "goals").exists()
        found = subprocess.run(command, input="\n" * 22 + "u\nq\n", capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "picture 22 of 20 or more" in found.stdout
    goals = read_goals(tmp_path / "goals")
    assert len(goals.train) + len(goals.held_out) == 21
    assert goals.meta.camera["crop"] == (20.0, 20.0, 200.0, 200.0)
    assert (tmp_path / "goals" / "contact-sheet.png").exists()
    assert claw.has_torque == {False}


def test_goals_of_another_camera_setting_are_refused_for_training(
    claw: EmulatedClaw, tmp_path: Path, goal_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "goals"
    subprocess.run(["cp", "-r", str(goal_folder), str(folder)], check=True)
    meta = json.loads((folder / "goals.json").read_text())
    command = ["train", "valve", "--robot", "dclaw", "--rig", str(tmp_path / "rig.toml"), "--goals", str(folder)]
    command += ["--runs", str(tmp_path / "runs"), "--steps", "100", "--check"]
    with CameraServer(Scene(), fps=30.0) as server:
        camera = CameraSettings(server.address, crop=(0, 0, 100, 100), max_age_s=5.0)
        write_rig(tmp_path / "rig.toml", dataclasses.replace(claw.rig, control_hz=10.0, camera=camera))
        (folder / "goals.json").write_text(json.dumps(meta | {"camera": {"exposure": [], "crop": [8, 0, 100, 100]}}))
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "taken with camera.crop [8.0, 0.0, 100.0, 100.0], the rig has [0.0, 0.0, 100.0, 100.0]" in error
        assert error.count("\n") == 1
        (folder / "goals.json").write_text(json.dumps(meta | {"camera": {"exposure": [], "crop": [0, 0, 100, 100]}}))
        assert main(command) == 0
        assert "robot: 9 joints and a picture, nothing was moved" in capsys.readouterr().out


def test_a_camera_nobody_knows_fits_any(goal_folder: Path) -> None:
    assert camera_problem(read_goals(goal_folder).meta, {"exposure": (3.0,)}) == ""


def test_the_twins_stand_in_arranges_by_key_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "r3l", "goals", "valve", "--by-hand", "--out", str(tmp_path / "goals")]
    found = subprocess.run(command, input="\n" * 20 + "q\n", capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert len(read_goals(tmp_path / "goals").train) == 16
    assert load_task("valve").minimum_goals == 20
