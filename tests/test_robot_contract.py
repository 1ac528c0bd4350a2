"""One suite for every robot; whatever implements r3l.robot.Robot joins ROBOTS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import EmulatedClaw
from peer_arm import PeerArm

from r3l.hardware import fake, gym, twin
from r3l.hardware.dclaw import emulated
from r3l.hardware.lerobot import LeRobot
from r3l.robot.base import (
    CameraSpec,
    FloatArray,
    Joint,
    Observation,
    Robot,
    RobotError,
    RobotSpec,
    SimulatedRobot,
    Truth,
)
from r3l.robot.pacing import RealTime
from r3l.robot.safety import SafeRobot, make_safe
from r3l.robot.wrapper import RobotWrapper
from r3l.task.registry import load_robot, load_task
from r3l.tasks.valve import Valve

Factory = Callable[[], Robot]


def make_twin() -> SimulatedRobot:
    robot: SimulatedRobot = twin.from_task(Valve())
    return robot


def make_fake() -> SimulatedRobot:
    robot: SimulatedRobot = fake.from_task(Valve())
    return robot


def behind_safety(factory: Factory) -> Factory:
    return lambda: make_safe(factory(), Valve().rig)


def behind_rig(claw: EmulatedClaw) -> Robot:
    return SafeRobot(claw, tuple(drive.joint for drive in claw.rig.drives), 0.125)


def make_peer() -> Robot:
    robot: Robot = LeRobot(PeerArm(), PeerArm.LIMITS, control_hz=20.0)
    return robot


def make_stack() -> SimulatedRobot:
    robot: SimulatedRobot = emulated.from_task(Valve())
    return robot


SIMULATED: dict[str, Callable[[], SimulatedRobot]] = {"twin": make_twin, "fake": make_fake, "stack": make_stack}
WORLDS = ("Pendulum-v1", "MountainCarContinuous-v0", "Acrobot-v1")
ROBOTS: dict[str, Factory] = {
    **SIMULATED,
    **{
        f"gym {name}": partial(gym.GymRobot, name) for name in ("Pendulum-v1", "MountainCarContinuous-v0", "Acrobot-v1")
    },
    **{f"{name} behind safety": behind_safety(factory) for name, factory in SIMULATED.items()},
    "fake in real time": lambda: make_safe(make_fake(), Valve().rig, real_time=True),
    "lerobot": make_peer,
    "dclaw": EmulatedClaw,
    "dclaw behind safety": lambda: behind_rig(EmulatedClaw()),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take ROBOTS, or the one robot that --robot names."""
    if "robot" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    robots = ROBOTS if option("--robot") is None else {option("--robot"): named(option)}
    metafunc.parametrize("robot", list(robots.values()), ids=list(robots), indirect=True)


def named(option: Callable[[str], str | None]) -> Factory:
    rig = option("--rig")
    task, name = load_task(str(option("--task"))), str(option("--robot"))
    return lambda: load_robot(name, task, rig=Path(rig) if rig else None)


@pytest.fixture
def robot(request: pytest.FixtureRequest) -> Iterator[Robot]:
    """A robot that is not connected yet."""
    factory: Factory = request.param
    robot = factory()
    yield robot
    robot.close()
    if isinstance(claw := robot.unwrapped, EmulatedClaw):
        claw.end()


@pytest.fixture
def connected(robot: Robot) -> Robot:
    robot.connect()
    return robot


@pytest.fixture(params=list(SIMULATED.values()), ids=list(SIMULATED))
def simulated(request: pytest.FixtureRequest) -> Iterator[SimulatedRobot]:
    factory: Callable[[], SimulatedRobot] = request.param
    with factory() as robot:
        yield robot


def nearby(robot: Robot, seed: int = 0, reach_rad: float = 0.1) -> FloatArray:
    """Return a target close to where the robot is, within its limits."""
    offset = np.random.default_rng(seed).uniform(-reach_rad, reach_rad, len(robot.spec.joints))
    target = robot.observe().joint_rad + offset.astype(np.float32)
    return np.clip(target, robot.spec.lower_rad, robot.spec.upper_rad)


