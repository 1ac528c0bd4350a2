"""Encoders without a learned latent state."""

from __future__ import annotations

from torch import Tensor


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
