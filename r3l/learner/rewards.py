"""The rewards of stored rows, computed anew by the models of the moment whenever rows are sampled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from r3l.config.schema import Config
from r3l.learner.replay import Replay
from r3l.models.interfaces import Novelty, RewardModel
from r3l.run.experience import PHASES

NEWEST = 250
"""Rows over which `means` averages."""
CHUNK = 256
"""Max states per pass through a model."""
Metrics = dict[str, Tensor]


def phases_of(config: Config, agent: str) -> tuple[str, ...]:
    """Return the phases whose rows an agent and its models learn from."""
    return ("exploration", agent) if config.separate_replays else PHASES


class Rewards:
    """Rewards replay positions with the success classifier and with novelty, and trains both models."""

    def __init__(
        self,
        config: Config,
        replay: Replay,
        goals: Tensor,
        classifier: RewardModel,
        novelty: dict[str, Novelty],
        true_reward: Callable[[Tensor], Tensor] | None,
    ) -> None:
        """Reward the rows of `replay`.

        Args:
            goals: uint8 [G, 3, H, W], the training goal images.
            novelty: models by agent; `perturbation` is always among them.
            true_reward: maps ground truth [B, D] to [B]; only diagnostic runs have one.
        """
        self._config, self._replay, self._goals, self._true_reward = config, replay, goals, true_reward
        self.classifier, self.novelty_models = classifier, novelty
        self.goal_latents = torch.zeros(len(goals), replay.latents.shape[1], device=replay.device)
        """[G, Z]: the training goal images, encoded by the acting encoder."""

    def task(self, rows: Tensor) -> Tensor:
        """Return the task policy's reward for replay positions: [B] int64 to [B] float32."""
        if self._config.reward == "diagnostic-true-reward":
            if self._true_reward is None:
                raise ValueError("reward is 'diagnostic-true-reward' and the task offers none")
            reward = self._true_reward(self._replay.diagnostic[rows])
        else:
            reward = self.classifier.reward(self._states(rows, self._config.classifier.sees))
        if self._config.novelty_bonus:
            reward = reward + self._config.novelty_bonus * self.novelty(rows, "task")
        return reward

    def novelty(self, rows: Tensor, agent: str = "perturbation") -> Tensor:
        """Return the novelty reward for replay positions: [B] int64 to [B] float32."""
        model = self.novelty_models.get(agent, self.novelty_models["perturbation"])
        return model.reward(self.novelty_states(rows))

    def success(self, rows: Tensor) -> Tensor:
        """Return the classifier's probability of success for replay positions: [B] int64 to [B] float32."""
        sees = self._config.classifier.sees
        return torch.cat([self.classifier.probability(self._states(part, sees).float()) for part in rows.split(CHUNK)])

    def success_of(self, states: Tensor) -> Tensor:
        """Return the probability of success for latents [B, Z], or images where the classifier sees pixels: [B]."""
        return torch.cat([self.classifier.probability(part.float()) for part in states.split(CHUNK)])

    def means(self) -> dict[str, float]:
        """Return both rewards' means over the newest rows, without drawing a random number."""
        rows = self._replay.newest(NEWEST)
        return {
            "recent/task_reward": float(self.task(rows).mean()),
            "recent/novelty_reward": float(self.novelty(rows).mean()),
        }

    def update_novelty(self, rng: np.random.Generator) -> Metrics:
        """Make one step on each novelty model."""
        metrics: Metrics = {}
        for agent, model in self.novelty_models.items():
            phases = phases_of(self._config, agent)
            rows = self._replay.sample_rows(self._config.novelty.batch_size, rng, phases=phases)
            metrics |= model.update(self.novelty_states(rows))
        return metrics

    def update_classifier(self, rng: np.random.Generator, generator: torch.Generator) -> Metrics:
        """Make one step on the classifier: goal images against visited states."""
        config, device = self._config.classifier, self._replay.device
        chosen = torch.from_numpy(rng.integers(0, len(self._goals), config.batch_size)).to(device)
        goals = self._goals[chosen] if config.sees == "pixels" else self.goal_latents[chosen]
        from_exploration = round(config.batch_size * config.exploration_share)
        phases = phases_of(self._config, "task")
        rows = self._replay.sample_rows(config.batch_size - from_exploration, rng, phases=phases)
        if from_exploration:
            others = self._replay.sample_rows(from_exploration, rng, phases=("exploration", "perturbation"))
            rows = torch.cat([rows, others])
        return self.classifier.update(goals, self._states(rows, config.sees), generator)

    def novelty_states(self, rows: Tensor) -> Tensor:
        """Return what novelty is measured on: images, or latents beside their weighted change since the last step."""
        config = self._config.novelty
        now = self._states(rows, config.sees)
        if config.sees == "pixels" or not config.motion:
            return now
        return torch.cat([now, config.motion * (now - self._replay.latents[self._replay.previous(rows)])], -1)

    def _states(self, rows: Tensor, sees: str) -> Tensor:
        return self._replay.pixels(rows[:, None]) if sees == "pixels" else self._replay.latents[rows]
