from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from r3l.hardware.twin import MAX_SPEED_RAD_S, Twin, from_task
from r3l.robot.base import CameraSpec, FloatArray, RobotError
from r3l.robot.env import RobotEnv
from r3l.robot.safety import make_safe
from r3l.tasks.valve import Valve

STEPS, HELD_STEPS = 300, 3


@pytest.fixture
def twin() -> Iterator[Twin]:
    with from_task(Valve()) as twin:
        yield twin


def held_actions(steps: int, seed: int = 0) -> Iterator[FloatArray]:
    """Yield random actions in [-1, 1], each held for a few steps, as exploration does."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        if step % HELD_STEPS == 0:
            action = rng.uniform(-1, 1, 9).astype(np.float32)
        yield action


def env_of(twin: Twin) -> RobotEnv:
    return RobotEnv(make_safe(twin, Valve().rig))


@dataclass(frozen=True)
class Rollout:
    """What random held actions did behind the rig's limits."""

    occlusion: FloatArray
    angle_rad: FloatArray
    joint_rad: FloatArray


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    twin = from_task(Valve())
    env = env_of(twin)
    occlusion, angles, joints = [], [], []
    try:
        env.reset()
        for action in held_actions(STEPS):
            env.step(action)
            occlusion.append(twin.occlusion())
            angles.append(twin.truth()["angle_rad"])
            joints.append(twin.observe().joint_rad)
    finally:
        env.close()
    return Rollout(np.array(occlusion), np.unwrap(np.array(angles)), np.array(joints))


def test_the_default_image_is_64_pixels_square_uint8(twin: Twin) -> None:
    image = twin.observe().image
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8


def test_the_camera_spec_sets_the_size_of_the_image() -> None:
    rig = Valve().rig
    with Twin(Valve().scene(), home_rad=rig.home_rad, camera=CameraSpec(width=48, height=32)) as twin:
        assert twin.observe().image.shape == (32, 48, 3)


def test_the_same_seed_gives_the_same_bytes() -> None:
    with from_task(Valve()) as first, from_task(Valve()) as second:
        for twin in (first, second):
            twin.place(np.array([2.0], np.float32), np.random.default_rng(5))
        for action in held_actions(30):
            seen = []
            for twin in (first, second):
                twin.command(0.6 * action)
                seen.append(twin.observe())
            assert seen[0].image.tobytes() == seen[1].image.tobytes()
            assert seen[0].joint_rad.tobytes() == seen[1].joint_rad.tobytes()
        assert first.truth() == second.truth()


@pytest.mark.parametrize("angle_rad", [-3.0, -1.0, 0.5, 2.0])
def test_the_valve_stays_where_it_is_left_while_the_fingers_are_still(twin: Twin, angle_rad: float) -> None:
    twin.place(np.array([angle_rad], np.float32))
    for _ in range(20):
        twin.command(Valve().rig.home_rad)
        twin.observe()
    assert twin.truth()["angle_rad"] == pytest.approx(angle_rad, abs=0.01)


def test_friction_stops_a_turning_valve_once_the_fingers_are_away(twin: Twin) -> None:
    for action in held_actions(60, seed=1):
        twin.command(0.6 * action)
        twin.observe()
    home = [Valve().rig.home_rad] * 20
    twin.client.resetJointState(twin.scene.bodies[0], 0, 0.0, 3.0)
    angles = [state[-2] for state in run(twin, home)]
    assert np.ptp(angles[10:]) < 0.01


def test_random_actions_turn_the_valve_all_the_way_round(rollout: Rollout) -> None:
    assert np.ptp(rollout.angle_rad) > 2 * np.pi
    assert np.abs(np.diff(rollout.angle_rad)).sum() > 10


def test_fingers_hide_much_of_the_valve_in_a_tenth_of_random_frames(rollout: Rollout) -> None:
    assert rollout.occlusion.min() >= 0
    assert rollout.occlusion.max() <= 1
    assert (rollout.occlusion >= 0.3).mean() >= 0.1


