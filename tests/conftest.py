"""Settings, fixtures and helpers of all tests: one torch thread, reproducible examples, rows, tiny runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from benchmarks.night import SMALL, save_noise_judge
from r3l.config.schema import ChecksConfig, Config, SupervisionConfig
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.experience import PHASES, ExperienceStore, Row
from r3l.run.goals import save_goals
from r3l.task.registry import load_robot, load_task

torch.set_num_threads(1)
os.environ.setdefault("MPLBACKEND", "Agg")
settings.register_profile("r3l", deadline=None, database=None, derandomize=True, max_examples=60)
settings.load_profile("r3l")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that run the contract suite on another robot: docs/new-robot.md."""
    group = parser.getgroup("r3l", "the contract suite, tests/test_robot_contract.py, on one robot alone")
    group.addoption("--robot", help="name of the robot, as `r3l robots` lists it")
    group.addoption("--task", default="valve", help="task of the robot (%(default)s)")
    group.addoption("--rig", help="rig file of the robot, if it needs one")


def make_row(
    number: int = 0,
    *,
    segment: int = 0,
    step: int = 0,
    phase: str = "task",
    actions: int = 3,
    side: int = 8,
    diagnostics: int = 0,
) -> Row:
    """Return a row whose arrays depend on `number`, so that a test can tell rows apart."""
    rng = np.random.default_rng(number)
    return Row(
        segment=segment,
        step=step,
        phase=PHASES.index(phase),
        image=rng.integers(0, 256, (side, side, 3), np.uint8),
        proprioception=np.full(actions, number, np.float32),
        requested=rng.uniform(-1, 1, actions).astype(np.float32),
        applied=rng.uniform(-1, 1, actions).astype(np.float32),
        diagnostic=rng.normal(size=diagnostics).astype(np.float32),
        time_s=number / 10,
    )


TINY = replace(
    SMALL,
    robot="fake",
    steps=120,
    window=2,
    replay_capacity=1000,
    phases=replace(SMALL.phases, perturbation_share=0.5, between="home"),
    checks=ChecksConfig(),
    supervision=SupervisionConfig(),
)
"""The configuration of a run of seconds, with every setting that a test depends on."""


def tiny(*, phases: dict[str, Any] | None = None, **changes: Any) -> Config:
    """Return TINY with changes."""
    return replace(TINY, phases=replace(TINY.phases, **(phases or {})), **changes)


RunMaker = Callable[..., Run]
"""Type of fixture `make_run`: make_run(folder, config) returns a new run with goal images and a judge."""


@pytest.fixture(scope="session")
def goal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A goal folder with images of the fake robot."""
    task = load_task("valve")
    robot = load_robot("fake", task)
    assert isinstance(robot, SimulatedRobot)
    images = []
    with robot:
        for state in task.goal_states(24, np.random.default_rng(0)):
            robot.place(state)
            images.append(robot.observe().image)
    folder = tmp_path_factory.mktemp("goals") / "valve"
    save_goals(folder, np.stack(images[:20]), np.stack(images[20:]), task="valve", robot="fake", source="test")
    return folder


@pytest.fixture(scope="session")
def judge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that was quickly fitted to noise, for runs in which its verdicts do not matter."""
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_noise_judge(path)
    return path


@pytest.fixture(scope="session")
def make_run(goal_folder: Path, judge_file: Path) -> RunMaker:
    """Return a function that creates a run that is ready to train."""

    def make(folder: Path, config: Config) -> Run:
        run = Run.create(folder, config)
        run.keep_goals(goal_folder)
        shutil.copy(judge_file, run.judge)
        return run

    return make


def stored(run: Run) -> list[Row]:
    """Return all rows of the experience store of a run."""
    camera = load_task(run.config.task).rig.camera
    store = ExperienceStore(run.experience, (camera.height, camera.width, 3))
    rows = list(store.rows())
    store.close()
    return rows
