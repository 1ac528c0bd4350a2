"""A rig: the facts of one hand on one table, in a TOML file that people and `r3l calibrate` write."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from r3l.config import UserError, from_dict, nearest
from r3l.robot import Joint
from r3l.run import files
from r3l.run.files import write_file
from r3l.task import Task

from ..camera.settings import CameraSettings
from ..camera.settings import problems as camera_problems
from ..dynamixel.chain import Drive, Limits
from ..dynamixel.control_table import BAUD_RATES, MODELS, Model
from ..dynamixel.protocol import MAX_ID
from .guard import Health
from .kinematics import FINGERS, Geometry, Workspace

ROBOT = "dclaw"
MAX_BYTES = 1 << 20
NAMES = tuple(f"finger{finger}_{part}" for finger in range(FINGERS) for part in ("swing", "curl", "tip"))
"""Joints in the order of every joint vector."""
IDS = tuple(10 * finger + part for finger in (1, 2, 3) for part in range(3))
"""Servo ids of a D'Claw as its makers number them."""


@dataclass(frozen=True)
class BusSettings:
    """The servo bus."""

    port: str = "/dev/serial/by-id/usb-FTDI_USB__-__Serial_Converter-if00-port0"
    """Serial port; a name of /dev/serial/by-id stays the same when the adapter is plugged in again."""
    baud_rate: int = 1_000_000
    """Baud rate that the servos are set to."""
    model: str = "XM430-W210"
    watchdog_s: float = 1.0
    """Silence after which a servo stops moving and holds."""


@dataclass(frozen=True)
class Strength:
    """Limits of force and speed for every joint."""

    current_a: float = 0.4
    """Cap of a servo's current: low enough to be held for hours without an overload."""
    speed_rad_s: float = 2.5
    acceleration_rad_s2: float = 20.0


@dataclass(frozen=True)
class JointSettings:
    """One joint: its servo, the servo's mounting, the joint's limits."""

    id: int
    sign: int = 1
    """1, or -1 if the servo turns against the joint."""
    offset_rad: float = 0.0
    """The servo's angle at joint angle 0."""
    min_rad: float = -1.0
    max_rad: float = 1.0


@dataclass(frozen=True)
class ClawRig:
    """A hand: every table of its file."""

    robot: str = ROBOT
    control_hz: float = 10.0
    """Commands per second; a task expects its own rate."""
    bus: BusSettings = field(default_factory=BusSettings)
    strength: Strength = field(default_factory=Strength)
    health: Health = field(default_factory=Health)
    geometry: Geometry = field(default_factory=Geometry)
    workspace: Workspace = field(default_factory=Workspace)
    camera: CameraSettings = field(default_factory=CameraSettings)
    joints: dict[str, JointSettings] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The servos' model."""
        return _models()[self.bus.model.lower()]

    @property
    def drives(self) -> tuple[Drive, ...]:
        """Joints with their servos, in the order of every joint vector."""
        found = ((name, self.joints[name]) for name in NAMES)
        return tuple(
            Drive(Joint(name, each.min_rad, each.max_rad), each.id, each.sign, each.offset_rad) for name, each in found
        )

    @property
    def limits(self) -> Limits:
        """The settings of every servo."""
        return Limits(
            self.strength.current_a,
            self.strength.speed_rad_s,
            self.strength.acceleration_rad_s2,
            self.health.hot_c,
            self.bus.watchdog_s,
        )


def default_rig(port: str = BusSettings.port) -> ClawRig:
    """Return the rig of an uncalibrated D'Claw whose servos are mounted as the twin's joints turn."""
    reach = {part: round(math.radians(half), 4) for part, half in (("swing", 60), ("curl", 60), ("tip", 90))}
    joints = {
        name: JointSettings(servo, min_rad=-reach[name.split("_")[1]], max_rad=reach[name.split("_")[1]])
        for name, servo in zip(NAMES, IDS, strict=True)
    }
    return ClawRig(bus=BusSettings(port=port), joints=joints)


