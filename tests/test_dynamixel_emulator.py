"""The emulated servos: their rules, their motion, and clients that others wrote."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dynamixel_sdk import GroupBulkRead, GroupSyncRead, GroupSyncWrite, PacketHandler, PortHandler
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.running import WITH_DEFAULT_SIGNALS
from r3l.cli import main as cli
from r3l.hardware.dynamixel import protocol
from r3l.hardware.dynamixel.bus import Bus
from r3l.hardware.dynamixel.control_table import MODELS, XL330_M288, XM430_W210, XM430_W350, Model, Register
from r3l.hardware.dynamixel.emulator import Emulator
from r3l.hardware.dynamixel.protocol import Decoder, Instruction, Packet, StatusError
from r3l.hardware.dynamixel.servo import REBOOT_S, HardwareError, Servo

IDS = [1, 2, 3]
CURRENT_POSITION = 5


def ask(servo: Servo, request: bytes) -> Packet | None:
    """Return a servo's answer to a request."""
    (packet,) = Decoder().feed(request)
    answer = servo.answer(packet)
    return Decoder().feed(answer)[0] if answer else None


def write(servo: Servo, name: str, counts: int) -> int:
    """Write to a register; return the error."""
    register = servo.model[name]
    data = counts.to_bytes(register.size, "little", signed=counts < 0)
    packet = ask(servo, protocol.write(servo.id, register.address, data))
    assert packet is not None
    error: int = packet.error
    return error


def live(servo: Servo, seconds: float) -> None:
    for _ in range(round(seconds / 0.01)):
        servo.advance(0.01)


@pytest.fixture
def servo() -> Servo:
    return Servo(1)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_registers_start_as_the_manual_says_and_do_not_overlap(model: Model) -> None:
    servo, taken = Servo(1, model), set[int]()
    for register in model.registers.values():
        place = set(range(register.address, register.address + register.size))
        assert not place & taken, register.name
        taken |= place
    assert servo.counts("model_number") == model.number
    assert servo.counts("return_delay_time") == 250
    assert servo.counts("operating_mode") == 3
    assert not servo.is_on


@pytest.mark.parametrize(
    ("name", "counts", "error"),
    [
        ("present_position", 5, StatusError.ACCESS),
        ("model_number", 5, StatusError.ACCESS),
        ("torque_enable", 2, StatusError.DATA_RANGE),
        ("operating_mode", 2, StatusError.DATA_RANGE),
        ("goal_position", 4096, StatusError.DATA_LIMIT),
        ("goal_position", -1, StatusError.DATA_LIMIT),
        ("goal_position", 4095, 0),
        ("goal_current", 1193, 0),
        ("goal_current", 1194, StatusError.DATA_RANGE),
        ("bus_watchdog", 127, 0),
        ("bus_watchdog", -1, StatusError.DATA_RANGE),
        ("id", 253, StatusError.DATA_RANGE),
    ],
)
def test_writes_are_refused_as_the_manual_says(servo: Servo, name: str, counts: int, error: int) -> None:
    before = servo.counts(name)
    assert write(servo, name, counts) == error
    assert servo.counts(name) == (before if error else counts)


def test_goals_are_held_to_the_limits_that_are_set(servo: Servo) -> None:
    assert write(servo, "current_limit", 100) == 0
    assert write(servo, "goal_current", 101) == StatusError.DATA_LIMIT
    assert write(servo, "max_position_limit", 3000) == 0
    assert write(servo, "goal_position", 3001) == StatusError.DATA_LIMIT
    assert write(servo, "operating_mode", CURRENT_POSITION) == 0
    assert write(servo, "goal_position", 9000) == 0


def test_what_is_kept_is_written_with_torque_off_alone(servo: Servo) -> None:
    assert write(servo, "torque_enable", 1) == 0
    assert write(servo, "current_limit", 100) == StatusError.ACCESS
    assert write(servo, "torque_enable", 0) == 0
    assert write(servo, "current_limit", 100) == 0


def test_part_of_a_register_is_not_written(servo: Servo) -> None:
    packet = ask(servo, protocol.write(1, XM430_W210["goal_position"].address, b"\0\x01"))
    assert packet is not None
    assert packet.error == StatusError.DATA_LENGTH


