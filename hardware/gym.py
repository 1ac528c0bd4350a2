"""A Gymnasium environment that renders, as a rig: its actions become joints, its picture the camera's image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import PIL.Image
from gymnasium import spaces

from r3l.config import UserError
from r3l.robot import CameraSpec, FloatArray, Image, Joint, Observation, Robot, RobotError, RobotSpec
from r3l.run.images import fit
from r3l.task import Task


class GymRobot(Robot):
    """A Gymnasium environment that the policies see through its picture and the last actions alone.

    Each action dimension is a joint, its bounds the joint's limits; a discrete action is one joint from 0 to n - 1,
    rounded. As on a rig there is no reset: `connect` resets once, ends of episodes are ignored, and the time limit is
    removed. Choose an environment whose world goes on by itself. Wrappers of its registration stay in force.
    """

    identical_frames = "often"

    def __init__(
        self,
        environment: str,
        *,
        control_hz: float | None = None,
        camera: CameraSpec | None = None,
        names: Sequence[str] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Name the environment.

        Args:
            environment: a registered id, such as Pendulum-v1.
            control_hz: env steps per second of its world; its render rate by default.
            names: one joint name per action; action0, action1, … by default.
            options: keyword arguments of gymnasium.make.

        Raises:
            UserError: it is unknown, cannot render, or its actions are neither a bounded Box nor Discrete.
        """
        self._id, self._seed = environment, seed
        self._options = options | {"render_mode": "rgb_array", "disable_env_checker": True, "max_episode_steps": -1}
        self.env = self._make()
        self._discrete = isinstance(self.env.action_space, spaces.Discrete)
        rate = control_hz or float(self.env.metadata.get("render_fps", 10))
        self._spec = RobotSpec(self._joints(names), rate, camera or CameraSpec())
        self._applied = np.clip(
            np.zeros(len(self._spec.joints), np.float32), self._spec.lower_rad, self._spec.upper_rad
        )
        self._pending = False
        self._steps = 0
        self._image: Image | None = None
        self.env.close()

    @property
    def spec(self) -> RobotSpec:
        return self._spec

    def connect(self) -> None:
        if self._image is not None:
            raise RobotError(f"environment {self._id} is already connected; close it first")
        self.env = self._make()
        self.env.reset(seed=self._seed)
        self._image = self._render()
        self._steps, self._pending = 0, False

    def observe(self) -> Observation:
        image = self._connected()
        if self._pending:
            self.env.step(self._action())
            self._image = image = self._render()
            self._steps += 1
            self._pending = False
        return Observation(image.copy(), self._applied.copy(), self._steps / self._spec.control_hz, _NOTHING.copy())

    def command(self, target_rad: FloatArray) -> FloatArray:
        self._connected()
        target = np.asarray(target_rad, np.float32)
        self._applied = np.clip(target, self._spec.lower_rad, self._spec.upper_rad)
        self._pending = True
        return self._applied.copy()

    def relax(self) -> None:
        """Do nothing until the next command: the world stands still between commands."""
        self._pending = False

    def close(self) -> None:
        if self._image is not None:
            self.env.close()
            self._image = None

    def _make(self) -> gymnasium.Env[Any, Any]:
        try:
            env: gymnasium.Env[Any, Any] = gymnasium.make(self._id, **self._options)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(
                f"environment {self._id!r} needs more packages: {error} (classic control's: pip install '.[gym]')"
            ) from error
        except (gymnasium.error.Error, TypeError) as error:
            raise UserError(
                f"environment {self._id!r} cannot be made: {error}; gymnasium.registry lists them"
            ) from error
        return env

    def _joints(self, names: Sequence[str] | None) -> tuple[Joint, ...]:
        space = self.env.action_space
        if isinstance(space, spaces.Discrete):
            bounds = [(float(space.start), float(space.start + space.n - 1))]
        elif isinstance(space, spaces.Box) and space.is_bounded() and len(space.shape) == 1:
            bounds = list(zip(space.low.tolist(), space.high.tolist(), strict=True))
        else:
            raise UserError(f"environment {self._id!r} acts on {space}, expected a bounded Box of one axis or Discrete")
        known = names or [f"action{index}" for index in range(len(bounds))]
        if len(known) != len(bounds):
            raise UserError(
                f"environment {self._id!r} has {len(bounds)} actions, the rig {len(known)} joints "
                f"({', '.join(known)}); expected as many"
            )
        return tuple(Joint(name, low, high) for name, (low, high) in zip(known, bounds, strict=True))

    def _action(self) -> Any:
        return round(float(self._applied[0])) if self._discrete else self._applied

    def _render(self) -> Image:
        try:
            picture = self.env.render()
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(
                f"environment {self._id!r} renders with more packages: {error} "
                "(classic control's: pip install '.[gym]')"
            ) from error
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            raise UserError(f"environment {self._id!r} renders no picture; expected rgb_array, [H, W, 3] uint8")
        camera = self._spec.camera
        return fit(PIL.Image.fromarray(picture), (camera.height, camera.width))

    def _connected(self) -> Image:
        if self._image is None:
            raise RobotError(f"environment {self._id} is not connected; call connect() first")
        return self._image


_NOTHING = np.zeros(0, np.float32)


def from_task(task: Task, *, diagnostic: bool = False) -> GymRobot:
    """Build the environment that the rig names: the robot of `--robot gym`."""
    rig = task.rig
    if diagnostic:
        raise UserError("--robot gym tells no ground truth; diagnostic variants need the twin")
    if not rig.gym:
        raise UserError(f"the rig of task {task.name!r} names no environment; add gym = 'Pendulum-v1' to its [rig]")
    return GymRobot(rig.gym, control_hz=rig.control_hz, camera=rig.camera, names=list(rig.joints))
