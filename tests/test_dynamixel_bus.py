"""The servo bus against emulated servos on a pseudo-terminal, with every fault of a wire."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r3l.hardware.dynamixel import protocol
from r3l.hardware.dynamixel.bus import Bus, BusError
from r3l.hardware.dynamixel.control_table import XM430_W210
from r3l.hardware.dynamixel.emulator import Emulator, Faults
from r3l.hardware.dynamixel.port import PortError
from r3l.hardware.dynamixel.protocol import Decoder
from r3l.hardware.dynamixel.servo import HardwareError, Servo

IDS = list(range(10, 19))
BLOCK = XM430_W210.block("present_current", "present_position")
LONG_S = 2.0
"""A deadline that a busy machine keeps, too."""


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    with Emulator([Servo(each, angle_rad=each / 10) for each in IDS], link=tmp_path / "port") as emulator:
        emulator.advances = False  # so that every right answer is known
        yield emulator


@pytest.fixture
def bus(emulator: Emulator) -> Iterator[Bus]:
    with Bus(emulator.port) as bus:
        yield bus


def expected(emulator: Emulator, servo: int, block: tuple[int, int] = BLOCK) -> bytes:
    content: bytes = emulator.servos[servo].read(*block)[1]
    return content


def test_who_is_there_is_found_one_by_one_and_all_at_once(bus: Bus) -> None:
    pong = bus.ping(12, deadline_s=LONG_S)
    assert pong is not None
    assert (pong.model, pong.firmware, pong.alert) == (1030, 45, False)
    assert bus.ping(99) is None
    assert {servo: len(pongs) for servo, pongs in bus.scan(0.3).items()} == dict.fromkeys(IDS, 1)


def test_two_servos_of_one_id_are_told_by_a_scan() -> None:
    with Emulator([Servo(1), Servo(1), Servo(2)]) as emulator, Bus(emulator.port) as bus:
        assert {servo: len(pongs) for servo, pongs in bus.scan(0.3).items()} == {1: 2, 2: 1}


def test_a_sync_read_gives_each_servos_own_bytes(bus: Bus, emulator: Emulator) -> None:
    for _ in range(20):
        found = bus.sync_read(IDS, *BLOCK, deadline_s=LONG_S)
        assert {servo: reply.data for servo, reply in found.items()} == {each: expected(emulator, each) for each in IDS}


def test_a_bulk_read_gives_each_servo_its_own_block(bus: Bus, emulator: Emulator) -> None:
    blocks = {10: (144, 2), 11: (146, 1), 12: (0, 7), 13: (144, 2)}
    found = bus.bulk_read(blocks, deadline_s=LONG_S)
    assert {servo: found[servo].data for servo in blocks} == {
        servo: expected(emulator, servo, block) for servo, block in blocks.items()
    }


def test_a_register_is_written_in_si_units_and_read_back(bus: Bus, emulator: Emulator) -> None:
    bus.write(10, XM430_W210["goal_current"], 0.5, deadline_s=LONG_S)
    assert emulator.servos[10].counts("goal_current") == 186
    assert bus.read(10, XM430_W210["goal_current"], deadline_s=LONG_S) == pytest.approx(0.5, abs=2.69e-3)
    bus.sync_write(XM430_W210["goal_position"], {11: -1.0, 12: 1.0})
    assert bus.read(12, XM430_W210["goal_position"], deadline_s=LONG_S) == pytest.approx(1.0, abs=1e-3)
    assert emulator.servos[11].value("goal_position") == pytest.approx(-1.0, abs=1e-3)


def test_a_refusal_is_told_by_name(bus: Bus) -> None:
    bus.write(10, XM430_W210["torque_enable"], 1, deadline_s=LONG_S)
    with pytest.raises(BusError, match=r"servo 10 refuses operating_mode = 5 \(access\)"):
        bus.write(10, XM430_W210["operating_mode"], 5, deadline_s=LONG_S)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, -4.0])
def test_a_value_that_no_register_takes_is_not_sent(bus: Bus, emulator: Emulator, value: float) -> None:
    emulator.heard.clear()
    with pytest.raises(ValueError, match=r"goal_current is .*, expected"):
        bus.sync_write(XM430_W210["goal_current"], {10: 0.1, 11: value})
    assert not emulator.heard


def test_an_alert_is_told_with_every_answer(bus: Bus, emulator: Emulator) -> None:
    emulator.servos[14].fail(HardwareError.OVERLOAD)
    found = bus.sync_read(IDS, *BLOCK, deadline_s=LONG_S)
    assert [servo for servo, reply in found.items() if reply.alert] == [14]


def test_a_silent_servo_takes_nobody_elses_values_and_comes_back(bus: Bus, emulator: Emulator) -> None:
    emulator.faults = Faults(silent={14})
    for _ in range(5):
        assert set(bus.sync_read(IDS, *BLOCK)) == {*IDS} - {14}
    emulator.faults = Faults()
    end_s = time.monotonic() + 10
    while 14 not in (found := bus.sync_read(IDS, *BLOCK)) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert found[14].data == expected(emulator, 14)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(corrupt=0.05),
        Faults(corrupt=0.3),
        Faults(drop=0.05),
        Faults(duplicate=0.5),
        Faults(garbage=0.5),
        Faults(echo=True),
        Faults(late=0.02, late_s=0.03),
        Faults(late=0.02, late_s=0.08, duplicate=0.1, corrupt=0.02),
        Faults(drop=0.02, corrupt=0.02, duplicate=0.02, garbage=0.02, late=0.01, late_s=0.06, echo=True),
    ],
    ids=str,
)
def test_no_fault_of_the_wire_makes_a_wrong_value(bus: Bus, emulator: Emulator, faults: Faults) -> None:
    emulator.faults = faults
    blocks = [BLOCK, (132, 4), (144, 2), (146, 1), (116, 4), (6, 1), (7, 1), (11, 1), (108, 4), (112, 4)]
    for servo in emulator.servos.values():  # all that is read differs, so that no answer passes for another
        servo.set_counts("goal_position", 100 + servo.id)
        servo.set_counts("profile_velocity", 200 + servo.id)
    missing = asked = 0
    for turn in range(150):
        block = blocks[turn % len(blocks)]
        found = bus.sync_read(IDS, *block)
        asked, missing = asked + len(IDS), missing + len(IDS) - len(found)
        assert {servo: reply.data for servo, reply in found.items()} == {
            each: expected(emulator, each, block) for each in found
        }
    if (
        faults.late == 0 and faults.corrupt <= 0.05
    ):  # how many exactly `scripts/benchmark bus` says, on a machine at rest
        assert missing < 0.2 * asked


def test_a_late_answer_is_not_taken_for_that_of_another_register(bus: Bus, emulator: Emulator) -> None:
    emulator.faults = Faults(late=1.0, late_s=0.08)
    assert not bus.sync_read([10], 132, 4, deadline_s=0.02)
    time.sleep(0.07)  # the answer comes while the next request is under way
    emulator.faults = Faults()
    found = bus.sync_read([10], 116, 4, deadline_s=LONG_S)
    assert found[10].data == expected(emulator, 10, (116, 4)) != expected(emulator, 10, (132, 4))


def test_a_late_acknowledgement_is_not_taken_for_that_of_another_write(bus: Bus, emulator: Emulator) -> None:
    emulator.faults = Faults(late=1.0, late_s=0.08)
    with pytest.raises(BusError):
        bus.write(10, XM430_W210["led"], 1, deadline_s=0.02)
    time.sleep(0.06)
    emulator.faults = Faults()
    bus.write(10, XM430_W210["goal_current"], 0.3, deadline_s=LONG_S)
    assert emulator.servos[10].value("goal_current") == pytest.approx(0.3, abs=3e-3)


def test_a_stall_does_not_fail_a_setting(bus: Bus, emulator: Emulator) -> None:
    emulator.faults = Faults(silent={*IDS})
    over = threading.Timer(0.15, setattr, (emulator, "faults", Faults()))
    over.start()
    bus.write(10, XM430_W210["goal_current"], 0.3)
    assert bus.read(10, XM430_W210["goal_current"]) == pytest.approx(0.3, abs=3e-3)
    assert not over.is_alive(), "it was silent until then"


def test_every_request_ends_by_its_deadline(bus: Bus, emulator: Emulator) -> None:
    emulator.faults = Faults(silent={*IDS})
    for deadline_s in (0.01, 0.05, 0.2):
        began_s = time.monotonic()
        assert not bus.sync_read(IDS, *BLOCK, deadline_s=deadline_s)
        assert time.monotonic() - began_s < deadline_s + 2  # of a busy machine


class Noise:
    """The far end of a pseudo-terminal that answers every request with given bytes."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.port = os.ttyname(self.slave)

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def noise() -> Iterator[Noise]:
    noise = Noise()
    yield noise
    noise.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=300) | st.lists(st.sampled_from([protocol.HEADER, b"\x0a\x0e\0U\0", b"\xff"])).map(b"".join)
)
def test_any_bytes_give_no_value_no_exception_and_no_hang(noise: Noise, data: bytes) -> None:
    packets = Decoder().feed(data)
    with Bus(noise.port, quiet_s=0.001) as bus:
        os.write(noise.master, data)
        began_s = time.monotonic()
        found = bus.sync_read(IDS, *BLOCK, deadline_s=0.01)
        assert time.monotonic() - began_s < 2
        assert not found or any(packet.id in found for packet in packets)


