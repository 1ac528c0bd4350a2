"""TODO r3l/cli/control.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from r3l.run.directory import Run
from r3l.training.control_socket import ask


def tell(command: PauseCommand | ResumeCommand | RelaxCommand | StopCommand) -> int:
    """Tell a running run's supervisor what people want."""

    word = type(command).__name__.removesuffix("Command").lower()
    print(ask(Run.open(command.run).folder, word))
    return 0


@dataclass(frozen=True)
class PauseCommand:
    """Pause a run: the fingers move home, the robot relaxes and waits for `r3l resume`."""

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class ResumeCommand:
    """Let a run that was paused or relaxed go on."""

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class RelaxCommand:
    """Relax a run's robot at once, wherever it is, and let it wait for `r3l resume`."""

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class StopCommand:
    """Stop a run: robot relaxed at once, a checkpoint written; `r3l train --resume` goes on from it."""

    run: tyro.conf.Positional[Path]
