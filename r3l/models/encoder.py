"""The encoder: what turns a camera image into the latent state that the policies see."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from r3l.config.schema import Config
from r3l.models.vae import VAE


class Encoder(Protocol):
    """Maps camera images to latent states. A new encoder is a class with `encode` and a line in `build_encoder`."""

    def encode(self, images: Tensor, diagnostic: Tensor) -> Tensor:
        """Map uint8 [B, 3, H, W] and ground truth float32 [B, D] to float32 [B, Z]."""
        ...


class NoEncoder:
    """An empty latent state (Z = 0): the policies see pixels with convolutions of their own."""

    def encode(self, images: Tensor, diagnostic: Tensor) -> Tensor:
        """Return [B, 0]."""
        return diagnostic[:, :0]


class DiagnosticStateEncoder:
    """Ground truth as the latent state (Z = D), for the diagnostic variants alone."""

    def encode(self, images: Tensor, diagnostic: Tensor) -> Tensor:
        """Return the true state, [B, D]."""
        return diagnostic


def build_encoder(config: Config, actions: int) -> VAE | NoEncoder | DiagnosticStateEncoder:
    """Build the untrained encoder of `config.state` for a robot with `actions` joints."""
    if config.state == "latent":
        return VAE(config.vae, actions)
    return NoEncoder() if config.state == "pixels" else DiagnosticStateEncoder()