def is_real(robot: Robot) -> bool:
    return not isinstance(robot.unwrapped, SimulatedRobot)


def same(first: Observation, second: Observation) -> bool:
    return (
        np.array_equal(first.image, second.image)
        and np.array_equal(first.joint_rad, second.joint_rad)
        and np.array_equal(first.diagnostic, second.diagnostic)
        and first.time_s == second.time_s
    )


def test_the_spec_is_known_before_connect_and_does_not_change(robot: Robot) -> None:
    before = robot.spec
    assert len({joint.name for joint in before.joints}) == len(before.joints) > 0
    assert (before.lower_rad < before.upper_rad).all()
    assert before.control_hz > 0
    assert before.diagnostic == ()
    robot.connect()
    assert robot.spec == before


def test_observations_have_the_shapes_and_types_of_the_spec(connected: Robot) -> None:
    observation, spec = connected.observe(), connected.spec
    assert observation.image.shape == (spec.camera.height, spec.camera.width, 3)
    assert observation.image.dtype == np.uint8
    assert observation.image.std() > 0
    assert observation.joint_rad.shape == (len(spec.joints),)
    assert observation.joint_rad.dtype == np.float32
    assert observation.diagnostic.shape == (0,)
    assert observation.diagnostic.dtype == np.float32
    assert isinstance(observation.time_s, float)


def test_observing_without_a_command_returns_the_same_state(connected: Robot) -> None:
    if is_real(connected):
        pytest.skip("a real robot measures again")
    assert same(connected.observe(), connected.observe())
    connected.command(nearby(connected))
    after = connected.observe()
    assert same(after, connected.observe())


def test_observing_without_a_command_moves_nothing(connected: Robot) -> None:
    first, second = connected.observe(), connected.observe()
    assert second.joint_rad == pytest.approx(first.joint_rad, abs=0.005)
    assert second.time_s >= first.time_s


def test_time_advances_by_one_control_period_per_command_and_observe(connected: Robot) -> None:
    times = [connected.observe().time_s]
    for seed in range(3):
        connected.command(nearby(connected, seed))
        times.append(connected.observe().time_s)
    period_s = 1 / connected.spec.control_hz
    if is_real(connected):  # it keeps the time of the clock on the wall as well as this machine does
        assert (np.diff(times)[1:] >= 0.5 * period_s).all()
    else:
        assert np.diff(times) == pytest.approx([period_s] * 3)


def test_a_target_within_reach_is_sent_as_asked(connected: Robot) -> None:
    target = nearby(connected)
    sent = connected.command(target)
    assert sent.shape == (len(connected.spec.joints),)
    assert sent.dtype == np.float32
    assert sent == pytest.approx(target, abs=1e-6)


def test_a_target_out_of_reach_is_limited_and_what_was_sent_is_returned(connected: Robot) -> None:
    spec = connected.spec
    sent = connected.command(np.full(len(spec.joints), 100.0, np.float32))
    assert sent.dtype == np.float32
    assert (sent <= spec.upper_rad + 1e-6).all()
    assert (sent >= spec.lower_rad - 1e-6).all()


def assert_it_goes_where_it_is_sent(connected: Robot) -> None:
    before = connected.observe().joint_rad
    target = nearby(connected)
    for _ in range(10):
        connected.command(target)
        after = connected.observe().joint_rad
    assert np.abs(after - target).mean() < 0.5 * np.abs(before - target).mean()


def test_joints_go_where_they_are_sent(connected: Robot) -> None:
    assert_it_goes_where_it_is_sent(connected)


