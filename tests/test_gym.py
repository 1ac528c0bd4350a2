"""Gymnasium environments as rigs: two continuous ones and a discrete one that nobody here wrote."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from r3l.config.errors import UserError
from r3l.hardware.gym import GymRobot
from r3l.robot.base import CameraSpec

CONTINUOUS = ("Pendulum-v1", "MountainCarContinuous-v0")


@pytest.mark.parametrize("name", CONTINUOUS)
def test_joints_have_the_bounds_of_the_actions(name: str) -> None:
    space = gymnasium.make(name).action_space
    assert isinstance(space, spaces.Box)
    spec = GymRobot(name).spec
    assert spec.lower_rad == pytest.approx(space.low)
    assert spec.upper_rad == pytest.approx(space.high)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_world_does_what_the_environment_does(name: str) -> None:
    reference = gymnasium.make(name).unwrapped
    reference.reset(seed=3)
    with GymRobot(name, seed=3) as robot:
        for step in range(20):
            target = np.full(1, 0.9 * np.sin(step), np.float32)
            robot.command(target)
            robot.observe()
            reference.step(target)
            assert robot.env.unwrapped.state == pytest.approx(reference.state)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_image_is_the_picture_at_the_cameras_size_and_follows_the_action(name: str) -> None:
    images = []
    for push in (-1.0, 1.0):
        with GymRobot(name, camera=CameraSpec(48, 32)) as robot:
            for _ in range(40):
                robot.command(np.full(1, push, np.float32))
                image = robot.observe().image
            assert image.shape == (32, 48, 3)
            images.append(image.astype(float))
    assert np.abs(images[0] - images[1]).max() > 50


def test_the_end_of_an_episode_and_a_time_limit_are_passed_over() -> None:
    limit = gymnasium.spec("MountainCarContinuous-v0").max_episode_steps
    assert limit is not None
    with GymRobot("MountainCarContinuous-v0") as robot:
        places, speed = [], 0.0
        for _ in range(limit + 50):
            robot.command(np.full(1, 1.0 if speed >= 0 else -1.0, np.float32))
            robot.observe()
            place, speed = robot.env.unwrapped.state
            places.append(float(place))
    assert max(places) > 0.45  # the environment's goal: an episode ends there
    assert np.abs(np.diff(places)).max() < 0.1  # and nothing jumped back to the start


def test_a_discrete_action_is_a_rounded_joint() -> None:
    reference = gymnasium.make("Acrobot-v1").unwrapped
    reference.reset(seed=0)
    with GymRobot("Acrobot-v1") as robot:
        assert (robot.spec.lower_rad, robot.spec.upper_rad) == (0.0, 2.0)
        for value, action in ((0.3, 0), (1.4, 1), (1.6, 2)):
            robot.command(np.full(1, value, np.float32))
            robot.observe()
            reference.step(action)
            assert robot.env.unwrapped.state == pytest.approx(reference.state)  # type: ignore[attr-defined]


def test_an_unknown_environment_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Pendulum"):
        GymRobot("Pendulm-v1")


def test_as_many_names_as_actions_are_needed() -> None:
    with pytest.raises(UserError, match="1 actions, the rig 2 joints"):
        GymRobot("Pendulum-v1", names=["one", "two"])


def test_a_missing_renderer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")

    robot = GymRobot("Pendulum-v1")
    monkeypatch.setattr("gymnasium.envs.classic_control.pendulum.PendulumEnv.render", refuse)
    with pytest.raises(UserError, match=r"pip install '\.\[gym\]'"):
        robot.connect()


def test_wrappers_that_an_environment_is_registered_with_act(monkeypatch: pytest.MonkeyPatch) -> None:
    one = np.ones(1, np.float32)

    def rescaled(**options: Any) -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1", **options).unwrapped, -one, one)

    monkeypatch.setitem(gymnasium.registry, "Rescaled-v0", EnvSpec("Rescaled-v0", rescaled))
    with GymRobot("Rescaled-v0") as robot:
        assert (robot.spec.lower_rad, robot.spec.upper_rad) == (-1.0, 1.0)
        robot.command(0.7 * one)
        robot.observe()
        assert robot.env.unwrapped.last_u == pytest.approx(1.4)


@pytest.mark.parametrize("name", ["nomodule:Env-v0", "LunarLander-v3", "Ant-v5"])
def test_an_environment_whose_packages_are_not_installed_says_which(name: str) -> None:
    with pytest.raises(UserError, match=r"needs more packages: .*(nomodule|box2d|mujoco)"):
        GymRobot(name)
