"""Export a policy to one file that maps camera images and joint positions to joint targets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from r3l.config.convert import from_dict, to_dict
from r3l.config.errors import UserError
from r3l.config.schema import Config
from r3l.models.policy import load_policies
from r3l.robot.base import CameraSpec, FloatArray, Image, Joint, RobotSpec
from r3l.robot.joint_units import JointUnits
from r3l.run.tensors import CheckpointError, Tensors, load_tensors, save_tensors

FORMAT_VERSION = 1
KIND = "r3l policy"
GOAL_IMAGES = 24
"""Goal images in the file."""


@dataclass(frozen=True)
class Exported:
    """The content of an exported file."""

    config: Config
    """The run's config."""
    step: int
    """Env steps after which the policy's weights were published."""
    spec: RobotSpec
    """Joints in order, with the limits of their targets; control rate; size of the images."""
    max_step_rad: float
    """Max change of a target per control period, rad."""
    goals: Tensor
    """Some goal images, uint8 [G, H, W, 3]."""
    weights: Tensors


class ExportedPolicy:
    """A policy that acts: call `begin`, then `act` once per control period. It needs no run, simulator or extra."""

    def __init__(self, exported: Exported) -> None:
        self.spec, self.max_step_rad = exported.spec, exported.max_step_rad
        self._policies = load_policies(exported.config, exported.spec, exported.weights, torch.device("cpu"))
        self._units = JointUnits(self.spec)
        self._target_rad: FloatArray | None = None

    def begin(self) -> None:
        """Forget all observations: before an episode, and after something else moved the robot."""
        self._policies.begin()
        self._target_rad = None

    def act(self, image: Image, joint_rad: FloatArray) -> FloatArray:
        """Return the joint targets to send now, [A] float32, rad: within limits and `max_step_rad` of the last ones.

        Args:
            image: [H, W, 3] uint8 RGB, of the size that `spec.camera` says.
            joint_rad: [A] measured joint positions.

        Raises:
            ValueError: an argument has another shape, or a joint is not finite.
        """
        joints = np.asarray(joint_rad, np.float32)
        shape = (self.spec.camera.height, self.spec.camera.width, 3)
        if image.shape != shape or image.dtype != np.uint8:
            raise ValueError(f"image is {image.dtype} {list(image.shape)}, expected uint8 {list(shape)}")
        if joints.shape != (len(self.spec.joints),) or not np.isfinite(joints).all():
            raise ValueError(f"joint_rad is {joints}, expected {len(self.spec.joints)} finite values in rad")
        if self._target_rad is None:
            self._target_rad = joints
        applied = self._units.commanded(self._target_rad)
        self._policies.see(image, self._units.measured(joints), applied, np.zeros(0, np.float32))
        asked = self._units.to_rad(self._policies.act("task"))
        low, high = self._target_rad - self.max_step_rad, self._target_rad + self.max_step_rad
        self._target_rad = np.clip(asked, low, high).astype(np.float32)
        return self._target_rad.copy()


def export(exported: Exported, path: Path) -> None:
    """Write a policy to one safetensors file; UserError if the file exists, or if the policy needs ground truth."""
    config, spec = exported.config, exported.spec
    if "diagnostic" in config.state:
        raise UserError(f"this run's policy acts on ground truth (state {config.state!r}), which no robot has")
    if path.exists():
        raise UserError(f"{path} exists and is never overwritten; choose another file")
    meta = {
        "kind": KIND,
        "version": FORMAT_VERSION,
        "config": to_dict(config),
        "step": exported.step,
        "joints": [[joint.name, joint.min_rad, joint.max_rad] for joint in spec.joints],
        "control_hz": spec.control_hz,
        "image": [spec.camera.height, spec.camera.width],
        "max_step_rad": exported.max_step_rad,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {**exported.weights, "goals": exported.goals[:GOAL_IMAGES]}, meta)


def read_exported(path: Path) -> Exported:
    """Return the content of an exported file; CheckpointError in one line if it cannot be used."""
    try:
        tensors, texts = load_tensors(path)
        meta = json.loads(texts["meta"])
        if meta["kind"] != KIND or meta["version"] != FORMAT_VERSION:
            raise ValueError(f"format {meta['version']!r:.20}, expected {FORMAT_VERSION}")
        joints = tuple(Joint(str(name), float(low), float(high)) for name, low, high in meta["joints"])
        height, width = map(int, meta["image"])
        spec = RobotSpec(joints, float(meta["control_hz"]), CameraSpec(width, height))
        goals = tensors.pop("goals")
        if goals.dtype != torch.uint8 or goals.shape[1:] != (height, width, 3):
            raise ValueError("its goal images have another size")
        step_rad = float(meta["max_step_rad"])
        numbers = [*spec.lower_rad, *spec.upper_rad, spec.control_hz, step_rad]
        if not np.isfinite(numbers).all() or (spec.upper_rad <= spec.lower_rad).any() or step_rad <= 0:
            raise ValueError("its limits make no sense")
        return Exported(from_dict(Config, meta["config"]), int(meta["step"]), spec, step_rad, goals, tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, UserError) as error:
        raise CheckpointError(f"policy {path} cannot be read ({error}); r3l export writes one") from error


def load_policy(path: Path) -> ExportedPolicy:
    """Return the policy of an exported file, ready to act; CheckpointError if it cannot be used."""
    return ExportedPolicy(read_exported(path))
