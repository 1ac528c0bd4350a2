"""The `r3l` command: find the command that a person names, run it, and tell an error in one line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pkgutil import resolve_name
from typing import Protocol

from r3l import __version__
from r3l.config.convert import nearest
from r3l.config.errors import ReportedError, UserError, missing_package

HELP = """usage: r3l COMMAND ...

R3L: a robot learns a skill overnight from goal images, unattended.

Three steps: `r3l goals TASK`, `r3l train TASK`, `r3l evaluate runs/NAME`; then `r3l report runs/NAME`.

commands (`r3l COMMAND --help` explains each; `r3l --version` prints the version):"""
COMMANDS = {
    "goals": "r3l.cli.goals:GoalsCommand",
    "train": "r3l.cli.train:TrainCommand",
    "evaluate": "r3l.cli.evaluate:EvaluateCommand",
    "mark": "r3l.cli.evaluate:MarkCommand",
    "play": "r3l.cli.evaluate:PlayCommand",
    "export": "r3l.cli.evaluate:ExportCommand",
    "report": "r3l.cli.evaluate:ReportCommand",
    "film": "r3l.cli.evaluate:FilmCommand",
    "status": "r3l.cli.inspect:StatusCommand",
    "pause": "r3l.cli.control:PauseCommand",
    "resume": "r3l.cli.control:ResumeCommand",
    "relax": "r3l.cli.control:RelaxCommand",
    "stop": "r3l.cli.control:StopCommand",
    "check": "r3l.cli.inspect:CheckCommand",
    "config": "r3l.cli.inspect:ConfigCommand",
    "tasks": "r3l.cli.inspect:TasksCommand",
    "robots": "r3l.cli.inspect:RobotsCommand",
}
"""Commands of this package. Only the module of the chosen command is imported, so that `r3l pause` answers at once."""
GROUP = "r3l.commands"
"""Entry-point group of the commands that drivers and other installed packages add."""


class Command(Protocol):
    """A dataclass: its docstring is the help, its fields are the options, a call runs it and returns the exit code."""

    def __call__(self) -> int:
        """Run the command; return 0 if it is done."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 done or stopped, 2 bad input, 3 a run that failed, 130 Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return parse(words)()
    except ReportedError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "r3l").split(".")[0] == "r3l":
            raise
        return _fail(str(missing_package(f"command {words[0]!r}", error)))
    except BrokenPipeError:  # the program that reads our output, for example head, ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.Error) as error:
        return _fail(f"{error}; check the disk's free space and permissions, then go on")
    except KeyboardInterrupt:
        print("r3l: stopped; nothing acknowledged is lost", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    print("r3l: " + " ".join(message.split("\n")), file=sys.stderr)
    return 2


def parse(words: Sequence[str]) -> Command:
    """Return the command that `words` ask for.

    Raises:
        UserError: the words are no command; the message has one line where tyro draws a box.
        SystemExit: `words` ask for the help or the version, which is printed.
    """
    name = words[0]
    if name in ("-h", "--help", "--version"):
        print(f"r3l {__version__}" if name == "--version" else "\n".join(overview()))
        raise SystemExit(0)
    places = COMMANDS if name in COMMANDS else all_commands()
    if name not in places:
        known = "expected a command first: goals, train, evaluate, …" if name.startswith("-") else nearest(name, places)
        raise UserError(f"unknown command {name!r}; {known}; see r3l --help")
    import tyro

    kind = load(name, places[name])
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.cli(kind, prog=f"r3l {name}", args=words[1:])
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_one_line(complaint.getvalue(), name, kind)) from end
    seed = getattr(command, "seed", None) or 0
    if seed < 0:
        raise UserError(f"--seed is {seed}, expected 0 or more")
    return command


def overview() -> Iterator[str]:
    """Yield the lines of `r3l --help`: every command with the first line of its help, or why it cannot be used."""
    yield HELP
    for name, place in all_commands().items():
        try:
            summary = (load(name, place).__doc__ or "").strip().split("\n")[0]
        except UserError as error:
            summary = " ".join(str(error).split())
        yield f"  {name:10} {summary}"


def all_commands() -> dict[str, str]:
    """Return where each command is, MODULE:CLASS by name; another package cannot replace a command of this one."""
    from importlib.metadata import entry_points

    added = {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=GROUP)}
    return COMMANDS | {name: place for name, place in sorted(added.items()) if name not in COMMANDS}


def load(name: str, place: str) -> type[Command]:
    """Return a command's dataclass; UserError if the module of another package cannot be imported."""
    try:
        kind: type[Command] = resolve_name(place)
    except Exception as error:
        if name in COMMANDS:
            raise
        if isinstance(error, ModuleNotFoundError):
            raise missing_package(f"command {name!r}", error) from error
        raise UserError(f"command {name!r} cannot be loaded: {place}: {type(error).__name__}: {error}") from error
    return kind


def _one_line(boxed: str, name: str, kind: type) -> str:
    """Fold tyro's drawn error box into one line that ends with where help is."""
    words = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]|-{3,}|(?<!\S)[|+](?!\S)", " ", boxed)
    text = " ".join(words.split()) or "the command line cannot be read"
    text = re.split(r"\s+(?:For full helptext|Argument helptext:|Got errors:)", text)[0]
    text = re.sub(r"^(?:(?:Parsing|Value) error|Missing argument|Invalid choice|Required options) ", "", text)
    unknown = re.match(r"Unrecognized options.*?: (-\S+?),?(?:\s|$)", text)
    if unknown:
        text = _unknown_option(unknown[1], name, kind)
    text = re.sub(r"^Unrecognized options.*?: (.*)", r"not understood: \1", text)
    return f"{text.rstrip('.')}; see r3l {name} --help"


def _unknown_option(option: str, name: str, kind: type) -> str:
    """Return the option that is nearest to an unknown one, or that the word is a positional argument."""
    positional = [field.name for field in fields(kind) if "Positional" in str(field.type)]
    options = [f"--{field.name.replace('_', '-')}" for field in fields(kind) if field.name not in positional]
    word = option.split("=")[0].removeprefix("--")
    if word in positional:
        return f"unknown option {option!r}; {word} is written without a name: r3l {name} {word.upper()}"
    return f"unknown option {option!r}; {nearest(option, options)}"
