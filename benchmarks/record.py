"""The record of one benchmark run: all data behind its figures, in one JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray

from r3l.config.convert import to_dict
from r3l.config.errors import UserError
from r3l.evaluation.evaluator import Evaluator
from r3l.evaluation.policies import TaskPolicy
from r3l.evaluation.report.visits import connect, entropy, read_visits
from r3l.evaluation.statistics import verdicts
from r3l.models.judge import Judge, load_judge
from r3l.models.policy import load_policies
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.files import write_file
from r3l.run.goals import load_goals
from r3l.run.jsonl import read_jsonl
from r3l.task.base import Task
from r3l.task.registry import load_task, robot_of

PACKAGES = ("r3l", "torch", "numpy", "pybullet", "gymnasium", "stable-baselines3")
MAX_METRICS = 60
"""Approximate number of metrics lines in a record, evenly spread; lines on the reward's health are all kept."""
WINDOW_STEPS = 2500
"""Env steps per window of coverage and of success during training."""
SUPERVISION_KEYS = ("sync", "real_time", "quota_gib", "checks", "numerics", "persistence", "supervision")
"""Settings that do not affect learning; older records lack them."""
LATER_DEFAULTS = {"randomize": "none", "vae.jitter": 0.0}
"""Settings that the oldest records lack, with the values that those runs had in effect."""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Name:
    """The identity of a record within its folder."""

    task: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}-{self.variant}-{self.seed}"


@dataclass(frozen=True)
class Unattended:
    """Figures of the run itself, from the twin's ground truth."""

    success: float
    """EARL's continuing evaluation: share of all env steps of the run that were successes."""
    success_by_window: list[float]
    coverage: float
    """Entropy of the visited cells of object states over the whole run: 1 for uniform, 0 for a single cell."""
    coverage_by_window: list[float]
    robot_s: float
    """Robot time at the control rate, including homing."""


@dataclass(frozen=True)
class Record:
    """Settings, versions and results of one run."""

    task: str
    variant: str
    seed: int
    command: str
    overrides: list[str]
    """The `--set` options, equal in all records of a folder."""
    config: dict[str, Any]
    """All settings, resolved."""
    world: dict[str, Any]
    """Settings of the task: rig, episode length, success thresholds."""
    versions: dict[str, str]
    evaluations: list[dict[str, Any]]
    """All evaluations with all episodes, in the order of steps."""
    unattended: Unattended
    goal_images: int
    """Images that a person took."""
    resets: int
    """Times that a person would have reset the object."""
    judged: list[list[bool]] = field(default_factory=list)
    """[true success, judge's verdict] per episode of the untrained, the half-trained and the final policy."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> Name:
        """The identity of the record."""
        return Name(self.task, self.variant, self.seed)

    def curve(self) -> tuple[Values, Values]:
        """Return the env steps and the success of the evaluations."""
        points = [(entry["step"], entry["success"]) for entry in self.evaluations]
        return np.array([step for step, _ in points], np.float64), np.array([success for _, success in points])

    def final(self, last: int = 3) -> float:
        """Return the mean success of the last `last` evaluations."""
        return float(self.curve()[1][-last:].mean())

    def save(self, path: Path) -> None:
        """Write the record atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(_rounded(asdict(self))) + "\n").encode())


