"""`r3l pause`, `resume`, `relax` and `stop`: tell a running run what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from r3l.config.errors import UserError
from r3l.training.control_socket import NoSupervisorError, ask


@dataclass(frozen=True)
class _ControlCommand:
    run: tyro.conf.Positional[Path]
    """Run directory."""
    word: ClassVar[str]

    def __call__(self) -> int:
        """Tell the run's supervisor the word and print its answer."""
        try:
            print(ask(self.run, self.word))
        except NoSupervisorError:
            from r3l.run.directory import Run

            Run.open(self.run)  # raises the better error if it is no run directory
            raise
        return 0


class PauseCommand(_ControlCommand):
    """Pause a run: the fingers move home, then the robot relaxes and waits.

    `r3l resume` continues the run, also after a crash or a reboot.
    """

    word = "pause"


class ResumeCommand(_ControlCommand):
    """Continue a run that was paused or relaxed."""

    word = "resume"


@dataclass(frozen=True)
class RelaxCommand(_ControlCommand):
    """Relax a run's robot at once, in any pose; the run waits for `r3l resume`.

    If no supervisor listens, this command relaxes the robot itself; then the exit code is 0 only if the robot is
    relaxed.
    """

    direct: bool = False
    """Relax the robot from this command and ask no supervisor: for the stop step of a service."""
    word = "relax"

    def __call__(self) -> int:
        """Tell the supervisor to relax the robot, or relax the robot if no supervisor listens."""
        if self.direct:
            return self._relax("no supervisor was asked")
        try:
            return super().__call__()
        except NoSupervisorError:
            return self._relax(f"no supervisor listens in {self.run}")

    def _relax(self, reason: str) -> int:
        """Relax the robot from this process; UserError if another process still uses the run."""
        from r3l.robot.base import SimulatedRobot
        from r3l.run.directory import Run
        from r3l.run.state import living_holder
        from r3l.task.registry import robot_of

        run = Run.open(self.run)
        robot = robot_of(run.config, run.rig)
        if isinstance(robot, SimulatedRobot):
            print(f"robot {run.config.robot!r} is simulated: nothing is to be relaxed; {reason}")
            return 0
        robot.relax_for()
        pid = living_holder(run.folder)
        if pid is not None:
            raise UserError(f"the robot was relaxed, but process {pid} still uses the run: stop it where it runs")
        print(f"robot {run.config.robot!r} is relaxed; {reason}")
        return 0


class StopCommand(_ControlCommand):
    """Stop a run: relax the robot at once and write a checkpoint.

    `r3l train --resume RUN` continues the run from the checkpoint.
    """

    word = "stop"
