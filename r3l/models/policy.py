"""The policies: an encoder, a window of recent observations and the actor networks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from r3l.config.schema import Config
from r3l.models.builders import build_encoder
from r3l.models.interfaces import Encoder
from r3l.models.sac import Actor, build_actor
from r3l.models.vae import VAE
from r3l.robot.base import FloatArray, Image, RobotSpec
from r3l.run.tensors import CheckpointError, Tensors, under_prefix


class Policies:
    """The task and the perturbation actor over one window of [latent, proprioception, applied command].

    Call `begin` at the start of a segment. Each observation is encoded once, for both actors.
    """

    def __init__(
        self,
        encoder: Encoder,
        actors: Mapping[str, Actor],
        window: int,
        device: torch.device,
        *,
        noise_correlation: float = 0.0,
    ) -> None:
        self._encoder, self._actors, self._device = encoder, actors, device
        self._correlation = noise_correlation
        self._noise: Tensor | None = None
        self._rows: deque[Tensor] = deque(maxlen=window)
        self._images: deque[Tensor] = deque(maxlen=window)
        self._sees_pixels = any(actor.trunk is not None for actor in actors.values())

    def begin(self) -> None:
        """Empty the window and drop the noise: the next observation begins a segment."""
        self._rows.clear()
        self._images.clear()
        self._noise = None

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        """Encode one observation into the window: image uint8 [H, W, 3], the others float32 [A], [A], [D]."""
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(self._device)
        truth = torch.from_numpy(diagnostic.copy())[None].to(self._device)
        latent = self._encoder.encode(pixels, truth)[0]
        row = torch.cat([latent, torch.from_numpy(np.concatenate([proprioception, applied])).to(self._device)])
        # At the start of a segment the first observation fills the whole window, as in the replay.
        for _ in range(1 if self._rows else self._rows.maxlen or 1):
            self._rows.append(row)
            self._images.append(pixels[0])

    def state(self) -> Tensors:
        """Return the window and the noise, for checkpoints."""
        if not self._rows:
            return {}
        noise = {} if self._noise is None else {"noise": self._noise}
        return {"rows": torch.stack(list(self._rows)), "images": torch.stack(list(self._images))} | noise

    def restore(self, tensors: Tensors) -> None:
        """Restore the window and the noise that `state` returned."""
        self.begin()
        if tensors:
            self._rows.extend(tensors["rows"].to(self._device))
            self._images.extend(tensors["images"].to(self._device))
            self._noise = tensors.get("noise")

    def adopt(self, other: Policies, *, encoder_changed: bool) -> None:
        """Take over the networks of `other`. The window stays; a changed encoder encodes the window's images again."""
        self._encoder, self._actors = other._encoder, other._actors
        if encoder_changed and self._rows and isinstance(self._encoder, VAE):
            latents = self._encoder.encode(torch.stack(list(self._images)))
            for index, latent in enumerate(latents):
                self._rows[index] = torch.cat([latent, self._rows[index][len(latent) :]])

    def act(self, name: str, generator: torch.Generator | None = None) -> FloatArray:
        """Return the named actor's action [A] in [-1, 1]: sampled with a generator, the mean without.

        Raises:
            ValueError: the window is empty.
        """
        if not self._rows:
            raise ValueError("the policy has seen nothing yet; call see() before act()")
        observation = torch.cat(list(self._rows))[None]
        image = torch.cat(list(self._images))[None] if self._sees_pixels else None
        noise = None if generator is None else self._next_noise(self._actors[name].actions, generator)
        action = self._actors[name].act(observation, image, noise=noise)
        return action[0].cpu().numpy()

    def _next_noise(self, actions: int, generator: torch.Generator) -> Tensor:
        """Return noise [1, A], correlated with the last step's; each sample alone is standard normal, as in SAC."""
        fresh = torch.randn(1, actions, generator=generator)
        if self._noise is not None:
            fresh = self._correlation * self._noise + math.sqrt(1 - self._correlation**2) * fresh
        self._noise = fresh
        return fresh.to(self._device)


def build_policies(
    config: Config, spec: RobotSpec, device: torch.device, *, noise_correlation: float = 0.0
) -> tuple[Policies, dict[str, nn.Module]]:
    """Build untrained policies, and their networks by the prefix of the published weights."""
    actions = len(spec.joints)
    encoder = build_encoder(config, actions)
    modules: dict[str, nn.Module] = {"vae": encoder} if isinstance(encoder, nn.Module) else {}
    size = config.latent_size(len(spec.diagnostic))
    image = (3 * config.window, spec.camera.height) if config.state == "pixels" else None
    features = config.window * (size + 2 * actions)
    actors = {name: build_actor(features, actions, config.sac, image) for name in ("task", "perturbation")}
    modules |= {f"{name}_actor": actor for name, actor in actors.items()}
    for module in modules.values():
        module.to(device)
    return Policies(encoder, actors, config.window, device, noise_correlation=noise_correlation), modules


def load_policies(config: Config, spec: RobotSpec, weights: Tensors, device: torch.device) -> Policies:
    """Build the policies of a run's config with published weights.

    Raises:
        CheckpointError: the weights are not of this config, or not finite.
    """
    policies, modules = build_policies(config, spec, device)
    for name, module in modules.items():
        found = under_prefix(name, weights)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
            raise CheckpointError(f"published weights of {name} are not finite; use an older snapshot")
        try:
            module.load_state_dict(found)
        except RuntimeError as error:
            raise CheckpointError(f"published weights of {name} do not fit config.json: {error}") from error
    return policies
