"""`r3l status`, `check`, `config`, `tasks` and `robots`: show what is there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class StatusCommand:
    """Show the state of a run: phase, steps, rates, success, reward health, events.

    Works on any run, also on one that has ended.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    watch: bool = False
    """Show the status again every second until Ctrl-C."""
    json: bool = False
    """Print the status as JSON."""

    def __call__(self) -> int:
        from r3l.cli.status import show
        from r3l.run.directory import Run

        return show(Run.open(self.run), watch=self.watch, as_json=self.json)


@dataclass(frozen=True)
class CheckCommand:
    """Check every file of a run directory and repair what can be repaired.

    Exit code 0: the run is sound, or was repaired. Exit code 2: a fault remains that this command cannot repair.
    """

    run: tyro.conf.Positional[Path]
    """Run directory that no process uses."""
    dry_run: bool = False
    """Only print the faults; change nothing."""

    def __call__(self) -> int:
        from r3l.run.repair.check import check

        return check(self.run, is_dry=self.dry_run)


@dataclass(frozen=True)
class ConfigCommand:
    """Print every config key with its value, as JSON that --config accepts."""

    preset: str = "default"
    """Preset to print: default or paper."""
    variant: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Variant to apply to the preset; may be given several times."""

    def __call__(self) -> int:
        from r3l.config.convert import to_dict
        from r3l.config.presets import preset_config

        print(json.dumps(to_dict(preset_config(self.preset, self.variant)), indent=2))
        return 0


@dataclass(frozen=True)
class TasksCommand:
    """List the installed tasks."""

    def __call__(self) -> int:
        from r3l.task.registry import load_task, task_names

        for name in task_names():
            print(f"{name:16} {load_task(name).description}")
        return 0


@dataclass(frozen=True)
class RobotsCommand:
    """List the installed robots."""

    def __call__(self) -> int:
        from r3l.task.registry import robot_names

        print("\n".join(robot_names()))
        return 0
