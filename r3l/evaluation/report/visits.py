"""Visited states: the env steps of a run with the ground truth of each, for reports alone."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from r3l.robot.base import CameraSpec, FloatArray
from r3l.run.sqlite import open_readonly
from r3l.run.truth import read_truth
from r3l.task.base import Task

Values = NDArray[np.float64]
DISPLAY = {"rad": (180 / math.pi, "°"), "m": (100.0, "cm")}
"""Factor and unit of values shown to people, by SI unit."""
BINS = 36


class MissingError(Exception):
    """A part of the report has no data; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Visits:
    """Env steps in order: arrays [N] of one value per step."""

    sequence: NDArray[np.int64]
    """Number of the row in the experience store."""
    phase: NDArray[np.int64]
    """Index into PHASES."""
    written_s: Values
    """Wall clock, seconds since 1970."""
    truth: dict[str, Values]
    """Ground truth by name; NaN if none was recorded for a step, empty without a truth recorder."""

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def env_steps(self) -> Values:
        """1, 2, … N."""
        return np.arange(1, len(self) + 1, dtype=np.float64)


@dataclass(frozen=True)
class Frames:
    """Some stored observations: images [N, H, W, 3], proprioception [N, A], diagnostic [N, D]."""

    images: NDArray[np.uint8]
    proprioception: FloatArray
    diagnostic: FloatArray


@dataclass(frozen=True)
class ObjectAxis:
    """The place of the object at each env step as one number, in the unit shown to people."""

    values: Values
    label: str
    low: float
    high: float
    goal: float | None = None
    success: tuple[tuple[float, float], ...] = ()
    """Intervals of `values` that count as success."""
    is_circular: bool = False

    def is_success(self, values: Values) -> NDArray[np.bool_]:
        """Return which values are success."""
        found = np.zeros(values.shape, bool)
        for low, high in self.success:
            found |= (values >= low) & (values <= high)
        return found


def connect(path: Path) -> sqlite3.Connection:
    """Open an SQLite file read-only."""
    if not path.exists():
        raise MissingError(f"{path.name} does not exist: the run has not taken a step yet")
    return open_readonly(path)


def read_visits(experience: Path, truth: Path) -> Visits:
    """Read all env steps without their images, joined with the truth by the robot's clock.

    After a resume in an older world the same time comes twice; the truth then belongs to the later row.
    """
    query = "SELECT sequence, phase, time_s, written_s FROM observation WHERE step > 0 ORDER BY sequence"
    with closing(connect(experience)) as connection:
        rows = np.array(connection.execute(query).fetchall(), np.float64).reshape(-1, 4)
    times = rows[:, 2]
    found: dict[str, Values] = {}
    columns = read_truth(truth) if truth.exists() else {}
    known = columns.pop("time_s", np.zeros(0))
    if len(known) and len(times):
        nearest = np.searchsorted(known, times - 1e-6).clip(max=len(known) - 1)
        last = {time: index for index, time in enumerate(times)}
        is_known = (np.abs(known[nearest] - times) < 1e-6) & [last[time] == i for i, time in enumerate(times)]
        found = {name: np.where(is_known, values[nearest], np.nan) for name, values in columns.items()}
    return Visits(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 3], found)


def read_frames(experience: Path, sequences: NDArray[np.int64], camera: CameraSpec) -> Frames:
    """Read the rows with these sequence numbers, in this order."""
    query = "SELECT image, proprioception, diagnostic FROM observation WHERE sequence = ?"
    with closing(connect(experience)) as connection:
        rows = [connection.execute(query, (int(number),)).fetchone() for number in sequences]
    images = np.stack([np.frombuffer(row[0], np.uint8).reshape(camera.height, camera.width, 3) for row in rows])
    joints, diagnostic = (np.stack([np.frombuffer(row[k], np.float32) for row in rows]) for k in (1, 2))
    return Frames(images, joints, diagnostic)


def wrap(angle_rad: Values) -> Values:
    """Return angles in [-pi, pi)."""
    return (angle_rad + math.pi) % (2 * math.pi) - math.pi


def object_axis(visited: Visits, task: Task) -> ObjectAxis:
    """Return the object's true angle if it is recorded and explains the error, otherwise the error.

    Raises:
        MissingError: no ground truth was recorded.
    """
    if "error" not in visited.truth or not np.isfinite(visited.truth["error"]).any():
        raise MissingError("no ground truth was recorded (truth.sqlite): only simulated robots know it")
    scale, unit = display(task.error_unit)
    error = visited.truth["error"]
    limit = task.success_error * scale
    if "angle_rad" in visited.truth and task.error_unit == "rad":
        angle = wrap(visited.truth["angle_rad"])
        goal = circular_goal(angle, error)
        if goal is not None:
            centre = goal * scale
            bands = [(max(centre - limit + turn, -180), min(centre + limit + turn, 180)) for turn in (-360, 0, 360)]
            inside = tuple(band for band in bands if band[0] < band[1])
            return ObjectAxis(angle * scale, f"true angle ({unit})", -180, 180, centre, inside, is_circular=True)
    high = float(np.nanmax(error)) * scale
    return ObjectAxis(error * scale, f"true error ({unit})", 0.0, max(high, 2 * limit), 0.0, ((0.0, limit),))


def circular_goal(angle_rad: Values, error_rad: Values) -> float | None:
    """Return the goal angle whose distance to `angle_rad` is the error; None if there is no such angle."""
    known = np.isfinite(angle_rad) & np.isfinite(error_rad)
    angle, error = angle_rad[known], error_rad[known]
    candidates = wrap(np.array([angle[0] + error[0], angle[0] - error[0]]))
    residuals = [float(np.abs(np.abs(wrap(angle - goal)) - error).mean()) for goal in candidates]
    best = int(np.argmin(residuals))
    return float(candidates[best]) if residuals[best] < 0.01 else None


def display(unit: str) -> tuple[float, str]:
    """Return the factor from an SI unit to the unit shown to people, and that unit."""
    return DISPLAY.get(unit, (1.0, unit))


def entropy(counts: NDArray[np.int64]) -> float:
    """Return the normalised entropy of visit counts: 1 if all cells have the same count, 0 for a single cell."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log(share)).sum() / math.log(max(len(counts), 2)))


def coverage(axis: ObjectAxis, chosen: NDArray[np.bool_], window: int) -> tuple[Values, Values]:
    """Return env steps and the entropy of the chosen values per `window` steps, without windows of few values."""
    steps, found = [], []
    known = chosen & np.isfinite(axis.values)
    for start in range(0, len(known) - window // 2, window):
        part = known[start : start + window]
        if part.sum() >= window / 5:
            steps.append(start + len(part))
            values = axis.values[start : start + window][part]
            found.append(entropy(np.histogram(values, BINS, (axis.low, axis.high))[0]))
    return np.array(steps, np.float64), np.array(found, np.float64)
