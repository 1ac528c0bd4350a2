from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from r3l.config.models import ClassifierConfig
from r3l.models.classifier import Classifier, mixup

QUICK = ClassifierConfig(hidden=32, learning_rate=3e-3)


def classifier_of(config: ClassifierConfig = QUICK, image: tuple[int, int] | None = None) -> Classifier:
    torch.manual_seed(0)
    return Classifier(config, 2, image=image)


def cluster(centre: float, seed: int, count: int = 64) -> Tensor:
    return centre + 0.3 * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def trained(config: ClassifierConfig) -> Classifier:
    classifier, generator = classifier_of(config), torch.Generator().manual_seed(0)
    for seed in range(200):
        classifier.update(cluster(1.0, seed), cluster(-1.0, seed + 1000), generator)
    return classifier


def test_mixup_mixes_inputs_and_labels_alike() -> None:
    inputs, labels = mixup(
        positives=torch.tensor([[10.0], [20.0]]),
        negatives=torch.tensor([[0.0], [-4.0]]),
        share=torch.tensor([0.75, 1.0, 0.5, 0.0]),
        order=torch.tensor([2, 3, 0, 1]),
    )
    assert inputs.flatten().tolist() == [7.5, 20.0, 5.0, 20.0]
    assert labels.tolist() == [0.75, 1.0, 0.5, 1.0]


def test_mixup_mixes_images_with_one_share_per_image() -> None:
    positives, negatives = torch.full((1, 3, 2, 2), 200.0), torch.zeros(1, 3, 2, 2)
    inputs, labels = mixup(positives, negatives, torch.tensor([0.25, 1.0]), torch.tensor([1, 0]))
    assert torch.equal(inputs[0], torch.full((3, 2, 2), 50.0))
    assert torch.equal(inputs[1], torch.zeros(3, 2, 2))
    assert labels.tolist() == [0.25, 0.0]


def test_without_mixup_and_noise_the_loss_is_plain_cross_entropy() -> None:
    classifier = classifier_of(replace(QUICK, mixup_alpha=0.0, noise=0.0))
    goals, visited = cluster(1.0, 0), cluster(-1.0, 1)
    with torch.no_grad():
        expected = (F.softplus(-classifier.logit(goals)).mean() + F.softplus(classifier.logit(visited)).mean()) / 2
    loss = classifier.update(goals, visited, torch.Generator().manual_seed(0))["classifier_loss"]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_it_learns_to_tell_goals_from_visited_states(alpha: float) -> None:
    classifier = trained(replace(QUICK, mixup_alpha=alpha))
    goals, visited = cluster(1.0, 5000), cluster(-1.0, 6000)
    assert (classifier.probability(goals) > 0.5).float().mean() > 0.98
    assert (classifier.probability(visited) < 0.5).float().mean() > 0.98
    assert classifier.reward(goals).mean() > classifier.reward(visited).mean() + 0.5


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_reward_is_a_probability_scaled_by_that_of_the_goals_and_at_most_1(scale: float) -> None:
    classifier = trained(QUICK)
    states = scale * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    reward = classifier.reward(states)
    assert reward.shape == (64,)
    assert not reward.requires_grad
    assert reward.min() >= 0
    assert reward.max() <= 1
    expected = (classifier.probability(states) / classifier.goal_level).clamp(max=1)
    torch.testing.assert_close(reward, expected)


def test_noise_while_learning_lets_the_reward_rise_towards_the_goal_instead_of_jumping_up() -> None:
    sharp, soft = (trained(replace(QUICK, mixup_alpha=0.0, noise=noise)) for noise in (0.0, 1.0))
    states = torch.linspace(-1, 1, 21)[:, None].expand(-1, 2)
    steepest = [float(classifier.reward(states).diff().max()) for classifier in (sharp, soft)]
    assert steepest[1] < 0.7 * steepest[0]
    assert soft.reward(cluster(1.0, 3)).mean() > soft.reward(cluster(-1.0, 3)).mean() + 0.5


def test_goal_level_follows_the_mean_probability_of_the_goals() -> None:
    classifier = classifier_of()
    metrics = classifier.update(cluster(1.0, 0), cluster(-1.0, 1), torch.Generator().manual_seed(0))
    assert classifier.goal_level.item() == pytest.approx(0.95 + 0.05 * metrics["goal_probability"].item())


def test_logit_reward_is_the_scaled_logit() -> None:
    classifier = trained(replace(QUICK, reward="logit", logit_scale=4.0))
    states = cluster(1.0, 3)
    torch.testing.assert_close(classifier.reward(states), classifier.logit(states).detach() / 4.0)
    assert classifier.reward(states).mean() > 0 > classifier.reward(cluster(-1.0, 3)).mean()


def test_images_are_classified_by_their_pixels() -> None:
    classifier, generator = classifier_of(image=(3, 16)), torch.Generator().manual_seed(0)
    bright = torch.randint(128, 256, (16, 3, 16, 16), dtype=torch.uint8, generator=generator)
    dark = torch.randint(0, 128, (16, 3, 16, 16), dtype=torch.uint8, generator=generator)
    for _ in range(30):
        classifier.update(bright, dark, generator)
    assert classifier.probability(bright).min() > classifier.probability(dark).max()


def test_same_seed_makes_the_same_updates_bit_for_bit() -> None:
    pair = [classifier_of(), classifier_of()]
    for classifier in pair:
        generator = torch.Generator().manual_seed(3)
        for seed in range(3):
            classifier.update(cluster(1.0, seed), cluster(-1.0, seed), generator)
    expected = pair[1].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pair[0].state_dict().items())
