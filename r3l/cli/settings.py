"""The settings of a new run: preset, variants, config file, --set and the plain options, in this order."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from r3l.cli.options import OptionalInt, OptionalName, OptionalPath, optional
from r3l.config.convert import from_dict, merge, nested, to_dict
from r3l.config.errors import UserError
from r3l.config.presets import preset_config
from r3l.config.schema import MANY, Config, Randomization
from r3l.run.files import MAX_JSON_BYTES, read

MAX_HOURS = 24 * 365


def resolve(command: TrainOptions) -> Config:
    """Return the config of a new run: preset, variants, config file, --set, then the plain options."""
    values = to_dict(preset_config(command.preset, command.variant))
    for changes in _changes(command):
        values = merge(values, changes)
    return from_dict(Config, values)


def _changes(command: TrainOptions) -> Iterator[Mapping[str, Any]]:
    if command.config is not None:
        yield read_config(command.config)
    for item in command.set:
        key, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"--set {item!r} has no value; expected KEY=VALUE, for example sac.batch_size=256")
        yield nested({key: _parsed(text)})
    yield {key: value for key, value in _options(command).items() if value is not None}


def _options(command: TrainOptions) -> dict[str, Any]:
    """Return the config keys that have options of their own; None where the option is not given."""
    if command.task is None:
        raise UserError("train needs a task, for example r3l train valve, or --resume runs/NAME")
    is_file = command.task.endswith(".py")
    same = ("robot", "seed", "device", "randomize", "update_ratio")
    return {name: getattr(command, name) for name in same} | {
        "task": str(Path(command.task).absolute()) if is_file else command.task,  # a run goes on from any folder
        "steps": MANY if command.steps is None and ends_by_time(command) else command.steps,
        "sync": command.sync or None,
        "real_time": command.real_time or None,
        "quota_gib": command.quota,
    }


def ends_by_time(command: TrainOptions) -> bool:
    """Return whether the run ends at a time instead of at a step."""
    return command.hours is not None or command.until is not None


def deadline(command: TrainOptions, now_epoch_s: float) -> float | None:
    """Return when the run ends, in seconds of the epoch; None if a step ends it."""
    if command.hours is not None and command.until is not None:
        raise UserError("--hours and --until both say when the run ends; give one of them")
    if command.hours is not None:
        if not 0 < command.hours <= MAX_HOURS:
            raise UserError(f"--hours is {command.hours}, expected more than 0 and at most {MAX_HOURS}")
        return now_epoch_s + 3600 * command.hours
    if command.until is None:
        return None
    try:
        hour, minute = time.strptime(command.until, "%H:%M")[3:5]
    except ValueError as error:
        raise UserError(f"--until is {command.until!r}, expected a time of the day like 07:30") from error
    today = datetime.fromtimestamp(now_epoch_s).replace(hour=hour, minute=minute, second=0, microsecond=0)
    end = today if today.timestamp() > now_epoch_s else today + timedelta(days=1)
    return end.timestamp()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@dataclass(frozen=True)
class TrainOptions:
    """The options of `r3l train`."""

    task: Annotated[tyro.conf.Positional[str | None], optional("TASK")] = None
    """Task to learn; not with --resume."""
    steps: OptionalInt = None
    """Env steps of the run (30000 by default: 50 minutes of robot time at 10 Hz)."""
    name: OptionalName = None
    """Name of the run directory below runs/; TASK-1, TASK-2, … by default."""
    goals: OptionalPath = None
    """Goal folder made by `r3l goals`; goals/TASK by default."""
    resume: OptionalPath = None
    """Continue this run directory instead of a new one; --steps, --hours or --until may extend the run."""
    hours: Annotated[float | None, optional("FLOAT")] = None
    """End after this many hours, robot parked and relaxed, at any number of env steps unless --steps is given."""
    until: Annotated[str | None, optional("HH:MM")] = None
    """End at this time of day, as --hours does; a time that has passed is tomorrow's."""
    sync: bool = False
    """Run actor and learner in turns in one process, deterministic by seed and without a supervisor."""
    randomize: Annotated[Randomization | None, optional("|".join(get_args(Randomization)))] = None
    """Domain randomization of the twin, by seed: light, camera, noise, dynamics, delays (docs/tasks.md).
    --variant domain-randomization sets it to strong and prepares the encoder for varied light."""
    real_time: bool = False
    """Run a simulated robot at the control rate of the wall clock, as a real robot always runs."""
    update_ratio: Annotated[float | None, optional("FLOAT")] = None
    """Learner updates per env step (1 by default); whichever of actor and learner is ahead waits."""
    quota: Annotated[float | None, optional("GIB")] = None
    """Max GiB of the run directory; all free space by default."""
    check: bool = False
    """Only print the pre-flight check."""
    preset: str = "default"
    """Settings to start from: default, or paper (like the authors' code)."""
    variant: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Change the preset: no-perturbation, pixels, refreshed-encoder, domain-randomization.
    To find out why a task is not learned, with ground truth: diagnostic-true-reward, diagnostic-true-state,
    diagnostic-resets."""
    config: OptionalPath = None
    """TOML file (or a run's config.json) whose keys override the preset; docs/settings.md explains every key."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Override one key, for example --set sac.batch_size=256."""
    robot: OptionalName = None
    """Robot to train on; `r3l robots` lists them."""
    rig: OptionalPath = None
    """Rig file of a robot with hardware, made by `r3l calibrate`; the run keeps a copy. With --resume it replaces that
    copy."""
    seed: OptionalInt = None
    """Seed of every random generator (0 by default)."""
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, optional("auto|cpu|cuda")] = None
    """Device of the networks."""
    runs: Path = Path("runs")
    """Folder that holds the run directories."""


def read_config(path: Path) -> dict[str, Any]:
    """Return a user's config file (TOML, or a run's config.json) as plain values."""
    try:
        text = read(path, MAX_JSON_BYTES).decode()
        if path.suffix == ".json":
            values = dict(json.loads(text))
            return dict(values.get("config", values))
        return tomllib.loads(text)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"config file {path} cannot be read ({error}); expected TOML; r3l config prints every key"
        ) from error
