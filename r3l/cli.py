"""The `r3l` command: what a person types. Bad input ends with one line and exit code 2."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from r3l.checkpoint import CheckpointError
from r3l.commands import (
    Command,
    ConfigCommand,
    EvaluateCommand,
    FilmCommand,
    GoalsCommand,
    ReportCommand,
    RobotsCommand,
    TasksCommand,
    TrainCommand,
)
from r3l.config import PRESETS, VARIANTS, Config, UserError, from_dict, nearest, to_dict
from r3l.experience import StoreError
from r3l.progress import progress_bar
from r3l.robot import RobotError
from r3l.run import Run, free_name, read_config

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt."""
DESCRIPTION = """R3L: a robot learns a skill overnight from pictures of success, with nobody in the room.

Three steps: `r3l goals TASK`, `r3l train TASK`, `r3l evaluate runs/NAME`; then `r3l report runs/NAME`.
`r3l COMMAND --help` explains each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done, 2 bad input, 130 stopped by Ctrl-C."""
    tune_process()
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        return COMMANDS[type(command)](command)
    except (UserError, CheckpointError, StoreError, RobotError) as error:
        print("r3l: " + " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, head for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.Error) as error:
        print(f"r3l: {error}; check the disk's free space and permissions, then go on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("r3l: stopped; nothing acknowledged is lost", file=sys.stderr)
        return 130


def tune_process() -> None:
    """One thread for each of torch's products, and memory that is kept instead of given back after each of them.

    glibc returns blocks above 128 KiB at once and takes page faults to get them again: a third of a small network's
    update. Threads share one arena, since those of their own give memory back whatever the thresholds say. Where
    there is no glibc this does nothing.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_ARENA_MAX, 1)


def parse(arguments: Sequence[str]) -> Any:
    """Return the command's dataclass; UserError in one line where tyro would draw a box."""
    arguments = list(arguments) or ["--help"]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command: Any = tyro.cli(Command, prog="r3l", description=DESCRIPTION, args=arguments)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_one_line(complaint.getvalue(), arguments)) from end
    if (getattr(command, "seed", None) or 0) < 0:
        raise UserError(f"--seed is {command.seed}, expected 0 or more")
    return command


def _one_line(boxed: str, arguments: Sequence[str]) -> str:
    """Fold a drawn error box into one line that ends with where help is."""
    words = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]|-{3,}|(?<!\S)[|+](?!\S)", " ", boxed)
    text = " ".join(words.split()) or "the command line cannot be read"
    names = {kind.__name__.removesuffix("Command").lower(): kind for kind in COMMANDS}
    first = next((word for word in arguments if not word.startswith("-")), "")
    if first not in names:
        known = nearest(first, names) if first else f"expected one of {', '.join(sorted(names))}"
        return f"unknown command {first or arguments[0]!r}; {known}; see r3l --help"
    text = re.split(r"\s+(?:For full helptext|Argument helptext:|Got errors:)", text)[0]
    text = re.sub(r"^(?:(?:Parsing|Value) error|Missing argument|Invalid choice|Required options) ", "", text)
    unknown = re.match(r"Unrecognized options.*?: (-\S+?),?(?:\s|$)", text)
    if unknown:
        text = _unknown_option(unknown[1], first, names[first])
    text = re.sub(r"^Unrecognized options.*?: (.*)", r"not understood: \1", text)
    return f"{text.rstrip('.')}; see r3l {first} --help"


def _unknown_option(option: str, name: str, command: type) -> str:
    """Say which option of the command is nearest, or that a positional is written without a name."""
    positional = [field.name for field in fields(command) if "Positional" in str(field.type)]
    options = [f"--{field.name.replace('_', '-')}" for field in fields(command) if field.name not in positional]
    word = option.split("=")[0].removeprefix("--")
    if word in positional:
        return f"unknown option {option!r}; {word} is written without a name: r3l {name} {word.upper()}"
    return f"unknown option {option!r}; {nearest(option, options)}"


def goals(command: GoalsCommand) -> int:
    """Collect goal images into a folder."""
    from r3l.goals import collect_on_twin, read_folder, save_goals, split, variety_warnings
    from r3l.registry import load_robot, load_task
    from r3l.robot import SimulatedRobot

    task = load_task(command.task)
    out = command.out or Path("goals") / task.name
    if out.exists():
        raise UserError(f"goal folder {out} exists and is never overwritten; remove it, or choose another --out")
    camera = task.rig.camera
    rng = np.random.default_rng(command.seed)
    if command.from_folder is not None:
        images = read_folder(command.from_folder, (camera.height, camera.width), task.minimum_goals)
        source = command.from_folder.name
    else:
        robot = load_robot(command.robot, task)
        if not isinstance(robot, SimulatedRobot):
            raise UserError(f"robot {command.robot!r} is not simulated: take pictures, then use --from-folder DIR")
        if command.count < task.minimum_goals:
            raise UserError(f"--count {command.count} is too few goal images, expected {task.minimum_goals} or more")
        with robot, progress_bar("goal images", "image", command.count) as bar:
            images = np.stack(collect_on_twin(task, robot, command.count, rng, lambda: bar.update() and None))
        source = "twin stand-in"
    for warning in variety_warnings(images):
        print(f"warning: {warning}")
    train_images, held_out = split(images, command.held_out, rng)
    save_goals(out, train_images, held_out, task=task.name, robot=command.robot, source=source)
    print(f"{len(train_images)} goal images for training and {len(held_out)} held out are in {out}")
    print(f"next: r3l train {command.task}")
    return 0


