from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from r3l.hardware.fake import Fake
from r3l.robot.base import CameraSpec, FloatArray, Joint, Observation, Robot, RobotError, RobotSpec
from r3l.robot.pacing import RealTime
from r3l.robot.rig import JointRange, Rig
from r3l.robot.safety import SafeRobot, make_safe

WIDE = tuple(Joint(f"joint{index}", -2.0, 2.0) for index in range(3))
NARROW = tuple(Joint(f"joint{index}", -0.5, 1.0) for index in range(3))


class Recorder(Robot):
    """A robot that is at its target at once and remembers everything that it was sent."""

    def __init__(self) -> None:
        self.sent: list[FloatArray] = []
        self.joint_rad = np.zeros(3, np.float32)

    @property
    def spec(self) -> RobotSpec:
        return RobotSpec(WIDE, 10.0, CameraSpec(8, 8))

    def connect(self) -> None: ...

    def observe(self) -> Observation:
        return Observation(np.zeros((8, 8, 3), np.uint8), self.joint_rad.copy(), 0.0, np.zeros(0, np.float32))

    def command(self, target_rad: FloatArray) -> FloatArray:
        self.sent.append(target_rad.copy())
        self.joint_rad = target_rad.copy()
        return target_rad

    def relax(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def robot() -> Recorder:
    return Recorder()


@pytest.fixture
def safe(robot: Recorder) -> SafeRobot:
    safe = SafeRobot(robot, NARROW, max_step_rad=0.25)
    safe.connect()
    return safe


def vector(*values: float) -> FloatArray:
    return np.array(values, np.float32)


@pytest.mark.parametrize("reading", [40.0, -9.0, 3.2])
def test_no_motion_begins_from_where_no_joint_can_be(robot: Recorder, safe: SafeRobot, reading: float) -> None:
    robot.joint_rad = vector(0.0, reading, 0.0)
    with pytest.raises(RobotError, match=f"joint 'joint1' reads {reading:.2f} rad, expected about -2.00 to 2.00"):
        safe.command(vector(0.0, 0.0, 0.0))
    assert not robot.sent


def test_a_joint_pushed_beyond_its_own_limit_is_sent_no_farther_than_that(robot: Recorder, safe: SafeRobot) -> None:
    robot.joint_rad = vector(0.0, 2.6, 0.0)
    safe.command(vector(0.0, 0.0, 0.0))
    assert robot.sent[0] == pytest.approx(vector(0.0, 2.0, 0.0))


@pytest.mark.parametrize(
    "target",
    [
        vector(0.1, math.nan, 0.1),
        vector(math.inf, 0.0, 0.0),
        vector(0.0, 0.0, -math.inf),
        vector(0.1, 0.1),
        vector(0.1, 0.1, 0.1, 0.1),
        vector(),
        vector(0.1),
        vector(0.1, 0.1, 0.1)[None],
    ],
)
def test_a_command_that_is_not_finite_or_of_the_wrong_length_is_refused_and_nothing_is_sent(
    robot: Recorder, safe: SafeRobot, target: FloatArray
) -> None:
    with pytest.raises(RobotError, match="refused"):
        safe.command(target)
    assert robot.sent == []
    assert safe.counts() == {"commands": 1, "refused": 1, "position_limited": 0, "speed_limited": 0}
    safe.command(vector(0.1, 0.1, 0.1))
    assert len(robot.sent) == 1


def test_targets_stay_within_the_workspace(robot: Recorder, safe: SafeRobot) -> None:
    for _ in range(10):
        safe.command(vector(5.0, -5.0, 0.9))
    assert robot.sent[-1] == pytest.approx([1.0, -0.5, 0.9])
    assert safe.counts()["position_limited"] == 10


def test_targets_move_at_most_one_step_per_command_from_the_measured_pose(robot: Recorder, safe: SafeRobot) -> None:
    robot.joint_rad = vector(0.0, 0.5, -0.4)
    applied = [safe.command(vector(1.0, 0.5, -0.5)) for _ in range(5)]
    assert [float(target[0]) for target in applied] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert [target.tolist() for target in applied] == [target.tolist() for target in robot.sent]
    assert applied[0][1:] == pytest.approx([0.5, -0.5])
    assert safe.counts() == {"commands": 5, "refused": 0, "position_limited": 0, "speed_limited": 3}


def test_the_step_is_limited_from_the_last_target_even_when_the_robot_lags(robot: Recorder, safe: SafeRobot) -> None:
    for _ in range(2):
        safe.command(vector(1.0, 0.0, 0.0))
        robot.joint_rad = np.zeros(3, np.float32)
    assert robot.sent[-1][0] == pytest.approx(0.5)


def test_a_robot_pushed_out_of_its_workspace_comes_back_slowly(robot: Recorder, safe: SafeRobot) -> None:
    robot.joint_rad = vector(1.5, 0.0, 0.0)
    sent = [float(safe.command(vector(1.8, 0.0, 0.0))[0]) for _ in range(3)]
    assert sent == pytest.approx([1.25, 1.0, 1.0])


@pytest.mark.parametrize("moved_by", ["forget", "relax"])
def test_after_other_hands_moved_the_robot_the_step_is_limited_from_where_it_is(
    robot: Recorder, safe: SafeRobot, moved_by: str
) -> None:
    safe.command(vector(0.2, 0.2, 0.2))
    getattr(safe, moved_by)()
    assert safe.newest_target is None
    robot.joint_rad = vector(0.9, 0.0, 0.0)
    assert safe.command(vector(0.2, 0.2, 0.2)) == pytest.approx([0.65, 0.2, 0.2])


def test_after_a_resume_the_step_is_limited_from_the_target_before_it(robot: Recorder, safe: SafeRobot) -> None:
    safe.continue_from([0.5, 0.0, 0.0])
    assert safe.newest_target == pytest.approx([0.5, 0.0, 0.0])
    assert safe.command(vector(1.0, 0.0, 0.0)) == pytest.approx([0.75, 0.0, 0.0])


def test_its_spec_shows_the_workspace(robot: Recorder, safe: SafeRobot) -> None:
    assert safe.spec == replace(robot.spec, joints=NARROW)


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        ((Joint("joint0", -0.5, 2.5), *NARROW[1:]), "does not fit robot joint 'joint0'"),
        ((Joint("joint0", -2.5, 0.5), *NARROW[1:]), "does not fit robot joint 'joint0'"),
        ((NARROW[1], NARROW[0], NARROW[2]), "the rig has joints .*'joint1'"),
    ],
)
def test_a_rig_that_does_not_fit_the_robot_is_refused(robot: Recorder, joints: tuple[Joint, ...], message: str) -> None:
    with pytest.raises(RobotError, match=message):
        SafeRobot(robot, joints, 0.25)


