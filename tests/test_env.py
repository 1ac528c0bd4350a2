"""The reset-free environment, and the instrumented one that resets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import r3l
from r3l.config.errors import UserError
from r3l.evaluation.resets_env import ResetsEnv, make_limited
from r3l.evaluation.resets_env import make as make_resets
from r3l.hardware.fake import Fake
from r3l.robot.base import FloatArray, Robot, RobotError, SimulatedRobot
from r3l.robot.env import RobotEnv, packed
from r3l.robot.safety import SafeRobot
from r3l.task.registry import make
from r3l.tasks.valve import GOAL_RAD, Valve

NAMES = ("r3l/Valve-v0", "r3l/Valve-Resets-v0")


def build(name: str) -> gymnasium.Env[Any, FloatArray]:
    return gymnasium.make(name)


def simulated(env: gymnasium.Env[Any, FloatArray]) -> SimulatedRobot:
    """Return the robot below everything."""
    inner = env.unwrapped
    assert isinstance(inner, RobotEnv)
    robot: Robot = inner.robot.unwrapped
    assert isinstance(robot, SimulatedRobot)
    return robot


@pytest.fixture
def env() -> Iterator[RobotEnv]:
    made = make("valve", "fake")
    yield made
    made.close()


@pytest.fixture
def twin_env() -> Iterator[gymnasium.Env[Any, FloatArray]]:
    made = build("r3l/Valve-v0")
    yield made
    made.close()


@pytest.fixture
def resets() -> Iterator[gymnasium.Env[Any, FloatArray]]:
    made = build("r3l/Valve-Resets-v0")
    yield made
    made.close()


def states(env: gymnasium.Env[Any, FloatArray]) -> list[float]:
    """Return everything that could have moved: ground truth, then the joints."""
    robot = simulated(env)
    return [*robot.truth().values(), *robot.observe().joint_rad.tolist()]


@pytest.mark.parametrize("name", NAMES)
def test_gymnasiums_own_check_passes(name: str) -> None:
    made = build(name)
    check_env(made.unwrapped, skip_render_check=True)
    made.close()


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_gymnasiums_own_check_passes_on_the_true_state() -> None:
    made = make_resets("valve", true_state=True)
    check_env(made, skip_render_check=True)
    made.close()


def test_the_registered_environment_is_marked_nondeterministic() -> None:
    assert r3l.__version__
    assert gymnasium.spec("r3l/Valve-v0").nondeterministic
    assert gymnasium.spec("r3l/Valve-v0").max_episode_steps is None
    assert not gymnasium.spec("r3l/Valve-Resets-v0").nondeterministic


def printed(code: str) -> list[str]:
    """Return the words that a Python of its own prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_robots_and_tasks_need_numpy_alone() -> None:
    tell = "print(*sorted({name.split('.')[0] for name in sys.modules} & {'gymnasium', 'numpy', 'scipy', 'torch'}))"
    assert printed(f"import sys, r3l.robot, r3l.task; r3l.task.load_task('valve'); {tell}") == ["numpy"]


@pytest.mark.parametrize("order", ["r3l, gymnasium", "gymnasium, r3l", "r3l, gymnasium.spaces"])
def test_environments_are_registered_in_whatever_order_is_imported(order: str) -> None:
    tell = "from gymnasium import registry; print(*(name for name in registry if name.startswith('r3l/Valve')))"
    assert printed(f"import {order}; {tell}") == list(NAMES)


def test_an_episode_that_resets_has_the_tasks_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Valve, "episode_steps", 3)
    made = make_limited("valve", "fake")
    made.reset(seed=0)
    assert [made.step(made.action_space.sample())[3] for _ in range(3)] == [False, False, True]
    made.close()


def test_spaces_have_the_documented_shapes_and_types(env: RobotEnv) -> None:
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    image, proprioception = env.observation_space["image"], env.observation_space["proprioception"]
    assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
    assert (proprioception.shape, proprioception.dtype) == ((18,), np.float32)
    assert (env.action_space.shape, env.action_space.dtype) == ((9,), np.float32)
    observed, info = env.reset()
    assert observed in env.observation_space
    assert set(observed) == {"image", "proprioception"}
    assert {name: info[name].shape for name in ("requested", "applied", "diagnostic")} == {
        "requested": (9,),
        "applied": (9,),
        "diagnostic": (0,),
    }


