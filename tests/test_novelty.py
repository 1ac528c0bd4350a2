from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from r3l.config.models import NoveltyConfig
from r3l.models.novelty import RND, RunningMoments

QUICK = NoveltyConfig(hidden=64, embedding=32, learning_rate=1e-3)


def novelty_of(config: NoveltyConfig = QUICK, inputs: int = 4, image: tuple[int, int] | None = None) -> RND:
    torch.manual_seed(0)
    return RND(config, inputs, image=image)


def cluster(centre: float, seed: int, count: int = 128) -> Tensor:
    return centre + 0.3 * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def test_running_moments_weigh_newer_values_more_and_correct_for_their_start() -> None:
    moments = RunningMoments(1, decay=0.5)
    assert [float(value) for value in moments.moments()] == [0.0, 1.0]
    moments.update(torch.tensor([[0.0], [2.0]]))
    assert [float(value) for value in moments.moments()] == pytest.approx([1.0, 1.0])
    moments.update(torch.tensor([[4.0], [4.0]]))
    # Weights 0.25 and 0.5 out of 0.75: mean (1 + 2 * 4) / 3, mean of squares (2 + 2 * 16) / 3.
    assert [float(value) for value in moments.moments()] == pytest.approx([3.0, math.sqrt(34 / 3 - 9)])


def test_running_moments_of_a_constant_have_a_positive_deviation() -> None:
    moments = RunningMoments(2, decay=0.9)
    for _ in range(5):
        moments.update(torch.full((8, 2), 3.0))
    mean, deviation = moments.moments()
    torch.testing.assert_close(mean, torch.full((2,), 3.0))
    assert (deviation > 0).all()


def test_error_falls_on_seen_states_and_stays_higher_on_unseen_ones() -> None:
    novelty = novelty_of()
    first = novelty.update(cluster(0.0, 0))["novelty_error"].item()
    for seed in range(1, 300):
        novelty.update(cluster(0.0, seed))
    seen, unseen = novelty.error(cluster(0.0, 1000)).mean().item(), novelty.error(cluster(1.5, 1000)).mean().item()
    assert seen < 0.2 * first
    assert unseen > 3 * seen
    assert novelty.reward(cluster(1.5, 1000)).mean() > novelty.reward(cluster(0.0, 1000)).mean()


def test_a_latent_that_says_nothing_makes_nothing_new() -> None:
    """Noise of a hundredth of the others' deviation is not blown up to the same size."""
    novelty = novelty_of()
    scale = torch.tensor([1.0, 1.0, 1.0, 0.03])
    for seed in range(200):
        novelty.update(scale * cluster(0.0, seed))
    states = scale * cluster(0.0, 1000)
    far = 3 * 0.3 * scale
    says_something = novelty.error(states + far * torch.tensor([1.0, 0, 0, 0])).mean()
    says_nothing = novelty.error(states + far * torch.tensor([0, 0, 0, 1.0])).mean()
    assert says_nothing < 1.2 * novelty.error(states).mean()
    assert says_something > 3 * says_nothing


def test_reward_is_the_error_in_running_deviations() -> None:
    novelty = novelty_of(NoveltyConfig(hidden=64, max_reward=1e6))
    for seed in range(5):
        novelty.update(cluster(0.0, seed))
    states = cluster(0.0, 9)
    deviation = novelty.errors.moments()[1]
    torch.testing.assert_close(novelty.reward(states), novelty.error(states).detach() / deviation)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e12])
@pytest.mark.parametrize("updates", [0, 3])
def test_reward_is_bounded_whatever_the_state(scale: float, updates: int) -> None:
    novelty = novelty_of()
    for seed in range(updates):
        novelty.update(cluster(0.0, seed))
    reward = novelty.reward(scale * torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    assert reward.shape == (64,)
    assert not reward.requires_grad
    assert reward.min() >= 0
    assert reward.max() <= novelty.config.max_reward


def test_the_target_network_never_changes() -> None:
    novelty = novelty_of()
    before = {name: tensor.clone() for name, tensor in novelty.target.state_dict().items()}
    for seed in range(3):
        novelty.update(cluster(0.0, seed))
    for name, tensor in novelty.target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_novelty_of_images_falls_on_the_images_seen() -> None:
    novelty = novelty_of(image=(3, 16))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=generator)
    errors = [novelty.update(images)["novelty_error"].item() for _ in range(40)]
    assert errors[-1] < 0.5 * errors[0]
    assert novelty.reward(images).shape == (16,)


def test_same_seed_makes_the_same_updates_bit_for_bit() -> None:
    first, second = novelty_of(), novelty_of()
    for seed in range(3):
        first.update(cluster(0.0, seed))
        second.update(cluster(0.0, seed))
    expected = second.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in first.state_dict().items())
