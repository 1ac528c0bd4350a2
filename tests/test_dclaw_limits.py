"""What the hand may be sent to, and what its guard makes of readings."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r3l.hardware import twin
from r3l.hardware.dclaw.envelope import Envelope
from r3l.hardware.dclaw.guard import MAX_REBOOTS, MAX_SILENT, WITHIN_S, Guard, Health
from r3l.hardware.dclaw.kinematics import Box, Geometry, Kinematics, Workspace, segment_distance
from r3l.hardware.dclaw.rig import default_rig
from r3l.hardware.dynamixel.chain import Readings
from r3l.tasks.valve import Valve

RIG = default_rig()
JOINTS = tuple(drive.joint for drive in RIG.drives)
LOWER = np.array([joint.min_rad for joint in JOINTS])
UPPER = np.array([joint.max_rad for joint in JOINTS])
STEP_RAD = 0.25
KINEMATICS = Kinematics(Geometry(), Workspace())
poses = st.lists(st.floats(-1, 1), min_size=9, max_size=9).map(
    lambda shares: ((LOWER + UPPER) / 2 + np.array(shares) * (UPPER - LOWER) / 2).astype(np.float32)
)
numbers = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=9, max_size=9)
anything = numbers.map(lambda values: np.array(values, np.float32))


def test_the_fingers_are_where_the_twins_are() -> None:
    robot = twin.from_task(Valve())
    rng = np.random.default_rng(0)
    with robot:
        for _ in range(20):
            robot.command(rng.uniform(LOWER, UPPER).astype(np.float32))
            points = KINEMATICS.points(np.array([angle for angle, _, _ in robot.joint_states()]))
            for finger in range(3):
                place, turn = robot.client.getLinkState(robot.fingers[finger], 2, computeForwardKinematics=1)[4:6]
                axes = np.array(robot.client.getMatrixFromQuaternion(turn)).reshape(3, 3)
                assert points[finger, 1] == pytest.approx(place, abs=1e-6)
                assert points[finger, 2] == pytest.approx(place + axes @ [0, 0, -0.068], abs=1e-6)


def test_the_distance_of_two_segments_is_that_of_their_nearest_points() -> None:
    rng = np.random.default_rng(1)
    share = np.linspace(0, 1, 300)[:, None]
    for _ in range(100):
        a, b, c, d = rng.normal(size=(4, 3))
        points, others = a + share * (b - a), c + share * (d - c)
        nearest = np.linalg.norm(points[:, None] - others[None], axis=-1).min()
        found = segment_distance(a, b, c, d)
        assert nearest - 0.02 < found <= nearest + 1e-9
    parallel = segment_distance(*np.array([[0, 0, 0], [1, 0, 0], [0.2, 1, 0], [0.8, 1, 0]], float))
    assert parallel == pytest.approx(1.0)
    crossing = segment_distance(*np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0]], float))
    assert crossing == pytest.approx(0.0)


@given(target=anything, begin=poses)
def test_what_may_be_sent_is_in_every_limit_or_no_farther_out(target: np.ndarray, begin: np.ndarray) -> None:
    envelope = Envelope(JOINTS, STEP_RAD, KINEMATICS)
    sent = envelope.limit(target, begin)
    assert sent.dtype == np.float32
    assert (sent >= LOWER - 1e-6).all()
    assert (sent <= UPPER + 1e-6).all()
    assert (np.abs(sent - begin) <= STEP_RAD + 1e-6).all()
    assert KINEMATICS.excess(sent) <= max(KINEMATICS.excess(begin), 0.0) + 1e-6


@given(begin=poses, shares=st.lists(st.floats(-1, 1), min_size=9, max_size=9))
def test_a_step_that_keeps_all_rules_is_sent_as_asked(begin: np.ndarray, shares: list[float]) -> None:
    target = np.clip(begin + STEP_RAD * np.array(shares, np.float32), LOWER, UPPER).astype(np.float32)
    if KINEMATICS.excess(target) <= 0:
        sent = Envelope(JOINTS, STEP_RAD, KINEMATICS).limit(target, begin)
        assert sent == pytest.approx(target, abs=1e-6)


def test_a_hand_outside_comes_back_step_by_step() -> None:
    envelope = Envelope(JOINTS, STEP_RAD, KINEMATICS)
    # The smallest bend inwards at which fingertips are nearer than allowed.
    bends = (np.array([0.0, bend, bend] * 3, np.float32) for bend in np.arange(0.2, 1.0, 0.02))
    pose = next(each for each in bends if KINEMATICS.excess(each) > 0)
    before = KINEMATICS.excess(pose)
    for _ in range(12):
        pose = envelope.limit(np.zeros(9, np.float32), pose)
        after = KINEMATICS.excess(pose)
        assert after <= max(before, 0.0) + 1e-6
        before = after
    assert pose == pytest.approx(np.zeros(9))


def test_fingers_do_not_meet_and_the_third_is_not_held_up() -> None:
    envelope = Envelope(JOINTS, STEP_RAD, KINEMATICS)
    target = np.array([0, 1.0, 0.9, 0, 1.0, 0.9, 0.2, -0.2, 0.1], np.float32)  # two meet in the middle
    pose = np.zeros(9, np.float32)
    for _ in range(20):
        pose = envelope.limit(target, pose)
    assert KINEMATICS.excess(pose) <= 1e-6
    assert pose[6:] == pytest.approx(target[6:])
    assert np.abs(pose[:6] - target[:6]).max() > 0.1


def test_no_part_of_a_finger_enters_what_it_keeps_out_of() -> None:
    box = Box((-0.03, -0.03, 0.0), (0.03, 0.03, 0.12))
    kinematics = Kinematics(Geometry(), Workspace(keep_out=(box,), clearance_m=0.0))
    envelope = Envelope(JOINTS, STEP_RAD, kinematics)
    rng = np.random.default_rng(2)
    pose = np.zeros(9, np.float32)
    reached = 0
    for _ in range(300):
        pose = envelope.limit(rng.uniform(LOWER, UPPER).astype(np.float32), pose)
        points = kinematics.points(pose)
        for finger, link, share in product(range(3), range(2), np.linspace(0, 1, 30)):
            place = points[finger, link] * (1 - share) + points[finger, link + 1] * share
            inside = min(np.min(place - box.lower_m), np.min(np.array(box.upper_m) - place))
            assert inside < -0.011
            reached += inside > -0.03
    assert reached, "they came near it"


def test_a_workspace_holds_fingertips_back() -> None:
    low = Kinematics(Geometry(), Workspace(lowest_m=0.06, radius_m=0.08))
    envelope = Envelope(JOINTS, STEP_RAD, low)
    pose = np.array([0.0, -0.6, 1.4] * 3, np.float32)
    assert low.excess(pose) <= 0
    for _ in range(20):
        pose = envelope.limit(np.zeros(9, np.float32), pose)
    tips = low.points(pose)[:, 2]
    assert tips[:, 2].min() >= 0.06 - 1e-6
    assert np.hypot(tips[:, 0], tips[:, 1]).max() <= 0.08 + 1e-6


# The guard


def readings(**changes: float) -> Readings:
    """Return readings of a hand in health, the fourth servo's changed."""
    usual = {"joint_rad": 0.1, "velocity_rad_s": 0.0, "current_a": 0.1, "voltage_v": 12.0, "temperature_c": 35.0}
    rows = {name: np.full(9, value, np.float32) for name, value in usual.items()}
    for name, value in changes.items():
        rows[name][3] = value
    return Readings(**rows)


