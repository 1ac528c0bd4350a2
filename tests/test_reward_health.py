"""Reward health: closed-form checks, and whole runs whose classifier is sabotaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, RunMaker, tiny
from torch import Tensor

from r3l.config.schema import Config, HealthConfig
from r3l.learner.learner import Learner
from r3l.learner.reward_health import Check, check, problems
from r3l.models.classifier import Classifier
from r3l.models.vae import VAE
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.goals import save_goals
from r3l.run.jsonl import read_jsonl
from r3l.task.registry import load_robot, load_task
from r3l.training.sync import train

HEALTH = HealthConfig(check_every=50, min_auc=0.85, min_score=0.5, max_elsewhere=0.5, grace_steps=100)
CONFIG = tiny(
    steps=450,
    health=HEALTH,
    phases={"exploration_steps": 200},
    classifier=replace(TINY.classifier, pretrain_updates=400, update_every=2, hidden=32, learning_rate=3e-3),
)
WELL = Check(held_out=0.7, elsewhere=0.05, auc=0.98, average_precision=0.9, rewarded=0.3)


def test_a_check_measures_scores_in_closed_form() -> None:
    found = check(np.array([0.9, 0.7]), np.array([0.1, 0.8, 0.0, 0.3]), np.array([0.5, 0.39, 0.4, 0.41]))
    assert found.held_out == pytest.approx(0.8)
    assert found.elsewhere == pytest.approx(0.3)
    assert found.auc == pytest.approx(7 / 8)
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert found.rewarded == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("changes", "best", "expected"),
    [
        ({}, 0.7, set()),
        ({"auc": 0.84}, 0.7, {"ranking"}),
        ({"auc": 0.86}, 0.7, set()),
        ({}, 1.5, {"score"}),
        ({"elsewhere": 0.36}, 0.7, {"everything"}),
        ({"elsewhere": 0.34}, 0.7, set()),
        ({"elsewhere": 0.99, "held_out": 0.99, "auc": 0.5}, 0.99, {"ranking", "everything"}),
        ({"held_out": 0.0, "elsewhere": 0.0, "auc": 0.5}, 0.7, {"ranking", "score"}),
    ],
)
def test_problems_are_named_beyond_their_thresholds_alone(
    changes: dict[str, float], best: float, expected: set[str]
) -> None:
    assert set(problems(replace(WELL, **changes), best, HEALTH)) == expected


@pytest.fixture
def clear_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the encoder of these short runs see where the fake's pointer points."""

    def encode(self: VAE, images: Tensor) -> Tensor:
        red = (images[:, 0] > 128).float()
        places = torch.linspace(-4, 4, red.shape[-1])
        count = red.sum((1, 2)).clamp_min(1)
        across, down = (red * places).sum((1, 2)) / count, (red * places[:, None]).sum((1, 2)) / count
        return torch.stack([across, down, 0 * across, 0 * down], 1)

    def acting(self: VAE, images: Tensor, diagnostic: Tensor | None = None) -> Tensor:
        return encode(self, images)

    monkeypatch.setattr(VAE, "encode", acting)


def of_run(folder: Path, make_run: RunMaker, config: Config = CONFIG) -> Run:
    run = make_run(folder / "run", config)
    assert train(run)
    return run


def events(run: Run) -> list[tuple[str, bool]]:
    """Return the reward's events: kind, and whether it says that it is over."""
    found = [event for event in read_jsonl(run.events) if event["kind"].startswith("reward-")]
    return [(event["kind"], event["message"].startswith("over")) for event in found]


def health_of(run: Run, name: str) -> dict[int, float]:
    return {record["step"]: record[f"health/{name}"] for record in read_jsonl(run.metrics) if "health/auc" in record}


def test_a_healthy_run_raises_no_event_and_records_its_health(
    tmp_path: Path, make_run: RunMaker, clear_sight: None
) -> None:
    run = of_run(tmp_path, make_run)
    assert events(run) == []
    for name in ("held_out", "elsewhere", "auc", "average_precision", "rewarded", "judged_success"):
        values = health_of(run, name)
        assert list(values) == list(range(250, 451, 50)), name
        assert all(0 <= value <= 1 for value in values.values())
    assert min(health_of(run, "auc").values()) > 0.9


