"""Interfaces of encoder, novelty model and reward model, as the learner uses them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

Metrics = dict[str, Tensor]


class Encoder(Protocol):
    """Maps camera images to latent states. A learned one is also an nn.Module."""

    def encode(self, images: Tensor, diagnostic: Tensor) -> Tensor:
        """Map uint8 [B, 3, H, W] and ground truth float32 [B, D] to float32 [B, Z]."""
        ...


class Novelty(nn.Module, ABC):
    """A model of how new a state is.

    States are float32 [B, I] vectors, or uint8 [B, C, H, W] images where `novelty.sees` is pixels.
    """

    optimiser: torch.optim.Optimizer

    @abstractmethod
    def reward(self, states: Tensor) -> Tensor:
        """Return the novelty reward of states, [B] in [0, max_reward]; high where states are new."""

    @abstractmethod
    def update(self, states: Tensor) -> Metrics:
        """Make one step towards calling `states` known; return metrics."""


class RewardModel(nn.Module, ABC):
    """A learned reward of the task policy.

    States are float32 [B, I] vectors, or uint8 [B, C, H, W] images where `classifier.sees` is pixels.
    """

    optimiser: torch.optim.Optimizer

    @abstractmethod
    def probability(self, states: Tensor) -> Tensor:
        """Return the probability of success, [B] in [0, 1]."""

    @abstractmethod
    def reward(self, states: Tensor) -> Tensor:
        """Return the task reward, [B]; at most 1, or `learner/divergence.py` must know another bound."""

    @abstractmethod
    def update(self, goals: Tensor, visited: Tensor, generator: torch.Generator) -> Metrics:
        """Make one step: goals [B, ...] are successes, visited [B, ...] count as failures; return metrics."""
