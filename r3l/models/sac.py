"""Soft actor-critic: one agent class. A run has two agents, the task and the perturbation agent."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r3l.config.models import SACConfig
from r3l.models.networks import ConvNet, EnsembleMLP, mlp

Metrics = dict[str, Tensor]
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclass(frozen=True)
class Batch:
    """Transitions to learn from. `image` and `next_image` are None unless the agent sees pixels."""

    observation: Tensor
    """[B, F] float32."""
    action: Tensor
    """[B, A] float32 in [-1, 1]: the requested action."""
    reward: Tensor
    """[B] float32."""
    next_observation: Tensor
    """[B, F] float32."""
    discount: Tensor
    """[B] float32: the weight of the next value, gamma to the power of the number of steps in `reward`.

    0 would mark a terminal state. None occurs: neither a switch of phase nor a time limit ends the world.
    """
    image: Tensor | None = None
    """[B, C, H, W] uint8."""
    next_image: Tensor | None = None


def squashed_log_probability(log_std: Tensor, noise: Tensor, raw: Tensor) -> Tensor:
    """Return log pi(tanh(raw)) for raw = mean + std noise, noise standard normal: [B, A] three times to [B].

    Source: Haarnoja et al. 2018, appendix C, equation 21, in the form that does not overflow.
    """
    constant = noise.shape[-1] * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))
    gaussian = -0.5 * noise.square().sum(-1) - log_std.sum(-1)
    return gaussian + 2 * (raw + F.softplus(-2 * raw)).sum(-1) - constant


def soft_target(
    reward: Tensor, discount: Tensor, next_value: Tensor, next_log_probability: Tensor, alpha: Tensor
) -> Tensor:
    """Return r + discount (min_k Q_k - alpha log pi): next_value [K, B], the others [B], to [B].

    Source: Haarnoja et al. 2018, equations 2 and 3; minimum over critics from Fujimoto et al. 2018.
    """
    value = next_value.min(0).values - alpha * next_log_probability
    return reward + discount * value


class Actor(nn.Module):
    """Squashed Gaussian policy over features, with its own convolutions where the agent sees pixels."""

    def __init__(self, features: int, actions: int, hidden: tuple[int, ...], trunk: ConvNet | None) -> None:
        super().__init__()
        self.actions = actions
        self.trunk = trunk
        self.body = mlp((features, *hidden, 2 * actions))

    def features(self, observation: Tensor, image: Tensor | None) -> Tensor:
        """Append the features of the convolutions to the observation: [B, F] to [B, F + O]."""
        if self.trunk is None:
            return observation
        if image is None:
            raise ValueError("this policy sees pixels and was given no image; sample the replay with images")
        return torch.cat([self.trunk(image), observation], -1)

    def gaussian(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing: [B, F] to two [B, A]."""
        mean, log_std = self.body(features).chunk(2, -1)
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (torch.tanh(log_std) + 1)

    @torch.no_grad()
    def act(self, observation: Tensor, image: Tensor | None = None, *, noise: Tensor | None = None) -> Tensor:
        """Return actions [B, A] in [-1, 1]: sampled with standard normal `noise` [B, A], or the mean without noise."""
        mean, log_std = self.gaussian(self.features(observation, image))
        if noise is not None:
            mean = mean + noise * log_std.exp()
        return torch.tanh(mean)


Parameters = tuple[Tensor, ...]


@torch.no_grad()
def follow(average: Parameters, parameters: Parameters, share: float) -> None:
    """Move `average` by `share` of the way to `parameters`."""
    torch._foreach_lerp_(average, parameters, share)


def descend(loss: Tensor, parameters: Parameters, optimiser: torch.optim.Optimizer) -> None:
    """Make one step of `optimiser` on the gradient of `loss`."""
    for parameter in parameters:
        parameter.grad = None
    loss.backward(inputs=parameters)
    optimiser.step()


PIXEL_FEATURES = 64
"""Features that an agent's own convolutions make of an image."""


def build_actor(observation_size: int, action_size: int, config: SACConfig, image: tuple[int, int] | None) -> Actor:
    """Build the actor network; `image` is (channels, side) for an agent that sees pixels."""
    trunk = ConvNet(*image, PIXEL_FEATURES) if image else None
    return Actor(observation_size + (PIXEL_FEATURES if image else 0), action_size, config.hidden, trunk)


