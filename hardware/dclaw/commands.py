"""`r3l doctor` and `r3l calibrate`: check a D'Claw, and measure its rig."""

from __future__ import annotations

import select
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from r3l.cli.options import OptionalInt, OptionalName, OptionalPath, signals_interrupt
from r3l.config import UserError


@dataclass(frozen=True)
class DoctorCommand:
    """Check a rig: port, baud rate, servos, voltage, temperature, joints, camera, disk.

    Prints one line per check, with the remedy if it failed. The torque is off afterwards. Exit code 2: a check failed.
    """

    rig: tyro.conf.Positional[Path]
    """Rig file, as `r3l calibrate` writes it."""
    wiggle: bool = False
    """Then move each joint a little, slowly. Clear the workspace first and keep a hand on the power switch."""
    reboot: tuple[int, ...] = ()
    """Ids of servos to reboot first, which clears their hardware errors; find the cause of the errors before."""
    goals: OptionalPath = None
    """Goal folder: also check that the camera sees the workspace as the goal images show it."""
    runs: Path = Path("runs")
    """Folder that will hold the run directories; its free space is checked."""

    def __call__(self) -> int:
        from r3l.run.goals import read_goals

        from .doctor import examine
        from .rig import read_rig

        has_failed = False
        with signals_interrupt():
            rig, goals = read_rig(self.rig), read_goals(self.goals) if self.goals else None
            for line in examine(rig, self.runs, goals=goals, wiggles=self.wiggle, reboots=self.reboot):
                has_failed |= line.level == "FAIL"
                print(line, flush=True)
        return 2 if has_failed else 0


@dataclass(frozen=True)
class CalibrateCommand:
    """Measure a hand's zeros, signs and limits and write the rig file.

    A person moves the fingers; the servos have no torque. The file is written after the last step; Ctrl-C changes
    nothing.
    """

    rig: tyro.conf.Positional[Path]
    """Rig file to write. If it exists, only the measured values and the options below change."""
    port: OptionalName = None
    """Serial port of the servos, best as named in /dev/serial/by-id; the rig's by default."""
    baud: OptionalInt = None
    """Baud rate of the servos; the rig's by default, 1000000 in a new rig."""
    model: OptionalName = None
    """Model of the servos: XM430-W210, XM430-W350 or XL330-M288; the rig's by default."""
    only: tuple[Literal["zero", "signs", "limits"], ...] = ("zero", "signs", "limits")
    """Steps to do."""

    def __call__(self) -> int:
        from .calibrate import calibrate
        from .rig import default_rig, problems, read_rig, write_rig

        rig = read_rig(self.rig) if self.rig.exists() else default_rig()
        given: dict[str, Any] = {"port": self.port, "baud_rate": self.baud, "model": self.model}
        rig = replace(rig, bus=replace(rig.bus, **{key: value for key, value in given.items() if value is not None}))
        problem = next(problems(rig), None)
        if problem is not None:
            raise UserError(problem)
        with signals_interrupt():
            rig = calibrate(rig, until_enter, print, self.only)
        self.rig.parent.mkdir(parents=True, exist_ok=True)
        write_rig(self.rig, rig)
        print(f"rig: {self.rig}; next: r3l doctor {self.rig}")
        return 0


def until_enter(text: str) -> Iterator[None]:
    """Print what a person is to do, and yield until the person presses Enter; UserError if the input has ended."""
    print(text, flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        yield
    if not sys.stdin.readline():
        raise UserError("standard input is no terminal: calibration needs a person who moves the fingers")
