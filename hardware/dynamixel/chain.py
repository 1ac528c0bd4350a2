"""The servos of one robot as its joints: identified, set up, read, sent to targets, and without torque in doubt."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from r3l.robot import FloatArray, Joint

from .bus import Bus, BusError
from .control_table import MODE_CURRENT_POSITION, MODELS, HardwareError, Model, Register

SCAN_BEGIN_S, SCAN_ID_S = 0.1, 0.004
"""Duration of a broadcast, plus the time per id up to the highest: the DYNAMIXEL SDK waits 3 ms for each."""
REBOOT_S, BOOTING_S, ANSWER_S = 2.0, 0.05, 0.006
"""Time until a rebooted servo is back, pause between two checks for it, and duration of a check."""
REST_S, REST_POLL_S, REST_RAD_S = 1.0, 0.01, 0.1
"""Max time that `hold` waits for the servos to rest, and the max speed at rest."""
RELAX_S = 0.5
"""Time for which torque is taken off repeatedly, until every servo confirms it."""
TURN = 2 * math.pi


@dataclass(frozen=True)
class Drive:
    """A joint and its servo: servo angle = offset + sign · joint angle, rad."""

    joint: Joint
    id: int
    sign: int = 1
    offset_rad: float = 0.0

    def servo_rad(self, joint_rad: float) -> float:
        """Return the servo's angle for a joint angle."""
        return self.offset_rad + self.sign * joint_rad

    def joint_rad(self, servo_rad: float) -> float:
        """Return the joint angle for a servo angle.

        Servos count turns only while they have power: the result is the turn nearest to the joint's range.
        """
        middle = (self.joint.min_rad + self.joint.max_rad) / 2
        return middle + math.remainder(self.sign * (servo_rad - self.offset_rad) - middle, TURN)

    @property
    def name(self) -> str:
        """The servo's name in messages."""
        return f"servo {self.id} ({self.joint.name})"


@dataclass(frozen=True)
class Limits:
    """The settings of every servo of a chain."""

    current_a: float
    speed_rad_s: float
    acceleration_rad_s2: float
    temperature_c: float
    """Temperature above which the servo takes its own torque off."""
    watchdog_s: float
    """Silence after which a servo stops and holds its position."""


@dataclass(frozen=True)
class Readings:
    """The servos' measurements, [A] each; NaN for a servo that did not answer."""

    joint_rad: FloatArray
    velocity_rad_s: FloatArray
    current_a: FloatArray
    voltage_v: FloatArray
    temperature_c: FloatArray
    is_alert: bool = False
    """Whether each servo reports a hardware error."""