def test_reset_moves_nothing_whatever_the_seed(twin_env: gymnasium.Env[Any, FloatArray]) -> None:
    rng = np.random.default_rng(0)
    twin_env.reset(seed=0)
    for seed in range(4):
        for _ in range(8):
            twin_env.step(rng.uniform(-1, 1, 9).astype(np.float32))
        before = states(twin_env)
        observed, _ = twin_env.reset(seed=seed)
        assert states(twin_env) == before
        again, _ = twin_env.reset(seed=seed + 100)
        assert np.array_equal(again["image"], observed["image"])


def test_an_episode_never_ends(twin_env: gymnasium.Env[Any, FloatArray]) -> None:
    rng = np.random.default_rng(1)
    twin_env.reset()
    truth = [simulated(twin_env).truth()["angle_rad"]]
    for step in range(200):
        observed, reward, terminated, truncated, _ = twin_env.step(rng.uniform(-1, 1, 9).astype(np.float32))
        truth.append(simulated(twin_env).truth()["angle_rad"])
        assert (reward, terminated, truncated) == (0.0, False, False), step
        assert observed in twin_env.observation_space
    assert np.ptp(truth) > 0.1, "random actions move the valve, so that the test could see a reset"


def test_the_last_applied_command_is_part_of_the_proprioception(env: RobotEnv) -> None:
    observed, info = env.reset()
    joints, applied = np.split(observed["proprioception"], 2)
    assert applied == pytest.approx(joints), "at first: the pose that the fingers are in"
    for _ in range(3):
        observed, _, _, _, info = env.step(np.ones(9, np.float32))
        assert np.array_equal(observed["proprioception"][9:], info["applied"])
        assert np.array_equal(info["requested"], np.ones(9, np.float32))
    assert (info["applied"][0] < 1) or (env.robot.counters.speed_limited > 0)


def test_a_time_step_carries_joints_and_command_apart_and_gymnasiums_users_get_them_packed(env: RobotEnv) -> None:
    seen = env.observe()
    assert seen.applied == pytest.approx(seen.joints), "at first: the pose that the fingers are in"
    assert not seen.requested.any()
    taken = env.act(np.ones(9, np.float32))
    assert np.array_equal(taken.requested, np.ones(9))
    observed, info = packed(taken)
    assert observed in env.observation_space
    assert np.array_equal(observed["proprioception"], [*taken.joints, *taken.applied])
    assert observed["image"] is taken.observation.image
    assert info["applied"] is taken.applied


def test_the_frame_rate_is_the_rigs_control_rate() -> None:
    joints = Valve().rig.limits
    robot = Fake(joints, Valve().rig.home_rad, control_hz=25.0)
    env = RobotEnv(SafeRobot(robot, joints, 0.1))
    assert env.metadata == {"render_modes": ["rgb_array"], "render_fps": 25.0}
    assert "render_fps" not in RobotEnv.metadata, "each environment has its own"


def test_what_safety_limits_shows_in_what_was_applied(env: RobotEnv) -> None:
    env.reset()
    before = env.units.measured(env.robot.observe().joint_rad)
    _, _, _, _, info = env.step(np.full(9, 1.0, np.float32))
    half = (env.robot.spec.upper_rad - env.robot.spec.lower_rad) / 2
    assert info["applied"] == pytest.approx(np.minimum(before + 0.25 / half, 1.0), abs=1e-5)


def test_actions_beyond_the_box_are_clipped_and_kept_as_requested(env: RobotEnv) -> None:
    env.reset()
    for _ in range(20):
        _, _, _, _, info = env.step(np.full(9, 7.0, np.float32))
    assert info["applied"] == pytest.approx(np.ones(9))
    assert np.array_equal(info["requested"], np.full(9, 7.0, np.float32))


def test_an_action_that_is_not_finite_is_refused(env: RobotEnv) -> None:
    env.reset()
    with pytest.raises(RobotError, match="refused"):
        env.step(np.full(9, np.nan, np.float32))


