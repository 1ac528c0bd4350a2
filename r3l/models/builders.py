"""Builders of the models that a config names. Another encoder, novelty or reward is a file and a line here."""

from __future__ import annotations

from r3l.config.schema import Config
from r3l.models.classifier import Classifier
from r3l.models.encoder import DiagnosticStateEncoder, NoEncoder
from r3l.models.interfaces import Novelty, RewardModel
from r3l.models.novelty import RND
from r3l.models.vae import VAE


def build_encoder(config: Config, actions: int) -> VAE | NoEncoder | DiagnosticStateEncoder:
    """Build the untrained encoder of `config.state` for a robot with `actions` joints."""
    if config.state == "latent":
        return VAE(config.vae, actions)
    return NoEncoder() if config.state == "pixels" else DiagnosticStateEncoder()


def build_novelty(config: Config, latent_size: int, side: int) -> Novelty:
    """Build the novelty model of `config` over latents of `latent_size`, or over images with `side` pixels a side."""
    image = (3, side) if config.novelty.sees == "pixels" else None
    return RND(config.novelty, latent_size * (2 if config.novelty.motion else 1), image=image)


def build_classifier(config: Config, latent_size: int, side: int) -> RewardModel:
    """Build the reward model of `config` over latents of `latent_size`, or over images with `side` pixels a side."""
    image = (3, side) if config.classifier.sees == "pixels" else None
    return Classifier(config.classifier, latent_size, image=image)
