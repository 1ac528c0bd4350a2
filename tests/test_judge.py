"""The judge on a synthetic world: a bright square somewhere, success where it is in the middle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from r3l.config.models import JudgeConfig
from r3l.models.judge import Judge
from r3l.models.judge_training import Examples, calibrate, fit
from r3l.models.networks import channels_first
from r3l.run.tensors import CheckpointError

CONFIG = JudgeConfig(updates=160, batch_size=16)


def scene(columns: np.ndarray, seed: int) -> Tensor:
    """Draw a square at each column over noise: uint8 [N, 3, 64, 64]."""
    images = np.random.default_rng(seed).integers(0, 80, (len(columns), 64, 64, 3), np.uint8)
    for image, column in zip(images, columns, strict=True):
        image[26:38, column : column + 12, 0] = 250
    return channels_first(images)


def goal(count: int, seed: int) -> Tensor:
    return scene(np.random.default_rng(seed).integers(25, 28, count), seed)


def miss(count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return scene(np.where(rng.random(count) < 0.5, rng.integers(0, 18, count), rng.integers(35, 52, count)), seed)


def explored(count: int, seed: int) -> Tensor:
    """Misses with one success in ten."""
    images = miss(count, seed)
    images[::10] = goal(len(images[::10]), seed + 1)
    return images


def fitted(seed: int = 0) -> Judge:
    goals, exploration = Examples(goal(40, 1), goal(10, 2)), Examples(explored(300, 3), explored(60, 5))
    return fit(goals, exploration, torch.Generator().manual_seed(seed), CONFIG)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return fitted()


def test_success_and_failure_are_told_apart_although_exploration_holds_successes(judge: Judge) -> None:
    assert judge.probability(goal(50, 7)).min() > 0.5
    assert judge.probability(miss(50, 8)).max() < 0.5
    assert judge.accepts(goal(50, 7)).float().mean() >= CONFIG.goals_accepted
    assert judge.accepts(miss(200, 8)).float().mean() <= 0.05, "the nearest misses alone"
    assert judge.quality["exploration_left_out"] == pytest.approx(0.1, abs=0.03)
    assert judge.quality["held_out_goals_accepted"] >= CONFIG.goals_accepted
    assert judge.quality["held_out_exploration_accepted"] == pytest.approx(0.1, abs=0.03)
    assert judge.quality["held_out_auc"] > 0.9


def test_the_verdict_ignores_a_single_odd_frame(judge: Judge) -> None:
    black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    for odd in (black, miss(1, 10)):
        assert judge.verdict(torch.cat([goal(2, 9), odd]))
        assert judge.verdict(torch.cat([goal(1, 9), odd, goal(1, 11)]))
    assert not judge.verdict(torch.cat([miss(2, 9), goal(1, 10)]))


def test_the_verdict_looks_at_the_last_frames_alone(judge: Judge) -> None:
    assert judge.verdict(torch.cat([miss(20, 9), goal(5, 10)]))
    assert not judge.verdict(torch.cat([goal(20, 9), miss(5, 10)]))
    assert judge.verdict(goal(1, 9))
    with pytest.raises(ValueError, match="without frames"):
        judge.verdict(goal(1, 9)[:0])


def test_the_same_seed_gives_the_same_judge_and_the_global_generator_stays(judge: Judge) -> None:
    state = torch.get_rng_state()
    again, images = fitted(), torch.cat([goal(5, 11), miss(5, 12)])
    assert torch.equal(again.log_odds(images), judge.log_odds(images))
    assert again.calibration == judge.calibration
    assert not torch.equal(fitted(seed=1).log_odds(images), judge.log_odds(images))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_saved_judge_gives_the_same_probabilities_bit_for_bit(judge: Judge, tmp_path: Path) -> None:
    path, images = tmp_path / "judge.safetensors", torch.cat([goal(5, 11), miss(5, 12)])
    judge.save(path)
    state = torch.get_rng_state()
    loaded = Judge.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loaded.probability(images), judge.probability(images))
    assert (loaded.calibration, loaded.config, loaded.quality) == (judge.calibration, judge.config, judge.quality)
    assert not loaded.body.training


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all", b"cut"])
def test_an_unusable_file_is_named(content: bytes | None, judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    if content == b"cut":
        judge.save(path)
        path.write_bytes(path.read_bytes()[:-100])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"judge\.safetensors cannot be read") as error:
        Judge.load(path)
    assert "\n" not in str(error.value)


def test_probability_grows_with_the_logit_and_has_the_images_length(judge: Judge) -> None:
    images = scene(np.arange(0, 52), 13)
    log_odds, probability = judge.log_odds(images), judge.probability(images)
    assert probability.shape == (52,)
    assert probability.dtype == torch.float32
    order = log_odds.argsort()
    assert (probability[order].diff() >= 0).all()
    assert ((probability >= 0) & (probability <= 1)).all()


def test_calibration_puts_the_threshold_between_goals_and_exploration() -> None:
    rng = np.random.default_rng(0)
    goals, exploration = rng.normal(6, 1, 50), rng.normal(-6, 1, 400)
    found = calibrate(goals, exploration, 0.9)
    at = (found.threshold - found.offset) / found.slope
    assert exploration.max() < at < np.quantile(goals, 0.1)
    assert abs(-found.offset / found.slope) < 1.5


def test_calibration_stays_monotone_and_keeps_its_recall_where_nothing_can_be_told() -> None:
    rng = np.random.default_rng(0)
    goals, exploration = rng.normal(-1, 1, 50), rng.normal(1, 1, 400)
    found = calibrate(goals, exploration, 0.9)
    assert found.slope > 0
    assert np.mean(found.slope * goals + found.offset >= found.threshold) == pytest.approx(0.9, abs=0.02)


def test_images_of_another_kind_are_refused() -> None:
    good = goal(2, 0)
    for bad in (good.float(), good[:1], good[:, :1], good[0]):
        with pytest.raises(ValueError, match="expected at least 2 uint8 images"):
            Examples(good, bad)
