"""Behaviours that an episode can be run with: learned policies and baselines."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from r3l.models.policy import Policies
from r3l.robot.base import FloatArray, Image
from r3l.robot.env import held_action


class Behaviour(Protocol):
    """A policy, learned or not, that acts for one episode at a time."""

    def begin(self) -> None:
        """Forget the last episode."""
        ...

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        """Receive an observation."""
        ...

    def choose(self) -> FloatArray:
        """Return an action [A] in [-1, 1]."""
        ...


class TaskPolicy:
    """The learned task policy, deterministic."""

    def __init__(self, policies: Policies) -> None:
        self.begin, self.see, self._policies = policies.begin, policies.see, policies

    def choose(self) -> FloatArray:
        """Return the mean action."""
        return self._policies.act("task")


class DoNothing:
    """Baseline: hold the pose that the episode began with."""

    def __init__(self) -> None:
        self._pose: FloatArray | None = None

    def begin(self) -> None:
        """Forget the pose."""
        self._pose = None

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        """Keep the first pose."""
        if self._pose is None:
            self._pose = np.clip(proprioception, -1, 1)

    def choose(self) -> FloatArray:
        """Return the first pose."""
        assert self._pose is not None
        return self._pose


class RandomPolicy:
    """Baseline: uniformly random targets, each held as long as in exploration."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._step, self._action = 0, np.zeros(0, np.float32)

    def begin(self) -> None:
        """Draw a new target at the first step."""
        self._step = 0

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        """Draw a new target when the held one is over."""
        self._action = held_action(self._step, self._action, len(applied), self._rng)
        self._step += 1

    def choose(self) -> FloatArray:
        """Return the held action."""
        return self._action


class PerturbationPolicy:
    """The learned perturbation policy, sampled as in training; it makes random starts."""

    def __init__(self, policies: Policies, seed: int) -> None:
        self.begin, self.see, self._policies = policies.begin, policies.see, policies
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self) -> FloatArray:
        """Return a sampled action."""
        return self._policies.act("perturbation", self._generator)