class SAC(nn.Module):
    """Twin-critic soft actor-critic with automatic temperature.

    Source: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications". Deviations: LayerNorm in the
    critics; n-step targets (`horizon`); an exponential average of the actor beside it; on pixels the convolutions
    learn from the critic's loss alone (Yarats et al. 2021).
    """

    def __init__(
        self, observation_size: int, action_size: int, config: SACConfig, *, image: tuple[int, int] | None = None
    ) -> None:
        """Build the networks; `image` is (channels, side) for an agent that sees pixels."""
        super().__init__()
        self.config = config
        self.actor = build_actor(observation_size, action_size, config, image)
        trunk = self.actor.trunk
        features = observation_size + (PIXEL_FEATURES if image else 0)
        self.critic = EnsembleMLP(config.critics, features + action_size, config.hidden, layer_norm=config.layer_norm)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.averaged_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.initial_temperature)))
        self.target_entropy = config.target_entropy_per_action * action_size
        self._critic_parameters = (*self.critic.parameters(), *(trunk.parameters() if trunk else ()))
        self._actor_parameters = (*self.actor.body.parameters(), self.log_alpha)
        # Listed once: walking through the modules takes a tenth of an update's overhead.
        self._followed = (
            (tuple(self.target_critic.parameters()), tuple(self.critic.parameters()), config.tau),
            (tuple(self.averaged_actor.parameters()), tuple(self.actor.parameters()), config.averaging),
        )
        rate = config.learning_rate
        self.critic_optimiser = torch.optim.Adam(self._critic_parameters, rate, fused=True)
        self.actor_optimiser = torch.optim.Adam(self._actor_parameters, rate, fused=True)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimisers by name, for checkpoints."""
        return {"critic": self.critic_optimiser, "actor": self.actor_optimiser}

    def update(self, batch: Batch, noise: Tensor) -> Metrics:
        """Make one step on critics, actor and temperature, and move the target critic and the averaged actor.

        Args:
            noise: standard normal [2, B, A], for the next actions in the target and for the actor's actions.
        """
        features = self.actor.features(batch.observation, batch.image)
        metrics = self._update_critic(batch, features, noise[0])
        metrics |= self._update_actor(features.detach(), noise[1])
        for average, parameters, share in self._followed:
            follow(average, parameters, share)
        return metrics

    def _sample(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor.gaussian(features)
        raw = mean + noise * log_std.exp()
        return torch.tanh(raw), squashed_log_probability(log_std, noise, raw)

    def _update_critic(self, batch: Batch, features: Tensor, noise: Tensor) -> Metrics:
        with torch.no_grad():
            next_features = self.actor.features(batch.next_observation, batch.next_image)
            next_action, next_log_probability = self._sample(next_features, noise)
            next_value = self.target_critic(torch.cat([next_features, next_action], -1))
            alpha = self.log_alpha.exp()
            target = soft_target(batch.reward, batch.discount, next_value, next_log_probability, alpha)
        value = self.critic(torch.cat([features, batch.action], -1))
        loss = F.mse_loss(value, target.expand_as(value), reduction="sum") / len(target)
        descend(loss, self._critic_parameters, self.critic_optimiser)
        return {"critic_loss": loss.detach(), "value": value.detach().mean()}

    def _update_actor(self, features: Tensor, noise: Tensor) -> Metrics:
        action, log_probability = self._sample(features, noise)
        value = self.critic(torch.cat([features, action], -1), frozen=True).min(0).values
        alpha = self.log_alpha.exp()
        loss = (alpha.detach() * log_probability - value).mean()
        # The temperature's loss is -log_alpha * (log pi + target entropy), as in the authors' code.
        entropy = -log_probability.detach().mean()
        temperature_loss = self.log_alpha * (entropy - self.target_entropy)
        descend(loss + temperature_loss, self._actor_parameters, self.actor_optimiser)
        return {"actor_loss": loss.detach(), "entropy": entropy, "temperature": alpha.detach()}