def test_a_write_over_several_registers_is_done_as_a_whole_or_not_at_all(servo: Servo) -> None:
    first = XM430_W210["profile_acceleration"].address
    good = b"".join(each.to_bytes(4, "little") for each in (10, 20, 2500))
    bad = b"".join(each.to_bytes(4, "little") for each in (11, 21, 9999))
    for data, error in ((good, 0), (bad, StatusError.DATA_LIMIT)):
        packet = ask(servo, protocol.write(1, first, data))
        assert packet is not None
        assert packet.error == error
    assert [servo.counts(name) for name in ("profile_acceleration", "profile_velocity", "goal_position")] == [
        10,
        20,
        2500,
    ]


def test_indirect_addresses_reach_other_registers(servo: Servo) -> None:
    address = XM430_W210["present_temperature"].address
    assert servo.write(168, address.to_bytes(2, "little")) == 0
    servo.temperature_c = 41.0
    assert servo.read(224, 1) == (0, b"\x29")


def test_a_reboot_brings_back_what_is_not_kept(servo: Servo) -> None:
    for name, counts in (("current_limit", 300), ("goal_current", 77), ("profile_velocity", 50), ("torque_enable", 1)):
        assert write(servo, name, counts) == 0
    servo.fail(HardwareError.OVERLOAD)
    assert not servo.is_on
    assert write(servo, "torque_enable", 1) == 0
    assert not servo.is_on, "only a reboot gives torque again"
    assert ask(servo, protocol.reboot(1)) is not None
    assert ask(servo, protocol.ping(1)) is None, "a servo that starts answers nothing"
    servo.advance(REBOOT_S)
    pong = ask(servo, protocol.ping(1))
    assert pong is not None
    assert not pong.alert
    assert (servo.counts("current_limit"), servo.counts("profile_velocity")) == (300, 0)
    assert write(servo, "torque_enable", 1) == 0
    assert servo.is_on


def test_a_brown_out_takes_torque_and_what_is_not_kept(servo: Servo) -> None:
    assert write(servo, "current_limit", 300) == 0
    assert write(servo, "torque_enable", 1) == 0
    servo.brown_out()
    assert ask(servo, protocol.ping(1)) is None
    servo.power_on()
    assert not servo.is_on
    assert servo.counts("current_limit") == 300


@pytest.mark.parametrize("level", [0, 1, 2])
def test_answers_are_given_by_the_status_return_level(servo: Servo, level: int) -> None:
    ask(servo, protocol.write(1, XM430_W210["status_return_level"].address, bytes([level])))
    asked = {0: protocol.ping(1), 1: protocol.read(1, 132, 4), 2: protocol.write(1, 65, b"\x01")}
    assert [at for at, request in asked.items() if ask(servo, request)] == list(range(level + 1))


def test_the_watchdog_stops_a_servo_that_hears_nothing_and_is_cleared_by_zero(servo: Servo) -> None:
    for name, counts in (("operating_mode", CURRENT_POSITION), ("bus_watchdog", 5), ("profile_velocity", 20)):
        assert write(servo, name, counts) == 0
    assert write(servo, "goal_position", 2048) == 0
    assert write(servo, "torque_enable", 1) == 0
    assert write(servo, "goal_position", 3048) == 0
    for _ in range(20):
        servo.hear()
        servo.advance(0.05)
    assert servo.counts("bus_watchdog") == 5
    assert servo.angle_rad > 0.1
    servo.advance(0.11)
    assert servo.counts("bus_watchdog") == -1
    where = servo.angle_rad
    live(servo, 1.0)
    assert servo.angle_rad == pytest.approx(where, abs=0.1)
    assert servo.is_on, "it holds"
    assert write(servo, "goal_position", 3048) == StatusError.DATA_RANGE
    assert write(servo, "bus_watchdog", 0) == 0
    assert write(servo, "goal_position", 3048) == 0