def load_record(path: Path) -> Record:
    """Read a record; UserError if the file is no record, or not the record of its name."""
    try:
        values = json.loads(path.read_text())
        record = Record(**values | {"unattended": Unattended(**values["unattended"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a benchmark record ({error}); move it away, or make it again") from error
    problem = next(_problems(record, path), None)
    if problem is not None:
        raise UserError(f"{path} is not a benchmark record ({problem}); move it away, or make it again")
    return record


def _problems(record: Record, path: Path) -> Iterator[str]:
    """Yield the reasons why a file is not the record of its name."""
    for key, kind in get_type_hints(Record).items():
        value = getattr(record, key)
        if not isinstance(value, get_origin(kind) or kind):
            yield f"{key} is {value!r:.40}, expected {kind}"
    if str(record.name) != path.stem:
        yield f"it is of {record.name}"
    if not record.evaluations:
        yield "it has no evaluations"


def refuse_mixture(records: Sequence[Record]) -> None:
    """Raise UserError if runs of one task and variant have different settings: only equal runs may be averaged."""
    first: dict[tuple[str, str], Record] = {}
    for record in records:
        other = first.setdefault((record.task, record.variant), record)
        found = differences(settings(other), settings(record))
        if found:
            raise UserError(
                f"{other.name} and {record.name} were made with different settings and are not to be averaged: "
                f"{'; '.join(found)}; move one of the records away"
            )


def settings(record: Record) -> dict[str, Any]:
    """Return the settings that must be equal for runs to be averaged."""
    return {**record.config, "world": record.world}


def world(task: Task) -> dict[str, Any]:
    """Return the task's settings that the run's configuration does not hold."""
    return {
        "rig": to_dict(task.rig),
        "episode_steps": task.episode_steps,
        "success_error": task.success_error,
        "other_thresholds": list(task.other_thresholds),
    }


def load_records(folder: Path) -> list[Record]:
    """Read all records of a folder, in the order of their names."""
    return [load_record(path) for path in sorted(folder.glob("*.json"))]


def unattended(task: Task, truth: Mapping[str, Values], robot_s: float) -> Unattended:
    """Return a run's figures from its ground-truth columns [N], one value per env step; skip unknown steps."""
    known = np.isfinite(truth["error"])
    columns = {name: values[known] for name, values in truth.items()}
    is_success = columns["error"] <= task.success_error
    cells = task.cells(columns)
    windows = range(0, len(cells), WINDOW_STEPS)

    def coverage(visited: NDArray[np.int64]) -> float:
        return entropy(np.bincount(visited, minlength=task.cell_count))

    return Unattended(
        success=float(is_success.mean()) if len(cells) else 0.0,
        success_by_window=[float(is_success[start : start + WINDOW_STEPS].mean()) for start in windows],
        coverage=coverage(cells),
        coverage_by_window=[coverage(cells[start : start + WINDOW_STEPS]) for start in windows],
        robot_s=robot_s,
    )


def record_run(run: Run, name: Name, command: str, overrides: Sequence[str]) -> Record:
    """Return the record of a finished run."""
    task = load_task(run.config.task)
    visited = read_visits(run.experience, run.truth)
    goals = load_goals(run.goals, task.rig.camera, task.minimum_goals)
    metrics = read_jsonl(run.metrics)
    health = [line for line in metrics if "health/auc" in line]
    others = [line for line in metrics if "health/auc" not in line]
    with closing(connect(run.experience)) as connection:
        robot_s, segments = connection.execute(
            "SELECT MAX(time_s), COUNT(DISTINCT segment) FROM observation"
        ).fetchone()
    is_reset = run.config.phases.between == "diagnostic-reset"
    learns_from_goals = run.config.reward == "classifier"
    judge = load_judge(run)
    return Record(
        task=name.task,
        variant=name.variant,
        seed=name.seed,
        command=command,
        overrides=list(overrides),
        config=to_dict(run.config),
        world=world(task),
        versions=versions(),
        evaluations=first_per_step(read_jsonl(run.evaluations)),
        unattended=unattended(task, visited.truth, float(robot_s)),
        goal_images=len(goals.train) + len(goals.held_out) if learns_from_goals else 0,
        resets=int(segments) if is_reset else 0,
        judged=[] if judge is None else judged(run, task, judge),
        metrics=[*others[:: max(1, len(others) // MAX_METRICS)], *health],
        events=read_jsonl(run.events),
    )


def judged(run: Run, task: Task, judge: Judge) -> list[list[bool]]:
    """Return true success and verdict of new episodes of the untrained, the half-trained and the final policy."""
    robot = robot_of(run.config, run.rig)
    assert isinstance(robot, SimulatedRobot)
    evaluator = Evaluator(task, robot)
    known = run.snapshots()
    half = min(known, key=lambda step: abs(step - run.config.steps / 2))
    pairs: list[list[bool]] = []
    try:
        for step in (0, half, known[-1]):
            policies = load_policies(run.config, robot.spec, run.read_weights(step), torch.device("cpu"))
            episodes = evaluator.run(TaskPolicy(policies))
            pairs += [
                [each.success, verdict] for each, verdict in zip(episodes, verdicts(judge, episodes), strict=True)
            ]
    finally:
        evaluator.close()
    return pairs


def first_per_step(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one evaluation per step, in order; a resumed run may have repeated an evaluation."""
    return [entry for _, entry in sorted({entry["step"]: entry for entry in evaluations}.items())]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a run."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def differences(there: Mapping[str, Any], here: Mapping[str, Any], where: str = "") -> list[str]:
    """Return one line per setting that differs; ignore the seed and SUPERVISION_KEYS that one side lacks."""
    found = []
    for key in [*here, *(key for key in there if key not in here)]:
        old, new = (config.get(key, LATER_DEFAULTS.get(where + key, "missing")) for config in (there, here))
        if where + key == "seed" or (where + key in SUPERVISION_KEYS and "missing" in (old, new)):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{where}{key}.")
        elif _plain(old) != _plain(new):
            found.append(f"{where}{key} is {old} there, {new} here")
    return found


def _plain(value: Any) -> Any:
    """Return a setting as `load_record` returns it."""
    return _rounded(list(value) if isinstance(value, tuple) else value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