def test_saved_state_continues_the_limits_and_the_last_command(env: RobotEnv) -> None:
    env.reset()
    env.step(np.ones(9, np.float32))
    kept, world = env.state(), simulated(env).save_world()
    expected = env.step(np.ones(9, np.float32))[0]["proprioception"]
    other = make("valve", "fake")
    other.reset()
    simulated(other).restore_world(world)
    other.restore(kept)
    assert np.array_equal(other.step(np.ones(9, np.float32))[0]["proprioception"], expected)
    other.close()


def test_render_returns_the_newest_image() -> None:
    made = make("valve", "fake", render_mode="rgb_array")
    assert made.render() is None
    observed, _ = made.reset()
    assert np.array_equal(np.asarray(made.render()), observed["image"])
    made.close()


def test_resets_place_the_valve_anywhere(resets: gymnasium.Env[Any, FloatArray]) -> None:
    angles = []
    for seed in range(12):
        _, info = resets.reset(seed=seed)
        angles.append(info["truth"]["angle_rad"])
        assert info["time_s"] == 0.0
    assert len(set(np.digitize(angles, [-np.pi / 2, 0, np.pi / 2]))) == 4


def test_the_same_seed_gives_the_same_start(resets: gymnasium.Env[Any, FloatArray]) -> None:
    def start(seed: int) -> list[Any]:
        observed, info = resets.reset(seed=seed)
        return [observed["image"].tobytes(), observed["proprioception"].tolist(), info["truth"]]

    first = start(3)
    for _ in range(5):
        resets.step(resets.action_space.sample())
    assert start(4) != first
    assert start(3) == first


def test_the_reward_is_the_true_one_and_time_ends_the_episode(resets: gymnasium.Env[Any, FloatArray]) -> None:
    resets.action_space.seed(0)
    for seed in (0, 1):
        resets.reset(seed=seed)
        for step in range(1, 51):
            _, reward, terminated, truncated, info = resets.step(resets.action_space.sample())
            error = info["truth"]["error"]
            assert float(reward) == pytest.approx(np.exp(-0.5 * (error / 0.3) ** 2), abs=1e-4)
            assert 0 <= float(reward) <= 1
            assert info["is_success"] == (error <= np.radians(15))
            assert not terminated
            assert truncated == (step == 50)
            assert info["time_s"] == pytest.approx(step / 10)


@pytest.mark.parametrize("steps", [3, 7])
def test_an_episode_of_the_instrumented_environment_has_the_tasks_length(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Valve, "episode_steps", steps)
    made = gymnasium.make("r3l/Valve-Resets-v0", robot="fake", disable_env_checker=True)
    assert made.spec is not None
    assert made.spec.max_episode_steps == steps
    made.reset(seed=0)
    assert [made.step(made.action_space.sample())[3] for _ in range(steps)] == [False] * (steps - 1) + [True]
    made.close()


def test_at_the_goal_the_reward_is_one(resets: gymnasium.Env[Any, FloatArray]) -> None:
    resets.reset(seed=0)
    simulated(resets).place(np.array([GOAL_RAD], np.float32))
    inner = resets.unwrapped
    assert isinstance(inner, ResetsEnv)
    inner.robot.forget()
    observed, _ = RobotEnv.reset(inner)
    _, reward, _, _, info = resets.step(observed["proprioception"][:9])
    assert float(reward) > 0.99
    assert info["is_success"]


def test_true_state_shows_the_state_then_the_proprioception() -> None:
    made = make_resets("valve", "fake", true_state=True)
    vector, info = made.reset(seed=0)
    assert vector.shape == (3 + 18,)
    assert vector.dtype == np.float32
    angle = info["truth"]["angle_rad"]
    assert vector[:3] == pytest.approx([np.cos(angle), np.sin(angle), 0.0], abs=1e-6)
    assert vector in made.observation_space
    made.close()


def test_only_a_simulated_robot_can_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    class Real:
        """Stands for a robot whose object cannot be placed."""

    monkeypatch.setattr("r3l.evaluation.resets_env.load_robot", lambda *arguments, **named: Real())
    with pytest.raises(UserError, match="is not simulated"):
        make_resets("valve", "real")
