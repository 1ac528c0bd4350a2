"""The judge: a frozen classifier that says from images whether an episode ended in success."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from r3l.config.convert import from_dict
from r3l.config.errors import UserError
from r3l.config.models import JudgeConfig
from r3l.models.vae import downsample
from r3l.run.directory import Run
from r3l.run.tensors import CheckpointError, load_tensors, require_finite, save_tensors

FORMAT_VERSION = 1
Logits = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Log-odds are `slope` · logit + `offset`; a verdict is success from `threshold` log-odds on."""

    slope: float
    offset: float
    threshold: float


def recalibrate(before: Calibration, log_odds: Logits, labels: Sequence[bool]) -> Calibration | None:
    """Fit the log-odds to a person's labels, with both classes weighted alike; None if the labels contradict them.

    Args:
        before: the calibration that gave `log_odds`.
        log_odds: of N episodes, [N].
        labels: True for a success, [N]; both classes must occur.
    """
    fitted = LogisticRegression(class_weight="balanced").fit(log_odds[:, None], labels)
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope <= 0:
        return None
    return Calibration(slope * before.slope, slope * before.offset + offset, 0.0)


@dataclass(frozen=True)
class Judge:
    """A success classifier that is fitted once, then frozen and kept in the run directory. It works on the CPU."""

    body: nn.Module
    calibration: Calibration
    config: JudgeConfig
    quality: Mapping[str, float] = field(default_factory=dict)
    """Figures of `fit` on held-out images, by name."""

    @torch.no_grad()
    def log_odds(self, images: Tensor) -> Tensor:
        """Return calibrated log-odds of success: uint8 [B, 3, H, W] to float32 [B]."""
        found = torch.from_numpy(logits(self.body, downsample(images, self.config.image_size)))
        return (self.calibration.slope * found + self.calibration.offset).float()

    def probability(self, images: Tensor) -> Tensor:
        """Return the probability of success: uint8 [B, 3, H, W] to float32 [B] in [0, 1]."""
        return torch.sigmoid(self.log_odds(images))

    def accepts(self, images: Tensor) -> Tensor:
        """Return for each image whether it shows success: uint8 [B, 3, H, W] to bool [B]."""
        return self.log_odds(images) >= self.calibration.threshold

    def verdict(self, frames: Tensor) -> bool:
        """Return whether an episode ended in success, from its frames uint8 [T, 3, H, W] in order, T at least 1.

        The median over the last `config.frames` decides, so that one frame with a hidden object does not.
        """
        return self.end_log_odds(frames) >= self.calibration.threshold

    def end_log_odds(self, frames: Tensor) -> float:
        """Return the median log-odds of the last frames, on which the verdict rests: uint8 [T, 3, H, W] to a number."""
        if not len(frames):
            raise ValueError("an episode without frames cannot be judged; pass its last ones")
        return float(np.median(self.log_odds(frames[-self.config.frames :]).numpy()))

    def save(self, path: Path) -> None:
        """Write judge.safetensors: the weights, and everything else as JSON in the header."""
        meta = {"version": FORMAT_VERSION, "calibration": asdict(self.calibration), "config": asdict(self.config)}
        save_tensors(path, dict(self.body.state_dict()), meta | {"quality": dict(self.quality)})

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Read a file of `save`; CheckpointError if it cannot be used."""
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
            with torch.device("meta"):  # no memory is taken before the weights are known to fit
                body = network(config, seed=0)
            body.load_state_dict(tensors, assign=True)
            require_finite(tensors)
            return cls(body.eval(), calibration, config, quality)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, UserError) as error:
            if isinstance(error, CheckpointError):
                raise
            reason = str(error).split("\n")[0]
            raise CheckpointError(f"judge {path} cannot be read ({reason}); restore it, or start a new run") from error


def network(config: JudgeConfig, seed: int) -> nn.Sequential:
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


@torch.no_grad()
def logits(body: nn.Module, images: Tensor) -> Logits:
    """Return logits of float32 images in [0, 1]: [B, 3, side, side] to float64 [B]."""
    parts: list[Any] = [body(part - 0.5).squeeze(-1) for part in images.split(256)]
    return torch.cat(parts).numpy().astype(np.float64)


def load_judge(run: Run) -> Judge | None:
    """Return the run's judge, or None before it is fitted."""
    return Judge.load(run.judge) if run.judge.exists() else None
