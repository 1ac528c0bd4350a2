"""TODO r3l/cli/devices.py."""

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from r3l.cli.options import OptionalInt, OptionalName, OptionalPath, ending_in_order
from r3l.config.errors import UserError


def doctor(command: DoctorCommand) -> int:
    """Look at a rig."""
    with needing("dynamixel"):
        from r3l.hardware.dclaw.doctor import examine
        from r3l.hardware.dclaw.rig import read_rig
        from r3l.run.goals import read_goals

    has_failed = False
    with ending_in_order():
        rig, goals = read_rig(command.rig), read_goals(command.goals) if command.goals else None
        found = examine(rig, command.runs, goals=goals, wiggles=command.wiggle, reboots=command.reboot)
        for line in found:
            has_failed |= line.level == "FAIL"
            print(line, flush=True)
    return 2 if has_failed else 0


def calibrate(command: CalibrateCommand) -> int:
    """Calibrate a hand and write its rig."""
    with needing("dynamixel"):
        from r3l.hardware.dclaw.calibrate import calibrate as read_off
        from r3l.hardware.dclaw.rig import default_rig, problems, read_rig, write_rig

    rig = read_rig(command.rig) if command.rig.exists() else default_rig()
    given = {"port": command.port, "baud_rate": command.baud, "model": command.model}
    rig = replace(rig, bus=replace(rig.bus, **{key: value for key, value in given.items() if value is not None}))
    problem = next(problems(rig), None)
    if problem is not None:
        raise UserError(problem)
    with ending_in_order():
        rig = read_off(rig, until_enter, print, command.only)
    command.rig.parent.mkdir(parents=True, exist_ok=True)
    write_rig(command.rig, rig)
    print(f"rig: {command.rig}; next: r3l doctor {command.rig}")
    return 0


def until_enter(text: str) -> Iterator[None]:
    """Tell a person what to do, and yield until they press Enter."""
    print(text, flush=True)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        yield
    if not sys.stdin.readline():
        raise UserError("nobody is at the terminal: calibration needs a person who moves the fingers")


def emulate(command: EmulateCommand) -> int:
    """Emulate servos."""
    with needing("dynamixel"):
        from r3l.hardware.dynamixel.emulate import emulate as run_emulator

    code: int = run_emulator(command)
    return code


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import what an extra of this package brings; UserError names the extra where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"package {error.name!r} is not installed; pip install 'r3l[{extra}]'") from error


@dataclass(frozen=True)
class EmulateCommand:
    """Emulate Dynamixel servos on a pseudo-terminal: the driver's real bytes, and no servo.

    Prints the port to open. Faults of wire and adapter are made to order; SIGUSR1 unplugs the adapter for two seconds,
    SIGUSR2 is a short loss of power. Ends with Ctrl-C.
    """

    ids: tuple[int, ...] = (10, 11, 12, 20, 21, 22, 30, 31, 32)
    """Servos; the same number twice is two servos of one id. D'Claw's nine by default."""
    model: str = "XM430-W210"
    """XM430-W210, XM430-W350 or XL330-M288."""
    baud: int = 1_000_000
    """Baud rate that the servos are set to; at any other they hear nothing."""
    link: OptionalPath = None
    """Symbolic link to the port, which stays the same when the adapter was unplugged."""
    drop: float = 0.0
    """Share of packets that are lost."""
    corrupt: float = 0.0
    """Share of packets with a bit turned."""
    duplicate: float = 0.0
    """Share of answers that come twice."""
    garbage: float = 0.0
    """Share of answers with noise before them."""
    late: float = 0.0
    """Share of answers that come late."""
    late_s: float = 0.1
    """How late, in seconds."""
    echo: bool = False
    """The adapter sends back what it is sent."""
    silent: tuple[int, ...] = ()
    """Servos that hear everything and answer nothing."""
    seed: int = 0
    """Of the faults."""


@dataclass(frozen=True)
class DoctorCommand:
    """Look at a rig as a first-time user should: port, baud rate, servos, voltage, temperature, joints, wire, disk.

    A line for each thing, with the remedy where it failed; torque is off afterwards. Exit code 2: something failed.
    """

    rig: tyro.conf.Positional[Path]
    """Rig file, as `r3l calibrate` writes it."""
    wiggle: bool = False
    """Then move every joint a little, slowly, one after the other: clear the workspace, a hand on the power switch."""
    reboot: tuple[int, ...] = ()
    """Ids of servos to start anew first, which clears their hardware errors: after you looked what caused them."""
    goals: OptionalPath = None
    """Goal folder: does the camera see the workspace as these images do?"""
    runs: Path = Path("runs")
    """Folder that will hold the run directories."""


@dataclass(frozen=True)
class CalibrateCommand:
    """Read a hand's zeros, signs and limits off while you move its fingers, and write the rig file.

    The servos have no torque all the while. Nothing is written before the last step; Ctrl-C changes nothing.
    """

    rig: tyro.conf.Positional[Path]
    """Rig file to write; an existing one is where calibration begins, and only what is read off changes."""
    port: OptionalName = None
    """Serial port of the servos, best by its name in /dev/serial/by-id; the rig's by default."""
    baud: OptionalInt = None
    """Baud rate of the servos; the rig's by default, 1000000 in a new one."""
    model: OptionalName = None
    """XM430-W210, XM430-W350 or XL330-M288; the rig's by default."""
    only: tuple[Literal["zero", "signs", "limits"], ...] = ("zero", "signs", "limits")
    """Steps to do."""
