"""The hand: nine servos that are sent to targets inside their limits, monitored, and restored after faults."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from r3l.robot import FloatArray, RobotError, Trouble, Vitals

from ..dynamixel.bus import Bus, BusError
from ..dynamixel.chain import Chain, Drive, Readings
from ..dynamixel.control_table import HardwareError
from ..dynamixel.port import PortError
from .envelope import Envelope
from .guard import MAX_REBOOTS, MAX_RESTORATIONS, Guard
from .rig import ClawRig

REOPEN_EVERY_S = 0.3
"""Time between two attempts to open a lost port."""
CLOSE_S = 1.0
"""Max time that `close` tries to take the torque off."""
WATCHDOG_SHARE = 0.5
"""Share of the watchdog's time; after a longer silence of the driver the watchdog is checked first."""
OUTSIDE_RAD = 0.5
"""Distance outside its limits beyond which a joint is not held."""
P = ParamSpec("P")
R = TypeVar("R")


def alone(method: Callable[Concatenate[Hand, P], R]) -> Callable[Concatenate[Hand, P], R]:
    """Let one thread at a time use the servos: a process that is told to end closes them from another thread."""

    @wraps(method)
    def locked(hand: Hand, /, *arguments: P.args, **options: P.kwargs) -> R:
        with hand.lock:
            return method(hand, *arguments, **options)

    return locked


