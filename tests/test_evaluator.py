"""Evaluation: known answers, repeatable episodes, start states that give nothing away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from r3l.evaluation.evaluator import Evaluator, print_evaluation, write_film
from r3l.evaluation.policies import DoNothing, RandomPolicy
from r3l.evaluation.statistics import EvaluatedEpisode, confusion, summarise, verdicts
from r3l.hardware import fake, twin
from r3l.models.judge import Judge
from r3l.models.networks import channels_first
from r3l.robot.base import FloatArray, Image
from r3l.tasks.valve import GOAL_RAD, Valve

THRESHOLD = 0.2
HIT, MISS = 0.1, 0.5


def episode(*errors: float) -> EvaluatedEpisode:
    return EvaluatedEpisode([1.0], list(errors), np.zeros((len(errors) + 1, 8, 8, 3), np.uint8), THRESHOLD)


@pytest.fixture
def evaluator() -> Iterator[Evaluator]:
    task = Valve()
    made = Evaluator(task, fake.from_task(task))
    yield made
    made.close()


def away(angle_rad: float, goal_rad: float = GOAL_RAD) -> float:
    """Return the distance on the circle."""
    return abs((angle_rad - goal_rad + math.pi) % (2 * math.pi) - math.pi)


@pytest.mark.parametrize(
    ("errors", "steps", "success"),
    [
        ((MISS, MISS, HIT, HIT), 3, True),
        ((HIT, HIT, HIT, HIT), 1, True),
        ((MISS, MISS, MISS, HIT), 4, True),
        ((HIT, HIT, HIT, MISS), None, False),
        ((MISS, HIT, MISS, HIT), 4, True),
        ((MISS, MISS), None, False),
        ((THRESHOLD,), 1, True),
    ],
)
def test_success_is_at_the_end_and_counted_from_when_it_stayed(
    errors: tuple[float, ...], steps: int | None, success: bool
) -> None:
    found = episode(*errors)
    assert found.final_error == errors[-1]
    assert found.success is success
    assert found.steps_to_success == steps


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 24, 0.0, 0.1380), (24, 24, 0.8620, 1.0), (12, 24, 0.3143, 0.6857), (1, 1, 0.2065, 1.0)],
)
def test_the_interval_is_wilsons(successes: int, count: int, low: float, high: float) -> None:
    episodes = [episode(HIT)] * successes + [episode(MISS)] * (count - successes)
    summary = summarise(episodes)
    assert summary["success"] == successes / count
    assert summary["success_interval"] == pytest.approx([low, high], abs=1e-4)
    z = 1.959964
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    assert summary["success_interval"] == pytest.approx([max(middle - half, 0), min(middle + half, 1)], abs=1e-6)


def test_a_summary_names_every_start() -> None:
    summary = summarise([episode(MISS, HIT), episode(MISS, 0.6), episode(MISS, 0.3)])
    assert summary["episodes"] == 3
    assert summary["median_final_error"] == 0.3
    assert "judge" not in summary
    assert summary["starts"][0] == {
        "start": [1.0],
        "success": True,
        "final_error": HIT,
        "steps_to_success": 2,
        "truth": {},
    }
    assert [start["steps_to_success"] for start in summary["starts"]] == [2, None, None]


def test_the_judges_confusion_is_counted() -> None:
    truth = [True, True, True, False, False, False, False]
    judged = [True, True, False, True, False, False, False]
    assert confusion(truth, judged) == {
        "true_positive": 2,
        "false_positive": 1,
        "true_negative": 3,
        "false_negative": 1,
        "judged_success": 3 / 7,
        "balanced_accuracy": pytest.approx((2 / 3 + 3 / 4) / 2),
    }
    summary = summarise([episode(HIT if success else MISS) for success in truth], judged)
    assert summary["judge"] == confusion(truth, judged)
    assert [start["judged_success"] for start in summary["starts"]] == judged


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_balanced_accuracy_needs_both_classes(truth: list[bool]) -> None:
    assert confusion(truth, [True, False])["balanced_accuracy"] is None


def test_verdicts_of_another_number_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        summarise([episode(HIT), episode(MISS)], [True])


def test_the_judge_sees_the_last_frames(judge_file: Path) -> None:
    judge = Judge.load(judge_file)
    rng = np.random.default_rng(0)
    episodes = [
        EvaluatedEpisode([0.0], [HIT] * 5, rng.integers(0, 256, (6, 64, 64, 3), np.uint8), THRESHOLD) for _ in range(4)
    ]
    expected = [judge.verdict(channels_first(each.frames)[-judge.config.frames :]) for each in episodes]
    assert verdicts(judge, episodes) == expected


def same(first: list[EvaluatedEpisode], second: list[EvaluatedEpisode]) -> bool:
    return all(
        a.start == b.start and a.errors == b.errors and np.array_equal(a.frames, b.frames)
        for a, b in zip(first, second, strict=True)
    )


def test_the_same_seed_gives_the_same_episodes(evaluator: Evaluator) -> None:
    def run(seed: int) -> list[EvaluatedEpisode]:
        return evaluator.run(RandomPolicy(0), count=3, seed=seed)

    first = run(0)
    other = run(1)
    assert same(first, run(0))
    assert not same(first, other)
    assert [each.start for each in first] != [each.start for each in other]


def test_an_episode_has_its_frames_and_errors(evaluator: Evaluator) -> None:
    done = []
    episodes = evaluator.run(RandomPolicy(0), count=2, on_episode=lambda: done.append(1))
    steps = Valve().episode_steps
    assert len(done) == 2
    for each in episodes:
        assert len(each.errors) == steps
        assert each.frames.shape == (steps + 1, 64, 64, 3)
        assert np.ptp(each.errors) > 0


class Watching(DoNothing):
    """Does nothing and keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self.sizes: set[tuple[int, ...]] = set()
        self.poses: list[FloatArray] = []

    def begin(self) -> None:
        self.begun += 1
        super().begin()

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        self.sizes.add((*image.shape, len(proprioception), len(applied), len(diagnostic)))
        super().see(image, proprioception, applied, diagnostic)
        if len(self.poses) < self.begun:
            self.poses.append(proprioception)


