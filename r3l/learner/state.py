"""The learner's part of a checkpoint: weights, optimisers, generators, counters and cached latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r3l.learner.replay import Replay, batched
from r3l.learner.rewards import Rewards
from r3l.models.torch_setup import populate
from r3l.run.experience import MAX_SEQUENCE, ExperienceStore
from r3l.run.files import one_line
from r3l.run.tensors import CheckpointError, Tensors, load_optimiser, optimiser_tensors, under_prefix, with_prefix

COUNTERS = ("sequence", "steps", "updates", "pretraining", "is_pretrained")
READ_AT_ONCE = 256
"""Max rows that are read from the store in one batch."""
POPULATED_AT_ONCE = 2048
"""Rows whose memory is requested per call, ahead of the reader."""


class LearnerState(ABC):
    """Everything of a learner that a checkpoint keeps."""

    device: torch.device
    goals: Tensor
    replay: Replay
    rewards: Rewards

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.sequence = 0
        """Sequence number of the last row taken from the store."""
        self.steps = 0
        """Env steps among the rows taken."""
        self.updates = 0
        """Updates of the agents."""
        self.pretraining = 0
        """Updates of encoder and classifier before the agents' first update."""
        self.is_pretrained = False
        self.on_progress: Callable[[], None] = lambda: None
        """Called repeatedly by every long task but `pretrain`; an exception that it raises breaks the task off."""
        self.is_encoded = True
        """Whether the acting encoder made every cached latent."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Return every learned model by name."""

    @abstractmethod
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Return every optimiser by name."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the acting encoder's latents: uint8 [B, 3, H, W] to [B, Z]."""

    @abstractmethod
    def follow(self, store: ExperienceStore, limit: int = -1) -> None:
        """Take in the rows that the store gained since the last call, at most `limit` of them."""

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return everything that a new process needs to continue exactly: tensors, and JSON values.

        The cached latents are part of it: encoding in other batches would differ in the last bit.
        """
        tensors: Tensors = {}
        for name, module in self.modules().items():
            tensors |= with_prefix(name, dict(module.state_dict()))
        for name, optimiser in self.optimisers().items():
            tensors |= with_prefix(f"optimiser.{name}", optimiser_tensors(optimiser))
        tensors["generator"] = self.generator.get_state()
        tensors["latents"] = self.replay.latents[: len(self.replay) if self.is_encoded else 0]
        tensors["goal_latents"] = self.rewards.goal_latents
        counters = {name: getattr(self, name) for name in COUNTERS}
        return tensors, counters | {"rng": self.rng.bit_generator.state}

    def restore(self, tensors: Tensors, meta: Any, store: ExperienceStore) -> None:
        """Continue from `state`, with the replay rebuilt from the store; later rows are left to `follow`.

        A store that lost rows since then is followed again from its first row, as far as the state had got.

        Raises:
            CheckpointError: tensors are missing or have other shapes: the checkpoint is another learner's.
        """
        try:
            self._load(tensors, meta)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"the checkpoint is not of this run ({one_line(error)}); see r3l check") from error
        latents, kept = tensors["latents"].to(self.device), store.count(self.sequence)
        if kept == self.sequence and len(latents) == min(kept, self.replay.capacity):
            self._rebuild(store, latents)
        else:
            self.sequence = self.steps = self.replay.added = 0
            self.follow(store, kept)

    def _load(self, tensors: Tensors, meta: dict[str, Any]) -> None:
        for name, module in self.modules().items():
            module.load_state_dict(under_prefix(name, tensors))
        for name, optimiser in self.optimisers().items():
            load_optimiser(optimiser, under_prefix(f"optimiser.{name}", tensors))
        self.generator.set_state(tensors["generator"])
        self.rewards.goal_latents = tensors["goal_latents"].to(self.device)
        if len(self.rewards.goal_latents) != len(self.goals):  # the user added goal images since
            self.rewards.goal_latents = self.encode(self.goals)
        self.rng.bit_generator.state = meta["rng"]
        for name in COUNTERS:
            setattr(self, name, type(getattr(self, name))(meta.get(name, 0)))
            if not 0 <= getattr(self, name) <= MAX_SEQUENCE:
                raise ValueError(f"{name} is {meta[name]!r:.40}")
        if tensors["latents"].shape[1:] != self.replay.latents.shape[1:]:
            raise ValueError(f"latents are {list(tensors['latents'].shape)}")

    def _rebuild(self, store: ExperienceStore, latents: Tensor) -> None:
        """Fill the replay with the rows up to `sequence` and with their saved latents [N, Z]."""
        replay = self.replay
        replay.added = max(self.sequence - replay.capacity, 0)
        rows = store.rows(replay.added, self.sequence - replay.added)
        memory = ThreadPoolExecutor(1, "memory")
        try:
            for images in replay.images[: self.sequence].split(POPULATED_AT_ONCE):
                memory.submit(populate, images.numpy())
            for part in batched(rows, min(READ_AT_ONCE, replay.capacity)):
                self.on_progress()
                at = (replay.added + torch.arange(len(part), device=self.device)) % replay.capacity
                replay.add(part, latents[at])
        finally:
            memory.shutdown(cancel_futures=True)