@pytest.mark.parametrize("mode", [3, CURRENT_POSITION])
@pytest.mark.parametrize("speed", [10, 40])
def test_a_joint_goes_to_its_goal_no_faster_than_its_profile(servo: Servo, mode: int, speed: int) -> None:
    for name, counts in (("operating_mode", mode), ("profile_velocity", speed), ("goal_position", 2048)):
        assert write(servo, name, counts) == 0
    assert write(servo, "torque_enable", 1) == 0
    assert write(servo, "goal_position", 2448) == 0
    fastest, began = 0.0, servo.angle_rad
    needs_s = 0.614 / (speed * 0.02398)
    live(servo, needs_s / 2)
    assert servo.angle_rad - began < 0.35
    for _ in range(round(needs_s / 0.01)):
        servo.advance(0.01)
        fastest = max(fastest, abs(servo.velocity_rad_s))
    live(servo, 1.0)
    assert servo.value("goal_position") == pytest.approx(servo.angle_rad, abs=0.01)
    assert fastest < 1.3 * speed * 0.02398


def test_the_current_of_a_joint_that_is_held_is_capped_by_its_goal(servo: Servo) -> None:
    for name, counts in (("operating_mode", CURRENT_POSITION), ("goal_current", 100), ("torque_enable", 1)):
        assert write(servo, name, counts) == 0
    servo.mechanics.highest_rad = 0.1
    assert write(servo, "goal_position", 3000) == 0
    live(servo, 5.0)
    assert servo.current_a == pytest.approx(0.269, abs=0.01)
    assert servo.is_on, "the cap is one that can be held"


def test_a_joint_that_is_held_without_a_cap_overloads_and_is_off(servo: Servo) -> None:
    servo.mechanics.highest_rad = 0.1
    assert write(servo, "goal_position", 2048) == 0
    assert write(servo, "torque_enable", 1) == 0
    assert write(servo, "goal_position", 3500) == 0
    live(servo, 5.0)
    assert not servo.is_on
    assert servo.read(70, 1) == (0, bytes([HardwareError.OVERLOAD]))


def test_current_warms_a_servo_until_it_shuts_down(servo: Servo) -> None:
    for name, counts in (("operating_mode", 0), ("goal_current", 400), ("torque_enable", 1)):
        assert write(servo, name, counts) == 0
    servo.mechanics.overload_s = math.inf
    servo.mechanics.highest_rad = 0.1
    warm = servo.temperature_c
    live(servo, 60)
    assert servo.temperature_c > warm + 5
    servo.temperature_c = 81.0
    servo.advance(0.01)
    assert not servo.is_on


@given(st.binary(max_size=60))
def test_any_parameters_of_any_instruction_are_answered_or_ignored(parameters: bytes) -> None:
    servo = Servo(1)
    for instruction in Instruction:
        servo.answer(Packet(1, instruction, parameters))
        servo.advance(REBOOT_S)


@given(st.sampled_from(sorted(MODELS)), st.data())
def test_units_are_converted_there_and_back(number: int, data: st.DataObject) -> None:
    register: Register = data.draw(
        st.sampled_from(sorted(MODELS[number].registers.values(), key=lambda each: each.name))
    )
    counts = data.draw(st.integers(register.minimum, register.maximum))
    raw = counts.to_bytes(register.size, "little", signed=register.minimum < 0)
    assert register.encode(register.decode(raw)) == raw


# Clients that others wrote


class Sdk:
    """Robotis' own client on an emulator."""

    def __init__(self, emulator: Emulator) -> None:
        self.port, self.packets = PortHandler(emulator.port), PacketHandler(2.0)
        assert self.port.openPort()
        assert self.port.setBaudRate(1_000_000)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.packets, name)
        return lambda *given: method(self.port, *given)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator([Servo(each, XM430_W350) for each in IDS]) as emulator:
        yield emulator


@pytest.fixture
def sdk(emulator: Emulator) -> Iterator[Sdk]:
    sdk = Sdk(emulator)
    yield sdk
    sdk.port.closePort()


def test_dynamixel_sdk_finds_reads_and_writes(sdk: Sdk, emulator: Emulator) -> None:
    assert sdk.ping(1) == (1020, 0, 0)
    assert sdk.broadcastPing() == ({each: [1020, 45] for each in IDS}, 0)
    assert sdk.read4ByteTxRx(2, 132) == (2048, 0, 0)
    assert sdk.write2ByteTxRx(2, 102, 0xFFFF - 9) == (0, 0)
    assert emulator.servos[2].counts("goal_current") == -10
    assert sdk.write1ByteTxRx(2, 64, 1) == (0, 0)
    assert sdk.write1ByteTxRx(2, 7, 9) == (0, StatusError.ACCESS)