def test_health_is_nothing_to_tell() -> None:
    assert Guard(Health(), RIG.drives).judge(readings()) == []


@pytest.mark.parametrize(
    ("change", "name", "action"),
    [
        ({"temperature_c": 60.5}, "warm-finger1_swing", "pause"),
        ({"temperature_c": 71.0}, "latched-finger1_swing", "stop"),
        ({"voltage_v": 10.0}, "voltage", "pause"),
        ({"voltage_v": 15.0}, "voltage", "pause"),
    ],
)
def test_readings_beyond_a_limit_are_told_with_servo_and_value(
    change: dict[str, float], name: str, action: str
) -> None:
    guard = Guard(Health(), RIG.drives)
    found = guard.judge(readings(**change))
    assert [(each.name, each.action) for each in found] == [(name, action)]
    assert "servo 20 (finger1_swing)" in found[0].message
    assert f"{next(iter(change.values())):.0f}" in found[0].message
    assert "\n" not in found[0].message


def test_silence_is_told_once_it_lasts_and_keeps_what_was_warm() -> None:
    guard = Guard(Health(), RIG.drives)
    assert guard.judge(readings(temperature_c=62.0))
    silent = readings(joint_rad=np.nan, temperature_c=np.nan, voltage_v=np.nan)
    names = [[each.name for each in guard.judge(silent)] for _ in range(MAX_SILENT)]
    assert names[0] == ["warm-finger1_swing"], "nobody knows that it is cool"
    assert names[-1] == ["warm-finger1_swing", "silent-finger1_swing"]
    assert guard.judge(readings(temperature_c=49.0)) == []


def test_what_is_done_for_a_servo_is_counted_and_forgotten_in_time() -> None:
    guard = Guard(Health(), RIG.drives)
    for number in range(MAX_REBOOTS):
        assert not guard.is_too_often("reboot", 20, MAX_REBOOTS, 10.0 * number)
    assert guard.is_too_often("reboot", 20, MAX_REBOOTS, 40.0)
    assert not guard.is_too_often("restore", 20, MAX_REBOOTS, 40.0)
    assert not guard.is_too_often("reboot", 21, MAX_REBOOTS, 40.0)
    guard.begin_anew()
    assert guard.is_too_often("reboot", 20, MAX_REBOOTS, 41.0), "a new connection knows it too"
    assert not guard.is_too_often("reboot", 20, MAX_REBOOTS, WITHIN_S + 5.0)
    assert guard.is_too_often("reboot", 20, MAX_REBOOTS, WITHIN_S + 6.0)


def test_a_latch_outlives_good_readings() -> None:
    guard = Guard(replace(Health(), hot_c=65.0), RIG.drives)
    guard.judge(readings(temperature_c=66.0))
    assert [each.action for each in guard.judge(readings())] == ["stop"]
