"""The actor: it explores, then alternates task and perturbation episodes, and stores every observation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from r3l.config.schema import PhasesConfig
from r3l.models.policy import Policies
from r3l.robot.base import FloatArray, Observation
from r3l.robot.env import RobotEnv, TimeStep, held_action
from r3l.run.experience import PHASES, Row
from r3l.run.tensors import Tensors, under_prefix, with_prefix


class Store(Protocol):
    """The experience store, or a thread that writes to it."""

    def append(self, row: Row) -> object:
        """Store a row."""
        ...

    def steps(self) -> int:
        """Return the number of env steps stored."""
        ...

    def last(self) -> tuple[int, int]:
        """Return sequence and segment of the newest row."""
        ...


class Phases:
    """The order of phases: exploration, then task and perturbation by their shares."""

    def __init__(self, config: PhasesConfig) -> None:
        self._config = config
        self.credit = 0.0
        """Perturbation episodes owed."""
        self.min_perturbation_share = 0.0
        """Min share of perturbation episodes; it is raised while the object is stuck."""

    def next(self, steps: int) -> tuple[str, int]:
        """Return the phase of the episode that begins after `steps` env steps, and its length in env steps."""
        config = self._config
        if steps < config.exploration_steps:
            return "exploration", min(config.task_steps, config.exploration_steps - steps)
        self.credit += max(config.perturbation_share, self.min_perturbation_share)
        if self.credit >= 1.0:
            self.credit -= 1.0
            return "perturbation", config.perturbation_steps
        return "task", config.task_steps


@dataclass
class Episode:
    """The current episode."""

    phase: str
    length: int
    step: int = 0


class Actor:
    """Acts on a reset-free environment, one env step per `step`, and stores its observations.

    A segment is a series of rows that follow from each other.
    """

    def __init__(
        self,
        env: RobotEnv,
        store: Store,
        policies: Policies,
        config: PhasesConfig,
        *,
        seed: int,
        between: Callable[[], bool] | None,
        inspect: Callable[[Observation], bool] = lambda observation: True,
    ) -> None:
        """Act on `env` after the rows of `store`.

        Args:
            between: runs between two episodes; it returns whether it did anything, then a new segment begins.
            inspect: whether an observation is fit to be learned from; an unfit one is not stored and ends the segment.
        """
        self._env, self._store, self._policies = env, store, policies
        self._between, self._inspect = between, inspect
        self.phases = Phases(config)
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.steps = store.steps()
        self.segment = store.last()[1]
        self.segment_step = -1
        """Env steps in the current segment; below 0 a new segment is due."""
        self.episode: Episode | None = None
        self._held = np.zeros(0, np.float32)

    def step(self) -> Row | None:
        """Make one env step and return its stored row; None if an observation was unfit to be learned from."""
        if self.episode is None and not self._begin_episode():
            return None
        if self.segment_step < 0 and not self.begin_segment(self._current.phase):
            return None
        episode = self._current
        taken = self._env.act(self._choose(episode))
        if not self._inspect(taken.observation):
            self.break_segment()
            return None
        self.segment_step += 1
        self.steps += 1
        episode.step += 1
        row = self._store_row(taken, episode.phase)
        if episode.step >= episode.length:
            self.episode = None
        return row

    def begin_segment(self, phase: str) -> bool:
        """Start a segment with an observation, without moving; return False if the observation is unfit."""
        seen = self._env.observe()
        if not self._inspect(seen.observation):
            return False
        self.segment += 1
        self.segment_step = 0
        self._policies.begin()
        self._store_row(seen, phase)
        return True

    def break_segment(self) -> None:
        """Start a new segment with the next step."""
        self.segment_step = -1

    def break_off(self) -> None:
        """Start a new episode with the next step: the robot was moved by a script, or nothing acted for a while."""
        self.episode = None
        self.break_segment()

    @property
    def _current(self) -> Episode:
        assert self.episode is not None
        return self.episode

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return what a new process needs to continue the episode: tensors, and JSON values."""
        tensors = with_prefix("window", self._policies.state())
        tensors["generator"] = self.generator.get_state()
        tensors["held"] = torch.from_numpy(self._held)
        meta = {
            "steps": self.steps,
            "segment": self.segment,
            "segment_step": self.segment_step,
            "credit": self.phases.credit,
            "episode": asdict(self.episode) if self.episode else None,
            "rng": self.rng.bit_generator.state,
        }
        return tensors, meta

    def restore(self, tensors: Tensors, meta: dict[str, Any], *, same_segment: bool) -> None:
        """Continue from `state`; start a new episode unless the world is the one of `state` (`same_segment`).

        The numbers of steps and segments come from the store, which may have rows after the checkpoint.
        """
        self.generator.set_state(tensors["generator"])
        self.rng.bit_generator.state = meta["rng"]
        self.phases.credit = meta["credit"]
        if same_segment:
            self._policies.restore(under_prefix("window", tensors))
            self._held = tensors["held"].numpy()
            self.segment_step = meta["segment_step"]
            self.episode = Episode(**meta["episode"]) if meta["episode"] else None

    def _begin_episode(self) -> bool:
        """Choose the next episode and run `between`; return False if a relaxed robot is unfit to be moved."""
        is_relaxed = self._env.robot.newest_target is None
        if is_relaxed and not self._inspect(self._env.observe().observation):
            return False
        phase, length = self.phases.next(self.steps)
        self.episode = Episode(phase, length)
        if self._between is not None and self._between():
            self.break_segment()
        return True

    def _choose(self, episode: Episode) -> FloatArray:
        if episode.phase != "exploration":
            return self._policies.act(episode.phase, self.generator)
        self._held = held_action(episode.step, self._held, len(self._env.robot.spec.joints), self.rng)
        return self._held

    def _store_row(self, seen: TimeStep, phase: str) -> Row:
        row = Row(
            segment=self.segment,
            step=self.segment_step,
            phase=PHASES.index(phase),
            image=seen.observation.image,
            proprioception=seen.joints,
            requested=seen.requested,
            applied=seen.applied,
            diagnostic=seen.observation.diagnostic,
            time_s=seen.observation.time_s,
        )
        self._store.append(row)
        self._policies.see(row.image, row.proprioception, row.applied, row.diagnostic)
        return row
