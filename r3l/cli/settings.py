"""The settings of a new run: preset, variants, config file, --set and the plain options, one over the other."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from r3l.cli.options import Level, OptionalInt, OptionalName, OptionalPath, _optional
from r3l.config.convert import from_dict, nearest, to_dict
from r3l.config.errors import UserError
from r3l.config.presets import PRESETS, VARIANTS
from r3l.config.schema import MANY, Config
from r3l.run.files import MAX_JSON_BYTES, read

MAX_HOURS = 24 * 365
LIT, JITTER = ("mild", "strong"), 0.5
"""Levels of --randomize whose light varies, and `vae.jitter` there, unless --config or --set says otherwise."""


def resolve(command: TrainCommand) -> Config:
    """Return the config of a new run: preset, variants, config file, --set, then the plain options."""
    if command.task is None:
        raise UserError("train needs a task, for example r3l train valve, or --resume runs/NAME")
    values = to_dict(preset_config(command.preset, command.variant))
    if command.randomize in LIT:
        values["vae"]["jitter"] = JITTER
    if command.config is not None:
        _merge(values, read_config(command.config), "")
    for item in command.set:
        key, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"--set {item!r} has no value; expected KEY=VALUE, for example sac.batch_size=256")
        change: Any = _plain(text)
        for part in reversed(key.split(".")):
            change = {part: change}
        _merge(values, change, "")
    config = from_dict(Config, values)
    given = {name: getattr(command, name) for name in ("task", "steps", "robot", "seed", "device", "update_ratio")}
    given["randomize"] = command.randomize
    given |= {name: True for name in ("sync", "real_time") if getattr(command, name)}
    given["quota_gib"] = command.quota
    if command.steps is None and ends_by_time(command):
        given["steps"] = MANY
    if command.task.endswith(".py"):
        given["task"] = str(Path(command.task).absolute())  # so that the run goes on from any folder
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def ends_by_time(command: TrainCommand) -> bool:
    """Return whether the clock says when the run ends."""
    return command.hours is not None or command.until is not None


def deadline(command: TrainCommand, now_epoch_s: float) -> float | None:
    """Return when the run is to end (seconds of the epoch), None where only its steps say."""
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


def preset_config(preset: str, variants: Sequence[str]) -> Config:
    """Return a preset with variants applied; UserError names the nearest to an unknown one."""
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}; {nearest(preset, PRESETS)}")
    config = PRESETS[preset]()
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"unknown variant {name!r}; {nearest(name, VARIANTS)}")
        config = VARIANTS[name](config)
    return config


def _merge(values: dict[str, Any], change: dict[str, Any], where: str) -> None:
    for key, value in change.items():
        if key not in values:
            raise UserError(f"unknown config key {where + key!r}; {nearest(key, values)}")
        if isinstance(values[key], dict) and isinstance(value, dict):
            _merge(values[key], value, f"{where}{key}.")
        else:
            values[key] = value


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@dataclass(frozen=True)
class TrainCommand:
    """Train unattended from goal images: no resets, no reward function, nobody in the room.

    The run directory holds everything. Actor and learner are processes of their own under a supervisor, which restarts
    what dies or hangs. Ctrl-C relaxes the robot at once and writes a checkpoint; --resume goes on from there. Before
    the first action a pre-flight check says what to expect.
    """

    task: Annotated[tyro.conf.Positional[str | None], _optional("TASK")] = None
    """Task to learn; not with --resume."""
    steps: OptionalInt = None
    """Env steps of the run (30000 by default: 50 minutes of robot time at 10 Hz)."""
    name: OptionalName = None
    """Name of the run directory below runs/; TASK-1, TASK-2, … by default."""
    goals: OptionalPath = None
    """Goal folder made by `r3l goals`; goals/TASK by default."""
    resume: OptionalPath = None
    """Go on with this run directory instead of beginning one; --steps, --hours or --until may extend it."""
    hours: Annotated[float | None, _optional("FLOAT")] = None
    """End after so many hours, robot parked and relaxed, however many steps that are (unless --steps says)."""
    until: Annotated[str | None, _optional("HH:MM")] = None
    """End at this time of the day, as --hours does; a time that has passed is tomorrow's."""
    sync: bool = False
    """Let actor and learner take turns in one process, deterministic by seed; nobody supervises it then."""
    randomize: Annotated[Level | None, _optional("none|mild|strong|shifted|delayed")] = None
    """How much the twin's world varies, by seed: light, camera, noise, dynamics, delays (docs/tasks.md)."""
    real_time: bool = False
    """Let a simulated robot keep the control rate of the clock on the wall, as a real one does."""
    update_ratio: Annotated[float | None, _optional("FLOAT")] = None
    """Updates of each agent per env step (1 by default); whichever of actor and learner is ahead waits."""
    quota: Annotated[float | None, _optional("GIB")] = None
    """GiB that the run directory may take; all that is free by default."""
    check: bool = False
    """Only print the pre-flight check."""
    preset: str = "default"
    """Settings to start from: default, or paper (like the authors' code)."""
    variant: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Change the preset: no-perturbation, pixels, refreshed-encoder.
    To find out why something does not learn, reading ground truth: diagnostic-true-reward, diagnostic-true-state,
    diagnostic-resets."""
    config: OptionalPath = None
    """TOML file (or a run's config.json) whose keys override the preset; `r3l config` prints all keys."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Override one key, for example --set sac.batch_size=256."""
    robot: OptionalName = None
    """Robot to train on; `r3l robots` lists them."""
    rig: OptionalPath = None
    """Rig file of a robot with hardware, as `r3l calibrate` writes it; the run keeps a copy. With --resume, another."""
    seed: OptionalInt = None
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, _optional("auto|cpu|cuda")] = None
    """Where the networks live."""
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
