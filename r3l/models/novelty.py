"""Random network distillation, the novelty of a state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from r3l.config.models import NoveltyConfig
from r3l.models.interfaces import Metrics, Novelty
from r3l.models.networks import ConvNet, mlp


class RunningMoments(nn.Module):
    """Exponentially weighted mean and variance, corrected for their start at zero."""

    mean: Tensor
    square: Tensor
    weight: Tensor

    def __init__(self, size: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.zeros(size))
        self.register_buffer("weight", torch.zeros(()))

    def update(self, values: Tensor) -> None:
        """Update mean and variance with values [B, S]."""
        self.mean.lerp_(values.mean(0), 1 - self.decay)
        self.square.lerp_(values.square().mean(0), 1 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, [S] each; 0 and 1 before the first update."""
        if self.weight == 0:
            return self.mean, torch.ones_like(self.mean)
        mean = self.mean / self.weight
        variance = (self.square / self.weight - mean.square()).clamp_min(1e-8)
        return mean, variance.sqrt()


class RND(Novelty):
    """Random network distillation: the error of a predictor trained to match a fixed random network.

    Source: Burda et al. 2018, section 2.2; R3L (Zhu et al. 2020), section 4.2. Deviations: inputs are centred,
    divided by the largest of their deviations, so that constant latents are not amplified to noise, and clipped to
    [-5, 5]; the reward is divided by a running standard deviation and clipped.
    """

    def __init__(self, config: NoveltyConfig, inputs: int, *, image: tuple[int, int] | None = None) -> None:
        """Build both networks over [B, `inputs`] vectors, or over (channels, side) images."""
        super().__init__()
        self.config = config
        self.is_image = image is not None
        sizes = (256 if image else inputs, config.hidden, config.hidden, config.embedding)
        self.target = nn.Sequential(ConvNet(*image, 256) if image else nn.Identity(), mlp(sizes))
        self.predictor = nn.Sequential(ConvNet(*image, 256) if image else nn.Identity(), mlp(sizes))
        self.target.requires_grad_(False)
        self.inputs = RunningMoments(1 if image else inputs, config.decay)
        self.errors = RunningMoments(1, config.decay)
        self.optimiser = torch.optim.Adam(self.predictor.parameters(), config.learning_rate, fused=True)

    def _scaled(self, states: Tensor) -> Tensor:
        if self.is_image:
            return states
        mean, deviation = self.inputs.moments()
        return ((states - mean) / deviation.max().clamp_min(1e-2)).clamp(-5, 5)

    def error(self, states: Tensor) -> Tensor:
        """Return the mean squared prediction error: [B, I] or uint8 [B, C, H, W] to [B]."""
        scaled = self._scaled(states)
        with torch.no_grad():
            target = self.target(scaled)
        return (self.predictor(scaled) - target).square().mean(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def reward(self, states: Tensor) -> Tensor:
        """Return the error in running standard deviations, clipped to [0, max_reward]: [B]."""
        _, deviation = self.errors.moments()
        return (self.error(states) / deviation).clamp(0, self.config.max_reward)

    def update(self, states: Tensor) -> Metrics:
        """Fit the predictor to `states` for one step and update the running moments."""
        if not self.is_image:
            self.inputs.update(states)
        error = self.error(states)
        self.errors.update(error.detach()[:, None])
        self.optimiser.zero_grad(set_to_none=True)
        loss = error.mean()
        loss.backward()
        self.optimiser.step()
        return {"novelty_error": loss.detach()}
