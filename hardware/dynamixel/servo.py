"""An emulated servo: its memory, rules, motion and heat. Behaviour without a source is marked "assumed"."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from . import protocol
from .control_table import (
    CENTRE,
    MODE_CURRENT,
    MODE_CURRENT_POSITION,
    MODE_POSITION,
    MODE_PWM,
    MODE_TURNS,
    MODE_VELOCITY,
    RAM,
    XM430_W210,
    HardwareError,
    Model,
    Register,
)
from .protocol import BROADCAST_ID, CLEAR_REVOLUTIONS, Instruction, Packet, StatusError

FIRMWARE = 45
AMBIENT_C = 25.0
SUBSTEP_S = 0.002
STILL_RAD_S = 0.05
REBOOT_S = 0.3
"""Assumed: time after a reboot for which a servo answers nothing."""
GOALS = ("goal_pwm", "goal_current", "goal_velocity", "goal_position", "profile_acceleration", "profile_velocity")
"""Registers that a tripped watchdog makes read-only."""


@dataclass
class Mechanics:
    """The servo's load, and its physical constants; all of it assumed."""

    torque_per_a: float = 1.3
    """N·m/A at the horn."""
    inertia: float = 0.004
    """kg·m² at the horn."""
    damping: float = 0.02
    """N·m·s/rad."""
    lowest_rad: float = -math.inf
    highest_rad: float = math.inf
    """Stops, in the servo's own angle."""
    load_nm: float = 0.0
    """Torque of the world on the horn."""
    heat_c_per_a2_s: float = 0.25
    """Warming per A."""
    cooling_s: float = 600.0
    """Time constant of cooling."""
    overload_s: float = 2.0
    """Time of high current without motion after which a servo latches an overload."""


