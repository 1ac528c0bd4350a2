"""The judge's training: goal images against early exploration, then a calibration on held-out images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from r3l.config.models import JudgeConfig
from r3l.models.judge import Calibration, Judge, Logits, logits, network
from r3l.models.networks import channels_first
from r3l.models.vae import downsample

FOLD_BLOCK = 50
"""Exploration frames in a row that go to the same fold: neighbouring frames look alike."""
THRESHOLD_AT = 2 / 3
"""Position of a verdict's threshold between the median goal (0) and the median exploration frame (1)."""


@dataclass(frozen=True)
class Examples:
    """Training and held-out images: uint8 [N, 3, H, W] each; exploration frames in temporal order."""

    train: Tensor
    held_out: Tensor

    def __post_init__(self) -> None:
        for name, images in (("train", self.train), ("held_out", self.held_out)):
            if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or len(images) < 2:
                raise ValueError(
                    f"{name} is {images.dtype} {list(images.shape)}, expected at least 2 uint8 images [N, 3, H, W]"
                )


def calibrate(goals: Logits, exploration: Logits, goals_accepted: float) -> Calibration:
    """Fit log-odds to held-out logits [G] and [N], with both classes weighted alike, and choose the threshold.

    Goal images show perfect success, so the level that a share `goals_accepted` of them exceeds is too strict: the
    threshold lies lower, at `THRESHOLD_AT`. Images alone do not say how far from the goal is still success.

    Source: Platt 1999, with L2 regularisation in place of smoothed labels. Deviation: the slope is kept positive.
    """
    logits = np.concatenate([goals, exploration])[:, None]
    labels = np.concatenate([np.ones(len(goals)), np.zeros(len(exploration))])
    fitted = LogisticRegression(class_weight="balanced").fit(logits, labels)
    slope, offset = max(float(fitted.coef_[0, 0]), 1e-3), float(fitted.intercept_[0])
    at = min(float(np.quantile(goals, 1 - goals_accepted)), _between(goals, exploration, THRESHOLD_AT))
    return Calibration(slope, offset, slope * at + offset)


def _between(goals: Logits, exploration: Logits, share: float) -> float:
    """Return the level at `share` of the way from the median goal to the median exploration frame."""
    return float((1 - share) * np.median(goals) + share * np.median(exploration))


def fit(
    goals: Examples,
    exploration: Examples,
    generator: torch.Generator,
    config: JudgeConfig | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Judge:
    """Fit a judge. The same images and generator state give the same judge; torch's global RNG is not used.

    Exploration frames are unlabelled rather than negative: some show success by chance. Networks that were not trained
    on them score all exploration frames first; frames nearer to the goals than to the rest are left out.
    """
    config = config or JudgeConfig()
    side = config.image_size
    positives, negatives = downsample(goals.train, side), downsample(exploration.train, side)
    goals_left, exploration_left = downsample(goals.held_out, side), downsample(exploration.held_out, side)
    bodies, scores, level = _screen(positives, negatives, config, generator, on_progress)
    body = _train(positives, negatives[torch.from_numpy(scores <= level)], config, generator, on_progress)
    kept = np.mean([logits(each, exploration_left) for each in bodies], axis=0) <= level
    if kept.mean() < 0.5:
        kept[:] = True
    seen, unseen = logits(body, goals_left), logits(body, exploration_left)
    calibration = calibrate(seen, unseen[kept], config.goals_accepted)
    at = (calibration.threshold - calibration.offset) / calibration.slope
    labels = np.concatenate([np.ones(len(seen)), np.zeros(len(unseen))])
    quality = {
        "held_out_auc": float(roc_auc_score(labels, np.concatenate([seen, unseen]))),
        "held_out_goals_accepted": float(np.mean(seen >= at)),
        "held_out_exploration_accepted": float(np.mean(unseen >= at)),
        "exploration_left_out": float(np.mean(scores > level)),
    }
    return Judge(body, calibration, config, quality)


def fit_after_exploration(
    train: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    seen: Tensor,
    seed: int,
    on_progress: Callable[[], None] = lambda: None,
) -> Judge:
    """Fit a run's judge; the last fifth of the exploration frames is held out.

    Args:
        train: goal images to learn from, uint8 [G, H, W, 3].
        held_out: goal images for the calibration, uint8 [N, H, W, 3].
        seen: exploration frames in temporal order, uint8 [M, 3, H, W].
        seed: the run's seed.
        on_progress: called after each update; an exception that it raises ends the fit.
    """
    goals = Examples(channels_first(train), channels_first(held_out))
    exploration = Examples(*torch.tensor_split(seen, [len(seen) * 4 // 5]))
    return fit(goals, exploration, torch.Generator().manual_seed(seed), on_progress=on_progress)


def _screen(
    positives: Tensor,
    negatives: Tensor,
    config: JudgeConfig,
    generator: torch.Generator,
    on_progress: Callable[[], None],
) -> tuple[list[nn.Module], Logits, float]:
    """Return two networks trained on one half each, each negative's logit by the other network, and the level to keep.

    The level is half way between the median goal and the median exploration frame: at most half lie above it.
    """
    fold_of_goal = torch.arange(len(positives)) % 2
    fold = torch.arange(len(negatives)) // min(FOLD_BLOCK, len(negatives) // 2) % 2
    bodies: list[nn.Module] = []
    goal_scores, scores = np.zeros(len(positives)), np.zeros(len(negatives))
    for half in (0, 1):
        body = _train(positives[fold_of_goal == half], negatives[fold == half], config, generator, on_progress)
        goal_scores[(fold_of_goal != half).numpy()] = logits(body, positives[fold_of_goal != half])
        scores[(fold != half).numpy()] = logits(body, negatives[fold != half])
        bodies.append(body)
    return bodies, scores, max(float(np.median(scores)), _between(goal_scores, scores, 0.5))


def _train(
    positives: Tensor,
    negatives: Tensor,
    config: JudgeConfig,
    generator: torch.Generator,
    on_progress: Callable[[], None],
) -> nn.Module:
    """Train a network on images [G, 3, side, side] against [N, 3, side, side], float32 in [0, 1].

    Images and labels are mixed, so that images between a goal and the rest score in between.

    Source: mixup, Zhang et al. 2018, with alpha = 1.
    """
    body = network(config, int(torch.randint(2**31, (), generator=generator)))
    optimiser = torch.optim.AdamW(body.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=config.updates)
    size = config.batch_size
    labels = torch.cat([torch.ones(size), torch.zeros(size)])
    for _ in range(config.updates):
        goals = torch.randint(len(positives), (size,), generator=generator)
        others = torch.randint(len(negatives), (size,), generator=generator)
        images = _augment(torch.cat([positives[goals], negatives[others]]), config, generator)
        partner, share = torch.randperm(2 * size, generator=generator), torch.rand(2 * size, generator=generator)
        images = images[partner].lerp(images, share[:, None, None, None])
        targets = labels[partner].lerp(labels, share)
        loss = F.binary_cross_entropy_with_logits(body(images - 0.5).squeeze(-1), targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        on_progress()
    return body.eval()


def _augment(images: Tensor, config: JudgeConfig, generator: torch.Generator) -> Tensor:
    """Shift a batch [B, 3, side, side] as one, for speed, and change each image's brightness."""
    shift, side = config.shift_px, images.shape[-1]
    top, left = torch.randint(2 * shift + 1, (2,), generator=generator).tolist()
    moved = F.pad(images, (shift,) * 4, mode="replicate")[:, :, top : top + side, left : left + side]
    change = config.brightness * (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)
    return moved * (1 + change)
