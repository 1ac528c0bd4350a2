"""The learner: follow the experience store, relabel what is sampled, update every learned model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from r3l.config.schema import Config
from r3l.learner.encoder import LearnedEncoder
from r3l.learner.replay import Replay, Sampled, batched
from r3l.learner.rewards import Rewards, phases_of
from r3l.learner.state import LearnerState
from r3l.models.builders import build_classifier, build_encoder, build_novelty
from r3l.models.interfaces import Encoder, Novelty, RewardModel
from r3l.models.policy import Policies
from r3l.models.sac import SAC, Batch
from r3l.models.vae import VAE
from r3l.robot.base import RobotSpec
from r3l.run.experience import ExperienceStore
from r3l.run.tensors import Tensors, with_prefix

Metrics = dict[str, float]
AGENTS = ("task", "perturbation")
ENCODED_AT_ONCE = 256
"""Max rows that are encoded in one batch."""
ENCODED_SINGLY = 8
"""Up to so many new rows are encoded one by one, as in sync mode: a batch differs in the last bit."""


class Learner(LearnerState):
    """Every learned model, over one replay.

    Random draws come from the learner's own generators: the same rows in the same order give the same weights, bit for
    bit, also across a checkpoint.
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
            true_reward: maps ground truth [B, D] to [B]; only diagnostic runs have one.
            overlaps: update both agents at the same time, on two threads; the weights are the same, bit for bit.
        """
        super().__init__(config.seed)
        self.config, self.device, self.goals = config, device, goals.to(device)
        actions, camera = len(spec.joints), spec.camera
        size = config.latent_size(len(spec.diagnostic))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder: Encoder = build_encoder(config, actions)
            features = config.window * (size + 2 * actions)
            pixels = (3 * config.window, camera.height) if config.state == "pixels" else None
            self.agents = {name: SAC(features, actions, config.sac, image=pixels).to(device) for name in AGENTS}
            owners = AGENTS if config.separate_replays else AGENTS[1:]
            novelty = {name: build_novelty(config, size, camera.height).to(device) for name in owners}
            classifier = build_classifier(config, size, camera.height).to(device)
        self.vae = self.encoder if isinstance(self.encoder, VAE) else None
        """The acting encoder, where it is learned."""
        self.learned_encoder = LearnedEncoder(self.vae, config.vae, device) if self.vae is not None else None
        self.replay = Replay(
            config.replay_capacity,
            image_shape=(camera.height, camera.width, 3),
            actions=actions,
            latents=size,
            diagnostics=len(spec.diagnostic),
            window=config.window,
            device=device,
        )
        self.rewards = Rewards(config, self.replay, self.goals, classifier, novelty, true_reward)
        self._threads: ThreadPoolExecutor | None = None
        if overlaps:  # a third less time on two free cores: the agents share only what they read
            threads = torch.get_num_threads()
            self._threads = ThreadPoolExecutor(len(AGENTS), "agent", torch.set_num_threads, (threads,))
        self.rewards.goal_latents = self.encode(self.goals)

    @property
    def classifier(self) -> RewardModel:
        """The success classifier."""
        return self.rewards.classifier

    @property
    def novelty(self) -> dict[str, Novelty]:
        """The novelty models by agent."""
        return self.rewards.novelty_models

    def policies(self) -> Policies:
        """Return the policies, which share the live weights."""
        actors = {name: agent.actor for name, agent in self.agents.items()}
        correlation = self.config.sac.noise_correlation
        return Policies(self.encoder, actors, self.config.window, self.device, noise_correlation=correlation)

    def modules(self) -> dict[str, nn.Module]:
        """Return every learned model by name."""
        found: dict[str, nn.Module] = {"classifier": self.classifier}
        found |= {f"{name}_agent": agent for name, agent in self.agents.items()}
        found |= {f"{name}_novelty": novelty for name, novelty in self.novelty.items()}
        if self.learned_encoder is not None:
            found |= {"vae": self.learned_encoder.acting, "vae_next": self.learned_encoder.learning}
        return found

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Return every optimiser by name."""
        found: dict[str, torch.optim.Optimizer] = {"classifier": self.classifier.optimiser}
        for name, agent in self.agents.items():
            found |= {f"{name}_agent.{part}": optimiser for part, optimiser in agent.optimisers().items()}
        found |= {f"{name}_novelty": novelty.optimiser for name, novelty in self.novelty.items()}
        if self.learned_encoder is not None:
            found["vae"] = self.learned_encoder.optimiser
        return found

    def follow(self, store: ExperienceStore, limit: int = -1) -> None:
        """Take in the rows that the store gained since the last call, at most `limit` of them."""
        for rows in batched(store.rows(self.sequence, limit), min(ENCODED_AT_ONCE, self.replay.capacity)):
            self.on_progress()
            images = torch.from_numpy(np.stack([row.image for row in rows])).permute(0, 3, 1, 2).to(self.device)
            diagnostic = torch.from_numpy(np.stack([row.diagnostic for row in rows])).to(self.device)
            size = ENCODED_AT_ONCE if len(rows) > ENCODED_SINGLY else 1
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
        """Fit encoder and classifier to what exploration saw, before the agents' first update.

        `on_progress(done, total)` is called after each update, when a checkpoint may be written; it may also raise.
        """
        metrics: dict[str, Tensor] = {}
        encoder_updates = self.config.vae.pretrain_updates if self.learned_encoder is not None else 0
        classifier_updates = self.config.classifier.pretrain_updates if self.config.reward == "classifier" else 0
        total = encoder_updates + classifier_updates
        while self.pretraining <= total:
            if self.pretraining == encoder_updates:
                self.refresh_encoder()
            if self.pretraining == total:
                break
            is_encoder = self.pretraining < encoder_updates
            metrics |= self.update_encoder(tether=0.0) if is_encoder else self.update_classifier()
            self.pretraining += 1
            on_progress(self.pretraining, total)
        self.is_pretrained = True
        return {name: float(value) for name, value in metrics.items()}

    def weights(self, *, averaged: bool = True) -> Tensors:
        """Return the encoder and the actors for publishing; `averaged` actors vary less than the live ones."""
        tensors: Tensors = {}
        if self.vae is not None:
            tensors |= with_prefix("vae", dict(self.vae.state_dict()))
        for name, agent in self.agents.items():
            actor = agent.averaged_actor if averaged else agent.actor
            tensors |= with_prefix(f"{name}_actor", dict(actor.state_dict()))
        return tensors

    def update(self) -> dict[str, Tensor]:
        """Update each agent once, and the other models at their own intervals; return metrics as tensors."""
        config = self.config
        self.updates += 1
        names: tuple[str, ...] = AGENTS
        if config.update_acting_only:
            names = ("perturbation" if self.replay.newest_phase() == "perturbation" else "task",)
        metrics = self.update_agents(names)
        if self.updates % config.novelty.update_every == 0:
            metrics |= self.rewards.update_novelty(self.rng)
        if config.reward == "classifier" and self.updates % config.classifier.update_every == 0:
            metrics |= self.update_classifier()
        if self.learned_encoder is not None and config.vae.update_every:
            if self.updates % config.vae.update_every == 0:
                metrics |= self.update_encoder(tether=config.vae.tether)
            if self.updates % config.vae.refresh_every == 0:
                self.refresh_encoder()
        return metrics

    def success_of_images(self, images: Tensor) -> Tensor:
        """Return the classifier's probability of success for images: uint8 [B, 3, H, W] to float32 [B]."""
        images = images.to(self.device)
        return self.rewards.success_of(images if self.config.classifier.sees == "pixels" else self.encode(images))

    def exploration_images(self) -> Tensor:
        """Return the images of the exploration phase: uint8 [N, 3, H, W]."""
        return self.replay.images[self.replay.rows_of("exploration")]

    def reward_check(self) -> Metrics:
        """Return both rewards' means over the newest rows; nothing before pretraining."""
        return self.rewards.means() if self.is_pretrained else {}

    def update_agents(self, names: tuple[str, ...] = AGENTS) -> dict[str, Tensor]:
        """Update the named agents once on the same transitions, each with its own reward."""
        metrics: dict[str, Tensor] = {}
        updates: list[Callable[[], dict[str, Tensor]]] = []
        sampled: Sampled | None = None
        for name in names:
            if sampled is None or self.config.separate_replays:
                settings = self.config.sac
                sampled = self.replay.sample(
                    settings.batch_size, self.rng, phases=phases_of(self.config, name), horizon=settings.horizon
                )
                common = self._batch(sampled)
                powers = settings.discount ** torch.arange(settings.horizon, device=self.device)
            rows = sampled.rows.reshape(-1)
            reward = self.rewards.task(rows) if name == "task" else self.rewards.novelty(rows)
            reward = reward.view_as(sampled.rows)
            batch = replace(common, reward=(reward * sampled.followed * powers).sum(-1))
            noise = torch.randn(2, *batch.action.shape, generator=self.generator).to(self.device)
            updates.append(self._begun(partial(self.agents[name].update, batch, noise)))
            metrics[f"{name}/reward"] = reward[:, 0].mean()
        for name, update in zip(names, updates, strict=True):
            metrics |= {f"{name}/{key}": value for key, value in update().items()}
        return metrics

    def _begun(self, update: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
        """Begin an agent's update; return a function that waits for its metrics."""
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

    def update_classifier(self) -> dict[str, Tensor]:
        """Make one step on the classifier."""
        return self.rewards.update_classifier(self.rng, self.generator)

    def update_encoder(self, *, tether: float) -> dict[str, Tensor]:
        """Make one step on the learning encoder."""
        assert self.learned_encoder is not None
        return self.learned_encoder.update(self.replay, self.rng, self.generator, tether=tether)

    def refresh_encoder(self) -> None:
        """Let the newest encoder act, and encode the replay again."""
        if self.learned_encoder is not None:
            self.learned_encoder.refresh()
            self.reencode()

    def reencode(self) -> None:
        """Compute every cached latent anew with the acting encoder."""
        self.is_encoded = False
        self.rewards.goal_latents = self.encode(self.goals)
        for rows in torch.arange(len(self.replay), device=self.device).split(ENCODED_AT_ONCE):
            self.on_progress()
            images, diagnostic = self.replay.pixels(rows[:, None]), self.replay.diagnostic[rows]
            self.replay.latents[rows] = self.encoder.encode(images, diagnostic)
        self.is_encoded = True

    def encode(self, images: Tensor) -> Tensor:
        """Return the acting encoder's latents: uint8 [B, 3, H, W] to [B, Z]; zeros without a learned encoder."""
        if self.vae is None:
            return torch.zeros(len(images), 0, device=self.device)
        return torch.cat([self.vae.encode(part) for part in images.split(ENCODED_AT_ONCE)])
