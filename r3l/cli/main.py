"""The `r3l` command: what a person types. Bad input ends with one line and exit code 2."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any

import tyro

from r3l.cli.control import PauseCommand, RelaxCommand, ResumeCommand, StopCommand, tell
from r3l.cli.devices import CalibrateCommand, DoctorCommand, EmulateCommand, calibrate, doctor, emulate
from r3l.cli.evaluate import (
    EvaluateCommand,
    ExportCommand,
    FilmCommand,
    MarkCommand,
    PlayCommand,
    ReportCommand,
    evaluate,
    export,
    film,
    mark,
    play,
    report,
)
from r3l.cli.goals import GoalsCommand, goals
from r3l.cli.inspect import (
    CheckCommand,
    ConfigCommand,
    RobotsCommand,
    StatusCommand,
    TasksCommand,
    check,
    config,
    robots,
    status,
    tasks,
)
from r3l.cli.settings import TrainCommand
from r3l.cli.train import train
from r3l.config.convert import nearest
from r3l.config.errors import UserError
from r3l.models.torch_setup import tune_process
from r3l.robot.base import RobotError
from r3l.run.experience import StoreError
from r3l.run.tensors import CheckpointError

DESCRIPTION = """R3L: a robot learns a skill overnight from pictures of success, with nobody in the room.

Three steps: `r3l goals TASK`, `r3l train TASK`, `r3l evaluate runs/NAME`; then `r3l report runs/NAME`.
`r3l COMMAND --help` explains each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done or stopped, 2 bad input, 3 a run that failed, 130 Ctrl-C."""
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
        known = nearest(first, names) if first else "expected a command first: goals, train, evaluate, …"
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


COMMANDS: dict[type, Callable[[Any], int]] = {
    GoalsCommand: goals,
    TrainCommand: train,
    EvaluateCommand: evaluate,
    MarkCommand: mark,
    PlayCommand: play,
    ExportCommand: export,
    ReportCommand: report,
    FilmCommand: film,
    StatusCommand: status,
    CheckCommand: check,
    PauseCommand: tell,
    ResumeCommand: tell,
    RelaxCommand: tell,
    StopCommand: tell,
    DoctorCommand: doctor,
    CalibrateCommand: calibrate,
    EmulateCommand: emulate,
    ConfigCommand: config,
    TasksCommand: tasks,
    RobotsCommand: robots,
}

if __name__ == "__main__":
    sys.exit(main())


Command = (
    Annotated[GoalsCommand, tyro.conf.subcommand("goals")]
    | Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[MarkCommand, tyro.conf.subcommand("mark")]
    | Annotated[PlayCommand, tyro.conf.subcommand("play")]
    | Annotated[ExportCommand, tyro.conf.subcommand("export")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[FilmCommand, tyro.conf.subcommand("film")]
    | Annotated[StatusCommand, tyro.conf.subcommand("status")]
    | Annotated[PauseCommand, tyro.conf.subcommand("pause")]
    | Annotated[ResumeCommand, tyro.conf.subcommand("resume")]
    | Annotated[RelaxCommand, tyro.conf.subcommand("relax")]
    | Annotated[StopCommand, tyro.conf.subcommand("stop")]
    | Annotated[CheckCommand, tyro.conf.subcommand("check")]
    | Annotated[DoctorCommand, tyro.conf.subcommand("doctor")]
    | Annotated[CalibrateCommand, tyro.conf.subcommand("calibrate")]
    | Annotated[EmulateCommand, tyro.conf.subcommand("emulate")]
    | Annotated[ConfigCommand, tyro.conf.subcommand("config")]
    | Annotated[TasksCommand, tyro.conf.subcommand("tasks")]
    | Annotated[RobotsCommand, tyro.conf.subcommand("robots")]
)