@pytest.mark.parametrize("step", [0.0, -0.1, math.nan, math.inf])
def test_a_step_limit_that_limits_nothing_is_refused(robot: Recorder, step: float) -> None:
    with pytest.raises(RobotError, match="max_step_rad"):
        SafeRobot(robot, NARROW, step)


@pytest.mark.parametrize("joints", [NARROW[:2], (*NARROW, Joint("joint3", -0.5, 0.5)), ()])
def test_a_rig_with_another_number_of_joints_is_refused(robot: Recorder, joints: tuple[Joint, ...]) -> None:
    with pytest.raises(RobotError):
        SafeRobot(robot, joints, 0.25)


def test_a_rig_with_limits_the_wrong_way_round_is_refused(robot: Recorder) -> None:
    with pytest.raises(RobotError):
        SafeRobot(robot, (Joint("joint0", 0.5, -0.5), *NARROW[1:]), 0.25)


def test_a_measured_pose_that_is_not_finite_never_reaches_the_wire(robot: Recorder, safe: SafeRobot) -> None:
    robot.joint_rad = vector(math.nan, 0.0, 0.0)
    with pytest.raises(RobotError):
        safe.command(vector(0.1, 0.1, 0.1))
    assert robot.sent == []


def test_writing_into_a_returned_target_does_not_lift_the_limit(robot: Recorder, safe: SafeRobot) -> None:
    applied = safe.command(vector(0.0, 0.0, 0.0))
    applied += 1.0
    assert safe.command(vector(1.0, 0.0, 0.0)) == pytest.approx([0.25, 0.0, 0.0])


def test_placing_the_object_needs_a_simulated_world_and_measures_before_the_next_command(
    robot: Recorder, safe: SafeRobot
) -> None:
    with pytest.raises(RobotError, match="use a simulated robot"):
        safe.place(vector(0.0))
    fake = Fake(WIDE, vector(0.0, 0.0, 0.0))
    with SafeRobot(RealTime(fake), NARROW, 0.25) as placed:
        placed.command(vector(0.2, 0.0, 0.0))
        placed.place(vector(1.0))
        assert placed.newest_target is None
        assert fake.truth()["angle_rad"] == pytest.approx(1.0)


def test_only_a_simulated_robot_is_paced(robot: Recorder) -> None:
    rig = Rig(10.0, 0.25, CameraSpec(), {joint.name: JointRange(-0.5, 1.0, 0.0) for joint in WIDE})
    fake = Fake(WIDE, vector(0.0, 0.0, 0.0))
    assert isinstance(make_safe(fake, rig, real_time=True).robot, RealTime)
    assert make_safe(fake, rig).robot is fake
    assert make_safe(robot, rig, real_time=True).robot is robot, "a real robot paces itself"
    assert make_safe(fake, rig).spec.joints == NARROW
