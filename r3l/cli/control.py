"""`r3l pause`, `resume`, `relax` and `stop`: tell a running run what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

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


class RelaxCommand(_ControlCommand):
    """Relax a run's robot at once, in any pose; the run waits for `r3l resume`.

    If no supervisor listens, this command relaxes the robot itself. The exit code is 0 if the robot is relaxed.
    """

    word = "relax"

    def __call__(self) -> int:
        """Tell the supervisor to relax the robot, or relax the robot if no supervisor listens."""
        try:
            return super().__call__()
        except NoSupervisorError:
            from r3l.robot.base import SimulatedRobot
            from r3l.run.directory import Run
            from r3l.task.registry import robot_of

        run = Run.open(self.run)
        robot, unsupervised = robot_of(run.config, run.rig), f"no supervisor listens in {run.folder}"
        if isinstance(robot, SimulatedRobot):
            print(f"robot {run.config.robot!r} is simulated: nothing is to be relaxed; {unsupervised}")
        else:
            robot.relax_for()
            print(f"robot {run.config.robot!r} is relaxed; {unsupervised}")
        return 0


class StopCommand(_ControlCommand):
    """Stop a run: relax the robot at once and write a checkpoint.

    `r3l train --resume RUN` continues the run from the checkpoint.
    """

    word = "stop"
