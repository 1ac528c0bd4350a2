"""The judge: a frozen classifier, goal images against early exploration, that says whether an episode succeeded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from r3l.config.convert import from_dict
from r3l.config.errors import UserError
from r3l.config.models import JudgeConfig
from r3l.models.networks import channels_first
from r3l.models.vae import downsample
from r3l.run.directory import Run
from r3l.run.tensors import CheckpointError, load_tensors, require_finite, save_tensors

FORMAT_VERSION = 1
FOLD_BLOCK = 50
"""Neighbouring exploration frames look alike: so many in a row go to the same fold."""
THRESHOLD_AT = 2 / 3
"""Where the threshold of a verdict lies, from the median goal (0) down to the median exploration frame (1)."""
Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Examples:
    """Images to train on and images held out: uint8 [N, 3, H, W] each, exploration in the order of time."""

    train: Tensor
    held_out: Tensor

    def __post_init__(self) -> None:
        for name, images in (("train", self.train), ("held_out", self.held_out)):
            if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or len(images) < 2:
                raise ValueError(
                    f"{name} is {images.dtype} {list(images.shape)}, expected at least 2 uint8 images [N, 3, H, W]"
                )


@dataclass(frozen=True)
class Calibration:
    """Log-odds are `slope` · logit + `offset`; a verdict is success from `threshold` log-odds on."""

    slope: float
    offset: float
    threshold: float


def calibrate(goals: Logits, exploration: Logits, goals_accepted: float) -> Calibration:
    """Fit log-odds to held-out logits [G] and [N], as if goals were half of all images, and choose the threshold.

    Goal images show success at its best, so the level that `goals_accepted` of them exceed is too strict: the
    threshold lies further down, at `THRESHOLD_AT`. How far from the goal is still success, no image says.

    Source: Platt 1999, with L2 regularisation in place of smoothed labels. Deviation: the slope is kept positive.
    """
    logits = np.concatenate([goals, exploration])[:, None]
    labels = np.concatenate([np.ones(len(goals)), np.zeros(len(exploration))])
    fitted = LogisticRegression(class_weight="balanced").fit(logits, labels)
    slope, offset = max(float(fitted.coef_[0, 0]), 1e-3), float(fitted.intercept_[0])
    at = min(float(np.quantile(goals, 1 - goals_accepted)), _between(goals, exploration, THRESHOLD_AT))
    return Calibration(slope, offset, slope * at + offset)


def _between(goals: Logits, exploration: Logits, share: float) -> float:
    """Return what lies `share` of the way from the median goal to the median exploration frame."""
    return float((1 - share) * np.median(goals) + share * np.median(exploration))


def recalibrate(before: Calibration, log_odds: Logits, labels: Sequence[bool]) -> Calibration | None:
    """Fit log-odds anew to what a person said, as if half of all episodes were successes; None where they disagree.

    Args:
        before: what gave `log_odds`.
        log_odds: of episodes, [N].
        labels: whether each was a success, [N], both kinds among them.
    """
    fitted = LogisticRegression(class_weight="balanced").fit(log_odds[:, None], labels)
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope <= 0:
        return None
    return Calibration(slope * before.slope, slope * before.offset + offset, 0.0)


@dataclass(frozen=True)
class Judge:
    """Tells success from images alone; fitted once, then frozen, and kept beside the run. Works on the CPU."""

    body: nn.Module
    calibration: Calibration
    config: JudgeConfig
    quality: Mapping[str, float] = field(default_factory=dict)
    """What `fit` found on held-out images, by name."""

    @torch.no_grad()
    def log_odds(self, images: Tensor) -> Tensor:
        """Return calibrated log-odds of success: uint8 [B, 3, H, W] to float32 [B]."""
        logits = torch.from_numpy(_logits(self.body, downsample(images, self.config.image_size)))
        return (self.calibration.slope * logits + self.calibration.offset).float()

    def probability(self, images: Tensor) -> Tensor:
        """Return the probability of success: uint8 [B, 3, H, W] to float32 [B] in [0, 1]."""
        return torch.sigmoid(self.log_odds(images))

    def accepts(self, images: Tensor) -> Tensor:
        """Say of each image alone whether it shows success: uint8 [B, 3, H, W] to bool [B]."""
        return self.log_odds(images) >= self.calibration.threshold

    def verdict(self, frames: Tensor) -> bool:
        """Say whether an episode ended in success, from its frames uint8 [T, 3, H, W] in order, T at least 1.

        The median over the last `config.frames` decides: a finger over the object in one of three does not.
        """
        return self.end_log_odds(frames) >= self.calibration.threshold

    def end_log_odds(self, frames: Tensor) -> float:
        """Return what a verdict on frames uint8 [T, 3, H, W] rests on: the median log-odds of the last ones."""
        if not len(frames):
            raise ValueError("an episode without frames cannot be judged; pass its last ones")
        return float(np.median(self.log_odds(frames[-self.config.frames :]).numpy()))

    def save(self, path: Path) -> None:
        """Write judge.safetensors: the weights, and all else as JSON in its header."""
        meta = {"version": FORMAT_VERSION, "calibration": asdict(self.calibration), "config": asdict(self.config)}
        save_tensors(path, dict(self.body.state_dict()), meta | {"quality": dict(self.quality)})

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Read what `save` wrote; CheckpointError when it cannot be used."""
        try:
            tensors, texts = load_tensors(path)
            meta = json.loads(texts["meta"])
            if meta["version"] != FORMAT_VERSION:
                raise CheckpointError(f"judge {path} has format {meta['version']!r:.20}, expected {FORMAT_VERSION}")
            config = from_dict(JudgeConfig, meta["config"])
            calibration = from_dict(Calibration, meta["calibration"])
            quality = {str(name): float(value) for name, value in meta["quality"].items()}
            if not np.isfinite(list(asdict(calibration).values())).all() or config.frames < 1:
                raise ValueError("its calibration makes no sense")
            with torch.device("meta"):  # what its settings ask for takes no memory before it is known to be there
                body = _network(config, seed=0)
            body.load_state_dict(tensors, assign=True)
            require_finite(tensors)
            return cls(body.eval(), calibration, config, quality)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, UserError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = str(error).split("\n")[0]
            raise CheckpointError(f"judge {path} cannot be read ({reason}); restore it, or start a new run") from error


