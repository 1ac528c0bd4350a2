"""A run directory: everything that belongs to one run, and the lock that keeps two processes out of it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from r3l import __version__
from r3l.checkpoint import CheckpointError, Tensors, write_file
from r3l.config import Config, UserError, from_dict, to_dict
from r3l.jsonl import append_jsonl

FORMAT_VERSION = 1


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

    @classmethod
    def create(cls, folder: Path, config: Config) -> Run:
        """Make a new run directory and save the resolved config; an existing one is never overwritten."""
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
        """Open an existing run; UserError says why one cannot be used."""
        path = folder / "config.json"
        try:
            saved = json.loads(path.read_text())
            version, values = saved["format"], dict(saved["config"])
        except OSError as error:
            raise UserError(f"{folder} is not a run directory: no readable config.json; see runs/ for runs") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); restore it from a copy or start a new run") from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"{folder} has run format {version} (r3l {saved.get('r3l')}), this r3l {__version__} reads format "
                f"{FORMAT_VERSION}; install the r3l it is from"
            )
        return cls(folder, from_dict(Config, values))

    def extended(self, steps: int) -> Run:
        """Return the run with another number of steps, saved in its config."""
        config = replace(self.config, steps=steps)
        self._save_config(config)
        return Run(self.folder, config)

    def keep_goals(self, folder: Path) -> None:
        """Copy a goal folder into the run, which from then on needs nothing outside itself."""
        shutil.copytree(folder, self.goals)

    def _save_config(self, config: Config) -> None:
        saved = {"format": FORMAT_VERSION, "r3l": __version__, "config": to_dict(config)}
        write_file(self.folder / "config.json", json.dumps(saved, indent=2).encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock; UserError when another process does. The system frees it however a process ends."""
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise UserError(
                    f"{self.folder} is in use by process {file.read().strip() or 'unknown'}; stop it, or wait for it"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def event(self, kind: str, message: str) -> None:
        """Append to events.jsonl: what happened, for people."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        append_jsonl(self.events, {"time": stamp, "kind": kind, "message": message})

    def snapshot_path(self, step: int) -> Path:
        """Return where the weights published at `step` are."""
        return self.weights / f"step-{step:08d}.safetensors"

    def snapshots(self) -> list[int]:
        """Return the steps of all published weights, oldest first; UserError when there are none yet."""
        steps = sorted(int(path.stem.split("-")[1]) for path in self.weights.glob("step-*.safetensors"))
        if not steps:
            raise UserError(f"{self.folder} has published no weights yet; train it further first")
        return steps

    def newest_snapshot(self) -> int:
        """Return the step of the newest published weights; UserError when there are none yet."""
        return self.snapshots()[-1]

    def read_weights(self, step: int) -> Tensors:
        """Return the weights published at `step`."""
        try:
            return load_file(self.snapshot_path(step))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"weights {self.snapshot_path(step)} cannot be read ({error})") from error


def free_name(parent: Path, task: str) -> Path:
    """Return the first of parent/TASK-1, parent/TASK-2, … that does not exist."""
    number = 1
    while (parent / f"{task}-{number}").exists():
        number += 1
    return parent / f"{task}-{number}"


def read_config(path: Path) -> dict[str, Any]:
    """Return a user's config file (TOML, or a run's config.json) as plain values."""
    try:
        text = path.read_text()
        if path.suffix == ".json":
            values = dict(json.loads(text))
            return dict(values.get("config", values))
        return tomllib.loads(text)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"config file {path} cannot be read ({error}); expected TOML; r3l config prints every key"
        ) from error