def resolve(command: TrainCommand) -> Config:
    """Return the config of a new run: preset, variants, config file, --set, then the plain options."""
    if command.task is None:
        raise UserError("train needs a task, for example r3l train valve, or --resume runs/NAME")
    values = to_dict(_preset(command.preset, command.variant))
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
    given = {name: getattr(command, name) for name in ("task", "steps", "robot", "seed", "device")}
    if command.task.endswith(".py"):
        given["task"] = str(Path(command.task).absolute())  # so that the run goes on from any folder
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def reopen(command: TrainCommand) -> Run:
    """Open the run that --resume names, which nobody uses, with --steps not yet saved; the rest of it is decided."""
    assert command.resume is not None
    fresh = TrainCommand(resume=command.resume, steps=command.steps, check=command.check, runs=command.runs)
    for field in fields(TrainCommand):
        if getattr(command, field.name) != getattr(fresh, field.name):
            raise UserError(f"a resumed run keeps its {field.name}: --resume goes with --steps and --check alone")
    run = Run.open(command.resume)
    steps = run.config.steps if command.steps is None else command.steps
    longer = Run(run.folder, replace(run.config, steps=steps))
    with longer.lock():
        return longer


def _preset(preset: str, variants: Sequence[str]) -> Config:
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


def train(command: TrainCommand) -> int:
    """Begin or resume a run."""
    from r3l import preflight
    from r3l.goals import load_goals
    from r3l.registry import load_task
    from r3l.train import pick_device
    from r3l.train import train as run_training

    resumed = reopen(command) if command.resume is not None else None
    config = resumed.config if resumed else resolve(command)
    task = load_task(config.task)
    if resumed:
        folder, goal_folder = resumed.folder, resumed.goals
    else:
        folder = command.runs / command.name if command.name else free_name(command.runs, task.name)
        goal_folder = command.goals or Path("goals") / task.name
    pick_device(config.device)
    if not resumed and not command.check and folder.exists():
        Run.create(folder, config)  # says that it exists
    if not goal_folder.exists():
        raise UserError(
            f"goal folder {goal_folder} is missing; make it with r3l goals {config.task}, or name --goals DIR"
        )
    found = preflight.check(config, task, load_goals(goal_folder, task.rig.camera, task.minimum_goals), folder)
    print("\n".join(found.lines))
    if config.reads_truth:
        print("diagnostic run: it reads the twin's ground truth")
    preflight.require(found)
    if command.check:
        print("nothing was started: --check")
        return 0
    if resumed:
        run = resumed if command.steps is None else resumed.extended(command.steps)
    else:
        run = Run.create(folder, config)
        run.keep_goals(goal_folder)
    print(f"run directory: {folder}")
    if not run_training(run):
        print(f"stopped; go on with: r3l train --resume {folder}")
        return 130
    print(f"done; next: r3l evaluate {folder}; r3l report {folder}")
    return 0


def evaluate(command: EvaluateCommand) -> int:
    """Evaluate a run and print what was found."""
    from r3l.evaluate import evaluate_run

    if command.episodes < 1:
        raise UserError(f"--episodes is {command.episodes}, expected 1 or more")
    run = Run.open(command.run)
    step = run.newest_snapshot() if command.step is None else command.step
    evaluate_run(
        run,
        step,
        count=command.episodes,
        seed=command.seed,
        baselines=command.baselines,
        out=command.out or run.folder / "evaluation",
    )
    return 0


def report(command: ReportCommand) -> int:
    """Write the report of a run."""
    from r3l.report import write_report

    run = Run.open(command.run)
    path = command.out or run.report
    write_report(run, path)
    print(f"report: {path}")
    return 0


def film(command: FilmCommand) -> int:
    """Write an animation of a run."""
    from r3l.film import film as write_film

    if command.starts < 1:
        raise UserError(f"--starts is {command.starts}, expected 1 or more")
    run = Run.open(command.run)
    known = run.snapshots()
    steps = command.steps or (known[0], min(known, key=lambda step: abs(step - known[-1] / 2)), known[-1])
    path = command.out or run.folder / "film.webp"
    print(f"film: {write_film(run, steps, path, starts=command.starts, seed=command.seed)}")
    return 0


def config(command: ConfigCommand) -> int:
    """Print a config."""
    print(json.dumps(to_dict(_preset(command.preset, command.variant)), indent=2))
    return 0


def tasks(command: TasksCommand) -> int:
    """List tasks."""
    from r3l.registry import load_task, task_names

    for name in task_names():
        print(f"{name:16} {load_task(name).description}")
    return 0


def robots(command: RobotsCommand) -> int:
    """List robots."""
    from r3l.registry import robot_names

    for name in robot_names():
        print(name)
    return 0


COMMANDS: dict[type, Callable[[Any], int]] = {
    GoalsCommand: goals,
    TrainCommand: train,
    EvaluateCommand: evaluate,
    ReportCommand: report,
    FilmCommand: film,
    ConfigCommand: config,
    TasksCommand: tasks,
    RobotsCommand: robots,
}

if __name__ == "__main__":
    sys.exit(main())
