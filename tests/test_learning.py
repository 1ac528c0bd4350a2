"""Learning on the twin. Each test takes minutes: CI runs it, the default suite does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r3l.cli.goal_collection import collect_on_twin
from r3l.config.presets import VARIANTS
from r3l.config.schema import Config
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.goals import save_goals, split
from r3l.run.jsonl import read_jsonl
from r3l.task.registry import load_robot, load_task
from r3l.training.sync import train

pytestmark = pytest.mark.slow


def successes(folder: Path, config: Config) -> list[float]:
    """Train on goal images that the twin collected; return the success of each evaluation."""
    task, rng = load_task("valve"), np.random.default_rng(0)
    twin = load_robot("twin", task)
    assert isinstance(twin, SimulatedRobot)
    with twin:
        images = np.stack(collect_on_twin(task, twin, 250, rng))
    run = Run.create(folder / "run", replace(config, seed=3, device="cpu"))
    save_goals(run.goals, *split(images, 0.2, rng), task="valve", robot="twin", source="test")
    assert train(run)
    return [evaluation["success"] for evaluation in read_jsonl(run.evaluations)]


def test_the_true_state_with_resets_is_learned(tmp_path: Path) -> None:
    """This seed reached 0.25 and 0.88. The standard error of 24 episodes is 0.07."""
    config = VARIANTS["diagnostic-resets"](Config(steps=8_000, evaluate_every=4_000))
    curve = successes(tmp_path, config)
    assert curve[0] <= 0.1
    assert curve[-1] >= 0.7


def test_the_whole_loop_learns_from_goal_images_without_resets(tmp_path: Path) -> None:
    """This seed reached 0.33 and 0.71; the recorded seeds 0 to 2 reached 0.42, 0.71 and 0.79 at this length."""
    curve = successes(tmp_path, Config(steps=7_500, evaluate_every=3_750))
    assert curve[0] <= 0.1
    assert curve[-1] >= 0.5