def test_dynamixel_sdk_reads_and_writes_many_at_once(sdk: Sdk, emulator: Emulator) -> None:
    write = GroupSyncWrite(sdk.port, sdk.packets, 112, 4)
    for each in IDS:
        write.addParam(each, [each, 0, 0, 0])
    assert write.txPacket() == 0
    read = GroupSyncRead(sdk.port, sdk.packets, 112, 8)
    bulk = GroupBulkRead(sdk.port, sdk.packets)
    for each in IDS:
        read.addParam(each)
        bulk.addParam(each, 146, each % 2 + 1)
    assert read.txRxPacket() == 0
    assert [read.getData(each, 112, 4) for each in IDS] == IDS
    assert bulk.txRxPacket() == 0
    assert bulk.getData(2, 146, 1) == 25


def test_dynamixel_sdk_registers_reboots_clears_and_resets(sdk: Sdk, emulator: Emulator) -> None:
    assert sdk.regWriteTxRx(1, 112, 4, [10, 0, 0, 0]) == (0, 0)
    assert emulator.servos[1].counts("profile_velocity") == 0
    sdk.action(1)
    time.sleep(0.1)
    assert emulator.servos[1].counts("profile_velocity") == 10
    sdk.port.clearPort()
    assert sdk.clearMultiTurn(1) == (0, 0)
    assert sdk.reboot(1) == (0, 0)
    time.sleep(2 * REBOOT_S)
    assert sdk.read4ByteTxRx(1, 112) == (0, 0, 0)
    emulator.servos[3].set_counts("return_delay_time", 0)
    assert sdk.factoryReset(3, 2) == (0, 0)
    assert emulator.servos[3].counts("return_delay_time") == 250


def test_rustypot_reads_and_moves_servos() -> None:
    rustypot = pytest.importorskip("rustypot")
    with Emulator([Servo(each, XL330_M288) for each in IDS]) as emulator:
        client = rustypot.Xl330PyController(emulator.port, 1_000_000, 0.5)
        assert client.ping(1)
        assert not client.ping(9)
        assert client.sync_read_present_position(IDS) == pytest.approx([0.0] * 3, abs=1e-3)
        client.sync_write_torque_enable(IDS, [True] * 3)
        client.sync_write_goal_position(IDS, [0.1, -0.2, 0.3])
        end_s, wanted = time.monotonic() + 20, pytest.approx([0.1, -0.2, 0.3], abs=0.02)
        while (found := client.sync_read_present_position(IDS)) != wanted and time.monotonic() < end_s:
            time.sleep(0.05)
        assert found == wanted
        assert emulator.servos[3].is_on


# The command


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "xm340"], "unknown servo 'xm340'; did you mean 'xm430-w350'?"),
        (["--baud", "12345"], "--baud is 12345, expected one of 9600, 57600"),
        (["--ids", "1", "253"], "--ids has [253], expected numbers from 0 to 252"),
        (["--corrupt", "1.5"], "--corrupt is 1.5, expected a probability from 0 to 1"),
        (["--late-s", "-1"], "--late-s is -1.0, expected seconds from 0 to 60"),
        (["--link", "/"], "--link / exists; remove it, or name another"),
    ],
)
def test_a_command_that_makes_no_sense_is_one_line(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["emulate", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_r3l_emulate_is_found_unplugged_and_ended_by_signals(tmp_path: Path) -> None:
    link = tmp_path / "port"
    command = [*WITH_DEFAULT_SIGNALS, sys.executable, "-m", "r3l", "emulate", "--ids", "5", "6", "--link", str(link)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert str(link) in process.stdout.readline()
            with Bus(str(link)) as bus:
                assert set(bus.scan(0.5)) == {5, 6}
            process.send_signal(signal.SIGUSR1)
            wait_for(lambda: not link.is_symlink())
            wait_for(link.is_symlink)
            with Bus(str(link)) as bus:
                assert set(bus.scan(0.5)) == {5, 6}
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert not link.is_symlink()


def wait_for(is_true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.02)
