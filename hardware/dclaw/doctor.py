"""`r3l doctor RIG`: checks for the mistakes of a first set-up, one line each with the remedy."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from r3l.robot import FloatArray, RobotError
from r3l.run.disk_space import GIB, room_left
from r3l.run.goals import Goals

from ..camera.doctor import Line, check_camera
from ..dynamixel.bus import Bus, Pong
from ..dynamixel.chain import Chain
from ..dynamixel.control_table import BAUD_RATES, MODELS
from ..dynamixel.port import PortError
from .guard import Guard
from .hand import Hand, named
from .rig import ClawRig

SCAN_S = 1.2
"""Time by which every id has answered a broadcast."""
NIGHT_GIB = 8.0
"""Env steps of a night."""
WATCHDOG_FIRMWARE = 38
MAX_LATENCY_S = 0.002
READS, MAX_MISSING = 200, 0.001
"""Readings of all servos in the test, and the max share of missing answers."""
WIGGLE_RAD, WIGGLE_RAD_S, MIN_WIGGLE = 0.1, 0.5, 0.5
"""Distance and speed of a wiggle, and the min share of it that must be measured."""
SETTLING_S = 0.3
BEYOND = 0.1
"""Share of its range that a joint may read outside its limits."""


def examine(
    rig: ClawRig,
    folder: Path,
    *,
    goals: Goals | None = None,
    wiggles: bool = False,
    reboots: tuple[int, ...] = (),
) -> Iterator[Line]:
    """Yield each result as soon as it is known; torque is off afterwards.

    Args:
        rig: the hand's rig.
        folder: the folder for runs.
        goals: goal images to compare the camera with.
        wiggles: move every joint a little, slowly, unless a result forbids it.
        reboots: ids of servos to reboot first, which clears their hardware errors.
    """
    bus = Bus(rig.bus.port, rig.bus.baud_rate)
    chain = Chain(bus, rig.model, rig.drives, rig.limits)
    is_well = True
    for line in itertools.chain(_check_disk(folder), check_camera(rig.camera, rig.control_hz, goals), _check_port(bus)):
        is_well &= line.level != "FAIL"
        yield line
    if not bus.port.is_open:
        return
    try:
        chain.relax()
        for line in _check_servos(rig, chain, reboots):
            is_well &= line.level != "FAIL"
            yield line
    except RobotError as error:
        is_well = False
        yield Line("FAIL", str(error))
    finally:
        bus.close()
    if wiggles and is_well:
        yield from _wiggle(rig)
    elif wiggles:
        yield Line("note", "no joint was moved: mend what failed first")


def _check_disk(folder: Path) -> Iterator[Line]:
    room_gib = room_left(folder) / GIB
    if room_gib < NIGHT_GIB:
        yield Line("FAIL", f"disk: {room_gib:.1f} GiB free in {folder}, a night takes {NIGHT_GIB:g}; free some space")
    else:
        yield Line("ok", f"disk: {room_gib:.0f} GiB free")


def _check_port(bus: Bus) -> Iterator[Line]:
    port = bus.port
    try:
        port.open()
    except PortError as error:
        holder = _holder(port.path) if "in use" in str(error) else ""
        yield Line("FAIL", f"{error}{f'; it is {holder}' if holder else ''}")
        return
    if "/by-id/" not in port.path and Path(port.path).resolve().name.startswith(("ttyUSB", "ttyACM")):
        yield Line("note", f"port: {port.path} may get another name; use its name in /dev/serial/by-id")
    yield Line("ok", f"port: {port.path} opens at {port.baud_rate} baud, for this process alone")
    if port.latency_s > MAX_LATENCY_S:
        where = f"/sys/bus/usb-serial/devices/{Path(port.path).resolve().name}/latency_timer"
        advice = f"echo 1 | sudo tee {where}, or the udev rule of docs/hardware.md"
        yield Line("note", f"latency: the adapter keeps answers for {1000 * port.latency_s:.0f} ms; {advice}")


def _check_servos(rig: ClawRig, chain: Chain, reboots: tuple[int, ...]) -> Iterator[Line]:
    for servo in reboots:
        chain.reboot_all([servo])
        yield Line("ok", f"servo {servo} was rebooted")
    found = chain.bus.scan(SCAN_S)
    there = {servo: pongs[0] for servo, pongs in found.items()}
    for servo in chain.ids:
        pong = there.get(servo) or chain.bus.ping(servo)
        if pong is not None:
            there[servo] = pong
    if not there:
        yield from _check_other_rates(chain)
        return
    lines = list(_check_identity(rig, chain, found, there))
    yield from lines
    if any(line.level == "FAIL" for line in lines):
        return
    yield Line("ok", f"servos: all {len(chain.ids)} answer, {chain.model.name}, firmware {_firmware(there.values())}")
    yield from _check_settings(chain, there)
    chain.configure()
    yield from _check_health(rig, chain)
    yield from _check_wire(chain)


def _check_other_rates(chain: Chain) -> Iterator[Line]:
    """Search at every baud rate, which takes some seconds."""
    port = chain.bus.port
    for baud_rate in BAUD_RATES:
        if baud_rate == port.baud_rate:
            continue
        port.close()
        try:
            with Bus(port.path, baud_rate) as other:
                found = other.scan(SCAN_S)
        except PortError:
            continue  # the adapter does not support this rate
        if found:
            ids = ", ".join(map(str, sorted(found)))
            advice = f"set bus.baud_rate = {baud_rate} in the rig, or {port.baud_rate} in the servos (DYNAMIXEL Wizard)"
            yield Line("FAIL", f"baud rate: servos {ids} answer at {baud_rate} baud, not at {port.baud_rate}; {advice}")
            return
    yield Line("FAIL", "servos: nothing answers at any baud rate; check their power supply, switch and cables")


def _check_identity(rig: ClawRig, chain: Chain, found: dict[int, list[Pong]], there: dict[int, Pong]) -> Iterator[Line]:
    missing = [servo for servo in chain.ids if servo not in there]
    others = sorted(set(there) - set(chain.ids))
    for servo in sorted(found):
        if len(found[servo]) > 1:
            yield Line("FAIL", f"{len(found[servo])} servos answer as {servo}; give one another id (DYNAMIXEL Wizard)")
    for servo in missing:
        known = f"; {', '.join(map(str, others))} are there and in no rig" if others else ""
        yield Line("FAIL", f"{chain.name(servo)} does not answer{known}; check its cable and its id")
    if others and not missing:
        yield Line("note", f"servos {', '.join(map(str, others))} are on the bus and not in the rig")
    for servo in chain.ids:
        model = there[servo].model if servo in there else chain.model.number
        if model != chain.model.number:
            name = MODELS[model].name if model in MODELS else f"model number {model}"
            yield Line(
                "FAIL", f"{chain.name(servo)} is a {name}, expected {chain.model.name}; mend the rig's bus.model"
            )
        elif servo in there and there[servo].firmware < WATCHDOG_FIRMWARE:
            advice = "update it with DYNAMIXEL Wizard"
            yield Line("FAIL", f"{chain.name(servo)} has firmware {there[servo].firmware}, no watchdog; {advice}")


def _check_settings(chain: Chain, there: dict[int, Pong]) -> Iterator[Line]:
    """Name the settings that a run will change, since other programs may rely on them."""
    model = chain.model
    for name in ("operating_mode", "homing_offset", "drive_mode", "return_delay_time"):
        wanted = chain.settings()[name]
        odd = {servo: value for servo in chain.ids if (value := chain.bus.read(servo, model[name])) != wanted}
        if odd:
            servos = ", ".join(f"{servo} has {value:g}" for servo, value in odd.items())
            yield Line("note", f"setting {name}: {servos}; set to {wanted:g}, as a run does")


def _check_health(rig: ClawRig, chain: Chain) -> Iterator[Line]:
    errors = {servo: error for servo, (_, error) in chain.states().items() if error}
    for servo, error in errors.items():
        advice = f"check it, then r3l doctor --reboot {servo}"
        yield Line("FAIL", f"{chain.name(servo)} has the hardware error {named(error)}; {advice}")
    readings = chain.read()
    problem = Guard(rig.health, chain.drives).voltage_problem(readings)
    lowest, highest = float(np.nanmin(readings.voltage_v)), float(np.nanmax(readings.voltage_v))
    yield Line("FAIL", f"voltage: {problem}") if problem else Line("ok", f"voltage: {lowest:.1f} to {highest:.1f} V")
    hottest = int(np.nanargmax(readings.temperature_c))
    warmth = f"temperature: at most {readings.temperature_c[hottest]:.0f} °C ({chain.drives[hottest].name})"
    if readings.temperature_c[hottest] > rig.health.cool_c:
        yield Line("FAIL", f"{warmth}, expected {rig.health.cool_c:g} °C before a run; let it cool")
    else:
        yield Line("ok", warmth)
    is_inside = True
    for drive, angle in zip(chain.drives, readings.joint_rad, strict=True):
        low, high = drive.joint.min_rad, drive.joint.max_rad
        if not low - BEYOND * (high - low) <= angle <= high + BEYOND * (high - low):
            is_inside = False
            advice = "put the finger inside, or r3l calibrate"
            yield Line("FAIL", f"{drive.name} is at {angle:.2f} rad, expected {low:.2f} to {high:.2f}; {advice}")
    if is_inside:
        yield Line("ok", "joints: all inside their limits")


def _check_wire(chain: Chain) -> Iterator[Line]:
    missing, began_s = 0, time.monotonic()
    for _ in range(READS):
        missing += int(np.isnan(chain.read().joint_rad).sum())
    share, each_ms = missing / READS / len(chain.ids), 1000 * (time.monotonic() - began_s) / READS
    repeated = chain.bus.counts["missed_answers"]
    text = (
        f"wire: {READS} readings of all servos, {each_ms:.1f} ms each, {repeated} answers repeated, {missing} missing"
    )
    yield Line("FAIL", f"{text}; check plugs and cables") if share > MAX_MISSING else Line("ok", text)


def _wiggle(rig: ClawRig) -> Iterator[Line]:
    """Move one joint after the other a little, slowly, so that a person sees which joint moves."""
    slow = replace(rig, strength=replace(rig.strength, speed_rad_s=min(WIGGLE_RAD_S, rig.strength.speed_rad_s)))
    hand = Hand(slow)
    hand.open()
    try:
        begin = hand.measure().joint_rad.copy()
        for at, drive in enumerate(rig.drives):
            middle = (drive.joint.min_rad + drive.joint.max_rad) / 2
            offset = np.zeros_like(begin)
            offset[at] = WIGGLE_RAD if begin[at] < middle else -WIGGLE_RAD
            seen = _sent(hand, begin + offset)[at] - begin[at]
            _sent(hand, begin)
            if hand.troubles:
                yield Line("FAIL", hand.troubles[0].message)
                return
            text = f"{drive.name} was sent {offset[at]:+.2f} rad and moved {seen:+.2f}"
            if seen / offset[at] < MIN_WIGGLE:
                yield Line("FAIL", f"{text}; look for what holds it, or for a finger in its way")
            else:
                yield Line("ok", text)
    finally:
        hand.close()


def _sent(hand: Hand, target_rad: FloatArray) -> FloatArray:
    """Send all joints to a target and wait until they should be there; return their positions."""
    periods = round(hand.rig.control_hz * (SETTLING_S + WIGGLE_RAD / WIGGLE_RAD_S))
    for _ in range(periods):
        hand.send(target_rad)
        hand.restore_failed()
        time.sleep(1 / hand.rig.control_hz)
        seen = hand.measure().joint_rad
    return seen


def _holder(path: str) -> str:
    """Return the process that has a port open, as far as this user may see; empty for none."""
    real = os.path.realpath(path)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's process, or it ended meanwhile
            is_open = any(os.path.realpath(each) == real for each in (process / "fd").iterdir())
            if is_open and process.name != str(os.getpid()):
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"held by process {process.name} ({words[:60]})"
    return ""


def _firmware(pongs: Iterable[Pong]) -> str:
    return ", ".join(map(str, sorted({pong.firmware for pong in pongs})))
