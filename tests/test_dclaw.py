"""The hand on its bus: it never lunges, comes back from what fails, and ends without torque."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from emulated import REST_RAD, WATCHDOG_S, EmulatedClaw

from benchmarks.running import WITH_DEFAULT_SIGNALS
from r3l.hardware.dclaw.envelope import Envelope
from r3l.hardware.dclaw.hand import Hand
from r3l.hardware.dclaw.kinematics import Kinematics
from r3l.hardware.dclaw.rig import IDS, default_rig, write_rig
from r3l.hardware.dynamixel.control_table import XL330_M288, HardwareError
from r3l.hardware.dynamixel.servo import Servo
from r3l.robot.base import RobotError, Trouble

STEP_RAD = 0.125
"""Of the emulated rig: 2.5 rad/s at 20 Hz."""


@pytest.fixture
def claw() -> Iterator[EmulatedClaw]:
    claw = EmulatedClaw()
    yield claw
    claw.emulator.plug_in()
    claw.emulator.faults.silent.clear()
    claw.close()
    claw.end()


@pytest.fixture
def moving(claw: EmulatedClaw) -> EmulatedClaw:
    """A hand that holds where it rested."""
    claw.connect()
    stay(claw)
    return claw


def stay(claw: EmulatedClaw, periods: int = 1) -> list[Trouble]:
    """Command the pose at rest so often; return what the robot found wrong with itself meanwhile."""
    found: list[Trouble] = []
    for _ in range(periods):
        claw.command(np.array(REST_RAD, np.float32))
        claw.observe()
        found += claw.troubles
    return found


def names(found: list[Trouble]) -> list[str]:
    return [trouble.name for trouble in found]


class Motion:
    """Records how far and how fast the joints really move."""

    def __init__(self, claw: EmulatedClaw) -> None:
        self.farthest_rad = self.fastest_rad_s = 0.0
        self._begin = {servo: each.angle_rad for servo, each in claw.servos.items()}
        for servo, each in claw.servos.items():
            each.advance = self._watched(servo, each, each.advance)

    def _watched(self, number: int, servo: Servo, advance: Callable[[float], None]) -> Callable[[float], None]:
        def watched(seconds: float) -> None:
            advance(seconds)
            self.farthest_rad = max(self.farthest_rad, abs(servo.angle_rad - self._begin[number]))
            self.fastest_rad_s = max(self.fastest_rad_s, abs(servo.velocity_rad_s))

        return watched


# Setting up


def test_every_setting_is_made_before_torque_comes_on(claw: EmulatedClaw) -> None:
    order: list[tuple[int, str]] = []
    for servo, each in claw.servos.items():
        each.on_write = lambda name, counts, servo=servo: order.append((servo, name))
    claw.connect()
    assert claw.has_torque == {False}
    stay(claw)
    rig = claw.rig
    for servo, each in claw.servos.items():
        assert each.is_on
        assert each.counts("operating_mode") == 5
        assert each.counts("return_delay_time") == 0
        assert each.value("goal_current") == pytest.approx(rig.strength.current_a, abs=3e-3)
        assert each.value("current_limit") == pytest.approx(rig.strength.current_a, abs=3e-3)
        assert each.value("profile_velocity") == pytest.approx(rig.strength.speed_rad_s, abs=0.03)
        assert each.value("profile_acceleration") == pytest.approx(rig.strength.acceleration_rad_s2, abs=0.4)
        assert each.value("bus_watchdog") == pytest.approx(rig.bus.watchdog_s)
        assert each.counts("temperature_limit") == rig.health.hot_c
        own = [name for number, name in order if number == servo]
        on = len(own) - 1 - own[::-1].index("torque_enable")
        assert set(own[on + 1 :]) <= {"goal_position", "bus_watchdog"}, "nothing but goals once it has torque"
        assert "goal_position" in own[:on], "which was where the joint is before it had torque"


@pytest.mark.parametrize("sign", [1, -1])
def test_sign_and_offset_are_the_servos_alone(sign: int) -> None:
    rig = dataclasses.replace(default_rig(), control_hz=20.0)
    joints = {name: dataclasses.replace(each, sign=sign, offset_rad=0.4) for name, each in rig.joints.items()}
    claw = EmulatedClaw(dataclasses.replace(rig, joints=joints))
    try:
        with claw:
            assert claw.observe().joint_rad == pytest.approx(REST_RAD, abs=0.002)
            target = np.array(REST_RAD, np.float32) + 0.1
            for _ in range(12):
                claw.command(target)
                seen = claw.observe()
            assert seen.joint_rad == pytest.approx(target, abs=0.02)
            assert claw.angles == pytest.approx(target, abs=0.02)
    finally:
        claw.end()


def test_settings_that_are_right_are_not_written_again(claw: EmulatedClaw) -> None:
    """EEPROM wears."""
    with claw:
        stay(claw)
    written: list[str] = []
    for servo in claw.servos.values():
        servo.on_write = lambda name, counts: written.append(name)
    with claw:
        stay(claw)
    assert {"operating_mode", "current_limit", "return_delay_time", "temperature_limit"}.isdisjoint(written)


# No lunge


def test_taking_hold_moves_nothing(claw: EmulatedClaw) -> None:
    motion = Motion(claw)
    claw.connect()
    stay(claw, 5)
    assert claw.has_torque == {True}
    assert motion.farthest_rad < 0.01
    assert motion.fastest_rad_s < 0.3


@pytest.mark.parametrize("servos", [[11], list(IDS)], ids=["one", "all"])
def test_after_a_loss_of_power_nothing_lunges_and_all_hold_again(moving: EmulatedClaw, servos: list[int]) -> None:
    motion = Motion(moving)
    moving.emulator.brown_out(servos)
    found = stay(moving, 4)
    assert moving.has_torque == {True}
    assert motion.farthest_rad < 0.02
    assert motion.fastest_rad_s < 0.5
    assert len(found) == len(servos)
    assert {each.action for each in found} == {"skip"}
    assert all(each.name.startswith("restarted-") for each in found)
    for servo in servos:
        assert moving.servos[servo].value("goal_current") == pytest.approx(moving.rig.strength.current_a, abs=3e-3)
        assert moving.servos[servo].value("bus_watchdog") == pytest.approx(moving.rig.bus.watchdog_s)


def test_a_joint_that_fell_meanwhile_comes_back_slowly(moving: EmulatedClaw) -> None:
    moving.servos[11].brown_out()
    moving.servos[11].angle_rad -= 0.6
    moving.servos[11].power_on()
    motion = Motion(moving)
    stay(moving, 15)
    assert motion.fastest_rad_s <= 1.3 * moving.rig.strength.speed_rad_s
    assert moving.angles == pytest.approx(REST_RAD, abs=0.03)


def test_commands_are_steps_from_where_the_joints_are_sent(moving: EmulatedClaw) -> None:
    sent = [moving.command(np.full(9, 1.0, np.float32)) for _ in range(4)]
    assert np.abs(np.diff([REST_RAD, *sent], axis=0)).max() <= STEP_RAD + 0.002


# What fails


def test_an_overload_is_answered_by_a_reboot_three_times_at_most(moving: EmulatedClaw) -> None:
    motion = Motion(moving)
    for _ in range(3):
        moving.servos[12].fail(HardwareError.OVERLOAD)
        found = stay(moving, 4)
        assert names(found) == ["overload-finger0_tip"]
        assert "°C" in found[0].message
        assert "is rebooted" in found[0].message
        assert moving.has_torque == {True}
    assert motion.farthest_rad < 0.02
    moving.servos[12].fail(HardwareError.OVERLOAD)
    assert ("latched-finger0_tip", "stop") in {(each.name, each.action) for each in stay(moving, 2)}
    assert moving.has_torque == {False}
    moving.servos[12].power_on()
    assert names(stay(moving, 2)) == ["latched-finger0_tip"] * 2, "whatever the servo says since"
    assert moving.has_torque == {False}


@pytest.mark.parametrize("error", [each for each in HardwareError if each is not HardwareError.OVERLOAD])
def test_any_other_hardware_error_latches(moving: EmulatedClaw, error: HardwareError) -> None:
    moving.servos[21].fail(error)
    found = stay(moving, 3)
    assert set(names(found)) == {"latched-finger1_curl"}
    assert found[0].action == "stop"
    assert "servo 21 (finger1_curl)" in found[0].message
    assert moving.has_torque == {False}
    moving.close()
    with pytest.raises(RobotError, match=r"servo 21 .*hardware error") as raised:
        moving.connect()
    assert "\n" not in str(raised.value)
    assert moving.has_torque == {False}
    moving.emulator.brown_out([21])
    moving.connect()


def test_a_warm_servo_rests_until_it_is_cool(moving: EmulatedClaw) -> None:
    moving.servos[30].temperature_c = 61.0
    found = stay(moving)
    assert names(found) == ["warm-finger2_swing"]
    assert found[0].action == "pause"
    assert "61 °C" in found[0].message
    assert moving.has_torque == {False}
    assert names(stay(moving)) == ["warm-finger2_swing"], "whoever goes on commanding"
    assert moving.has_torque == {False}
    moving.servos[30].temperature_c = 55.0
    moving.observe()
    assert names(list(moving.troubles)) == ["warm-finger2_swing"], "it is to be cool first"
    moving.servos[30].temperature_c = 49.0
    moving.observe()
    assert moving.troubles == ()
    assert names(stay(moving)) == []
    assert moving.has_torque == {True}


def test_a_hot_servo_ends_the_work(moving: EmulatedClaw) -> None:
    for servo in moving.servos.values():
        servo.set_counts("temperature_limit", 100)  # as if the servo's own limit were not there
    moving.servos[30].temperature_c = 72.0
    found = stay(moving, 2)
    assert ("latched-finger2_swing", "stop") in {(each.name, each.action) for each in found}
    moving.servos[30].temperature_c = 30.0
    assert names(stay(moving)) == ["latched-finger2_swing"]
    assert moving.has_torque == {False}


def test_a_port_that_is_gone_is_told_and_used_again_without_torque(moving: EmulatedClaw) -> None:
    motion = Motion(moving)
    moving.emulator.unplug()
    found = stay(moving, 3)
    assert set(names(found)) == {"port"}
    assert found[0].action == "pause"
    assert np.isnan(moving.observe().joint_rad).all()
    with pytest.raises(RobotError, match=r"torque cannot be taken off.*take their power away"):
        moving.relax()
    moving.emulator.plug_in()
    until_s = time.monotonic() + 20
    while moving.troubles and time.monotonic() < until_s:
        seen = moving.observe()
    assert seen.joint_rad == pytest.approx(REST_RAD, abs=0.02)
    assert moving.has_torque == {False}
    stay(moving, 2)
    assert moving.has_torque == {True}
    assert motion.farthest_rad < 0.02


def test_a_servo_that_says_nothing_is_nan_and_then_a_pause(moving: EmulatedClaw) -> None:
    moving.emulator.faults.silent.add(20)
    found = stay(moving, 6)
    assert {(each.name, each.action) for each in found} == {("silent-finger1_swing", "pause"), ("relax", "pause")}
    # A stalled computer may miss the answers of all servos once; the silent servo is missing every time.
    missing = [np.flatnonzero(np.isnan(moving.observe().joint_rad)).tolist() for _ in range(5)]
    assert all(3 in joints for joints in missing)
    assert [3] in missing
    with pytest.raises(RobotError, match=r"servo 20 .*did not confirm"):
        moving.relax()
    assert moving.has_torque == {False}, "it hears all the same"
    moving.emulator.faults.silent.clear()
    time.sleep(1.0)
    moving.observe()
    assert moving.troubles == ()
    stay(moving)
    assert moving.has_torque == {True}


def test_a_supply_that_sags_is_told(moving: EmulatedClaw) -> None:
    for servo in moving.servos.values():
        servo.voltage_v = 10.0
    found = stay(moving)
    assert names(found) == ["voltage"]
    assert "10.0 V" in found[0].message


def test_a_watchdog_that_stopped_the_servos_is_cleared(moving: EmulatedClaw) -> None:
    time.sleep(moving.rig.bus.watchdog_s + 0.3)
    assert {servo.counts("bus_watchdog") for servo in moving.servos.values()} == {-1}
    assert moving.has_torque == {True}, "it holds, and lets nothing go"
    found = stay(moving, 12)
    assert len([each for each in found if each.name.startswith("settings-")]) == len(IDS)
    assert {servo.counts("bus_watchdog") for servo in moving.servos.values()} == {round(WATCHDOG_S / 0.02)}
    target = np.array(REST_RAD, np.float32) + 0.05
    for _ in range(10):
        moving.command(target)
        moving.observe()
    assert moving.angles == pytest.approx(target, abs=0.02)


def test_settings_that_somebody_changed_are_made_again(moving: EmulatedClaw) -> None:
    moving.servos[31].set_counts("profile_velocity", 0)  # as fast as it can
    found = stay(moving, len(IDS) + 1)
    assert names(found) == ["settings-finger2_curl"]
    assert moving.servos[31].value("profile_velocity") == pytest.approx(moving.rig.strength.speed_rad_s, abs=0.03)


def test_damaged_packets_change_nothing(moving: EmulatedClaw) -> None:
    moving.emulator.faults.corrupt = 0.02
    seen = []
    for _ in range(40):
        moving.command(np.array(REST_RAD, np.float32))
        seen.append(moving.observe().joint_rad)
    moving.emulator.faults.corrupt = 0.0
    found = np.array(seen)
    assert np.isnan(found).mean() < 0.03
    assert np.nanmax(np.abs(found - REST_RAD)) < 0.02, "no value is wrong"
    stay(moving, 3)
    assert moving.has_torque == {True}


# What an independent emulator found


def test_no_finger_passes_through_another_on_its_way(claw: EmulatedClaw) -> None:
    """The ends of a step may both be allowed, and what is between not."""
    kinematics, rng = Kinematics(claw.rig.geometry, claw.rig.workspace), np.random.default_rng(0)
    envelope = Envelope(tuple(drive.joint for drive in claw.rig.drives), 0.5, kinematics)
    lower, upper = claw.spec.lower_rad, claw.spec.upper_rad
    pose = np.zeros(9, np.float32)
    for _ in range(400):
        target = rng.uniform(lower, upper).astype(np.float32)
        sent = envelope.limit(target, pose)
        ways = pose + np.linspace(0, 1, 50)[:, None] * (sent - pose)
        assert kinematics.excess(ways).max() < 0.006, "but for what is between two places that are looked at"
        pose = sent


def test_one_finger_outside_frees_no_other(claw: EmulatedClaw) -> None:
    kinematics = Kinematics(claw.rig.geometry, claw.rig.workspace)
    envelope = Envelope(tuple(drive.joint for drive in claw.rig.drives), 0.25, kinematics)
    pose = np.array([0.0, -1.04, -1.4] + [0.0] * 6, np.float32)
    assert kinematics.excess(pose) > 0.005
    target = np.array([0.0, -1.04, -1.4, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0], np.float32)
    for _ in range(20):
        pose = envelope.limit(target, pose)
    assert kinematics.excesses(pose)[3:].max() <= 1e-6, "the other two keep their distance"


def test_a_joint_that_is_held_is_not_sent_ever_farther(moving: EmulatedClaw) -> None:
    held = moving.servos[11]
    held.mechanics.lowest_rad = held.mechanics.highest_rad = held.angle_rad
    target = np.array(REST_RAD, np.float32)
    target[1] += 1.2
    for _ in range(15):
        moving.command(target)
        moving.observe()
    assert abs(held.value("goal_position") - held.angle_rad) <= 0.41


def test_torque_goes_off_when_the_port_is_back_at_the_end(moving: EmulatedClaw) -> None:
    moving.emulator.unplug()
    stay(moving)
    moving.emulator.plug_in()
    moving.close()
    assert moving.has_torque == {False}


def test_a_servo_that_did_not_hear_relax_is_told_again(moving: EmulatedClaw) -> None:
    deaf = moving.servos[20]
    answer, deaf.answer = deaf.answer, lambda packet: None
    moving.servos[31].temperature_c = 62.0
    found = stay(moving)
    assert "warm-finger2_curl" in names(found)
    assert "relax" in names(found)
    assert deaf.is_on
    deaf.answer = answer
    until_s = time.monotonic() + 10
    while deaf.is_on and time.monotonic() < until_s:
        moving.observe()
    assert moving.has_torque == {False}
    moving.observe()
    assert "relax" not in names(list(moving.troubles))


def test_connecting_to_a_servo_that_is_deaf_for_a_while_leaves_no_torque(claw: EmulatedClaw) -> None:
    deaf = claw.servos[20]
    deaf.set_counts("torque_enable", 1)
    answer, until_s = deaf.answer, time.monotonic() + 0.6
    deaf.answer = lambda packet: answer(packet) if time.monotonic() > until_s else None
    with contextlib.suppress(RobotError):
        claw.connect()
    assert claw.has_torque == {False}


def test_a_joint_beyond_the_servos_end_is_where_it_is(claw: EmulatedClaw) -> None:
    rig = claw.rig
    joints = rig.joints | {"finger0_tip": dataclasses.replace(rig.joints["finger0_tip"], offset_rad=1.5)}
    other = EmulatedClaw(dataclasses.replace(rig, joints=joints))
    try:
        other.servos[12].angle_rad = 1.68 + 1.5  # beyond its limit, and beyond pi
        other.servos[12].angle_rad -= 2 * np.pi  # which a servo does not know after a start
        motion = Motion(other)
        with other:
            assert other.observe().joint_rad[2] == pytest.approx(1.68, abs=0.01)
            for _ in range(15):
                other.command(np.array(REST_RAD, np.float32))
                other.observe()
            assert other.observe().joint_rad == pytest.approx(REST_RAD, abs=0.03)
        assert motion.farthest_rad < 1.6, "the short way"
    finally:
        other.end()


def test_what_other_programs_set_is_undone_before_anything_is_measured(claw: EmulatedClaw) -> None:
    claw.servos[10].set_counts("homing_offset", 1024)
    claw.servos[11].set_counts("status_return_level", 0)
    claw.connect()
    assert claw.observe().joint_rad == pytest.approx(REST_RAD, abs=0.01)


def test_a_servo_that_is_lost_again_and_again_is_for_a_person(moving: EmulatedClaw) -> None:
    for _ in range(11):
        moving.emulator.brown_out([22])
        found = stay(moving, 2)
    assert ("latched-finger1_tip", "stop") in {(each.name, each.action) for each in found}
    assert moving.has_torque == {False}


def test_an_error_while_there_is_no_torque_is_told_too(moving: EmulatedClaw) -> None:
    moving.relax()
    moving.servos[21].fail(HardwareError.OVERHEATING)
    moving.observe()
    assert names(list(moving.troubles)) == ["latched-finger1_curl"]


def test_nine_overloads_at_once_are_answered_together(moving: EmulatedClaw) -> None:
    for servo in moving.servos.values():
        servo.fail(HardwareError.OVERLOAD)
    found = stay(moving, 2)
    assert len([each for each in found if each.name.startswith("overload-")]) == len(IDS)
    assert moving.has_torque == {True}


def test_an_overload_is_told_though_the_reboot_is_not_acknowledged(moving: EmulatedClaw) -> None:
    servo = moving.servos[12]
    answer = servo.answer
    servo.answer = lambda packet: None if answer(packet) is not None and packet.instruction == 8 else answer(packet)
    servo.fail(HardwareError.OVERLOAD)
    found = stay(moving, 3)
    assert names(found)[0] == "overload-finger0_tip"
    assert moving.has_torque == {True}


@pytest.mark.parametrize("target", ["abc", {}, [[1.0], [2.0, 3.0]], [1e40] * 9, [1j] * 9])
def test_what_is_no_pose_is_refused_in_one_line(moving: EmulatedClaw, target: object) -> None:
    with pytest.raises(RobotError, match="command refused") as raised:
        moving.command(target)
    assert "\n" not in str(raised.value)


# Bad input


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda claw: claw.emulator.faults.silent.update(IDS), "none of the servos .* answers.*r3l doctor"),
        (lambda claw: claw.emulator.faults.silent.add(12), r"servo 12 \(finger0_tip\) not found"),
        (lambda claw: claw.servos[12].set_counts("id", 11), "two servos answer as 11"),
        (
            lambda claw: [each.set_counts("baud_rate", 1) for each in claw.servos.values()],
            "at 1000000 baud, nothing does",
        ),
        (lambda claw: claw.servos[20].set_counts("model_number", 1020), "is a XM430-W350, expected XM430-W210"),
        (lambda claw: setattr(claw.servos[20], "voltage_v", 15.0), r"15.0 V, expected 10.5 to 14 V"),
        (lambda claw: claw.emulator.unplug(), "is not there"),
        (lambda claw: claw.servos[22].fail(HardwareError.OVERLOAD), "servo 22 .*overload.*r3l doctor"),
    ],
)
def test_what_is_wrong_at_connect_is_one_line_and_no_torque(
    claw: EmulatedClaw, break_it: Callable[[EmulatedClaw], object], expected: str
) -> None:
    for servo in claw.servos.values():
        servo.set_counts("torque_enable", 1)  # as a process left it that was killed
    break_it(claw)
    claw.emulator.servos = {servo.id: servo for servo in claw.emulator.chain}
    with pytest.raises(RobotError, match=expected) as raised:
        claw.connect()
    assert "\n" not in str(raised.value)
    heard = [servo for servo in claw.emulator.chain if servo.counts("baud_rate") == 3 and claw.emulator.is_plugged_in]
    assert not any(servo.is_on for servo in heard)
    assert not claw.hand.bus.port.is_open


def test_a_second_process_on_the_port_is_refused(moving: EmulatedClaw) -> None:
    with pytest.raises(RobotError, match="in use by another process"):
        Hand(moving.rig).open()
    stay(moving)
    assert moving.has_torque == {True}, "the first one goes on"


def test_a_command_that_is_no_pose_is_refused(moving: EmulatedClaw) -> None:
    for target in ([np.nan] * 9, [np.inf] * 9, [0.0] * 8):
        with pytest.raises(RobotError, match="command refused"):
            moving.command(np.array(target, np.float32))
    assert moving.angles == pytest.approx(REST_RAD, abs=0.01)


def test_another_model_takes_its_own_units() -> None:
    rig = default_rig()
    health = dataclasses.replace(rig.health, min_voltage_v=4.0, max_voltage_v=6.0)
    bus = dataclasses.replace(rig.bus, model="XL330-M288")
    claw = EmulatedClaw(dataclasses.replace(rig, control_hz=20.0, bus=bus, health=health))
    try:
        with claw:
            stay(claw, 3)
            assert claw.rig.model is XL330_M288
            assert {servo.counts("goal_current") for servo in claw.servos.values()} == {400}
            assert claw.angles == pytest.approx(REST_RAD, abs=0.01)
    finally:
        claw.end()


# Torque ends off


def test_torque_is_off_after_close_and_after_an_exception(claw: EmulatedClaw) -> None:
    with claw:
        stay(claw)
        assert claw.has_torque == {True}
    assert claw.has_torque == {False}

    def fail() -> None:
        with claw:
            stay(claw)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert claw.has_torque == {False}


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from r3l.hardware.dclaw.rig import read_rig
from r3l.hardware.dclaw.robot import DClaw
claw = DClaw(read_rig(Path(sys.argv[1])))
{begin}
claw.command(np.zeros(9, np.float32))
print("moving", flush=True)
while True:
    claw.observe()
    claw.command(np.zeros(9, np.float32))
"""


