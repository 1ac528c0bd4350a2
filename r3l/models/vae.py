"""The encoder: a variational auto-encoder from camera images to latent states."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r3l.config.models import VAEConfig

Metrics = dict[str, Tensor]


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) || N(0, 1)) summed over latents: [B].

    Source: Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def downsample(images: Tensor, side: int) -> Tensor:
    """Average [B, 3, H, W] of 0 to 255 down to float32 [B, 3, side, side] in [0, 1]."""
    pixels = images.float() / 255
    if pixels.shape[-2:] == (side, side):
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="area")


def jittered(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Return each image of uint8 [B, 3, H, W] in another light, as float32 in [0, 255].

    Brightness is scaled by exp(x), x uniform in ±`amount`; each colour is also scaled by exp(y), y uniform in
    ±`amount` / 3.
    """
    whole = 2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1
    colours = 2 * torch.rand(len(images), 3, 1, 1, generator=generator) - 1
    light = (amount * (whole + colours / 3)).exp().to(images.device)
    return (images * light).clamp(0, 255)


class MeanPlaces(nn.Module):
    """The position of each feature map, the mean of its softmax: [B, K, H, W] to [B, 2K] in [-1, 1].

    Source: Finn et al. 2016, "Deep Spatial Autoencoders for Visuomotor Learning", section IV-A.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return row positions, then column positions."""
        count, height, width = maps.shape[1:]
        share = torch.softmax(maps.flatten(2), -1).view(-1, count, height, width)
        rows = (share.sum(3) * torch.linspace(-1, 1, height, device=maps.device)).sum(2)
        columns = (share.sum(2) * torch.linspace(-1, 1, width, device=maps.device)).sum(2)
        return torch.cat([rows, columns], 1)


def keypoint_head(maps: int, outputs: int) -> nn.Sequential:
    """Build a network from an image to `outputs` numbers through the positions of `maps` learned features."""
    return nn.Sequential(
        nn.Conv2d(3, maps, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(maps, maps, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(maps, maps, 3, padding=1),
        MeanPlaces(),
        nn.Linear(2 * maps, 128),
        nn.ReLU(),
        nn.Linear(128, outputs),
    )


class VAE(nn.Module):
    """Convolutional VAE whose decoder also sees the proprioception.

    Source: Kingma & Welling 2014, equation 10; R3L (Zhu et al. 2020), section 4.3. Deviations: the decoder is
    conditioned on proprioception (`conditional`), which the robot measures, so that z encodes the rest of the world;
    the encoder adds plain convolutions, which encode what is visible, and `keypoints`, which encode positions; the
    decoder draws a frame a step or two away (`neighbours`), where the fingers moved and the world hardly changed; the
    encoded image may have another light than the drawn one (`jitter`).
    """

    def __init__(self, config: VAEConfig, proprioception_size: int) -> None:
        super().__init__()
        self.config = config
        side = config.image_size // 8
        if side * 8 != config.image_size:
            raise ValueError(f"vae.image_size is {config.image_size}, expected a multiple of 8")
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * side * side, 256),
            nn.ReLU(),
            nn.Linear(256, 2 * config.latent_size),
        )
        self.keypoints = keypoint_head(config.keypoints, 2 * config.latent_size) if config.keypoints else None
        self._condition_size = proprioception_size if config.conditional else 0
        self.decoder = nn.Sequential(
            nn.Linear(config.latent_size + self._condition_size, 256),
            nn.ReLU(),
            nn.Linear(256, 64 * side * side),
            nn.ReLU(),
            nn.Unflatten(1, (64, side, side)),
            nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1),
        )

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | image): [B, 3, H, W] of 0 to 255 to two [B, Z]."""
        pixels = downsample(images, self.config.image_size)
        seen = self.encoder(pixels) if self.keypoints is None else self.encoder(pixels) + self.keypoints(pixels)
        mean, log_variance = seen.chunk(2, -1)
        return mean, log_variance.clamp(-10, 4)

    @torch.no_grad()
    def encode(self, images: Tensor, diagnostic: Tensor | None = None) -> Tensor:
        """Return the posterior mean: uint8 [B, 3, H, W] to float32 [B, Z]. `diagnostic` is ignored."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor, proprioception: Tensor) -> Tensor:
        """Return reconstructed images: [B, Z] and [B, P] to float32 [B, 3, side, side], about [0, 1]."""
        inputs = torch.cat([latents, proprioception[:, : self._condition_size]], -1)
        return self.decoder(inputs) + 0.5  # type: ignore[no-any-return]

    def loss(self, seen: Tensor, drawn: Tensor, proprioception: Tensor, noise: Tensor) -> tuple[Tensor, Metrics]:
        """Return the negative evidence lower bound, up to constants, and its parts.

        Args:
            seen: images to encode, [B, 3, H, W] in [0, 255].
            drawn: images to draw, uint8 [B, 3, H, W]: the same ones, or neighbours.
            proprioception: joint positions in `drawn`, float32 [B, P].
            noise: standard normal [B, Z], for the reparameterisation.
        """
        mean, log_variance = self.posterior(seen)
        latents = mean + noise * (0.5 * log_variance).exp()
        target = downsample(drawn, self.config.image_size)
        error = (self.decode(latents, proprioception) - target).square().sum((1, 2, 3)).mean()
        kl = kl_divergence(mean, log_variance).mean()
        loss = self.config.reconstruction_weight * error + self.config.beta * kl
        return loss, {"reconstruction": error.detach(), "kl": kl.detach()}
