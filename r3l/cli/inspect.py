"""TODO r3l/cli/inspect.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from r3l.cli.status import show
from r3l.config.convert import to_dict
from r3l.config.presets import preset_config
from r3l.run.directory import Run
from r3l.run.repair.check import check as verify
from r3l.task.registry import load_task, robot_names, task_names


def status(command: StatusCommand) -> int:
    """Show how a run is doing."""

    return show(Run.open(command.run), watch=command.watch, as_json=command.json)


def check(command: CheckCommand) -> int:
    """Verify and mend a run directory."""

    return verify(command.run, is_dry=command.dry_run)


def config(command: ConfigCommand) -> int:
    """Print a config."""
    print(json.dumps(to_dict(preset_config(command.preset, command.variant)), indent=2))
    return 0


def tasks(command: TasksCommand) -> int:
    """List tasks."""

    for name in task_names():
        print(f"{name:16} {load_task(name).description}")
    return 0


def robots(command: RobotsCommand) -> int:
    """List robots."""

    for name in robot_names():
        print(name)
    return 0


@dataclass(frozen=True)
class StatusCommand:
    """Show how a run is doing: phase, steps, rates, success as judged, reward health, last events, what is left."""

    run: tyro.conf.Positional[Path]
    """Run directory; a run that has ended has a status too."""
    watch: bool = False
    """Show it anew every second until Ctrl-C."""
    json: bool = False
    """Print it as JSON instead."""


@dataclass(frozen=True)
class CheckCommand:
    """Verify a run directory file by file, and mend what can be mended.

    Exit code 0: all is well, or was mended; 2: something is wrong that nothing here can mend.
    """

    run: tyro.conf.Positional[Path]
    """Run directory that no process uses."""
    dry_run: bool = False
    """Only say what is wrong; change nothing."""


@dataclass(frozen=True)
class ConfigCommand:
    """Print every config key with its value, as JSON that --config takes."""

    preset: str = "default"
    """default or paper."""
    variant: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Variants to apply."""


@dataclass(frozen=True)
class TasksCommand:
    """List the installed tasks."""


@dataclass(frozen=True)
class RobotsCommand:
    """List the installed robots."""