def read_rig(path: Path) -> ClawRig:
    """Read a rig; UserError names its fault in one line."""
    try:
        values = tomllib.loads(files.read(path, MAX_BYTES).decode())
    except (OSError, ValueError) as error:
        why = "it does not exist" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"rig {path} cannot be read ({why}); r3l calibrate writes one") from error
    rig = from_dict(ClawRig, values, "")
    problem = next(problems(rig), None)
    if problem is not None:
        raise UserError(f"rig {path}: {problem}")
    return rig


def read_rig_for(path: Path, task: Task) -> ClawRig:
    """Read a rig for a task; UserError if the rig is faulty or its control rate is not the task's."""
    rig = read_rig(path)
    if rig.control_hz != task.rig.control_hz:
        theirs = f"task {task.name!r} {task.rig.control_hz:g}"
        raise UserError(f"rig {path} has control_hz {rig.control_hz:g}, {theirs}; make them equal")
    return rig


def write_rig(path: Path, rig: ClawRig) -> None:
    """Write a rig whole or not at all, with comments on its values."""
    write_file(path, to_toml(rig).encode())


def problems(rig: ClawRig) -> Iterator[str]:
    """Yield each fault of a rig, with its key first."""
    if rig.robot != ROBOT:
        yield f"robot is {rig.robot!r}, expected {ROBOT!r}; it is another robot's rig"
    if rig.bus.model.lower() not in _models():
        yield f"bus.model is {rig.bus.model!r}; {nearest(rig.bus.model, {model.name for model in MODELS.values()})}"
        return
    if not rig.bus.port:
        yield "bus.port is empty, expected a serial port: ls /dev/serial/by-id lists those of USB"
    if rig.bus.baud_rate not in BAUD_RATES:
        yield f"bus.baud_rate is {rig.bus.baud_rate}, expected one of {', '.join(map(str, BAUD_RATES))}"
    missing = [name for name in NAMES if name not in rig.joints]
    unknown = [name for name in rig.joints if name not in NAMES]
    if unknown:
        yield f"joints.{unknown[0]} is no joint; {nearest(unknown[0], NAMES)}"
    if missing:
        yield f"joints.{missing[0]} is missing; a hand has {len(NAMES)} joints"
        return
    yield from _number_problems(rig)
    yield from camera_problems(rig.camera)
    yield from _joint_problems(rig)


def _number_problems(rig: ClawRig) -> Iterator[str]:
    model, health, strength = rig.model, rig.health, rig.strength
    most_a = model["current_limit"].maximum * model["current_limit"].unit
    most_speed = model["velocity_limit"].initial * model["velocity_limit"].unit
    most_c = float(model["temperature_limit"].initial)
    ranges = {
        "control_hz": (rig.control_hz, 0.1, 100.0),
        "bus.watchdog_s": (rig.bus.watchdog_s, max(3 / max(rig.control_hz, 0.1), 0.1), 2.54),
        "strength.current_a": (strength.current_a, 0.01, most_a),
        "strength.speed_rad_s": (strength.speed_rad_s, 0.03, most_speed),
        "strength.acceleration_rad_s2": (strength.acceleration_rad_s2, 0.4, 1000.0),
        "health.hot_c": (health.hot_c, 30.0, most_c),
        "health.warm_c": (health.warm_c, 25.0, health.hot_c),
        "health.cool_c": (health.cool_c, 20.0, health.warm_c),
        "health.min_voltage_v": (health.min_voltage_v, 3.0, health.max_voltage_v),
        "health.max_voltage_v": (health.max_voltage_v, 3.0, model["max_voltage_limit"].maximum / 10),
    }
    ranges |= {f"geometry.{each.name}": (getattr(rig.geometry, each.name), 1e-3, 1.0) for each in fields(Geometry)}
    ranges["geometry.first_deg"] = (rig.geometry.first_deg, -360.0, 360.0)
    workspace = rig.workspace
    ranges |= {
        "workspace.radius_m": (workspace.radius_m, 0.01, 1.0),
        "workspace.lowest_m": (workspace.lowest_m, -1.0, workspace.highest_m),
        "workspace.highest_m": (workspace.highest_m, -1.0, 1.0),
        "workspace.clearance_m": (workspace.clearance_m, 0.0, 0.1),
    }
    for key, (value, least, most) in ranges.items():
        if not least <= value <= most:
            yield f"{key} is {value:g}, expected {least:g} to {most:g}"
    for number, box in enumerate(workspace.keep_out):
        is_whole = len(box.lower_m) == len(box.upper_m) == 3
        if not is_whole or not all(-1 <= low < high <= 1 for low, high in zip(box.lower_m, box.upper_m, strict=True)):
            yield f"workspace.keep_out[{number}] has lower_m {box.lower_m} and upper_m {box.upper_m}, expected rising"