class Servo:
    """One servo. `advance` simulates time, `answer` answers requests."""

    def __init__(self, servo: int, model: Model = XM430_W210, *, angle_rad: float = 0.0, baud_rate: int = 3) -> None:
        self.model = model
        self.mechanics = Mechanics()
        self.angle_rad, self.velocity_rad_s, self.current_a = angle_rad, 0.0, 0.0
        self.temperature_c, self.voltage_v = AMBIENT_C, 12.0 if model["max_voltage_limit"].initial > 80 else 5.0
        self.is_powered = True
        self.moved_by: Callable[[], tuple[float, float]] | None = None
        """Position and speed of the joint, (rad, rad/s), if another world moves it."""
        self.on_write: Callable[[str, int], None] = lambda name, counts: None
        """Called with every value written to a register."""
        self._memory = bytearray(1024)
        self._by_address = {each.address: each for each in model.registers.values()}
        for register in model.registers.values():
            self.set_counts(register.name, register.initial)
        for name, counts in {"id": servo, "firmware_version": FIRMWARE, "baud_rate": baud_rate}.items():
            self.set_counts(name, counts)
        self._boot()

    @property
    def id(self) -> int:
        """The servo's id."""
        return self.counts("id")

    @property
    def is_on(self) -> bool:
        """Whether the torque is on."""
        return bool(self.counts("torque_enable"))

    def counts(self, name: str) -> int:
        """Return a register as a whole number."""
        register = self.model[name]
        return register.counts(bytes(self._memory[register.address : register.address + register.size]))

    def value(self, name: str) -> float:
        """Return a register in SI units."""
        register = self.model[name]
        return register.decode(bytes(self._memory[register.address : register.address + register.size]))

    def set_counts(self, name: str, counts: int) -> None:
        """Set a register, as no write of a host could: without its limits and without `on_write`."""
        register = self.model[name]
        data = counts.to_bytes(register.size, "little", signed=register.minimum < 0)
        self._memory[register.address : register.address + register.size] = data

    def _boot(self) -> None:
        """Restart: registers in EEPROM keep their values, the others get their initial ones."""
        for register in self.model.registers.values():
            if register.address >= RAM:
                self.set_counts(register.name, register.initial)
        for pointers, data, count in self.model.indirect:
            for at in range(count):
                self._memory[pointers + 2 * at : pointers + 2 * at + 2] = (data + at).to_bytes(2, "little")
        # Assumed: the limits are the first goals, and the goal position is one that a driver must not trust.
        self.set_counts("goal_pwm", self.counts("pwm_limit"))
        self.set_counts("goal_current", self.counts("current_limit"))
        self.set_counts("goal_velocity", self.counts("velocity_limit"))
        self.set_counts("goal_position", 0)
        self._errors = HardwareError(0)
        self._registered: tuple[int, bytes] | None = None
        self._stalled_s = self._since_packet_s = self._asleep_s = 0.0
        self._path_rad, self._path_rad_s = self.angle_rad, 0.0
        self._report()

    def brown_out(self) -> None:
        """Lose power; nothing is answered until `power_on`."""
        self.is_powered = False

    def power_on(self) -> None:
        """Restore power and restart."""
        self.is_powered = True
        self._boot()

    def fail(self, error: HardwareError) -> None:
        """Latch a hardware error."""
        self._errors |= error
        if error & HardwareError(self.counts("shutdown")):
            self.set_counts("torque_enable", 0)

    # Requests

    def hear(self) -> None:
        """Record a packet on the bus: any packet feeds the watchdog."""
        self._since_packet_s = 0.0

    def answer(self, packet: Packet) -> bytes | None:
        """Execute a packet; return the status packet, or None without an answer."""
        if not self.is_powered or self._asleep_s > 0:
            return None
        is_broadcast = packet.id == BROADCAST_ID
        if not is_broadcast and packet.id != self.id:
            return None
        error, data = self._do(packet)
        level = {Instruction.PING: 0, Instruction.READ: 1}.get(Instruction(packet.instruction), 2)
        if (is_broadcast and packet.instruction != Instruction.PING) or level > self.counts("status_return_level"):
            return None
        return self.status(data, error)

    def status(self, data: bytes, error: int = 0) -> bytes:
        """Return a status packet of this servo."""
        return protocol.status(self.id, data, error=error, alert=bool(self._errors))

    def _do(self, packet: Packet) -> tuple[int, bytes]:
        given = packet.parameters
        match packet.instruction:
            case Instruction.PING:
                return 0, self.read(0, 2)[1] + self.read(6, 1)[1]
            case Instruction.READ if len(given) == 4:
                return self.read(_u16(given, 0), _u16(given, 2))
            case Instruction.WRITE if len(given) > 2:
                return self.write(_u16(given, 0), given[2:]), b""
            case Instruction.REG_WRITE if len(given) > 2:
                self._registered = (_u16(given, 0), given[2:])
                self.set_counts("registered_instruction", 1)
            case Instruction.ACTION if self._registered:
                address, data = self._registered
                self._registered = None
                self.set_counts("registered_instruction", 0)
                return self.write(address, data), b""
            case Instruction.REBOOT:
                self._boot()
                self._asleep_s = REBOOT_S
            case Instruction.CLEAR if given == CLEAR_REVOLUTIONS:
                if abs(self.velocity_rad_s) > STILL_RAD_S:
                    return StatusError.RESULT_FAIL, b""
                self.angle_rad = math.remainder(self.angle_rad, 2 * math.pi)
                self._path_rad = self.angle_rad
            case Instruction.FACTORY_RESET if len(given) == 1:
                self._reset(given[0])
            case _:
                return StatusError.INSTRUCTION, b""
        return 0, b""

    def _reset(self, option: int) -> None:
        kept = {"id"} if option >= 1 else set[str]()
        kept |= {"baud_rate"} if option == 2 else set()
        for register in self.model.registers.values():
            if register.is_kept and register.is_writable and (option == 0xFF or register.name not in kept):
                self.set_counts(register.name, register.initial)
        self._boot()

    def read(self, address: int, size: int) -> tuple[int, bytes]:
        """Return error and bytes of a part of the control table."""
        self._report()
        if not size or address + size > len(self._memory):
            return StatusError.ACCESS, b""
        return 0, bytes(self._memory[self._pointed(each)] for each in range(address, address + size))

    def write(self, address: int, data: bytes) -> int:
        """Write to the control table: every register of it, or none. Return the error."""
        addresses = [self._pointed(each) for each in range(address, address + len(data))]
        at, writes = 0, list[tuple[Register | None, int, bytes]]()
        while at < len(data):
            register = self._by_address.get(addresses[at])
            size = register.size if register else 1
            if addresses[at : at + size] != list(range(addresses[at], addresses[at] + size)):
                return StatusError.DATA_LENGTH
            part = data[at : at + size]
            error = self._refused(register, addresses[at], part)
            if error:
                return error
            writes.append((register, addresses[at], part))
            at += size
        for register, place, part in writes:
            self._memory[place : place + len(part)] = part
            if register:
                self.on_write(register.name, register.counts(part))
                self._written(register.name)
        return 0

    def _pointed(self, address: int) -> int:
        """Return the address that an indirect address stands for; any other stands for itself."""
        for pointers, data, count in self.model.indirect:
            if data <= address < data + count:
                at = pointers + 2 * (address - data)
                return self._memory[at] | self._memory[at + 1] << 8
        return address

    def _refused(self, register: Register | None, address: int, data: bytes) -> int:
        """Return why a write is refused; 0 if it is not."""
        if register is None:
            is_pointer = any(first <= address < first + 2 * count for first, _, count in self.model.indirect)
            is_data = any(first <= address < first + count for _, first, count in self.model.indirect)
            return 0 if is_pointer or is_data else StatusError.ACCESS
        if len(data) < register.size:
            return StatusError.DATA_LENGTH
        if not register.is_writable or (register.is_kept and self.is_on):
            return StatusError.ACCESS
        counts = register.counts(data)
        if self.counts("bus_watchdog") == -1 and register.name in GOALS:
            return StatusError.DATA_RANGE
        if not register.minimum <= counts <= register.maximum or (register.name == "bus_watchdog" and counts < 0):
            return StatusError.DATA_RANGE
        return self._beyond_limits(register.name, counts)

    def _beyond_limits(self, name: str, counts: int) -> int:
        limits = {"goal_pwm": "pwm_limit", "goal_current": "current_limit", "goal_velocity": "velocity_limit"}
        if name in limits and abs(counts) > self.counts(limits[name]):
            return StatusError.DATA_LIMIT
        lowest, highest = self.counts("min_position_limit"), self.counts("max_position_limit")
        if (
            name == "goal_position"
            and self.counts("operating_mode") == MODE_POSITION
            and not lowest <= counts <= highest
        ):
            return StatusError.DATA_LIMIT
        if name == "operating_mode" and counts not in {0, 1, 3, 4, 5, 16}:
            return StatusError.DATA_RANGE
        return 0

    def _written(self, name: str) -> None:
        """Apply the effects of a write."""
        if name == "torque_enable":
            # After a shutdown only a reboot restores torque. Assumed: the write is answered without an error.
            if self._errors & HardwareError(self.counts("shutdown")):
                self.set_counts("torque_enable", 0)
            self._path_rad, self._path_rad_s = self.angle_rad, 0.0
            self._stalled_s = 0.0
        if name == "operating_mode":  # assumed: as after a restart
            self.set_counts("goal_current", self.counts("current_limit"))

    # Motion

    def advance(self, seconds: float) -> None:
        """Simulate a time span."""
        if not self.is_powered:
            self.temperature_c += (AMBIENT_C - self.temperature_c) * min(seconds / self.mechanics.cooling_s, 1)
            self._coast(seconds)
            return
        self._asleep_s = max(self._asleep_s - seconds, 0.0)
        self._watch(seconds)
        if self.moved_by:
            self.angle_rad, self.velocity_rad_s = self.moved_by()
        elif self.is_on or self.velocity_rad_s or self.mechanics.load_nm:
            for _ in range(max(round(seconds / SUBSTEP_S), 1)):
                self._move(min(SUBSTEP_S, seconds))
        else:
            self.current_a = 0.0
        self._heat(seconds)

    def _coast(self, seconds: float) -> None:
        self.current_a = self.velocity_rad_s = 0.0

    def _watch(self, seconds: float) -> None:
        """Trip the watchdog after a silence longer than its time. Assumed: the joint stays in place."""
        limit = self.counts("bus_watchdog")
        self._since_packet_s += seconds
        if limit > 0 and self.is_on and self._since_packet_s > limit * self.model["bus_watchdog"].unit:
            self.set_counts("bus_watchdog", -1)
            self.set_counts("goal_position", self._angle_counts())
            self._path_rad, self._path_rad_s = self.angle_rad, 0.0

    def _move(self, seconds: float) -> None:
        """Simulate one substep of motor and joint."""
        what = self.mechanics
        self.current_a = self._wanted_a(seconds) if self.is_on else 0.0
        torque = what.torque_per_a * self.current_a + what.load_nm - what.damping * self.velocity_rad_s
        # A gear of 1:212 holds a horn without load: friction of 0.05 N·m.
        if not self.is_on and abs(torque) < 0.05 and abs(self.velocity_rad_s) < STILL_RAD_S:
            self.velocity_rad_s = 0.0
            return
        self.velocity_rad_s += torque / what.inertia * seconds
        if not self.is_on:
            self.velocity_rad_s *= math.exp(-20 * seconds)
        self.angle_rad += self.velocity_rad_s * seconds
        if not what.lowest_rad <= self.angle_rad <= what.highest_rad:
            self.angle_rad, self.velocity_rad_s = min(max(self.angle_rad, what.lowest_rad), what.highest_rad), 0.0

    def _wanted_a(self, seconds: float) -> float:
        """Return the current that the controller of the operating mode requests, within its limits, A."""
        mode = self.counts("operating_mode")
        limit = self.value("current_limit")
        what = self.mechanics
        if mode == MODE_CURRENT:
            wanted = self.value("goal_current")
        elif mode == MODE_PWM:
            wanted = self.value("goal_pwm") * self.model.stall_a
        elif mode == MODE_VELOCITY:
            wanted = (self.value("goal_velocity") - self.velocity_rad_s) * 20 * what.inertia / what.torque_per_a
        else:
            self._follow(seconds)
            stiffness = 900 * what.inertia * self.counts("position_p_gain") / self.model["position_p_gain"].initial
            damping = 2 * math.sqrt(stiffness * what.inertia)
            force = stiffness * (self._path_rad - self.angle_rad) + damping * (self._path_rad_s - self.velocity_rad_s)
            wanted = (force + what.damping * self._path_rad_s) / what.torque_per_a
            if mode == MODE_CURRENT_POSITION:
                limit = min(limit, abs(self.value("goal_current")))
        return min(max(wanted, -limit), limit)

    def _follow(self, seconds: float) -> None:
        """Move the path towards the goal, at most as fast as the profile allows (0: as fast as the servo can)."""
        fastest = self.value("profile_velocity") or 8.0
        steepest = self.value("profile_acceleration") or 400.0
        goal_rad = self.value("goal_position") - self.value("homing_offset")
        left = goal_rad - self._path_rad
        wanted = math.copysign(min(fastest, math.sqrt(2 * steepest * abs(left))), left)
        change = min(max(wanted - self._path_rad_s, -steepest * seconds), steepest * seconds)
        self._path_rad_s += change
        step = self._path_rad_s * seconds
        if abs(left) <= abs(step) or abs(left) < 1e-4:
            self._path_rad, self._path_rad_s = goal_rad, 0.0
        else:
            self._path_rad += step

    def _heat(self, seconds: float) -> None:
        """Warm and cool; latch overheating, overload and a wrong voltage."""
        what = self.mechanics
        self.temperature_c += what.heat_c_per_a2_s * self.current_a**2 * seconds
        self.temperature_c += (AMBIENT_C - self.temperature_c) * min(seconds / what.cooling_s, 1)
        if self.temperature_c > self.counts("temperature_limit"):
            self.fail(HardwareError.OVERHEATING)
        # Assumed: most of the stall current, and no motion.
        is_stalled = abs(self.current_a) > 0.4 * self.model.stall_a and abs(self.velocity_rad_s) < STILL_RAD_S
        self._stalled_s = self._stalled_s + seconds if is_stalled else 0.0
        if self._stalled_s > what.overload_s:
            self.fail(HardwareError.OVERLOAD)
        decivolts = round(10 * self.voltage_v)
        if not self.counts("min_voltage_limit") <= decivolts <= self.counts("max_voltage_limit"):
            self.fail(HardwareError.INPUT_VOLTAGE)

    def _angle_counts(self) -> int:
        counts = round(self.angle_rad / self.model["present_position"].unit) + CENTRE + self.counts("homing_offset")
        turns = self.counts("operating_mode") in {MODE_TURNS, MODE_CURRENT_POSITION}
        return counts if turns else counts % 4096

    def _report(self) -> None:
        """Copy the measurements to the registers."""
        model = self.model
        self.set_counts("present_position", self._angle_counts())
        self.set_counts("present_velocity", round(self.velocity_rad_s / model["present_velocity"].unit))
        self.set_counts("present_current", round(self.current_a / model["present_current"].unit))
        self.set_counts("present_input_voltage", max(round(self.voltage_v / 0.1), 0))
        self.set_counts("present_temperature", min(max(round(self.temperature_c), 0), 255))
        self.set_counts("hardware_error_status", int(self._errors))
        self.set_counts("moving", int(abs(self.velocity_rad_s) > self.value("moving_threshold")))
        self.set_counts("position_trajectory", round(self._path_rad / model["present_position"].unit) + CENTRE)
        self.set_counts("velocity_trajectory", round(self._path_rad_s / model["present_velocity"].unit))


def _u16(data: bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8
