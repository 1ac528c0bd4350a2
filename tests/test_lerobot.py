"""LeRobot's shape of a robot: torque, what is missing, what fails now and then; the contract suite has it too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from peer_arm import PeerArm

from r3l.config.errors import UserError
from r3l.hardware.lerobot import MAX_FAILURES, LeRobot
from r3l.robot.base import CameraSpec, Robot, RobotError

LIMITS = PeerArm.LIMITS


def made(arm: Any, limits: Any = LIMITS, **options: Any) -> Robot:
    robot: Robot = LeRobot(arm, limits, control_hz=50.0, **options)
    return robot


def test_degrees_become_radians_both_ways_and_the_view_the_camera() -> None:
    arm = PeerArm()
    with made(arm, camera=CameraSpec(32, 24)) as robot:
        assert robot.spec.upper_rad == pytest.approx(np.deg2rad([90, 60, 100]), abs=1e-6)
        seen = robot.observe()
        assert seen.joint_rad == pytest.approx(np.deg2rad([10, 10, 10]), abs=1e-6)
        assert seen.image.shape == (24, 32, 3)
        sent = robot.command(np.deg2rad(np.array([12, 8, 200], np.float32)))
        assert sent == pytest.approx(np.deg2rad([12, 8, 100]), abs=1e-6)
        assert arm.goals == pytest.approx({"pan": 12, "lift": 8, "grip": 100})


def test_torque_comes_on_where_the_joints_are_and_ends_off() -> None:
    arm = PeerArm()
    with made(arm) as robot:
        assert not arm.has_torque
        assert not arm.asked_to_calibrate, "nobody is there to answer"
        for _ in range(2):
            robot.observe()
            arm.degrees["pan"] += 30.0  # somebody moves it while it is relaxed
            robot.command(np.deg2rad(np.array(list(arm.degrees.values()), np.float32)))
            assert arm.has_torque
            robot.observe()
            robot.relax()
            assert not arm.has_torque
        assert arm.farthest < 1.0, "no lunge to a stale goal"
        robot.command(robot.observe().joint_rad)
    assert not arm.has_torque
    assert not arm.is_connected


def test_torque_is_off_after_an_exception() -> None:
    arm = PeerArm()

    def fail() -> None:
        with made(arm) as robot:
            robot.command(robot.observe().joint_rad)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not arm.has_torque


def test_what_fails_once_is_left_out_and_what_fails_on_pauses_until_it_answers() -> None:
    arm = PeerArm()
    with made(arm) as robot:
        robot.command(robot.observe().joint_rad)
        arm.is_silent = True
        seen = robot.observe()
        assert np.isnan(seen.joint_rad).all()
        assert [(each.name, each.action) for each in robot.troubles] == [("lerobot", "skip")]
        assert "There is no status packet!" in robot.troubles[0].message
        for _ in range(MAX_FAILURES):
            robot.observe()
        assert robot.troubles[0].action == "pause"
        goals = dict(arm.goals)
        robot.command(robot.spec.lower_rad)
        assert arm.goals == goals
        with pytest.raises(RobotError, match="take its power away"):
            robot.relax()
        arm.is_silent = False
        assert np.isfinite(robot.observe().joint_rad).all()
        assert not robot.troubles
        assert not arm.has_torque, "connected again, and relaxed"


def test_a_joint_that_is_missing_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = PeerArm()
    with made(arm) as robot:
        usual = arm.get_observation
        monkeypatch.setattr(arm, "get_observation", lambda: {**usual(), "lift.pos": None})
        assert np.isnan(robot.observe().joint_rad).tolist() == [False, True, False]


class TwoViews(PeerArm):
    @property
    def observation_features(self) -> dict[str, Any]:
        return {**super().observation_features, "wrist": (48, 64, 3)}


class Wheeled(PeerArm):
    @property
    def action_features(self) -> dict[str, Any]:
        return {**super().action_features, "x.vel": float}


class Blind(PeerArm):
    @property
    def observation_features(self) -> dict[str, Any]:
        return {"pan.pos": float, "front": (48, 64, 3)}


class Busless(PeerArm):
    def __init__(self) -> None:
        super().__init__()
        del self.bus


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: made(TwoViews()), "has cameras front, wrist; view is None"),
        (lambda: made(PeerArm(), view="wrist"), "has cameras front; view is 'wrist'"),
        (lambda: made(Wheeled()), "acts on .*x.vel.*positions alone"),
        (lambda: made(Blind()), "does not observe lift.pos"),
        (lambda: made(Busless()), "pass release= and hold="),
        (lambda: made(PeerArm(), {"pan": (-1.0, 1.0)}), "expected those of every joint"),
        (lambda: made(PeerArm(), LIMITS | {"pan": (1.0, -1.0)}), "limits of pan are 1 to -1"),
        (lambda: made(PeerArm(), LIMITS | {"pan": (float("nan"), 1.0)}), "limits of pan"),
    ],
)
def test_a_peer_that_does_not_fit_is_told_at_once(make: Callable[[], Robot], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_a_peer_that_is_not_calibrated_or_not_there_is_told_and_let_go() -> None:
    arm = PeerArm()
    arm.is_calibrated = False
    with pytest.raises(RobotError, match="is not calibrated"):
        made(arm).connect()
    assert (arm.is_connected, arm.has_torque) == (False, False)
    arm = PeerArm()
    arm.is_silent = True
    with pytest.raises(RobotError, match=r"peer_arm cannot be connected \(There is no status packet!\)"):
        made(arm).connect()
    assert not arm.is_connected


def test_pictures_that_are_none_are_told() -> None:
    arm = PeerArm()
    arm.picture = arm.picture.astype(np.float32)
    with pytest.raises(RobotError, match="expected uint8"):
        made(arm).connect()
    assert not arm.has_torque


def test_lerobot_itself_is_never_imported() -> None:
    code = "import sys, r3l.hardware.lerobot; print(sorted(n for n in sys.modules if n.split('.')[0] == 'lerobot'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