def test_a_behaviour_begins_anew_and_sees_no_ground_truth(evaluator: Evaluator) -> None:
    watching = Watching()
    evaluator.run(watching, count=4)
    assert watching.begun == 4
    assert watching.sizes == {(64, 64, 3, 9, 9, 0)}
    assert len({tuple(pose) for pose in watching.poses}) == 4, "finger poses are random"


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_starts_are_spread_and_never_near_the_goal(seed: int) -> None:
    angles = Valve().start_states(24, seed)[:, 0]
    distances = [away(float(angle)) for angle in angles]
    assert min(distances) >= math.radians(30) - 1e-6
    assert max(distances) > math.radians(170)
    gaps = np.diff(np.sort(angles))
    assert gaps == pytest.approx(np.full(23, math.radians(300) / 24), abs=1e-5)


def test_doing_nothing_never_solves_the_valve() -> None:
    task = Valve()
    evaluator = Evaluator(task, twin.from_task(task))
    episodes = evaluator.run(DoNothing())
    evaluator.close()
    assert len(episodes) == 24
    summary = summarise(episodes)
    assert summary["success"] == 0.0
    for each in episodes:
        assert away(each.start[0]) >= math.radians(30) - 1e-6
        assert each.final_error == pytest.approx(away(each.start[0]), abs=math.radians(5)), "friction holds the valve"


def test_random_actions_are_held_and_cover_the_range() -> None:
    policy = RandomPolicy(0)
    policy.begin()
    chosen = []
    nothing = np.zeros(9, np.float32)
    for _ in range(300):
        policy.see(np.zeros((2, 2, 3), np.uint8), nothing, nothing, nothing[:0])
        chosen.append(policy.choose())
    assert all(np.array_equal(chosen[n], chosen[n - n % 3]) for n in range(300))
    assert np.ptp(chosen) > 1.9
    assert np.abs(chosen).max() <= 1


def test_a_film_shows_first_and_last_frame(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(51, dtype=np.uint8)[:, None, None, None], 4, 1).repeat(6, 2).repeat(3, 3)
    write_film(tmp_path / "film.png", EvaluatedEpisode([0.0], [HIT] * 50, frames, THRESHOLD))
    film = np.asarray(PIL.Image.open(tmp_path / "film.png"))
    assert film.shape == (4, 9 * 6, 3)
    assert (film[0, 0, 0], film[0, -1, 0]) == (0, 50)


def test_a_printed_evaluation_names_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    episodes = [episode(MISS, HIT), episode(MISS, MISS)]
    found = {"unit": "rad", "policy": summarise(episodes, [True, True]), "random": summarise(episodes)}
    print_evaluation(found, ["policy", "random"])
    output = capsys.readouterr().out
    assert "policy: success 0.50 (95% interval 0.09 to 0.91, 2 episodes), median final error 0.300 rad" in output
    assert "random: success 0.50" in output
    assert "judge: success 1.00; right 1, false alarms 1, missed 0" in output


def test_evaluation_draws_nothing_from_torchs_generator(evaluator: Evaluator) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    evaluator.run(DoNothing(), count=1)
    assert torch.equal(torch.rand(1), expected)
