"""The learner: follow the experience store, relabel what is sampled, update every learned model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r3l.config.schema import Config
from r3l.learner.replay import Replay, Sampled
from r3l.models.classifier import Classifier
from r3l.models.novelty import Novelty
from r3l.models.policy import DiagnosticStateEncoder, Encoder, NoEncoder, Policies
from r3l.models.sac import SAC, Batch
from r3l.models.torch_setup import populate
from r3l.models.vae import VAE, jittered
from r3l.robot.base import RobotSpec
from r3l.run.experience import MAX_SEQUENCE, PHASES, ExperienceStore, Row
from r3l.run.files import one_line
from r3l.run.tensors import CheckpointError, Tensors, load_optimiser, optimiser_tensors, under_prefix, with_prefix

Metrics = dict[str, float]
AGENTS = ("task", "perturbation")
COUNTERS = ("sequence", "steps", "updates", "pretraining", "is_pretrained")
AT_ONCE, FEW = 256, 8
"""Rows that are encoded together, and how many are still encoded one by one."""
MEMORY_ROWS = 2048
"""Rows whose memory is asked for at once, ahead of them."""


class Learner:
    """Everything that learns, over one replay.

    Random draws come from the learner's own generators, so that the same rows in the same order give the same
    weights, bit for bit, also across a checkpoint.
    """

    def __init__(
        self,
        config: Config,
        spec: RobotSpec,
        goals: Tensor,
        *,
        device: torch.device,
        true_reward: Callable[[Tensor], Tensor] | None = None,
        overlaps: bool = True,
    ) -> None:
        """Build the models.

        Args:
            goals: uint8 [G, 3, H, W], the training goal images.
            true_reward: maps ground truth [B, D] to [B]; diagnostic runs alone have one.
            overlaps: whether the agents' updates run at once, on two threads; the weights are the same, bit for bit.
        """
        self.config, self.device, self.goals = config, device, goals.to(device)
        self._true_reward = true_reward
        actions, camera = len(spec.joints), spec.camera
        stacked = (3 * config.window, camera.height)
        single = (3, camera.height)
        latents = {"latent": config.vae.latent_size, "pixels": 0, "diagnostic-true-state": len(spec.diagnostic)}
        size = latents[config.state]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.vae = VAE(config.vae, actions) if config.state == "latent" else None
            self._vae_next = copy.deepcopy(self.vae)
            features = config.window * (size + 2 * actions)
            pixels = stacked if config.state == "pixels" else None
            self.agents = {name: SAC(features, actions, config.sac, image=pixels) for name in AGENTS}
            novelty_image = single if config.novelty.sees == "pixels" else None
            owners = AGENTS if config.separate_replays else AGENTS[1:]
            novelty_size = 2 * size if config.novelty.motion else size
            self.novelty = {name: Novelty(config.novelty, novelty_size, image=novelty_image) for name in owners}
            classifier_image = single if config.classifier.sees == "pixels" else None
            self.classifier = Classifier(config.classifier, size, image=classifier_image)
        for module in self.modules().values():
            module.to(device)
        self.vae_optimiser = None
        if self._vae_next is not None:
            self.vae_optimiser = torch.optim.Adam(self._vae_next.parameters(), config.vae.learning_rate, fused=True)
        self.replay = Replay(
            config.replay_capacity,
            image_shape=(camera.height, camera.width, 3),
            actions=actions,
            latents=size,
            diagnostics=len(spec.diagnostic),
            window=config.window,
            device=device,
        )
        self.rng = np.random.default_rng(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self._threads: ThreadPoolExecutor | None = None
        if overlaps:  # the agents share only what they read: a third less time on two cores that are free
            threads = torch.get_num_threads()
            self._threads = ThreadPoolExecutor(len(AGENTS), "agent", torch.set_num_threads, (threads,))
        self.sequence = 0
        """The last row of the store that was followed."""
        self.steps = 0
        """Env steps among the rows followed."""
        self.updates = 0
        self.pretraining = 0
        """Updates made before the agents' first."""
        self.is_pretrained = False
        self.on_progress: Callable[[], None] = lambda: None
        """Called now and then by what takes long, but `pretrain`; what it raises breaks that off."""
        self._is_encoded = True
        """Whether every cached latent is the acting encoder's."""
        self._at_once = min(AT_ONCE, config.replay_capacity)
        self._goal_latents = self._encode(self.goals)

    @property
    def encoder(self) -> Encoder:
        """What turns images into the latents of the policies."""
        if self.vae is not None:
            return self.vae
        return NoEncoder() if self.config.state == "pixels" else DiagnosticStateEncoder()

    def policies(self) -> Policies:
        """Return what acts, sharing the live weights."""
        actors = {name: agent.actor for name, agent in self.agents.items()}
        correlation = self.config.sac.noise_correlation
        return Policies(self.encoder, actors, self.config.window, self.device, noise_correlation=correlation)

    def modules(self) -> dict[str, nn.Module]:
        """Return every learned model by name."""
        found: dict[str, nn.Module] = {"classifier": self.classifier}
        found |= {f"{name}_agent": agent for name, agent in self.agents.items()}
        found |= {f"{name}_novelty": novelty for name, novelty in self.novelty.items()}
        if self.vae is not None and self._vae_next is not None:
            found |= {"vae": self.vae, "vae_next": self._vae_next}
        return found

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Return every optimiser by name."""
        found: dict[str, torch.optim.Optimizer] = {"classifier": self.classifier.optimiser}
        for name, agent in self.agents.items():
            found |= {f"{name}_agent.{part}": optimiser for part, optimiser in agent.optimisers().items()}
        found |= {f"{name}_novelty": novelty.optimiser for name, novelty in self.novelty.items()}
        if self.vae_optimiser is not None:
            found["vae"] = self.vae_optimiser
        return found

    def follow(self, store: ExperienceStore, limit: int = -1) -> None:
        """Take in rows that the store gained since the last call, at most `limit`."""
        for rows in batched(store.rows(self.sequence, limit), self._at_once):
            self.on_progress()
            images = torch.from_numpy(np.stack([row.image for row in rows])).permute(0, 3, 1, 2).to(self.device)
            diagnostic = torch.from_numpy(np.stack([row.diagnostic for row in rows])).to(self.device)
            # Few rows are encoded one by one, as they come in sync mode: a batch would differ in the last bit.
            size = AT_ONCE if len(rows) > FEW else 1
            parts = zip(images.split(size), diagnostic.split(size), strict=True)
            self.replay.add(rows, torch.cat([self.encoder.encode(*part) for part in parts]))
            self.sequence = rows[-1].sequence
            self.steps += sum(row.step > 0 for row in rows)

    def owed(self) -> int:
        """Return how many updates are missing at the configured ratio; none before pretraining."""
        if not self.is_pretrained:
            return 0
        learnable = max(self.steps - self.config.phases.exploration_steps, 0)
        return int(learnable * self.config.update_ratio) - self.updates

    def pretrain(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Metrics:
        """Fit encoder and classifier on what exploration saw; the agents start after it.

        `on_progress(done, total)` is called after each update, when a checkpoint may be written; it may also raise.
        """
        metrics: dict[str, Tensor] = {}
        vae_updates = self.config.vae.pretrain_updates if self.vae is not None else 0
        classifier_updates = self.config.classifier.pretrain_updates if self.config.reward == "classifier" else 0
        total = vae_updates + classifier_updates
        while self.pretraining <= total:
            if self.pretraining == vae_updates:
                self._refresh_encoder()
            if self.pretraining == total:
                break
            is_vae = self.pretraining < vae_updates
            metrics |= self._update_vae(tether=0.0) if is_vae else self._update_classifier()
            self.pretraining += 1
            on_progress(self.pretraining, total)
        self.is_pretrained = True
        return {name: float(value) for name, value in metrics.items()}

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return everything a new process needs to go on exactly: tensors, and JSON values.

        The cached latents are part of it: encoding in other batches would differ in the last bit.
        """
        tensors: Tensors = {}
        for name, module in self.modules().items():
            tensors |= with_prefix(name, dict(module.state_dict()))
        for name, optimiser in self.optimisers().items():
            tensors |= with_prefix(f"optimiser.{name}", optimiser_tensors(optimiser))
        tensors["generator"] = self.generator.get_state()
        tensors["latents"] = self.replay.latents[: len(self.replay) if self._is_encoded else 0]
        tensors["goal_latents"] = self._goal_latents
        counters = {name: getattr(self, name) for name in COUNTERS}
        return tensors, counters | {"rng": self.rng.bit_generator.state}

    def restore(self, tensors: Tensors, meta: Any, store: ExperienceStore) -> None:
        """Go on from `state`, with the replay rebuilt from the store; later rows are left to `follow`.

        A store that lost rows since then is taken in anew, as far as `state` had got.

        Raises:
            CheckpointError: `state` was another learner's: tensors are missing, or of other shapes.
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
        self._goal_latents = tensors["goal_latents"].to(self.device)
        if len(self._goal_latents) != len(self.goals):  # there are more goal images by now
            self._goal_latents = self._encode(self.goals)
        self.rng.bit_generator.state = meta["rng"]
        for name in COUNTERS:
            setattr(self, name, type(getattr(self, name))(meta.get(name, 0)))
            if not 0 <= getattr(self, name) <= MAX_SEQUENCE:
                raise ValueError(f"{name} is {meta[name]!r:.40}")
        if tensors["latents"].shape[1:] != self.replay.latents.shape[1:]:
            raise ValueError(f"latents are {list(tensors['latents'].shape)}")

    def _rebuild(self, store: ExperienceStore, latents: Tensor) -> None:
        """Fill the replay with the rows up to `sequence`, and with the latents that it had: [N, Z]."""
        replay = self.replay
        replay.added = max(self.sequence - replay.capacity, 0)
        rows = store.rows(replay.added, self.sequence - replay.added)
        memory = ThreadPoolExecutor(1, "memory")
        try:
            for images in replay.images[: self.sequence].split(MEMORY_ROWS):
                memory.submit(populate, images.numpy())
            for part in batched(rows, self._at_once):
                self.on_progress()
                at = (replay.added + torch.arange(len(part), device=self.device)) % replay.capacity
                replay.add(part, latents[at])
        finally:
            memory.shutdown(cancel_futures=True)

    def weights(self, *, averaged: bool = True) -> Tensors:
        """Return what acting needs, for publishing: encoder and actors, averaged ones being steadier than the live."""
        tensors: Tensors = {}
        if self.vae is not None:
            tensors |= with_prefix("vae", dict(self.vae.state_dict()))
        for name, agent in self.agents.items():
            actor = agent.averaged_actor if averaged else agent.actor
            tensors |= with_prefix(f"{name}_actor", dict(actor.state_dict()))
        return tensors

    def update(self) -> dict[str, Tensor]:
        """Update each agent once, and the other models at their own cadence; return metrics as tensors."""
        config = self.config
        metrics: dict[str, Tensor] = {}
        self.updates += 1
        if config.update_acting_only:
            acting = "perturbation" if self.replay.newest_phase() == "perturbation" else "task"
            metrics |= self._update_agents((acting,))
        else:
            metrics |= self._update_agents(AGENTS)
        if self.updates % config.novelty.update_every == 0:
            for owner, novelty in self.novelty.items():
                rows = self._rows(config.novelty.batch_size, self._phases(owner))
                metrics |= novelty.update(self._novelty_states(rows))
        if config.reward == "classifier" and self.updates % config.classifier.update_every == 0:
            metrics |= self._update_classifier()
        if self.vae is not None and config.vae.update_every:
            if self.updates % config.vae.update_every == 0:
                metrics |= self._update_vae(tether=config.vae.tether)
            if self.updates % config.vae.refresh_every == 0:
                self._refresh_encoder()
        return metrics

    def task_reward(self, rows: Tensor) -> Tensor:
        """Return the task policy's reward for replay positions: [B] int64 to [B] float32."""
        if self.config.reward == "diagnostic-true-reward":
            if self._true_reward is None:
                raise ValueError("reward is 'diagnostic-true-reward' and the task offers none")
            reward = self._true_reward(self.replay.diagnostic[rows])
        else:
            reward = self.classifier.reward(self._states(rows, self.config.classifier.sees))
        if self.config.novelty_bonus:
            reward = reward + self.config.novelty_bonus * self.novelty_reward(rows, "task")
        return reward

    def novelty_reward(self, rows: Tensor, owner: str = "perturbation") -> Tensor:
        """Return the novelty reward for replay positions: [B] int64 to [B] float32."""
        novelty = self.novelty.get(owner, self.novelty["perturbation"])
        return novelty.reward(self._novelty_states(rows))

    def success_of_rows(self, rows: Tensor) -> Tensor:
        """Return the success classifier's probability for replay positions: [B] int64 to [B] float32."""
        sees = self.config.classifier.sees
        return torch.cat([self.classifier.probability(self._states(part, sees).float()) for part in rows.split(256)])

    def success_of_images(self, images: Tensor) -> Tensor:
        """Return the success classifier's probability for images: uint8 [B, 3, H, W] to [B] float32."""
        images = images.to(self.device)
        states = images if self.config.classifier.sees == "pixels" else self._encode(images)
        return torch.cat([self.classifier.probability(part.float()) for part in states.split(256)])

    def exploration_images(self) -> Tensor:
        """Return the images of the exploration phase: uint8 [N, 3, H, W]."""
        return self.replay.images[self.replay.rows_of("exploration")]

    def reward_check(self) -> Metrics:
        """Return both rewards' means over the newest 250 rows, drawing no random number."""
        if not self.is_pretrained:
            return {}
        rows = self.replay.newest(250)
        return {
            "recent/task_reward": float(self.task_reward(rows).mean()),
            "recent/novelty_reward": float(self.novelty_reward(rows).mean()),
        }

    def _update_agents(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        updates: list[Callable[[], dict[str, Tensor]]] = []
        sampled: Sampled | None = None
        for name in names:
            if sampled is None or self.config.separate_replays:
                settings = self.config.sac
                sampled = self.replay.sample(
                    settings.batch_size, self.rng, phases=self._phases(name), horizon=settings.horizon
                )
                common = self._batch(sampled)
                powers = settings.discount ** torch.arange(settings.horizon, device=self.device)
            rows = sampled.rows.reshape(-1)
            reward = self.task_reward(rows) if name == "task" else self.novelty_reward(rows)
            reward = reward.view_as(sampled.rows)
            batch = replace(common, reward=(reward * sampled.followed * powers).sum(-1))
            noise = torch.randn(2, *batch.action.shape, generator=self.generator).to(self.device)
            updates.append(self._begun(partial(self.agents[name].update, batch, noise)))
            metrics[f"{name}/reward"] = reward[:, 0].mean()
        for name, update in zip(names, updates, strict=True):
            metrics |= {f"{name}/{key}": value for key, value in update().items()}
        return metrics

    def _begun(self, update: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """Begin an agent's update; return what waits for its metrics."""
        if self._threads is not None:
            return self._threads.submit(update).result
        metrics = update()
        return lambda: metrics

    def _batch(self, sampled: Sampled) -> Batch:
        """Return the sampled transitions, reward still to be set. Switches of phase are bootstrapped through."""
        replay = self.replay
        is_pixels = self.config.state == "pixels"
        return Batch(
            observation=replay.observations(sampled.now),
            action=replay.requested[sampled.rows[:, 0]],
            reward=sampled.followed[:, 0],
            next_observation=replay.observations(sampled.next),
            discount=self.config.sac.discount ** sampled.followed.sum(-1),
            image=replay.pixels(sampled.now) if is_pixels else None,
            next_image=replay.pixels(sampled.next) if is_pixels else None,
        )

    def _phases(self, owner: str) -> tuple[str, ...]:
        return ("exploration", owner) if self.config.separate_replays else PHASES

    def _rows(self, count: int, phases: tuple[str, ...] = PHASES) -> Tensor:
        return self.replay.sample_rows(count, self.rng, phases=phases)

    def _states(self, rows: Tensor, sees: str) -> Tensor:
        return self.replay.pixels(rows[:, None]) if sees == "pixels" else self.replay.latents[rows]

    def _novelty_states(self, rows: Tensor) -> Tensor:
        config = self.config.novelty
        now = self._states(rows, config.sees)
        if config.sees == "pixels" or not config.motion:
            return now
        return torch.cat([now, config.motion * (now - self.replay.latents[self.replay.previous(rows)])], -1)

    def _update_classifier(self) -> dict[str, Tensor]:
        config = self.config.classifier
        chosen = torch.from_numpy(self.rng.integers(0, len(self.goals), config.batch_size)).to(self.device)
        goals = self.goals[chosen] if config.sees == "pixels" else self._goal_latents[chosen]
        wide = round(config.batch_size * config.exploration_share)
        rows = self._rows(config.batch_size - wide, self._phases("task"))
        if wide:
            rows = torch.cat([rows, self._rows(wide, ("exploration", "perturbation"))])
        return self.classifier.update(goals, self._states(rows, config.sees), self.generator)

    def _update_vae(self, tether: float) -> dict[str, Tensor]:
        assert self._vae_next is not None
        assert self.vae_optimiser is not None
        rows = self._rows(self.config.vae.batch_size)
        images = self.replay.pixels(rows[:, None])
        noise = torch.randn(len(rows), self.config.vae.latent_size, generator=self.generator).to(self.device)
        near = self.replay.neighbours(rows, self.config.vae.neighbours, self.rng)
        drawn = images if near is rows else self.replay.pixels(near[:, None])
        amount = self.config.vae.jitter
        seen = jittered(images, amount, self.generator) if amount else images
        loss, metrics = self._vae_next.loss(seen, drawn, self.replay.proprioception[near], noise)
        if tether:
            drift = (self._vae_next.posterior(images)[0] - self.replay.latents[rows]).square().sum(-1).mean()
            loss = loss + tether * drift
            metrics["drift"] = drift.detach()
        self.vae_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.vae_optimiser.step()
        return {f"vae/{name}": value for name, value in metrics.items()}

    def _refresh_encoder(self) -> None:
        """Let the newest encoder act and encode the replay again."""
        if self.vae is not None and self._vae_next is not None:
            self.vae.load_state_dict(self._vae_next.state_dict())
            self.reencode()

    def reencode(self) -> None:
        """Refresh every cached latent with the acting encoder."""
        self._is_encoded = False
        self._goal_latents = self._encode(self.goals)
        for rows in torch.arange(len(self.replay), device=self.device).split(AT_ONCE):
            self.on_progress()
            latents = self.encoder.encode(self.replay.pixels(rows[:, None]), self.replay.diagnostic[rows])
            self.replay.latents[rows] = latents
        self._is_encoded = True

    def _encode(self, images: Tensor) -> Tensor:
        if self.vae is None:
            return torch.zeros(len(images), 0, device=self.device)
        return torch.cat([self.vae.encode(part) for part in images.split(AT_ONCE)])


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Yield rows in lists of `size`; the last one may be shorter."""
    source = iter(rows)
    while part := list(islice(source, size)):
        yield part