def test_writing_into_what_a_robot_returned_changes_nothing(connected: Robot) -> None:
    observation = connected.observe()
    joints, image = observation.joint_rad.copy(), observation.image.copy()
    observation.joint_rad[:] = 9.0
    observation.image[:] = 7
    again = connected.observe()
    assert again.joint_rad == pytest.approx(joints, abs=0.005 if is_real(connected) else 0.0)
    assert np.abs(again.image.astype(int) - image).mean() <= (1.0 if is_real(connected) else 0.0)


def test_writing_into_a_target_on_its_way_changes_nothing(connected: Robot) -> None:
    before = connected.observe().joint_rad
    target = nearby(connected)
    wanted = target.copy()
    sent = connected.command(target)
    sent += 1.0
    target += 1.0
    after = connected.observe().joint_rad
    assert np.abs(after - wanted).mean() < np.abs(before - wanted).mean()


def test_relaxing_twice_is_safe_and_the_next_command_moves_again(connected: Robot) -> None:
    connected.relax()
    connected.relax()
    assert_it_goes_where_it_is_sent(connected)


def test_relaxing_and_closing_are_safe_without_connect_and_twice(robot: Robot) -> None:
    robot.relax()
    robot.close()
    robot.connect()
    robot.close()
    robot.close()
    robot.relax()


def test_a_closed_robot_can_be_connected_again(robot: Robot) -> None:
    for _ in range(2):
        with robot:
            robot.command(nearby(robot))
            assert robot.observe().joint_rad.shape == (len(robot.spec.joints),)


def test_connecting_twice_is_an_error(connected: Robot) -> None:
    with pytest.raises(RobotError, match="already connected"):
        connected.connect()
    connected.observe()


def test_observing_and_commanding_need_a_connection(robot: Robot) -> None:
    target = np.zeros(len(robot.spec.joints), np.float32)
    with pytest.raises(RobotError, match="not connected"):
        robot.observe()
    with pytest.raises(RobotError, match="not connected"):
        robot.command(target)


def test_with_closes_after_an_exception(robot: Robot) -> None:
    def fail() -> None:
        with robot:
            robot.command(nearby(robot))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(RobotError, match="not connected"):
        robot.observe()


def test_the_same_commands_give_the_same_observations(simulated: SimulatedRobot) -> None:
    other = next(robot for robot in (make() for make in SIMULATED.values()) if type(robot) is type(simulated))
    with other:
        for seed in range(5):
            target = nearby(simulated, seed)
            simulated.command(target)
            other.command(target)
            assert same(simulated.observe(), other.observe())


def test_placing_moves_the_object_and_takes_no_time(simulated: SimulatedRobot) -> None:
    before = simulated.observe()
    errors = []
    for angle_rad in (0.5, 1.5, 3.0):
        simulated.command(nearby(simulated))
        simulated.place(np.array([angle_rad], np.float32))
        errors.append(simulated.truth()["error"])
    assert errors == pytest.approx([0.0, 1.0, 2.5], abs=0.1)
    after = simulated.observe()
    assert after.time_s == before.time_s
    assert after.joint_rad == pytest.approx(Valve().rig.home_rad, abs=1e-3), "as finely as servos measure"
    assert not np.array_equal(after.image, before.image)


def test_placing_with_a_generator_gives_a_random_but_seeded_pose(simulated: SimulatedRobot) -> None:
    poses = []
    for seed in (0, 0, 1):
        simulated.place(np.array([1.0], np.float32), np.random.default_rng(seed))
        poses.append(simulated.observe().joint_rad)
    assert np.array_equal(poses[0], poses[1])
    assert not np.array_equal(poses[0], poses[2])


def test_a_listener_hears_the_end_of_each_control_period_once(simulated: SimulatedRobot) -> None:
    heard: list[tuple[float, Truth]] = []
    simulated.on_period = lambda time_s, truth: heard.append((time_s, truth))
    observed = []
    for seed in range(3):
        simulated.command(nearby(simulated, seed))
        observed.append(simulated.observe().time_s)
        simulated.observe()
    assert [time_s for time_s, _ in heard] == observed
    assert all(truth["error"] >= 0 for _, truth in heard)
    assert heard[-1][1] == simulated.truth()


