"""The success classifier (VICE): goal images against visited states, the task policy's reward."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r3l.config.models import ClassifierConfig
from r3l.models.interfaces import Metrics, RewardModel
from r3l.models.networks import ConvNet, mlp


def mixup(positives: Tensor, negatives: Tensor, share: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Mix every example with another one, inputs and labels alike.

    Args:
        positives, negatives: [B, ...] float32, labels 1 and 0.
        share: [2B] in [0, 1], the first example's share.
        order: [2B] int64, a permutation: the partners.

    Returns:
        Inputs [2B, ...] and labels [2B].

    Source: Zhang et al. 2018, equation 1. The authors' code mixed labels but not images; here both are mixed.
    """
    inputs = torch.cat([positives, negatives])
    labels = torch.cat([torch.ones(len(positives)), torch.zeros(len(negatives))]).to(inputs.device)
    weights = share.view(-1, *[1] * (inputs.dim() - 1))
    return weights * inputs + (1 - weights) * inputs[order], share * labels + (1 - share) * labels[order]


class Classifier(RewardModel):
    """The VICE discriminator, whose probability of success is the task reward.

    Source: Fu et al. 2018 (VICE), section 5; R3L (Zhu et al. 2020), section 4.1. Deviations: mixup mixes inputs too;
    noise on the inputs while learning (Arjovsky & Bottou 2017, section 3) makes the reward rise gradually towards the
    goal; half of the negatives come from exploration and perturbation; the reward is bounded and scaled by its mean on
    the goals, which keeps it stationary while the policy's own successes turn into negatives.
    """

    goal_level: Tensor

    def __init__(self, config: ClassifierConfig, inputs: int, *, image: tuple[int, int] | None = None) -> None:
        """Build over [B, `inputs`] vectors, or over (channels, side) images."""
        super().__init__()
        self.config = config
        self.body: nn.Module
        if image:
            self.body = nn.Sequential(ConvNet(*image, 256, (64, 64, 64)), mlp((256, config.hidden, 1)))
        else:
            self.body = mlp((inputs, config.hidden, config.hidden, 1))
        self.register_buffer("goal_level", torch.ones(()))
        self.optimiser = torch.optim.AdamW(
            self.body.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def logit(self, states: Tensor) -> Tensor:
        """Return log odds of success: [B, I] float32 or uint8-valued [B, C, H, W] to [B]."""
        return self.body(states).squeeze(-1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def probability(self, states: Tensor) -> Tensor:
        """Return the probability of success in [0, 1]: [B]."""
        return torch.sigmoid(self.logit(states))

    @torch.no_grad()
    def reward(self, states: Tensor) -> Tensor:
        """Return the task reward: [B], in [0, 1] for `probability`."""
        if self.config.reward == "logit":
            return self.logit(states) / self.config.logit_scale
        return (self.probability(states) / self.goal_level).clamp(max=1.0)

    def update(self, goals: Tensor, visited: Tensor, generator: torch.Generator) -> Metrics:
        """Make one step of mixed-up cross entropy: goals [B, ...] are successes, visited [B, ...] are not."""
        count, alpha = 2 * len(goals), self.config.mixup_alpha
        share = torch.ones(count)
        if alpha:
            # Beta(a, a) from two gammas, drawn with our own generator.
            pair = torch._standard_gamma(torch.full((2, count), alpha), generator=generator)
            share = pair[0] / pair.sum(0).clamp_min(1e-8)
        order = torch.randperm(count, generator=generator)
        device = goals.device
        inputs, labels = mixup(goals.float(), visited.float(), share.to(device), order.to(device))
        if self.config.noise and self.config.sees == "latent":
            inputs = inputs + self.config.noise * torch.randn(inputs.shape, generator=generator).to(device)
        loss = F.binary_cross_entropy_with_logits(self.logit(inputs), labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        level = self.probability(goals).mean()
        self.goal_level.lerp_(level.clamp_min(0.05), 0.05)
        return {"classifier_loss": loss.detach(), "goal_probability": level}
