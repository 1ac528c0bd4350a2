"""The settings of a new run: preset, variants, config file, --set and the plain options, one over the other."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from r3l.commands import TrainCommand
from r3l.config import MANY, PRESETS, VARIANTS, Config, UserError, from_dict, nearest, to_dict
from r3l.run import read_config

MOST_HOURS = 24 * 365
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
        if not 0 < command.hours <= MOST_HOURS:
            raise UserError(f"--hours is {command.hours}, expected more than 0 and at most {MOST_HOURS}")
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
