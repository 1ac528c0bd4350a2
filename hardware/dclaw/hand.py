"""The hand: nine servos that are sent somewhere inside their limits, looked after, and brought back when they fail."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import numpy as np

from r3l.robot import FloatArray, RobotError, Trouble, Vitals

from ..dynamixel.bus import Bus, BusError
from ..dynamixel.chain import Chain, Drive, Readings
from ..dynamixel.control_table import HardwareError
from ..dynamixel.port import PortError
from .envelope import Envelope
from .guard import MOST_REBOOTS, Guard
from .kinematics import Kinematics
from .rig import ClawRig

REOPEN_EVERY_S = 0.3
"""Between two attempts to open a port that is gone."""
WATCHDOG_SHARE = 0.5
"""Of the watchdog's time; after a longer silence of ours it is looked at before anything is sent."""


class Hand:
    """The servos of a D'Claw. Torque is off until the first `send`, and after `relax`, a loss of the port, an error."""

    def __init__(self, rig: ClawRig) -> None:
        self.rig = rig
        self.drives = rig.drives
        self.bus = Bus(rig.bus.port, rig.bus.baud_rate)
        self.chain = Chain(self.bus, rig.model, self.drives, rig.limits)
        joints = tuple(drive.joint for drive in self.drives)
        step_rad = rig.strength.speed_rad_s / rig.control_hz
        self.envelope = Envelope(joints, step_rad, Kinematics(rig.geometry, rig.workspace))
        self.guard = Guard(rig.health, self.drives)
        self.has_torque = False
        self._goal_rad = np.zeros(len(joints), np.float32)
        """Where the joints were sent last; without torque, where they were last seen."""
        self._readings = _nothing(len(joints))
        self._lost = ""
        """Why nothing can be sent, in one line."""
        self._tried_s = self._heard_s = 0.0
        self._is_forbidden = False
        """Whether a reading forbids torque, until another one does not."""
        self._passing: list[Trouble] = []
        """What happened since the newest measurement, and is over."""
        self._troubles: tuple[Trouble, ...] = ()
        self._audited = 0

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What was wrong at the newest measurement."""
        return self._troubles

    @property
    def vitals(self) -> Vitals | None:
        """How the servos felt at the newest measurement; None where not one answered."""
        found = self._readings
        if np.isnan(found.temperature_c).all():
            return None
        current_a = np.nanmax(np.abs(found.current_a))
        return Vitals(float(np.nanmax(found.temperature_c)), float(current_a), float(np.nanmin(found.voltage_v)))

    def open(self) -> None:
        """Open the port, take torque off, and make sure that these are the servos of the rig, in health.

        Raises:
            RobotError: in one line, what is wrong and the next step; torque is off, the port closed.
        """
        self.guard = Guard(self.rig.health, self.drives)
        self._passing, self._troubles, self._lost, self._is_forbidden = [], (), "", False
        try:
            self.bus.open()
            self._take_over()
            self.measure()
            problem = self._first_problem()
            if problem:
                raise BusError(problem)
        except BaseException:
            with contextlib.suppress(RobotError):  # what was wrong first tells more
                self.close()
            raise

    def close(self) -> None:
        """Relax and close the port; safe to call twice. Raises what `relax` does."""
        try:
            self.relax()
        finally:
            self._lost = ""
            self.bus.close()

    def relax(self) -> None:
        """Take torque off all servos and make sure of it; nothing to do where the port was never opened.

        Raises:
            RobotError: a servo did not confirm it, or the port is gone.
        """
        self.has_torque = False
        if self._lost:
            raise RobotError(f"torque cannot be taken off: {self._lost}; {self._held()}")
        if not self.bus.port.is_open:
            return
        try:
            left = self.chain.relax()
        except PortError as error:
            self._lose(error)
            raise RobotError(f"torque cannot be taken off: {error}; {self._held()}") from error
        if left:
            names = ", ".join(self.chain.name(servo) for servo in left)
            raise RobotError(f"{names} did not confirm to have no torque; {self._held()}")

    def measure(self) -> Readings:
        """Return what the servos measure; NaN where one says nothing. A port that is gone is opened when it is back."""
        try:
            if self._lost:
                self._reopen()
            if not self._lost:
                self._readings = self.chain.read()
                self._heard_s = time.monotonic()
        except PortError as error:
            self._lose(error)
        if self._lost:
            self._readings = _nothing(len(self.drives))
        found = self.guard.judge(self._readings)
        if self._lost:
            found = [Trouble("port", "pause", self._lost), *self.guard.latched]
        self._is_forbidden = any(each.action in ("pause", "stop") for each in found)
        if self._is_forbidden and self.has_torque:
            self._let_go()
        self._troubles, self._passing = (*self._passing, *found), []
        if not self.has_torque:
            joint_rad = self._readings.joint_rad
            self._goal_rad = np.where(np.isnan(joint_rad), self._goal_rad, joint_rad)
        return self._readings

    def send(self, target_rad: FloatArray) -> FloatArray:
        """Send the joints towards a target, [A] rad; return where they were really sent.

        Nothing is sent while something forbids it (`troubles`); torque is put on first where it is off.
        """
        try:
            if self._may_move() and self._is_ready():
                goal_rad = self.envelope.limit(target_rad, self._goal_rad, self._readings.joint_rad)
                self.chain.send(goal_rad)
                self._goal_rad, self._heard_s = goal_rad, time.monotonic()
        except PortError as error:
            self._lose(error)
        return self._goal_rad.copy()

    def look_after(self) -> None:
        """Look for servos that lost their torque or have an error, and bring them back: right after `send`."""
        if not self.has_torque:
            return
        try:
            self._look_at_states()
            if self.has_torque:
                self._audit([self.drives[self._audited]])
                self._audited = (self._audited + 1) % len(self.drives)
            self._heard_s = time.monotonic()
        except PortError as error:
            self._lose(error)
        except BusError as error:
            self._give_up(error)

    # Who may move

    def _may_move(self) -> bool:
        return not (self._lost or self._is_forbidden or self.guard.latched)

    def _is_ready(self) -> bool:
        """Return whether the servos have torque and their settings; put it on where it is off."""
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
        """Set every servo up and let it hold where it is."""
        self._look_for_errors()
        if self.guard.latched:
            return
        self.chain.configure()
        self._place(self.chain.hold())
        self.has_torque = True
        self._heard_s = time.monotonic()

    def _place(self, where_rad: dict[int, float]) -> None:
        """Take note of where servos hold now."""
        self._goal_rad = np.array(
            [where_rad.get(drive.id, goal) for drive, goal in zip(self.drives, self._goal_rad, strict=True)], np.float32
        )

    def _give_up(self, error: Exception) -> None:
        """Take all torque off, since a servo cannot be set up; the next command tries again."""
        self._passing.append(Trouble("servo", "pause", str(error)))
        self._let_go()

    def _let_go(self) -> None:
        """Relax; what goes wrong with that is told."""
        try:
            self.relax()
        except RobotError as error:
            self._passing.append(Trouble("relax", "pause", str(error)))

    # What goes wrong

    def _look_at_states(self) -> None:
        states = self.chain.states()
        self._look_for_errors(states)
        if not self.has_torque:
            return
        off = [drive for drive in self.drives if drive.id in states and states[drive.id] == (False, HardwareError(0))]
        if off:
            self._restore(off)
            for drive in off:
                self._note(
                    "restarted", drive, "had lost its torque and settings, as after a loss of power; it has both"
                )

    def _audit(self, drives: Iterable[Drive]) -> None:
        """Restore servos whose settings are not what they were: one whose watchdog tripped takes no goal."""
        for drive in drives:
            if self.chain.is_set_up(drive.id) is False:
                self._restore([drive])
                self._note(
                    "settings", drive, "had lost its settings, or its watchdog had stopped it; it has them again"
                )

    def _look_for_errors(self, states: dict[int, tuple[bool, HardwareError]] | None = None) -> None:
        """Reboot servos that latched an overload, so often as that is allowed; any other error ends the work."""
        for servo, (_, error) in (self.chain.states() if states is None else states).items():
            if error:
                drive = next(each for each in self.drives if each.id == servo)
                if error == HardwareError.OVERLOAD:
                    self._recover(drive)
                else:
                    self._latch(drive, f"has the hardware error {named(error)} ({self._values(drive)})")

    def _recover(self, drive: Drive) -> None:
        """Reboot a servo after an overload, or leave it to a person."""
        now_s = time.monotonic()
        if not self.guard.reboots_left(drive.id, now_s):
            self._latch(drive, f"has an overload again after {MOST_REBOOTS} reboots ({self._values(drive)})")
            return
        self.guard.count_reboot(drive.id, now_s)
        values = self._values(drive)
        self.chain.reboot(drive.id)
        if self.has_torque:
            self._restore([drive])
        left = self.guard.reboots_left(drive.id, now_s)
        self._note("overload", drive, f"had an overload ({values}) and was rebooted, {left} more times at most")

    def _restore(self, drives: list[Drive]) -> None:
        """Set servos up and let them hold where they are; the others go on holding meanwhile."""
        servos = [drive.id for drive in drives]
        self.chain.configure(servos)
        self._place(self.chain.hold(servos))

    def _latch(self, drive: Drive, what: str) -> None:
        self.guard.latch(drive, what, "look after it, then take its power away and give it back")
        self._let_go()

    def _note(self, kind: str, drive: Drive, what: str) -> None:
        self._passing.append(Trouble(f"{kind}-{drive.joint.name}", "skip", f"{drive.name} {what}"))

    def _values(self, drive: Drive) -> str:
        at, found = self.drives.index(drive), self._readings
        return f"{found.temperature_c[at]:.0f} °C, {found.current_a[at]:.2f} A, {found.voltage_v[at]:.1f} V"

    # The port

    def _lose(self, error: Exception) -> None:
        """Take note that the port is gone: servos hold where they are until the watchdog stops their motion."""
        self.has_torque = False
        self._lost, self._tried_s = str(error), time.monotonic()
        self.bus.close()

    def _reopen(self) -> None:
        """Open the port where it is back, and take torque off."""
        if time.monotonic() - self._tried_s < REOPEN_EVERY_S:
            return
        try:
            self.bus.open()
            self._take_over()
            self._lost = ""
        except RobotError as error:
            self._lose(error)

    def _take_over(self) -> None:
        """Take torque off whatever is there, then see whether it is what the rig says."""
        self.has_torque = False
        self.chain.relax()
        self.chain.identify()
        self._heard_s = time.monotonic()

    def _first_problem(self) -> str:
        """Return what forbids to begin, nothing where all is well."""
        for servo, (_, error) in self.chain.states().items():
            if error:
                advice = "look after it, then take its power away and give it back, or r3l doctor --reboot"
                return f"{self.chain.name(servo)} has the hardware error {named(error)}; {advice}"
        silent = [
            drive.name for drive, value in zip(self.drives, self._readings.joint_rad, strict=True) if value != value
        ]
        if silent:
            return f"{silent[0]} does not answer a reading; check its cable and power"
        return self.guard.voltage_problem(self._readings)

    def _held(self) -> str:
        return f"servos hold where they are, at {self.rig.strength.current_a:g} A at most: take their power away"


def named(error: HardwareError) -> str:
    """Return a hardware error in words."""
    return ", ".join(each.name.lower().replace("_", " ") for each in HardwareError if each & error and each.name)


def _nothing(count: int) -> Readings:
    return Readings(*np.full((5, count), np.nan, np.float32))