def test_a_saved_world_goes_on_where_it_was(simulated: SimulatedRobot) -> None:
    for seed in range(3):
        simulated.command(nearby(simulated, seed, reach_rad=0.3))
        simulated.observe()
    world, saved = simulated.save_world(), simulated.observe()
    expected_truth = simulated.truth()
    for seed in range(3, 6):
        simulated.command(nearby(simulated, seed, reach_rad=0.3))
        simulated.observe()
    simulated.restore_world(world)
    restored = simulated.observe()
    assert restored.joint_rad == pytest.approx(saved.joint_rad, abs=1e-3)
    assert restored.time_s == pytest.approx(saved.time_s)
    assert simulated.truth() == pytest.approx(expected_truth, abs=1e-5)


def test_a_world_that_is_none_of_this_task_is_refused_in_one_line(simulated: SimulatedRobot) -> None:
    world = simulated.save_world()
    pose = simulated.observe().joint_rad
    damaged = np.frombuffer(world, np.float64).copy()
    damaged[-1] = np.nan
    for refused in (b"", world[:-1], world + bytes(8), b"BULLETd5" + bytes(1000), damaged.tobytes()):
        with pytest.raises(RobotError, match="the saved world") as raised:
            simulated.restore_world(refused)
        assert "\n" not in str(raised.value)
    assert np.array_equal(simulated.observe().joint_rad, pose)


JOINTS = (Joint("knee", -1.0, 1.0),)
MEMBERS = sorted(name for name in dir(Robot) if not name.startswith("_"))
WRAPPERS: dict[str, Callable[[Robot], Robot]] = {
    "RobotWrapper": RobotWrapper,
    "SafeRobot": lambda robot: SafeRobot(robot, JOINTS, 0.1),
    "RealTime": RealTime,
    "SafeRobot around RealTime": lambda robot: SafeRobot(RealTime(robot), JOINTS, 0.1),
}
CHANGED = {"SafeRobot": {"spec"}, "RealTime": {"punctuality"}, "SafeRobot around RealTime": {"spec", "punctuality"}}
"""Members that a wrapper answers itself."""


class Probe(Robot):
    """A robot that records which of its public members are read."""

    identical_frames = "often"

    def __init__(self) -> None:
        self._read: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            self._read.append(name)
        return super().__getattribute__(name)

    @property
    def spec(self) -> RobotSpec:
        return RobotSpec(JOINTS, 1000.0, CameraSpec(8, 8))

    def connect(self) -> None: ...

    def observe(self) -> Observation:
        return Observation(np.zeros((8, 8, 3), np.uint8), np.zeros(1, np.float32), 0.0, np.zeros(0, np.float32))

    def command(self, target_rad: FloatArray) -> FloatArray:
        return target_rad

    def relax(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("member", MEMBERS)
def test_a_wrapper_forwards_every_public_member(member: str, name: str) -> None:
    probe = Probe()
    wrapped = WRAPPERS[name](probe)
    built = len(probe._read)
    value = getattr(wrapped, member)
    if callable(value):
        value(*[np.zeros(1, np.float32)] * len(signature(value).parameters))
    is_copied = member == "identical_frames" and value == "often"
    assert member in probe._read[built:] or is_copied or member in CHANGED.get(name, ())


def test_a_wrapper_shows_what_it_adds_and_the_robot_below_all_wrappers() -> None:
    probe = Probe()
    paced = RealTime(probe)
    safe = SafeRobot(paced, JOINTS, 0.1)
    assert safe.unwrapped is paced.unwrapped is probe.unwrapped is probe
    safe.command(np.zeros(1, np.float32))
    assert safe.punctuality is paced.punctuality
    assert paced.punctuality.commands == 1
