"""Probes of a run's learned models on stored frames: reconstruction, learned reward, judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor, nn

from r3l.config.errors import UserError
from r3l.evaluation.report.visits import Frames, MissingError, ObjectAxis, Values
from r3l.models.builders import build_classifier
from r3l.models.judge import Judge, load_judge
from r3l.models.networks import channels_first
from r3l.models.vae import VAE, downsample, kl_divergence
from r3l.run.checkpoint import load_checkpoint
from r3l.run.directory import Run
from r3l.run.tensors import CheckpointError, Tensors, under_prefix
from r3l.task.base import Task

USED_NATS = 0.1
"""A latent that carries less information about the image counts as unused."""


@dataclass
class ModelProbes:
    """The models of a run on the CPU, each loaded on first use; MissingError if the run has none yet."""

    run: Run
    task: Task
    warnings: list[str] = field(default_factory=list)
    """Messages about checkpoints that could not be used."""

    @property
    def joints(self) -> int:
        """Number of joints, the length of proprioception."""
        return len(self.task.rig.joints)

    @cached_property
    def checkpoint(self) -> Tensors:
        """The tensors of the newest good checkpoint."""
        found = load_checkpoint(self.run.checkpoints, self.warnings.append)
        if found is None:
            every = f"every {self.run.config.checkpoint_every:,} env steps"
            raise MissingError(f"there is no checkpoint yet: one is written {every} and when a run stops")
        return found[0]

    @cached_property
    def vae(self) -> VAE:
        """The encoder of the newest published weights, or of the checkpoint if none are published."""
        try:
            weights = self.run.read_weights(self.run.newest_snapshot())
        except UserError:
            weights = self.checkpoint
        vae = VAE(self.run.config.vae, self.joints)
        _load(vae, under_prefix("vae", weights), "vae")
        return vae

    def reward(self, frames: Frames) -> Values:
        """Return the task policy's reward on frames, without a novelty bonus: by the classifier or by the truth."""
        config = self.run.config
        if config.reward == "diagnostic-true-reward":
            reward = self.task.true_reward(torch.from_numpy(frames.diagnostic))
            return reward.numpy().astype(np.float64)
        image = config.classifier.sees == "pixels"
        size = config.latent_size(frames.diagnostic.shape[1])
        classifier = build_classifier(config, size, self.task.rig.camera.height)
        _load(classifier, under_prefix("classifier", self.checkpoint), "classifier")
        states = torch.from_numpy(frames.diagnostic)
        if image:
            states = channels_first(frames.images)
        elif config.state == "latent":
            states = self.latents(frames.images)
        return torch.cat([classifier.reward(part) for part in states.split(256)]).numpy().astype(np.float64)

    def latents(self, images: NDArray[np.uint8]) -> Tensor:
        """Return the acting encoder's latents: [N, H, W, 3] to [N, Z]."""
        return torch.cat([self.vae.encode(part) for part in channels_first(images).split(256)])

    def judge(self) -> Judge:
        """Return the run's frozen judge."""
        judge = load_judge(self.run)
        if judge is None:
            raise MissingError("there is no judge yet: it is fitted when exploration ends")
        return judge


@dataclass(frozen=True)
class Reconstruction:
    """Frames after encoder and decoder, and how much is kept."""

    pictures: NDArray[np.uint8]
    """[N, side, side, 3]: frames through the encoder and back."""
    explained: float
    """Share of the pixels' variance between frames that the pictures explain."""
    used: int
    """Number of latents that carry at least USED_NATS."""


@torch.no_grad()
def reconstruct(vae: VAE, frames: Frames) -> Reconstruction:
    """Encode and decode frames, without noise."""
    images = channels_first(frames.images)
    mean, log_variance = vae.posterior(images)
    pictures = vae.decode(mean, torch.from_numpy(frames.proprioception)).clamp(0, 1)
    target = downsample(images, vae.config.image_size)
    spread = (target - target.mean(0)).square().sum()
    explained = 1 - float((pictures - target).square().sum() / spread.clamp_min(1e-9))
    nats = torch.stack(
        [kl_divergence(m[:, None], v[:, None]).mean() for m, v in zip(mean.T, log_variance.T, strict=True)]
    )
    shown = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Reconstruction(shown, explained, int((nats > USED_NATS).sum()))


def readability(latents: Values, axis: ObjectAxis, values: Values) -> float:
    """Return the median error of predicting `values` [N] from latents [N, Z] by nearest neighbours.

    Both are in the order of time. Each fold leaves out a stretch of time: neighbours in time are almost the same frame.
    """
    targets = values[:, None]
    if axis.is_circular:
        turn = 2 * np.pi * values / (axis.high - axis.low)
        targets = np.stack([np.cos(turn), np.sin(turn)], 1)
    found = cross_val_predict(KNeighborsRegressor(5, weights="distance"), latents, targets, cv=KFold(5))
    if not axis.is_circular:
        return float(np.median(np.abs(found[:, 0] - values)))
    away = turn - np.arctan2(found[:, 1], found[:, 0])
    return float(np.median(np.abs(np.arctan2(np.sin(away), np.cos(away)))) * (axis.high - axis.low) / (2 * np.pi))


def ranking(scores: Values, is_success: NDArray[np.bool_]) -> float | None:
    """Return the ROC-AUC of scores against the truth; None with one class alone."""
    return float(roc_auc_score(is_success, scores)) if 0 < is_success.sum() < len(is_success) else None


def _load(module: nn.Module, tensors: Tensors, name: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"the saved {name} does not fit config.json ({str(error).splitlines()[0]})") from error