def test_an_unplugged_port_is_told_and_used_again_when_it_is_back(bus: Bus, emulator: Emulator) -> None:
    was = Path(emulator.port).resolve()
    emulator.unplug()
    with pytest.raises(PortError, match="is gone"):
        bus.sync_read(IDS, *BLOCK)
    with pytest.raises(PortError, match="is not there"):
        bus.open()
    other = os.openpty()  # takes the old name
    emulator.plug_in()
    assert Path(emulator.port).resolve() != was
    bus.open()
    assert len(bus.sync_read(IDS, *BLOCK, deadline_s=LONG_S)) == len(IDS)
    for each in other:
        os.close(each)


def test_a_port_is_for_one_process_alone(bus: Bus, emulator: Emulator) -> None:
    code = "import sys; from r3l.hardware.dynamixel.bus import Bus; Bus(sys.argv[1]).open()"
    other = subprocess.run([sys.executable, "-c", code, emulator.port], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "is in use by another process; stop that one first" in other.stderr


@pytest.mark.parametrize(
    ("path", "told"),
    [("/dev/ttyUSB77", "is not there"), ("/dev/null", "cannot be opened"), ("/tmp", "cannot be opened")],
)
def test_a_port_that_cannot_be_opened_is_one_line(path: str, told: str) -> None:
    with pytest.raises(PortError, match=told) as error:
        Bus(path).open()
    assert "\n" not in str(error.value)


def test_the_wrong_baud_rate_is_heard_by_nobody(emulator: Emulator) -> None:
    with Bus(emulator.port, 57_600) as bus:
        assert bus.ping(10) is None
        assert not bus.scan(0.1)
