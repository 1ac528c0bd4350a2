"""The learned encoder: one copy acts and encodes the replay, the other one learns and replaces it at intervals."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from r3l.config.models import VAEConfig
from r3l.learner.replay import Replay
from r3l.models.vae import VAE, jittered


class LearnedEncoder:
    """An acting VAE and its learning copy."""

    def __init__(self, acting: VAE, config: VAEConfig, device: torch.device) -> None:
        self._config = config
        self.acting = acting.to(device)
        self.learning = copy.deepcopy(acting).to(device)
        self.optimiser = torch.optim.Adam(self.learning.parameters(), config.learning_rate, fused=True)

    def update(
        self, replay: Replay, rng: np.random.Generator, generator: torch.Generator, *, tether: float
    ) -> dict[str, Tensor]:
        """Make one step of the learning copy on sampled rows.

        `tether` weighs the squared distance to the latents of the acting encoder.
        """
        config = self._config
        rows = replay.sample_rows(config.batch_size, rng)
        images = replay.pixels(rows[:, None])
        noise = torch.randn(len(rows), config.latent_size, generator=generator).to(replay.device)
        near = replay.neighbours(rows, config.neighbours, rng)
        drawn = images if near is rows else replay.pixels(near[:, None])
        seen = jittered(images, config.jitter, generator) if config.jitter else images
        loss, metrics = self.learning.loss(seen, drawn, replay.proprioception[near], noise)
        if tether:
            drift = (self.learning.posterior(images)[0] - replay.latents[rows]).square().sum(-1).mean()
            loss = loss + tether * drift
            metrics["drift"] = drift.detach()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {f"vae/{name}": value for name, value in metrics.items()}

    def refresh(self) -> None:
        """Let the learning copy's weights act."""
        self.acting.load_state_dict(self.learning.state_dict())