def end(process: subprocess.Popen[str]) -> None:
    """Wait until a process has ended, and leave none behind that would not."""
    try:
        process.wait(20)
    finally:
        process.kill()


THREADED = """
import sys, threading, time
from pathlib import Path
import numpy as np
from r3l.hardware.dclaw.rig import read_rig
from r3l.hardware.dclaw.robot import DClaw
claw = DClaw(read_rig(Path(sys.argv[1])))
claw.connect()
def drive():
    while True:
        claw.command(np.zeros(9, np.float32))
        claw.observe()
        print("moving", flush=True)
threading.Thread(target=drive).start()
while True:
    time.sleep(1)
"""


def test_torque_is_off_at_once_after_sigterm_though_a_thread_drives_on(claw: EmulatedClaw, tmp_path: Path) -> None:
    write_rig(tmp_path / "rig.toml", claw.rig)
    command = [sys.executable, "-c", THREADED, str(tmp_path / "rig.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "moving\n"
        process.terminate()
        end(process)
    assert claw.has_torque == {False}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_torque_is_off_after_a_signal(claw: EmulatedClaw, number: int, tmp_path: Path) -> None:
    write_rig(tmp_path / "rig.toml", claw.rig)
    command = [
        *WITH_DEFAULT_SIGNALS,
        sys.executable,
        "-c",
        SCRIPT.format(begin="claw.connect()"),
        str(tmp_path / "rig.toml"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "moving\n"
        assert claw.has_torque == {True}
        os.kill(process.pid, number)
        end(process)
    assert claw.has_torque == {False}


def test_after_a_kill_servos_hold_until_another_process_relaxes_them(claw: EmulatedClaw, tmp_path: Path) -> None:
    write_rig(tmp_path / "rig.toml", claw.rig)
    command = [
        *WITH_DEFAULT_SIGNALS,
        sys.executable,
        "-c",
        SCRIPT.format(begin="claw.connect()"),
        str(tmp_path / "rig.toml"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "moving\n"
        process.kill()
        end(process)
    assert claw.has_torque == {True}
    time.sleep(claw.rig.bus.watchdog_s + 0.3)
    assert {servo.counts("bus_watchdog") for servo in claw.servos.values()} == {-1}, "they stopped moving by themselves"
    claw.relax_for()
    assert claw.has_torque == {False}


def test_relaxing_in_place_of_another_needs_no_whole_hand(claw: EmulatedClaw) -> None:
    for servo in claw.servos.values():
        servo.set_counts("torque_enable", 1)
    claw.servos[22].fail(HardwareError.OVERHEATING)
    claw.emulator.faults.silent.add(10)
    with pytest.raises(RobotError, match=r"servo 10 .*did not confirm"):
        claw.relax_for()
    assert claw.has_torque == {False}
