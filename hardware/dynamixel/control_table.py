"""Control tables of DYNAMIXEL servos: the one place where their units become SI units.

Source: ROBOTIS e-manual, the pages of each model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntFlag

RAM = 64
"""First address that is lost without power; below it nothing can be written while torque is on."""
REV_PER_MIN = 2 * math.pi / 60
VELOCITY = 0.229 * REV_PER_MIN
ACCELERATION = 214.577 * REV_PER_MIN / 60
POSITION = 2 * math.pi / 4096
CENTRE = 2048
"""Counts at angle 0 rad."""
MAX_TURNS = 1_048_575
"""Goal limits in counts, in the modes of many turns."""
MODE_CURRENT, MODE_VELOCITY, MODE_POSITION, MODE_TURNS, MODE_CURRENT_POSITION, MODE_PWM = 0, 1, 3, 4, 5, 16
"""Values of the register `operating_mode`."""


class HardwareError(IntFlag):
    """Bits of the registers `hardware_error_status` and `shutdown`."""

    INPUT_VOLTAGE = 1
    OVERHEATING = 4
    ENCODER = 8
    ELECTRICAL_SHOCK = 16
    OVERLOAD = 32


@dataclass(frozen=True, slots=True)
class Register:
    """One entry of a control table."""

    name: str
    address: int
    size: int
    """Bytes: 1, 2 or 4, little-endian."""
    minimum: int
    maximum: int
    """Range of values that may be written, counts."""
    initial: int = 0
    unit: float = 1.0
    """SI units (rad, rad/s, rad/s², A, V, °C, s) per count."""
    origin: int = 0
    """Counts at 0 of the SI unit."""
    is_writable: bool = True

    @property
    def is_kept(self) -> bool:
        """Whether the value survives a loss of power and can be written only with torque off."""
        return self.address < RAM

    def decode(self, data: bytes) -> float:
        """Convert bytes to SI units."""
        return (self.counts(data) - self.origin) * self.unit

    def counts(self, data: bytes) -> int:
        """Convert bytes to a whole number.

        Raises:
            ValueError: there are too few or too many bytes.
        """
        if len(data) != self.size:
            raise ValueError(f"{self.name} has {len(data)} bytes, expected {self.size}")
        return int.from_bytes(data, "little", signed=self.minimum < 0)

    def encode(self, value: float) -> bytes:
        """Convert a value in SI units to bytes, rounded to the nearest count.

        Raises:
            ValueError: the value is not finite, or outside the register's range.
        """
        if not math.isfinite(value):
            raise ValueError(f"{self.name} is {value}, expected a finite number")
        counts = round(value / self.unit) + self.origin
        if not self.minimum <= counts <= self.maximum:
            lowest, highest = ((each - self.origin) * self.unit for each in (self.minimum, self.maximum))
            raise ValueError(f"{self.name} is {value:.4g}, expected {lowest:.4g} to {highest:.4g}")
        return counts.to_bytes(self.size, "little", signed=self.minimum < 0)


@dataclass(frozen=True)
class Model:
    """A servo model: its number, and its registers by name."""

    name: str
    number: int
    registers: dict[str, Register] = field(repr=False)
    stall_a: float
    """Max current that it draws, A."""
    indirect: tuple[tuple[int, int, int], ...] = ()
    """Blocks of indirect addressing: (address of the first pointer, address of the first datum, count)."""

    def __getitem__(self, name: str) -> Register:
        """Return a register by name; KeyError for an unknown name."""
        return self.registers[name]

    def block(self, first: str, last: str) -> tuple[int, int]:
        """Return address and size of the block from one register to another."""
        begin, end = self[first], self[last]
        return begin.address, end.address + end.size - begin.address


def _read(name: str, address: int, size: int, unit: float = 1.0, *, signed: bool = False, origin: int = 0) -> Register:
    most = (1 << (8 * size - signed)) - 1
    return Register(name, address, size, -most - 1 if signed else 0, most, 0, unit, origin, is_writable=False)


MODEL_NUMBER = _read("model_number", 0, 2)
XM430_REGISTERS = (
    MODEL_NUMBER,
    _read("model_information", 2, 4),
    _read("firmware_version", 6, 1),
    Register("id", 7, 1, 0, 252, 1),
    Register("baud_rate", 8, 1, 0, 7, 1),
    Register("return_delay_time", 9, 1, 0, 254, 250, 2e-6),
    Register("drive_mode", 10, 1, 0, 13),
    Register("operating_mode", 11, 1, 0, 16, 3),
    Register("secondary_id", 12, 1, 0, 255, 255),
    Register("protocol_type", 13, 1, 1, 2, 2),
    Register("homing_offset", 20, 4, -1_044_479, 1_044_479, 0, POSITION),
    Register("moving_threshold", 24, 4, 0, 1023, 10, VELOCITY),
    Register("temperature_limit", 31, 1, 0, 100, 80),
    Register("max_voltage_limit", 32, 2, 95, 160, 160, 0.1),
    Register("min_voltage_limit", 34, 2, 95, 160, 95, 0.1),
    Register("pwm_limit", 36, 2, 0, 885, 885, 1 / 885),
    Register("current_limit", 38, 2, 0, 1193, 1193, 2.69e-3),
    Register("velocity_limit", 44, 4, 0, 1023, 330, VELOCITY),
    Register("max_position_limit", 48, 4, 0, 4095, 4095, POSITION, CENTRE),
    Register("min_position_limit", 52, 4, 0, 4095, 0, POSITION, CENTRE),
    Register("startup_configuration", 60, 1, 0, 3),
    Register("shutdown", 63, 1, 0, 63, 52),
    Register("torque_enable", 64, 1, 0, 1),
    Register("led", 65, 1, 0, 1),
    Register("status_return_level", 68, 1, 0, 2, 2),
    _read("registered_instruction", 69, 1),
    _read("hardware_error_status", 70, 1),
    Register("velocity_i_gain", 76, 2, 0, 16_383, 1920),
    Register("velocity_p_gain", 78, 2, 0, 16_383, 100),
    Register("position_d_gain", 80, 2, 0, 16_383),
    Register("position_i_gain", 82, 2, 0, 16_383),
    Register("position_p_gain", 84, 2, 0, 16_383, 800),
    Register("feedforward_2nd_gain", 88, 2, 0, 16_383),
    Register("feedforward_1st_gain", 90, 2, 0, 16_383),
    Register("bus_watchdog", 98, 1, -1, 127, 0, 0.02),
    Register("goal_pwm", 100, 2, -885, 885, 0, 1 / 885),
    Register("goal_current", 102, 2, -1193, 1193, 0, 2.69e-3),
    Register("goal_velocity", 104, 4, -1023, 1023, 0, VELOCITY),
    Register("profile_acceleration", 108, 4, 0, 32_767, 0, ACCELERATION),
    Register("profile_velocity", 112, 4, 0, 32_767, 0, VELOCITY),
    Register("goal_position", 116, 4, -MAX_TURNS, MAX_TURNS, 0, POSITION, CENTRE),
    _read("realtime_tick", 120, 2, 1e-3),
    _read("moving", 122, 1),
    _read("moving_status", 123, 1),
    _read("present_pwm", 124, 2, 1 / 885, signed=True),
    _read("present_current", 126, 2, 2.69e-3, signed=True),
    _read("present_velocity", 128, 4, VELOCITY, signed=True),
    _read("present_position", 132, 4, POSITION, signed=True, origin=CENTRE),
    _read("velocity_trajectory", 136, 4, VELOCITY, signed=True),
    _read("position_trajectory", 140, 4, POSITION, signed=True, origin=CENTRE),
    _read("present_input_voltage", 144, 2, 0.1),
    _read("present_temperature", 146, 1),
    _read("backup_ready", 147, 1),
)
"""The registers that the XM430 servos share, as the W210 has them."""


def _with(registers: Iterable[Register], **changes: dict[str, float]) -> dict[str, Register]:
    found = {each.name: each for each in registers}
    return found | {name: replace(found[name], **change) for name, change in changes.items()}  # type: ignore[arg-type]


XM430_W210 = Model(
    "XM430-W210", 1030, _with(XM430_REGISTERS, model_number={"initial": 1030}), 2.3, ((168, 224, 28), (578, 634, 28))
)
XM430_W350 = Model(
    "XM430-W350",
    1020,
    _with(XM430_REGISTERS, model_number={"initial": 1020}, velocity_limit={"initial": 200}),
    2.3,
    ((168, 224, 28), (578, 634, 28)),
)
XL330_M288 = Model(
    "XL330-M288",
    1200,
    _with(
        (*XM430_REGISTERS, Register("pwm_slope", 62, 1, 1, 255, 140, 1.977)),
        model_number={"initial": 1200},
        baud_rate={"maximum": 6},
        protocol_type={"minimum": 2, "maximum": 22},
        temperature_limit={"initial": 70},
        max_voltage_limit={"minimum": 31, "maximum": 70, "initial": 70},
        min_voltage_limit={"minimum": 31, "maximum": 70, "initial": 35},
        current_limit={"maximum": 1750, "initial": 1750, "unit": 1e-3},
        velocity_limit={"maximum": 2047, "initial": 445},
        shutdown={"initial": 53},
        velocity_i_gain={"initial": 1600},
        velocity_p_gain={"initial": 180},
        position_p_gain={"initial": 400},
        goal_current={"minimum": -1750, "maximum": 1750, "unit": 1e-3},
        goal_velocity={"minimum": -2047, "maximum": 2047},
        present_current={"unit": 1e-3},
    ),
    1.47,
    ((168, 208, 20),),
)
MODELS = {model.number: model for model in (XM430_W210, XM430_W350, XL330_M288)}
"""Known models by their number."""
BAUD_RATES = (9600, 57_600, 115_200, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 4_500_000)
"""Bits per second by the value of the register `baud_rate`."""