class Chain:
    """Servos that move one robot's joints. Every setting is read back; goals during motion are not."""

    def __init__(self, bus: Bus, model: Model, drives: Sequence[Drive], limits: Limits) -> None:
        self.bus, self.model, self.drives, self.limits = bus, model, tuple(drives), limits
        self.ids = [drive.id for drive in drives]
        self._by_id = {drive.id: drive for drive in drives}
        self._turned_rad = dict.fromkeys(self.ids, 0.0)
        """Whole turns by which a servo's angle is off its drive's."""

    def name(self, servo: int) -> str:
        """Return a servo's name for messages."""
        return self._by_id[servo].name

    # Who is there

    def take_over(self) -> None:
        """Take torque off every servo that answers, identify the servos, and set all of them up.

        Raises:
            BusError: one line with the fault and the next step, also if a servo did not confirm that its torque is off.
        """
        self.bus.sync_write(self.model["status_return_level"], dict.fromkeys(self.ids, 2.0))  # these servos must answer
        self.relax()
        self.identify()
        left = self.relax()
        if left:
            raise BusError(f"{self._names(left)} did not confirm to have no torque; take the servos' power away")
        self.configure()

    def identify(self) -> None:
        """Check that every servo is there once, and of the right model.

        Raises:
            BusError: one line with the fault and the next step.
        """
        found = self.bus.scan(SCAN_BEGIN_S + SCAN_ID_S * (max(self.ids) + 1))
        doubled = [servo for servo in self.ids if len(found.get(servo, [])) > 1]
        if doubled:
            raise BusError(f"two servos answer as {doubled[0]}; give one of them another id (DYNAMIXEL Wizard)")
        there = {servo: found[servo][0] if servo in found else self.bus.ping(servo) for servo in self.ids}
        missing = [servo for servo, pong in there.items() if pong is None]
        if len(missing) == len(self.ids):
            others = f"others do: {', '.join(map(str, sorted(found)))}" if found else "nothing does"
            raise BusError(
                f"none of the servos {_listed(self.ids)} answers on {self.bus.port.path} at {self.bus.port.baud_rate} "
                f"baud, {others}; check power and cable, or r3l doctor finds their baud rate"
            )
        if missing:
            raise BusError(f"{self._names(missing)} not found on {self.bus.port.path}; check cables and ids")
        for servo, pong in there.items():
            if pong is not None and pong.model != self.model.number:
                model = MODELS[pong.model].name if pong.model in MODELS else f"model number {pong.model}"
                raise BusError(f"{self.name(servo)} is a {model}, expected {self.model.name}; mend the rig's model")

    # Settings

    def settings(self) -> dict[str, float]:
        """Return the settings of every servo at work, by register, SI units."""
        limits = self.limits
        return {
            "return_delay_time": 0.0,
            "drive_mode": 0.0,
            "operating_mode": float(MODE_CURRENT_POSITION),
            "secondary_id": 255.0,
            "homing_offset": 0.0,
            "temperature_limit": limits.temperature_c,
            "current_limit": limits.current_a,
            "startup_configuration": 0.0,
            "shutdown": float(self.model["shutdown"].initial),
            "status_return_level": 2.0,
            "bus_watchdog": 0.0,
            "goal_current": limits.current_a,
            "profile_acceleration": limits.acceleration_rad_s2,
            "profile_velocity": limits.speed_rad_s,
            "position_p_gain": float(self.model["position_p_gain"].initial),
            "position_i_gain": 0.0,
            "position_d_gain": 0.0,
        }

    def configure(self, servos: Iterable[int] | None = None) -> None:
        """Set servos up as `settings` says, torque off; only differing registers are written.

        Raises:
            BusError: a servo does not accept a setting.
        """
        servos = list(self.ids if servos is None else servos)
        begin, size = self.model.block("model_number", "shutdown")
        for servo in servos:
            self.bus.write(servo, self.model["torque_enable"], 0)
        found = self.bus.sync_read(servos, begin, size, deadline_s=1.0)
        for servo in servos:
            if servo not in found:
                raise BusError(f"servo {servo} does not tell its settings; check its cable and power")
            for name, value in self.settings().items():
                register = self.model[name]
                # EEPROM wears, and the registers in RAM change with the mode.
                if not register.is_kept or found[servo].data[_span(register)] != register.encode(value):
                    self.bus.write(servo, register, value)

    def hold(self, servos: Iterable[int] | None = None) -> dict[int, float]:
        """Put torque on servos at their measured positions, so that none moves; return the positions, by id, joint rad.

        Raises:
            BusError: a servo's goal is not its position, or it does not accept torque. None of the servos has torque
                then.
        """
        servos = list(self.ids if servos is None else servos)
        held = {}
        try:
            self._await_rest(servos)
            for servo in servos:
                angle_rad = self.bus.read(servo, self.model["present_position"])
                held[servo] = self._by_id[servo].joint_rad(angle_rad)
                self._turned_rad[servo] = angle_rad - self._by_id[servo].servo_rad(held[servo])
                self.bus.write(servo, self.model["goal_position"], angle_rad)
                self.bus.write(servo, self.model["bus_watchdog"], self.limits.watchdog_s)
                self.bus.write(servo, self.model["torque_enable"], 1)
        except BaseException:
            self.relax(servos)
            raise
        return held

    def _await_rest(self, servos: list[int]) -> None:
        """Wait until servos without torque rest, or have fallen for the max time."""
        velocity, until_s = self.model["present_velocity"], time.monotonic() + REST_S
        while time.monotonic() < until_s:
            found = self.bus.sync_read(servos, velocity.address, velocity.size)
            if all(abs(velocity.decode(reply.data)) < REST_RAD_S for reply in found.values() if not reply.error):
                return
            time.sleep(REST_POLL_S)

    def relax(self, servos: Iterable[int] | None = None) -> list[int]:
        """Take torque off servos and confirm it; return the servos that did not confirm.

        Raises:
            PortError: the port is lost.
        """
        left = list(self.ids if servos is None else servos)
        torque, until_s = self.model["torque_enable"], time.monotonic() + RELAX_S
        while left:
            self.bus.sync_write(torque, dict.fromkeys(left, 0.0))
            found = self.bus.sync_read(left, torque.address, torque.size)
            left = [servo for servo in left if servo not in found or found[servo].data != b"\0"]
            if time.monotonic() >= until_s:
                break
        return left

    def reboot_all(self, servos: Iterable[int]) -> None:
        """Reboot servos and wait until all answer. BusError if one does not come back."""
        away = list(servos)
        for servo in away:
            with contextlib.suppress(BusError):  # its answer may be lost; the servo is searched for below
                self.bus.reboot(servo)
        until_s = time.monotonic() + REBOOT_S
        place, answer_s = self.model["present_position"], ANSWER_S + self.bus.port.latency_s
        while away:
            # Unlike pings, reads have answers of distinct sizes, so that no answer has to be awaited.
            found = self.bus.sync_read(away, place.address, place.size, deadline_s=answer_s)
            away = [servo for servo in away if servo not in found]
            if away and time.monotonic() >= until_s:
                raise BusError(f"servo {away[0]} does not come back from a reboot; check its cable and power")
            if away:
                time.sleep(BOOTING_S)

    # At work

    def send(self, joint_rad: FloatArray) -> None:
        """Send every joint to a target, in one packet without an answer. PortError if the port is lost."""
        goals = {
            drive.id: drive.servo_rad(float(angle)) + self._turned_rad[drive.id]
            for drive, angle in zip(self.drives, joint_rad, strict=True)
        }
        self.bus.sync_write(self.model["goal_position"], goals)

    def read(self) -> Readings:
        """Measure. PortError if the port is lost."""
        begin, size = self.model.block("present_current", "present_temperature")
        found = self.bus.sync_read(self.ids, begin, size)
        rows = np.full((5, len(self.ids)), np.nan, np.float32)
        for at, drive in enumerate(self.drives):
            if drive.id in found and len(found[drive.id].data) == size:
                rows[:, at] = self._measured(drive, found[drive.id].data, begin)
        return Readings(rows[0], rows[1], rows[2], rows[3], rows[4], any(reply.alert for reply in found.values()))

    def _measured(self, drive: Drive, data: bytes, begin: int) -> tuple[float, float, float, float, float]:
        def value(name: str) -> float:
            register = self.model[name]
            return register.decode(data[_span(register, begin)])

        return (
            drive.joint_rad(value("present_position")),
            drive.sign * value("present_velocity"),
            drive.sign * value("present_current"),
            value("present_input_voltage"),
            value("present_temperature"),
        )

    def states(self) -> dict[int, tuple[bool, HardwareError]]:
        """Return torque and errors of each servo that answers, by id."""
        begin, size = self.model.block("torque_enable", "hardware_error_status")
        found = self.bus.sync_read(self.ids, begin, size)
        return {
            servo: (bool(reply.data[0]), HardwareError(reply.data[-1]))
            for servo, reply in found.items()
            if len(reply.data) == size
        }

    def is_set_up(self, servo: int) -> bool | None:
        """Return whether a servo at work still has its RAM settings and its watchdog; None if it does not answer."""
        begin, size = self.model.block("bus_watchdog", "profile_velocity")
        reply = self.bus.sync_read([servo], begin, size).get(servo)
        if reply is None or len(reply.data) != size:
            return None
        expected = {
            "bus_watchdog": self.limits.watchdog_s,
            "goal_current": self.limits.current_a,
            "profile_acceleration": self.limits.acceleration_rad_s2,
            "profile_velocity": self.limits.speed_rad_s,
        }
        registers = {self.model[name]: value for name, value in expected.items()}
        return all(reply.data[_span(each, begin)] == each.encode(value) for each, value in registers.items())

    def _names(self, servos: Iterable[int]) -> str:
        return ", ".join(self.name(servo) for servo in servos)


def _span(register: Register, begin: int = 0) -> slice:
    return slice(register.address - begin, register.address - begin + register.size)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
