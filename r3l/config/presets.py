"""Presets to start from, and variants that change a preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from r3l.config.convert import from_dict, merge, nearest, nested, to_dict
from r3l.config.errors import UserError
from r3l.config.schema import Config

Values = Mapping[str, Any]
PAPER: Values = {
    "window": 1,
    "novelty_bonus": 1.0,
    "update_acting_only": True,
    "separate_replays": True,
    "phases.task_steps": 50,
    "phases.perturbation_steps": 50,
    "phases.perturbation_share": 0.5,
    "phases.homing_steps": 15,
    "vae.conditional": False,
    "vae.beta": 0.5,
    "vae.keypoints": 0,
    "vae.neighbours": 0,
    "sac.batch_size": 256,
    "sac.discount": 0.99,
    "sac.learning_rate": 3e-4,
    "sac.tau": 5e-3,
    "sac.layer_norm": False,
    "sac.averaging": 1.0,
    "sac.noise_correlation": 0.0,
    "novelty.sees": "pixels",
    "novelty.motion": 0.0,
    "novelty.embedding": 512,
    "novelty.max_reward": 1000.0,
    "classifier.sees": "pixels",
    "classifier.reward": "logit",
    "classifier.learning_rate": 1e-4,
    "classifier.batch_size": 128,
    "classifier.update_every": 200,
    "classifier.pretrain_updates": 0,
    "classifier.noise": 0.0,
    "classifier.exploration_share": 0.0,
}
TRUE_REWARD: Values = {"reward": "diagnostic-true-reward"}
TRUE_STATE: Values = {
    **TRUE_REWARD,
    "state": "diagnostic-true-state",
    "window": 1,
    "novelty.sees": "latent",
    "novelty.motion": 0.0,
}
NO_PERTURBATION: Values = {"phases.perturbation_share": 0.0}
CHANGES: Mapping[str, Values] = {
    "no-perturbation": NO_PERTURBATION,
    "pixels": {"state": "pixels", "novelty.sees": "pixels", "classifier.sees": "pixels"},
    "refreshed-encoder": {"vae.update_every": 10},
    "domain-randomization": {"randomize": "strong", "vae.jitter": 0.5},
    "diagnostic-true-reward": TRUE_REWARD,
    "diagnostic-true-state": TRUE_STATE,
    "diagnostic-resets": {**TRUE_STATE, **NO_PERTURBATION, "phases.between": "diagnostic-reset"},
}
"""The changes of each variant, by dotted key. A variant that reads ground truth has `diagnostic` in its name."""


def changed(config: Config, changes: Values) -> Config:
    """Return a config with values by dotted key in place of its own."""
    return from_dict(Config, merge(to_dict(config), nested(changes)))


PRESETS: dict[str, Callable[[], Config]] = {"default": Config, "paper": lambda: changed(Config(), PAPER)}
VARIANTS: dict[str, Callable[[Config], Config]] = {
    name: partial(changed, changes=changes) for name, changes in CHANGES.items()
}


def preset_config(preset: str, variants: Sequence[str]) -> Config:
    """Return a preset with variants applied."""
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; {nearest(preset, PRESETS)}")
    config = PRESETS[preset]()
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"unknown variant {name!r}; {nearest(name, VARIANTS)}")
        config = VARIANTS[name](config)
    return config