class Hand:
    """The servos of a D'Claw. Torque is off until the first `send`, and after `relax`, a lost port or an error."""

    def __init__(self, rig: ClawRig) -> None:
        self.rig = rig
        self.drives = rig.drives
        self.bus = Bus(rig.bus.port, rig.bus.baud_rate)
        self.chain = Chain(self.bus, rig.model, self.drives, rig.limits)
        joints = tuple(drive.joint for drive in self.drives)
        self.envelope = Envelope.of(rig)
        self.guard = Guard(rig.health, self.drives)
        self.lock = threading.RLock()
        self.has_torque = False
        self._goal_rad = np.zeros(len(joints), np.float32)
        """The joints' last target; their last measured position while there is no torque."""
        self._readings = _nothing(len(joints))
        self._is_open = False
        self._lost = ""
        """Why the port cannot be used, in one line."""
        self._unrelaxed: list[int] = []
        """Servos that did not confirm that their torque is off."""
        self._is_forbidden = False
        """Whether a reading forbids torque, until another reading lifts the ban."""
        self._passing: list[Trouble] = []
        """Events since the newest measurement that are already over."""
        self._troubles: tuple[Trouble, ...] = ()
        self._tried_s = self._heard_s = 0.0
        self._audited = 0

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The troubles at the newest measurement."""
        return self._troubles

    @property
    def vitals(self) -> Vitals | None:
        """The servos' vitals at the newest measurement; None if no servo answered."""
        found = self._readings
        if np.isnan(found.temperature_c).all():
            return None
        current_a = np.nanmax(np.abs(found.current_a))
        return Vitals(float(np.nanmax(found.temperature_c)), float(current_a), float(np.nanmin(found.voltage_v)))

    @alone
    def open(self) -> None:
        """Open the port, take torque off, check that the servos are the rig's and in health, and set them up.

        Raises:
            RobotError: one line with the fault and the next step; torque is off, the port closed.
        """
        self.guard.begin_anew()
        self._passing, self._troubles, self._lost, self._is_forbidden = [], (), "", False
        self._is_open = True
        try:
            self.bus.open()
            self._take_over()
            self.measure()
            problem = self._first_problem()
            if problem:
                raise BusError(problem)
        except BaseException:
            with contextlib.suppress(RobotError):  # the first error tells more
                self.close(0.0)
            raise

    @alone
    def close(self, patience_s: float = CLOSE_S) -> None:
        """Relax and close the port, within a max time; safe to call twice. Raises what `relax` raises."""
        until_s = time.monotonic() + patience_s
        try:
            while True:
                try:
                    return self.relax()
                except RobotError:
                    if time.monotonic() >= until_s:
                        raise
                    time.sleep(REOPEN_EVERY_S / 3)
        finally:
            self._is_open, self._lost, self._unrelaxed = False, "", []
            self.bus.close()

    @alone
    def relax(self) -> None:
        """Take torque off all servos and confirm it; without effect if the port was never opened.

        Raises:
            RobotError: a servo did not confirm it, or the port is lost. `measure` tries again.
        """
        self.has_torque = False
        if not self._is_open:
            return
        self._unrelaxed = self.chain.ids
        try:
            self.bus.open()  # without effect on an open port
            self._unrelaxed = self.chain.relax()
        except PortError as error:
            self._lose(error)
        if self._unrelaxed:
            raise RobotError(self._why_unrelaxed())

    @alone
    def measure(self) -> Readings:
        """Return the servos' measurements; NaN for a silent servo. A lost port is opened again when it is back."""
        self._readings = self._read()
        found = self.guard.judge(self._readings)
        if self._lost:
            found = [Trouble("port", "pause", self._lost), *self.guard.latched]
        self._is_forbidden = any(each.action in ("pause", "stop") for each in found)
        if (self._is_forbidden and self.has_torque) or (self._unrelaxed and not self._lost):
            self._let_go()
        if self._unrelaxed and not self._lost:
            found.append(Trouble("relax", "pause", self._why_unrelaxed()))
        self._troubles, self._passing = (*self._passing, *found), []
        if not self.has_torque:
            joint_rad = self._readings.joint_rad
            self._goal_rad = np.where(np.isnan(joint_rad), self._goal_rad, joint_rad)
        return self._readings

    @alone
    def send(self, target_rad: FloatArray) -> FloatArray:
        """Send the joints towards a target, [A] rad; return the target that was really sent.

        Nothing is sent while a trouble forbids it (`troubles`). Torque comes on first if it is off.
        """
        try:
            if self._may_move() and self._is_ready():
                goal_rad = self.envelope.limit(target_rad, self._goal_rad, self._readings.joint_rad)
                self.chain.send(goal_rad)
                self._goal_rad, self._heard_s = goal_rad, time.monotonic()
        except PortError as error:
            self._lose(error)
        return self._goal_rad.copy()

    @alone
    def restore_failed(self) -> None:
        """Find servos that lost their torque or have an error, and restore them: right after `send`."""
        if not self.has_torque:
            return
        try:
            self._check_states()
            if self.has_torque:
                self._audit([self.drives[self._audited]])
                self._audited = (self._audited + 1) % len(self.drives)
            self._heard_s = time.monotonic()
        except PortError as error:
            self._lose(error)
        except BusError as error:
            self._give_up(error)

    def _read(self) -> Readings:
        try:
            if self._lost:
                self._reopen()
            if not self._lost:
                found = self.chain.read()
                self._heard_s = time.monotonic()
                if found.is_alert and not self.has_torque:
                    self._latch_errors(self.chain.states())
                return found
        except PortError as error:
            self._lose(error)
        return _nothing(len(self.drives))

    # Who may move

    def _may_move(self) -> bool:
        return self._is_open and not (self._lost or self._is_forbidden or self.guard.latched)

    def _is_ready(self) -> bool:
        """Return whether the servos have torque and their settings; put torque on if it is off."""
        try:
            if not self.has_torque:
                self._engage()
            elif time.monotonic() - self._heard_s > WATCHDOG_SHARE * self.rig.bus.watchdog_s:
                self._audit(self.drives)
        except PortError:
            raise
        except BusError as error:
            self._give_up(error)
        return self.has_torque

    def _engage(self) -> None:
        """Set every servo up and let it hold its position."""
        states = self.chain.states()
        self._latch_errors(states)
        if self.guard.latched:
            return
        self._recover(states)
        if self.guard.latched:
            return
        self.chain.configure()
        for drive, angle in zip(self.drives, self.chain.read().joint_rad, strict=True):
            low, high = drive.joint.min_rad, drive.joint.max_rad
            if not low - OUTSIDE_RAD <= angle <= high + OUTSIDE_RAD:
                advice = "put the finger inside, or r3l calibrate"
                raise BusError(f"{drive.name} is at {angle:.2f} rad, expected {low:.2f} to {high:.2f}; {advice}")
        self._place(self.chain.hold())
        self.has_torque, self._unrelaxed = True, []
        self._heard_s = time.monotonic()

    def _place(self, where_rad: dict[int, float]) -> None:
        """Record the positions at which servos hold now."""
        self._goal_rad = np.array(
            [where_rad.get(drive.id, goal) for drive, goal in zip(self.drives, self._goal_rad, strict=True)], np.float32
        )

    def _give_up(self, error: Exception) -> None:
        """Take all torque off, since a servo cannot be set up; the next command tries again."""
        message = str(error)
        for drive in self.drives:
            message = re.sub(rf"servo {drive.id} (?!\()", f"{drive.name} ", message)
        self._passing.append(Trouble("servo", "pause", message))
        self._let_go()

    def _let_go(self) -> None:
        """Relax; if a servo does not confirm it, `measure` reports that and tries again."""
        with contextlib.suppress(RobotError):
            self.relax()

    # What goes wrong

    def _check_states(self) -> None:
        states = self.chain.states()
        self._latch_errors(states)
        if self.has_torque:
            self._recover(states)
        off = [drive for drive in self.drives if states.get(drive.id) == (False, HardwareError(0))]
        if self.has_torque and off:
            for drive in off:
                self._note("restarted", drive, "had lost its torque, as after a loss of power, and has it again")
            self._restore(off)

    def _audit(self, drives: Iterable[Drive]) -> None:
        """Restore servos whose settings changed: a servo with a tripped watchdog accepts no goal."""
        for drive in drives:
            if self.has_torque and self.chain.is_set_up(drive.id) is False:
                self._note("settings", drive, "had lost its settings, or its watchdog had stopped it")
                self._restore([drive])

    def _latch_errors(self, states: dict[int, tuple[bool, HardwareError]]) -> None:
        """Take the torque off for any hardware error except an overload, until a person has checked the hand."""
        for drive in self.drives:
            error = states.get(drive.id, (False, HardwareError(0)))[1]
            if error and error != HardwareError.OVERLOAD:
                self._latch(drive, f"has the hardware error {named(error)} ({self._values(drive)})")

    def _recover(self, states: dict[int, tuple[bool, HardwareError]]) -> None:
        """Reboot servos after an overload, as often as allowed, and let them hold their position."""
        errors = {servo: error for servo, (_, error) in states.items()}
        overloaded = [drive for drive in self.drives if errors.get(drive.id) == HardwareError.OVERLOAD]
        for drive in overloaded:
            values = self._values(drive)
            if self.guard.is_too_often("reboot", drive.id, MAX_REBOOTS, time.monotonic()):
                self._latch(drive, f"has an overload again after {MAX_REBOOTS} reboots within five minutes ({values})")
                return
            self._note("overload", drive, f"had an overload ({values}) and is rebooted, {MAX_REBOOTS} times at most")
        if overloaded:
            self.chain.reboot_all([drive.id for drive in overloaded])
            if self.has_torque:
                self._restore(overloaded)

    def _restore(self, drives: list[Drive]) -> None:
        """Set servos up and let them hold their position; the other servos keep holding meanwhile."""
        for drive in drives:
            if self.guard.is_too_often("restore", drive.id, MAX_RESTORATIONS, time.monotonic()):
                often = f"more than {MAX_RESTORATIONS} times within five minutes"
                self._latch(drive, f"lost its torque or settings {often}")
                return
        servos = [drive.id for drive in drives]
        self.chain.configure(servos)
        self._place(self.chain.hold(servos))

    def _latch(self, drive: Drive, what: str) -> None:
        self.guard.latch(drive, what, "check it, then take its power away and give it back")
        self._let_go()

    def _note(self, kind: str, drive: Drive, what: str) -> None:
        self._passing.append(Trouble(f"{kind}-{drive.joint.name}", "skip", f"{drive.name} {what}"))

    def _values(self, drive: Drive) -> str:
        at, found = self.drives.index(drive), self._readings
        return f"{found.temperature_c[at]:.0f} °C, {found.current_a[at]:.2f} A, {found.voltage_v[at]:.1f} V"

    # The port

    def _lose(self, error: Exception) -> None:
        """Record the loss of the port: servos hold their position until the watchdog stops their motion."""
        self.has_torque = False
        self._lost, self._tried_s = str(error), time.monotonic()
        self.bus.close()

    def _reopen(self) -> None:
        """Open the port if it is back, and take torque off."""
        if time.monotonic() - self._tried_s < REOPEN_EVERY_S:
            return
        try:
            self.bus.open()
            self._take_over()
            self._lost = ""
        except RobotError as error:
            self._lose(error)

    def _take_over(self) -> None:
        """Take torque off every servo that answers, then compare the servos with the rig."""
        self.has_torque = False
        self._unrelaxed = self.chain.ids
        self.chain.take_over()
        self._unrelaxed = []
        self._heard_s = time.monotonic()

    def _first_problem(self) -> str:
        """Return what forbids a start; empty if nothing does."""
        for servo, (_, error) in self.chain.states().items():
            if error:
                advice = "check it, then take its power away and give it back, or r3l doctor --reboot"
                return f"{self.chain.name(servo)} has the hardware error {named(error)}; {advice}"
        silent = np.flatnonzero(np.isnan(self._readings.joint_rad))
        if len(silent):
            return f"{self.drives[silent[0]].name} does not answer a reading; check its cable and power"
        return self.guard.voltage_problem(self._readings)

    def _why_unrelaxed(self) -> str:
        held = f"servos hold where they are, at {self.rig.strength.current_a:g} A at most: take their power away"
        if self._lost:
            return f"torque cannot be taken off: {self._lost}; {held}"
        names = ", ".join(self.chain.name(servo) for servo in self._unrelaxed)
        return f"{names} did not confirm to have no torque; {held}"


def named(error: HardwareError) -> str:
    """Return a hardware error in words."""
    return ", ".join(each.name.lower().replace("_", " ") for each in HardwareError if each & error and each.name)


def _nothing(count: int) -> Readings:
    return Readings(*np.full((5, count), np.nan, np.float32))