def _joint_problems(rig: ClawRig) -> Iterator[str]:
    seen: dict[int, str] = {}
    for drive in rig.drives:
        where, joint = f"joints.{drive.joint.name}", drive.joint
        if not 0 <= drive.id <= MAX_ID:
            yield f"{where}.id is {drive.id}, expected 0 to {MAX_ID}"
        if drive.id in seen:
            yield f"{where}.id is {drive.id}, which is {seen[drive.id]}'s too; every servo has its own"
        seen[drive.id] = drive.joint.name
        if drive.sign not in (1, -1):
            yield f"{where}.sign is {drive.sign}, expected 1 or -1"
        if not -math.inf < joint.min_rad < joint.max_rad < math.inf:
            yield f"{where} has min_rad {joint.min_rad:g} and max_rad {joint.max_rad:g}, expected rising"
            continue
        ends = sorted(drive.servo_rad(angle) for angle in (joint.min_rad, joint.max_rad))
        if not (-math.pi <= ends[0] and ends[1] <= math.pi):
            yield (
                f"{where} reaches from {ends[0]:.2f} to {ends[1]:.2f} rad of its servo, expected within -3.14 to 3.14; "
                "mend its offset_rad and limits"
            )


def to_toml(rig: ClawRig) -> str:
    """Return a rig as the text of its file."""
    lines = [
        "# The rig of one D'Claw. Angles in rad, lengths in m, currents in A, temperatures in °C. docs/hardware.md",
        f"robot = {json.dumps(rig.robot)}",
        f"control_hz = {rig.control_hz!r}",
    ]
    tables = {
        "bus": "where the servos are; a servo that hears nothing for watchdog_s stops and holds",
        "strength": "of every joint; current_a can be held for hours",
        "health": "above warm_c the hand rests until cool_c; above hot_c the run ends",
        "geometry": "of the hand; z is up, 0 the table",
        "camera": "a source of /dev/v4l/by-id, or an MJPEG stream's address; crop is left, top, width, height",
    }
    for name, meaning in tables.items():
        table = getattr(rig, name)
        lines += ["", f"[{name}]  # {meaning}"]
        lines += [f"{each.name} = {_toml(getattr(table, each.name))}" for each in fields(table)]
    lines += ["", "[workspace]  # where fingertips may be, and how near two fingers may come"]
    lines += [f"{each.name} = {_toml(getattr(rig.workspace, each.name))}" for each in fields(Workspace)]
    lines += ["", "# servo angle = offset_rad + sign * joint angle", "[joints]"]
    for name in NAMES:
        values = ", ".join(
            f"{each.name} = {_toml(getattr(rig.joints[name], each.name))}" for each in fields(JointSettings)
        )
        lines.append(f"{name} = {{ {values} }}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if hasattr(value, "__dataclass_fields__"):
        return "{ " + ", ".join(f"{name} = {_toml(getattr(value, name))}" for name in value.__dataclass_fields__) + " }"
    return json.dumps(value) if isinstance(value, str) else repr(round(value, 6) if isinstance(value, float) else value)


def _models() -> dict[str, Model]:
    return {model.name.lower(): model for model in MODELS.values()}