def test_joints_move_no_faster_than_the_servos_do(rollout: Rollout) -> None:
    moved_rad = np.abs(np.diff(rollout.joint_rad, axis=0))
    assert moved_rad.max() <= 1.05 * MAX_SPEED_RAD_S / Valve().rig.control_hz
    assert moved_rad.max() > 0.1


def test_joints_asked_for_a_leap_take_several_periods(twin: Twin) -> None:
    before = twin.observe().joint_rad
    twin.command(twin.spec.upper_rad)
    assert np.abs(twin.observe().joint_rad - before).max() <= 1.05 * MAX_SPEED_RAD_S / twin.spec.control_hz


def test_measuring_occlusion_changes_nothing() -> None:
    with from_task(Valve()) as watched, from_task(Valve()) as alone:
        for action in held_actions(12):
            for twin in (watched, alone):
                twin.command(0.6 * action)
            first, second = watched.observe(), alone.observe()
            assert 0 <= watched.occlusion() <= 1
            assert np.array_equal(first.image, second.image)
        assert watched.truth() == alone.truth()


def test_bodies_are_loaded_once(twin: Twin) -> None:
    rng = np.random.default_rng(0)
    count = twin.client.getNumBodies()
    for state in Valve().random_states(20, rng):
        twin.place(state, rng)
        assert twin.client.getNumBodies() == count


def test_a_random_pose_touches_nothing_and_lies_over_the_valve(twin: Twin) -> None:
    rng = np.random.default_rng(0)
    for state in Valve().random_states(10, rng):
        twin.place(state, rng)
        twin.client.performCollisionDetection()
        touching = [contact for finger in twin.fingers for contact in twin.client.getContactPoints(finger)]
        assert touching == []


def run(twin: Twin, actions: list[FloatArray]) -> list[FloatArray]:
    """Return joints, valve angle and velocity after each action."""
    states = []
    for action in actions:
        twin.command(action)
        joints, truth = twin.observe().joint_rad, twin.truth()
        states.append(np.array([*joints, truth["angle_rad"], truth["velocity_rad_s"]], np.float32))
    return states


@pytest.mark.parametrize("into", ["same twin", "new twin"])
def test_a_restored_world_goes_on_closely(into: str) -> None:
    actions = [0.6 * action for action in held_actions(24, seed=3)]
    with from_task(Valve()) as twin, from_task(Valve()) as other:
        run(twin, actions[:12])
        world, image = twin.save_world(), twin.observe().image
        expected = run(twin, actions[12:])
        target = twin if into == "same twin" else other
        target.restore_world(world)
        assert np.abs(target.observe().image.astype(int) - image).mean() < 0.1
        found = run(target, actions[12:])
    assert np.abs(expected[-1] - expected[0]).max() > 0.1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_relaxed_twin_does_not_hold_its_pose(twin: Twin) -> None:
    raised = twin.spec.upper_rad * 0.8
    for _ in range(10):
        twin.command(raised)
        twin.observe()
    held = twin.observe().joint_rad
    twin.command(raised)
    twin.relax()
    assert np.abs(twin.observe().joint_rad - held).max() > 0.05


def test_ground_truth_is_in_observations_of_a_diagnostic_twin_alone() -> None:
    with from_task(Valve(), diagnostic=True) as twin:
        assert all("diagnostic" in name for name in twin.spec.diagnostic)
        twin.place(np.array([1.0], np.float32))
        observation = twin.observe()
    assert observation.diagnostic == pytest.approx([np.cos(1.0), np.sin(1.0), 0.0], abs=1e-5)


@pytest.mark.parametrize("call", [Twin.truth, Twin.save_world, Twin.occlusion])
def test_an_unconnected_twin_says_what_to_do(call: Callable[[Twin], object]) -> None:
    with pytest.raises(RobotError, match="call connect"):
        call(from_task(Valve()))
