"""A run directory: the paths and small files of one run."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from r3l import __version__
from r3l.config.convert import from_dict, to_dict
from r3l.config.errors import UserError
from r3l.config.schema import Config
from r3l.run import weights
from r3l.run.files import MAX_JSON_BYTES, is_inside, read, read_json, remove, strangers, write_file
from r3l.run.goals import Goals, copy_goals, save_goals
from r3l.run.jsonl import append_jsonl
from r3l.run.lock import hold_lock, lock_holder
from r3l.run.tensors import Tensors, save_tensors

FORMAT_VERSION = 1
LAST_EPOCH_S = 253_402_300_800.0
"""The year 10000, which `datetime` cannot show."""
SNAPSHOT = re.compile(r"step-([0-9]{8,18})\.safetensors")


class Run:
    """Paths and small files of a run. `create` makes a new one, `open` an existing one."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.experience = folder / "experience.sqlite"
        self.truth = folder / "truth.sqlite"
        self.checkpoints = folder / "checkpoints"
        self.weights = folder / "weights"
        self.goals = folder / "goals"
        self.judge = folder / "judge.safetensors"
        self.metrics = folder / "metrics.jsonl"
        self.evaluations = folder / "evaluations.jsonl"
        self.events = folder / "events.jsonl"
        self.tensorboard = folder / "tensorboard"
        self.report = folder / "report.html"
        self.shared = folder / "board"
        self.control = folder / "control"
        self.logs = folder / "logs"
        self.world = folder / "world"
        self.acting_weights = folder / "weights" / "acting.safetensors"

    @classmethod
    def create(cls, folder: Path, config: Config) -> Run:
        """Make a new run directory and save its config; UserError if the folder exists."""
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(
                f"run directory {folder} exists and is never overwritten; choose another --name, or go on with "
                f"r3l train --resume {folder}"
            ) from error
        except OSError as error:
            raise UserError(f"cannot create run directory {folder} ({error.strerror}); choose another place") from error
        run = cls(folder, config)
        run._save_config(config)
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open an existing run; UserError says why it cannot be used."""
        path = folder / "config.json"
        if os.path.lexists(path):
            _require_own(folder)
        try:
            saved = read_json(path)
            version, values = saved["format"], dict(saved["config"])
        except OSError as error:
            raise UserError(f"{folder} is not a run directory: no readable config.json; see runs/ for runs") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); restore it from a copy or start a new run") from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"{folder} has run format {version!r:.20} (r3l {_word(saved.get('r3l'))}), "
                f"this r3l {__version__} reads format {FORMAT_VERSION}; install the r3l it is from"
            )
        config = from_dict(Config, values)
        if config.task.endswith(".py") and is_inside(folder, Path(config.task)):
            raise UserError(
                f"{folder} brings the task file {config.task!r} along, which would be run; a run directory is data: "
                "move the file out of it if you trust it"
            )
        return cls(folder, config)

    def extended(self, steps: int) -> Run:
        """Save another number of steps; return the changed run."""
        return self.changed(replace(self.config, steps=steps))

    def changed(self, config: Config) -> Run:
        """Save another config; return the changed run."""
        self._save_config(config)
        return Run(self.folder, config)

    def set_deadline(self, epoch_s: float | None) -> None:
        """Save the time at which the run ends, for every process that resumes it; None: it ends by its steps."""
        write_file(self.folder / "deadline.json", json.dumps({"ends_epoch_s": epoch_s}).encode())

    def deadline(self) -> float | None:
        """Return the time at which the run ends, seconds since 1970; None if it ends by its steps."""
        try:
            ends_epoch_s = float(read_json(self.folder / "deadline.json")["ends_epoch_s"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None
        return ends_epoch_s if 0 <= ends_epoch_s < LAST_EPOCH_S else None

    def replace_goals(self, goals: Goals) -> None:
        """Replace the goal images; after a crash in between, goals.old has the former ones."""
        fresh, old = self.folder / "goals.new", self.folder / "goals.old"
        for left_over in (fresh, old):
            remove(left_over)
        meta = goals.meta
        save_goals(
            fresh, goals.train, goals.held_out, task=meta.task, robot=meta.robot, source=meta.source, camera=meta.camera
        )
        self.goals.rename(old)
        fresh.rename(self.goals)
        remove(old)

    @property
    def rig(self) -> Path | None:
        """The run's copy of its robot's rig file; None if the robot has none."""
        path = self.folder / "rig.toml"
        return path if path.exists() else None

    def keep_rig(self, path: Path) -> None:
        """Copy a rig file into the run, in place of the former one."""
        write_file(self.folder / "rig.toml", read(path, MAX_JSON_BYTES))

    def keep_goals(self, folder: Path) -> None:
        """Copy a goal folder into the run."""
        copy_goals(folder, self.goals)

    def _save_config(self, config: Config) -> None:
        saved = {"format": FORMAT_VERSION, "r3l": __version__, "config": to_dict(config)}
        write_file(self.folder / "config.json", json.dumps(saved, indent=2).encode())

    def lock(self) -> AbstractContextManager[int]:
        """Hold the run's lock and yield its descriptor; see `hold_lock`."""
        return hold_lock(self.folder)

    def holder(self) -> int | None:
        """Return the process that holds the run's lock; see `lock_holder`."""
        return lock_holder(self.folder)

    def event(self, kind: str, message: str) -> None:
        """Append an event to events.jsonl."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        append_jsonl(self.events, {"time": stamp, "kind": kind, "message": message})

    def snapshot_path(self, step: int) -> Path:
        """Return the path of the weights published at `step`."""
        return self.weights / f"step-{step:08d}.safetensors"

    def published(self) -> list[int]:
        """Return the steps of all published weights, oldest first."""
        found = (SNAPSHOT.fullmatch(path.name) for path in self.weights.glob("step-*.safetensors"))
        return sorted(int(name[1]) for name in found if name)

    def snapshots(self) -> list[int]:
        """Return the steps of all published weights, oldest first; UserError if there are none yet."""
        steps = self.published()
        if not steps:
            raise UserError(f"{self.folder} has published no weights yet; train it further first")
        return steps

    def newest_snapshot(self) -> int:
        """Return the step of the newest published weights; UserError if there are none yet."""
        return self.snapshots()[-1]

    def save_weights(self, step: int, tensors: Tensors) -> None:
        """Publish the weights of `step` for evaluation."""
        self.weights.mkdir(exist_ok=True)
        save_tensors(self.snapshot_path(step), tensors, {"step": step})

    def read_weights(self, step: int) -> Tensors:
        """Return the weights published at `step`."""
        return weights.read(self.snapshot_path(step)).tensors


def _require_own(folder: Path) -> None:
    """Raise UserError if a run directory holds a link, pipe or device: it may have any origin, and is written to."""
    for path, reason in strangers(folder):
        raise UserError(f"{folder} cannot be used: {str(path.relative_to(folder))!r} in it: {reason}")


def _word(value: object) -> str:
    """Return a value from a file of any origin, short and on one line."""
    return " ".join(str(value).split())[:20]


def free_name(parent: Path, task: str) -> Path:
    """Return the first of parent/TASK-1, parent/TASK-2, … that does not exist."""
    number = 1
    while (parent / f"{task}-{number}").exists():
        number += 1
    return parent / f"{task}-{number}"
