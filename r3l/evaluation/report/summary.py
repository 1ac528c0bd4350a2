"""The summary of a run that its report is made from: its small files, read once, and its state."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from r3l.config.schema import Config
from r3l.evaluation.report.model_probes import ModelProbes
from r3l.evaluation.report.visits import MissingError, Visits, display, read_visits
from r3l.run import files
from r3l.run.directory import Run
from r3l.run.jsonl import read_jsonl, read_steps
from r3l.run.state import RunState, run_state, wall_s
from r3l.task.base import Task
from r3l.task.registry import load_task

Record = dict[str, Any]
TRUTH_READERS = (
    ("state", "the policies see the true state of the object instead of images"),
    ("reward", "the task policy learns from the task's true reward instead of goal images"),
    ("phases.between", "the object is put to a random place before each episode"),
)
"""Settings that can read ground truth, and how."""


@dataclass(frozen=True)
class RunSummary:
    """A run directory, read once."""

    run: Run
    task: Task
    models: ModelProbes
    evaluations: list[Record]
    """evaluations.jsonl, in the order of steps."""
    metrics: list[Record]
    """metrics.jsonl, in the order of steps."""
    events: list[Record]

    @property
    def config(self) -> Config:
        """The run's config."""
        return self.run.config

    @cached_property
    def visited(self) -> Visits:
        """Env steps with their ground truth; MissingError before the first one."""
        return read_visits(self.run.experience, self.run.truth)

    @cached_property
    def steps(self) -> int:
        """Env steps taken so far."""
        try:
            return len(self.visited)
        except MissingError:
            return 0

    @cached_property
    def evaluation(self) -> Record | None:
        """The newest result of `r3l evaluate`, or None."""
        path = self.run.folder / "evaluation" / "evaluation.json"
        return files.read_json(path) if path.exists() else None

    @property
    def unit(self) -> tuple[float, str]:
        """Factor and unit in which the task's error is shown."""
        return display(self.task.error_unit)

    def error(self, value: float) -> str:
        """Return a true error as text."""
        scale, unit = self.unit
        return f"{value * scale:.1f}{'' if unit == '°' else ' '}{unit}"

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Return the env steps and values of a metric."""
        found = [(record["step"], record[name]) for record in self.metrics if name in record]
        return [step for step, _ in found], [value for _, value in found]

    def truth_readers(self) -> list[str]:
        """Return a line per setting that reads ground truth; none for a run that is not diagnostic."""
        config = self.config
        values = {"state": config.state, "reward": config.reward, "phases.between": config.phases.between}
        return [f"{key}: {text}" for key, text in TRUTH_READERS if "diagnostic" in values[key]]

    @cached_property
    def state(self) -> RunState:
        """Whether the run is going on, or how it ended."""
        return run_state(self.run)

    def wall_s(self) -> float | None:
        """Return the seconds for which the run ran, without the pauses between its starts; None if unknown."""
        if not self.steps:
            return None
        return wall_s(self.events, self.visited.written_s.tolist(), time.time() if self.state.is_running else None)

    def safety(self) -> dict[str, int]:
        """Return the safety counters summed over all starts of the run."""
        names = sorted({name for record in self.metrics for name in record if name.startswith("safety/")})
        return {name.removeprefix("safety/"): total_count(self.series(name)[1]) for name in names}


def read_summary(run: Run) -> RunSummary:
    """Read a run directory; a file that does not exist yet is empty."""
    task = load_task(run.config.task)
    evaluated = (record for record in read_steps(run.evaluations) if isinstance(record.get("success"), int | float))
    evaluations = sorted(evaluated, key=lambda record: record["step"])
    metrics = sorted(read_steps(run.metrics), key=lambda record: record["step"])
    return RunSummary(run, task, ModelProbes(run, task), evaluations, metrics, read_jsonl(run.events))


def total_count(values: Sequence[float]) -> int:
    """Return the total of a counter that starts again at zero wherever its values drop."""
    before_drop = [value for value, after in pairwise([*values, -1.0]) if after < value]
    return round(sum(before_drop))


def duration(seconds: float) -> str:
    """Return a length of time as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
