from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from r3l.config.models import VAEConfig
from r3l.models.vae import VAE, MeanPlaces, downsample, jittered, kl_divergence

SMALL = VAEConfig(latent_size=4, image_size=16, beta=0.5)


def vae_of(config: VAEConfig = SMALL, proprioception_size: int = 3) -> VAE:
    torch.manual_seed(0)
    return VAE(config, proprioception_size)


def bars(count: int = 16, side: int = 32) -> Tensor:
    """Dark images, each with one bright bar at another place."""
    images = torch.full((count, 3, side, side), 30, dtype=torch.uint8)
    for index in range(count):
        start = index * (side - 6) // count
        images[index, :, :, start : start + 6] = 220
    return images


def test_kl_divergence_is_that_of_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 8, 5, generator=generator)
    expected = reference_kl(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)
    assert kl_divergence(torch.zeros(1, 5), torch.zeros(1, 5)).item() == 0


def test_jitter_changes_the_light_of_each_image_and_nothing_else() -> None:
    images = torch.full((64, 3, 8, 8), 100, dtype=torch.uint8)
    images[:, :, :4] = 50
    lit = jittered(images, 0.3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(lit[:, :, 4:], 2 * lit[:, :, :4])
    light = lit[:, :, 0, 0].log() - math.log(50)
    assert light.abs().max() <= 0.4 + 1e-6
    assert 0.1 < light.mean(1).std() < 0.25
    assert 0.03 < (light - light.mean(1, keepdim=True)).std() < 0.1
    assert torch.equal(jittered(images, 0.0, torch.Generator()), images.float())


def test_downsampling_averages_pixels_into_the_unit_interval() -> None:
    image = torch.tensor([[0, 255, 51, 51], [255, 0, 51, 51]], dtype=torch.uint8)
    image = image.repeat(2, 1).expand(1, 3, 4, 4)
    small = downsample(image, 2)
    torch.testing.assert_close(small[0, 0], torch.tensor([[0.5, 0.2], [0.5, 0.2]]))
    torch.testing.assert_close(downsample(image, 4), image.float() / 255)


@pytest.mark.parametrize("side", [12, 20, 65])
def test_an_image_size_that_is_no_multiple_of_8_is_refused(side: int) -> None:
    with pytest.raises(ValueError, match=rf"vae\.image_size is {side}"):
        VAE(VAEConfig(image_size=side), 3)


def test_encoding_is_deterministic_and_is_the_posterior_mean() -> None:
    vae, images = vae_of(), bars()
    first = vae.encode(images)
    assert first.shape == (16, 4)
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert torch.equal(first, vae.encode(images, torch.ones(16, 2)))
    assert torch.equal(first, vae.posterior(images)[0])


def test_encoding_one_image_is_encoding_it_in_a_batch() -> None:
    vae, images = vae_of(), bars()
    alone = torch.cat([vae.encode(image[None]) for image in images])
    torch.testing.assert_close(alone, vae.encode(images), rtol=1e-4, atol=1e-5)


def test_loss_is_the_weighted_sum_of_squared_error_and_kl() -> None:
    vae, images, proprioception = vae_of(), bars(), torch.randn(16, 3)
    noise = torch.randn(16, 4)
    loss, metrics = vae.loss(images, images, proprioception, noise)
    mean, log_variance = vae.posterior(images)
    decoded = vae.decode(mean + noise * (0.5 * log_variance).exp(), proprioception)
    error = (decoded - downsample(images, 16)).square().flatten(1).sum(1).mean()
    kl = kl_divergence(mean, log_variance).mean()
    torch.testing.assert_close(metrics["reconstruction"], error.detach())
    torch.testing.assert_close(metrics["kl"], kl.detach())
    torch.testing.assert_close(loss, 10.0 * error + 0.5 * kl)


def test_mean_places_are_those_of_a_bright_spot_and_the_middle_of_an_even_map() -> None:
    maps = torch.zeros(1, 3, 5, 9)
    maps[0, 0, 0, 8] = 100.0
    maps[0, 1, 4, 2] = 100.0
    expected = torch.tensor([[-1.0, 1.0, 0.0, 1.0, -0.5, 0.0]])
    torch.testing.assert_close(MeanPlaces()(maps), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("keypoints", [0, 4])
def test_keypoints_are_there_when_asked_for_and_learn(keypoints: int) -> None:
    vae = vae_of(replace(SMALL, keypoints=keypoints))
    assert any("keypoints" in name for name, _ in vae.named_parameters()) is (keypoints > 0)
    loss, _ = vae.loss(bars(), bars(), torch.zeros(16, 3), torch.zeros(16, 4))
    loss.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


@pytest.mark.parametrize("conditional", [True, False])
def test_only_a_conditional_decoder_sees_proprioception(conditional: bool) -> None:
    vae = vae_of(VAEConfig(latent_size=4, image_size=16, conditional=conditional))
    latents = torch.randn(1, 4)
    here, there = vae.decode(latents, torch.zeros(1, 3)), vae.decode(latents, torch.ones(1, 3))
    assert here.shape == (1, 3, 16, 16)
    assert torch.allclose(here, there) is not conditional


def test_training_halves_the_reconstruction_error_and_the_latent_tells_images_apart() -> None:
    vae, images, proprioception = vae_of(), bars(), torch.zeros(16, 3)
    optimiser = torch.optim.Adam(vae.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(120):
        loss, metrics = vae.loss(images, images, proprioception, torch.randn(16, 4, generator=generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(metrics["reconstruction"].item())
    assert errors[-1] < 0.5 * errors[0]
    latents = vae.encode(images)
    assert (latents[0] - latents[-1]).norm() > 5 * (latents[0] - latents[1]).norm() > 0


def test_drawing_a_neighbour_leaves_out_what_the_two_do_not_share() -> None:
    """An upper bar stays between neighbours, a lower one is anywhere: the latent tells the first and not the other."""

    def scenes(stays: Tensor, moves: Tensor) -> Tensor:
        images = torch.full((len(stays), 3, 16, 16), 30, dtype=torch.uint8)
        for image, upper, lower in zip(images, stays, moves, strict=True):
            image[:, :8, upper : upper + 4] = 220
            image[:, 8:, lower : lower + 4] = 220
        return images

    vae = vae_of()
    optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        stays, moves, others = torch.randint(0, 12, (3, 32), generator=generator)
        noise = torch.randn(32, 4, generator=generator)
        loss, _ = vae.loss(scenes(stays, moves), scenes(stays, others), torch.zeros(32, 3), noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    every, same = torch.arange(12), torch.full((12,), 5)
    told, left_out = vae.encode(scenes(every, same)), vae.encode(scenes(same, every))
    assert told.var(0).sum() > 10 * left_out.var(0).sum()