def flip(update: Callable[..., Any], self: Classifier, goals: Any, visited: Any, generator: Any) -> Any:
    """Learn that goals are failures."""
    return update(self, visited, goals, generator)


def praise(update: Callable[..., Any], self: Classifier, *arguments: Any) -> Any:
    """Take everything for success."""
    metrics = update(self, *arguments)
    last = list(self.body.parameters())[-1]
    with torch.no_grad():
        last.fill_(1000.0)
    return metrics


def die(update: Callable[..., Any], self: Classifier, *arguments: Any) -> Any:
    """Say the same of every image."""
    metrics = update(self, *arguments)
    with torch.no_grad():
        for parameter in self.body.parameters():
            parameter.zero_()
    return metrics


@pytest.mark.parametrize(
    ("sabotage", "expected"),
    [
        (flip, {"reward-ranking"}),
        (praise, {"reward-everything"}),
        (die, {"reward-ranking", "reward-everything"}),
    ],
)
def test_a_run_with_a_sabotaged_classifier_says_so_once(
    sabotage: Callable[..., Any],
    expected: set[str],
    tmp_path: Path,
    make_run: RunMaker,
    monkeypatch: pytest.MonkeyPatch,
    clear_sight: None,
) -> None:
    update, calls = Classifier.update, []

    def sabotaged(self: Classifier, *arguments: Any) -> Any:
        calls.append(1)
        late = len(calls) > CONFIG.classifier.pretrain_updates + 20
        return sabotage(update, self, *arguments) if late else update(self, *arguments)

    monkeypatch.setattr(Classifier, "update", sabotaged)
    found = events(of_run(tmp_path, make_run))
    assert expected <= {kind for kind, _ in found}
    begun = [kind for kind, is_over in found if not is_over]
    over = [kind for kind, is_over in found if is_over]
    assert all(0 <= begun.count(kind) - over.count(kind) <= 1 for kind in set(begun))
    assert (expected & set(begun)) - set(over)


def test_goal_images_that_show_nothing_special_raise_an_event_after_the_grace(
    tmp_path: Path, make_run: RunMaker, clear_sight: None
) -> None:
    """Goal images of no success in particular: no classifier can tell them from what exploration sees."""
    task, rng = load_task("valve"), np.random.default_rng(0)
    run = make_run(tmp_path / "run", CONFIG)
    images = []
    with load_robot("fake", task) as robot:
        assert isinstance(robot, SimulatedRobot)
        for angle in rng.uniform(-0.5, 0.5, 60):  # where exploration turns the fake's dial to
            robot.place(np.array([angle], np.float32))
            images.append(robot.observe().image)
    shutil.rmtree(run.goals)
    save_goals(run.goals, np.stack(images[:30]), np.stack(images[30:]), task="valve", robot="fake", source="test")
    assert train(run)
    found = [event for event in read_jsonl(run.events) if event["kind"].startswith("reward-")]
    assert "reward-ranking" in {event["kind"] for event in found}
    assert "expected at least" in found[-1]["message"] or "expected at most" in found[-1]["message"]


def test_an_event_ends_when_the_check_passes_again_and_is_told_anew_after_that() -> None:
    from r3l.learner.reward_health import RewardHealth

    told: list[tuple[str, str]] = []
    health = RewardHealth.__new__(RewardHealth)
    health._wrong, health._was_well, health._best, health._config = set(), False, 0.0, HEALTH
    fallen = replace(WELL, held_out=0.2)
    for found in (WELL, fallen, fallen, WELL, fallen):
        health._judge(found, True, lambda kind, message: told.append((kind, message[:9])))
    assert told == [("reward-score", "the score"), ("reward-score", "over: the"), ("reward-score", "the score")]


def test_a_run_that_goes_on_remembers_how_well_the_reward_was(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, clear_sight: None
) -> None:
    run = of_run(tmp_path, make_run, replace(CONFIG, steps=350))
    assert events(run) == []
    score = Learner.success_of_images

    def fallen(self: Learner, images: Tensor) -> Tensor:
        return 0.3 * score(self, images)

    monkeypatch.setattr(Learner, "success_of_images", fallen)
    assert train(run.extended(450))
    assert ("reward-score", False) in events(run)
    before = len(events(run))
    assert train(run.extended(550))
    assert events(run)[before:] == [], "told once, also over a restart"
