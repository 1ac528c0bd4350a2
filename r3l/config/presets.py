"""TODO r3l/config/presets.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from r3l.config.models import ClassifierConfig, NoveltyConfig, SACConfig, VAEConfig
from r3l.config.schema import Config, PhasesConfig


def _without_perturbation(config: Config) -> Config:
    return replace(config, phases=replace(config.phases, perturbation_share=0.0))


def _true_state(config: Config) -> Config:
    return replace(
        config, state="diagnostic-true-state", window=1, novelty=replace(config.novelty, sees="latent", motion=0.0)
    )


def _true_reward(config: Config) -> Config:
    return replace(config, reward="diagnostic-true-reward")


def _resets(config: Config) -> Config:
    return replace(
        _without_perturbation(config), phases=replace(config.phases, between="diagnostic-reset", perturbation_share=0.0)
    )


VARIANTS: dict[str, Callable[[Config], Config]] = {
    "no-perturbation": _without_perturbation,
    "pixels": lambda config: replace(
        config,
        state="pixels",
        novelty=replace(config.novelty, sees="pixels"),
        classifier=replace(config.classifier, sees="pixels"),
    ),
    "refreshed-encoder": lambda config: replace(config, vae=replace(config.vae, update_every=10)),
    "diagnostic-true-reward": _true_reward,
    "diagnostic-true-state": lambda config: _true_state(_true_reward(config)),
    "diagnostic-resets": lambda config: _resets(_true_state(_true_reward(config))),
}
"""Changes to a preset, on the same loop. What reads the twin's ground truth says `diagnostic`."""


def _paper() -> Config:
    return Config(
        window=1,
        novelty_bonus=1.0,
        update_acting_only=True,
        separate_replays=True,
        phases=PhasesConfig(task_steps=50, perturbation_steps=50, perturbation_share=0.5, homing_steps=15),
        vae=VAEConfig(conditional=False, beta=0.5, keypoints=0, neighbours=0),
        sac=SACConfig(
            batch_size=256,
            discount=0.99,
            learning_rate=3e-4,
            tau=5e-3,
            layer_norm=False,
            averaging=1.0,
            noise_correlation=0.0,
        ),
        novelty=NoveltyConfig(sees="pixels", motion=0.0, embedding=512, max_reward=1000.0),
        classifier=ClassifierConfig(
            sees="pixels",
            reward="logit",
            learning_rate=1e-4,
            batch_size=128,
            update_every=200,
            pretrain_updates=0,
            noise=0.0,
            exploration_share=0.0,
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {"default": Config, "paper": _paper}