def fit(
    goals: Examples,
    exploration: Examples,
    generator: torch.Generator,
    config: JudgeConfig | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Judge:
    """Fit a judge; the same images and generator state give the same judge, and torch's global RNG stays as it is.

    Exploration is unlabelled rather than negative: the robot solves the task by chance now and then. Networks trained
    without them score all exploration frames first, and those nearer to the goals than to the rest are left out.
    """
    config = config or JudgeConfig()
    side = config.image_size
    positives, negatives = downsample(goals.train, side), downsample(exploration.train, side)
    goals_left, exploration_left = downsample(goals.held_out, side), downsample(exploration.held_out, side)
    bodies, scores, level = _screen(positives, negatives, config, generator, on_progress)
    body = _train(positives, negatives[torch.from_numpy(scores <= level)], config, generator, on_progress)
    kept = np.mean([_logits(each, exploration_left) for each in bodies], axis=0) <= level
    if kept.mean() < 0.5:
        kept[:] = True
    seen, unseen = _logits(body, goals_left), _logits(body, exploration_left)
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
    """Fit a run's judge, the last fifth of what was seen held out.

    Args:
        train: goal images to learn from, uint8 [G, H, W, 3].
        held_out: goal images for the calibration, uint8 [N, H, W, 3].
        seen: what exploration saw, in its order, uint8 [M, 3, H, W].
        seed: of the run.
        on_progress: called after each update; what it raises ends the fit.
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
    """Return two networks, each trained on half, the negatives' logits from the other half's, and the level to keep.

    The level is half way between the median goal and the median exploration frame: at most half lie above it.
    """
    fold_of_goal = torch.arange(len(positives)) % 2
    fold = torch.arange(len(negatives)) // min(FOLD_BLOCK, len(negatives) // 2) % 2
    bodies: list[nn.Module] = []
    goal_scores, scores = np.zeros(len(positives)), np.zeros(len(negatives))
    for half in (0, 1):
        body = _train(positives[fold_of_goal == half], negatives[fold == half], config, generator, on_progress)
        goal_scores[(fold_of_goal != half).numpy()] = _logits(body, positives[fold_of_goal != half])
        scores[(fold != half).numpy()] = _logits(body, negatives[fold != half])
        bodies.append(body)
    return bodies, scores, max(float(np.median(scores)), _between(goal_scores, scores, 0.5))


def _network(config: JudgeConfig, seed: int) -> nn.Sequential:
    side = config.image_size // 8
    if side < 1 or side * 8 != config.image_size:
        raise ValueError(f"judge image_size is {config.image_size}, expected a multiple of 8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * side * side, 64),
            nn.ReLU(),
            nn.Linear(64, 1),
        )


def _train(
    positives: Tensor,
    negatives: Tensor,
    config: JudgeConfig,
    generator: torch.Generator,
    on_progress: Callable[[], None],
) -> nn.Module:
    """Train a network on images [G, 3, side, side] against [N, 3, side, side], float32 in [0, 1].

    Images and labels are mixed, so that what lies between a goal and the rest scores in between, not by chance.

    Source: mixup, Zhang et al. 2018, with alpha = 1.
    """
    body = _network(config, int(torch.randint(2**31, (), generator=generator)))
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
    """Shift a batch [B, 3, side, side] as one, which costs nothing, and change each image's brightness."""
    shift, side = config.shift_px, images.shape[-1]
    top, left = torch.randint(2 * shift + 1, (2,), generator=generator).tolist()
    moved = F.pad(images, (shift,) * 4, mode="replicate")[:, :, top : top + side, left : left + side]
    change = config.brightness * (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)
    return moved * (1 + change)


@torch.no_grad()
def _logits(body: nn.Module, images: Tensor) -> Logits:
    """Return logits of float32 images in [0, 1]: [B, 3, side, side] to float64 [B]."""
    parts: list[Any] = [body(part - 0.5).squeeze(-1) for part in images.split(256)]
    return torch.cat(parts).numpy().astype(np.float64)


def load_judge(run: Run) -> Judge | None:
    """Return the run's judge, None before it is made."""
    return Judge.load(run.judge) if run.judge.exists() else None
