"""A rig's file, `r3l doctor` and `r3l calibrate`: what is wrong is one line, what is read off is what was there."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from emulated import REST_RAD, EmulatedClaw

from benchmarks.running import WITH_DEFAULT_SIGNALS
from r3l.cli.main import main
from r3l.config.errors import UserError
from r3l.hardware.dclaw.calibrate import calibrate
from r3l.hardware.dclaw.doctor import Line, examine
from r3l.hardware.dclaw.rig import IDS, NAMES, ClawRig, default_rig, problems, read_rig, to_toml, write_rig
from r3l.hardware.dynamixel.control_table import HardwareError


@pytest.fixture
def claw() -> Iterator[EmulatedClaw]:
    claw = EmulatedClaw(control_hz=10.0)
    yield claw
    claw.end()


@pytest.fixture
def rig_file(claw: EmulatedClaw, tmp_path: Path) -> Path:
    write_rig(tmp_path / "rig.toml", claw.rig)
    return tmp_path / "rig.toml"


# The file


def test_a_rig_is_read_as_it_was_written(tmp_path: Path) -> None:
    rig = default_rig()
    write_rig(tmp_path / "rig.toml", rig)
    assert read_rig(tmp_path / "rig.toml") == rig
    assert "# where the servos are" in (tmp_path / "rig.toml").read_text()


def test_what_keeps_out_is_read_as_it_was_written(tmp_path: Path) -> None:
    text = to_toml(default_rig()).replace(
        "keep_out = []", "keep_out = [{ lower_m = [-0.02, -0.02, 0.0], upper_m = [0.02, 0.02, 0.05] }]"
    )
    (tmp_path / "rig.toml").write_text(text)
    rig = read_rig(tmp_path / "rig.toml")
    assert rig.workspace.keep_out[0].upper_m == (0.02, 0.02, 0.05)
    assert to_toml(rig) == text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('robot = "dclaw"', 'robot = "arm"', "it is another robot's rig"),
        ("/dev/serial/by-id/usb-FTDI_USB__-__Serial_Converter-if00-port0", "", "bus.port is empty"),
        ("baud_rate = 1000000", "baud_rate = 12345", r"bus.baud_rate is 12345, expected one of 9600"),
        ('model = "XM430-W210"', 'model = "XM430-W220"', "XM430-W210"),
        ("watchdog_s = 1.0", "watchdog_s = 0.0", "bus.watchdog_s is 0, expected 0.3 to 2.54"),
        ("current_a = 0.4", "current_a = 4.0", "strength.current_a is 4, expected 0.01 to 3.2"),
        ("speed_rad_s = 2.5", "speed_rad_s = nan", "strength.speed_rad_s is nan"),
        ("warm_c = 60.0", "warm_c = 75.0", "health.warm_c is 75, expected 25 to 70"),
        ("hot_c = 70.0", "hot_c = 95.0", "health.hot_c is 95, expected 30 to 80"),
        ("id = 11, sign = 1", "id = 10, sign = 1", "joints.finger0_curl.id is 10, which is finger0_swing's too"),
        ("id = 11, sign = 1", "id = 11, sign = 0", "sign is 0, expected 1 or -1"),
        ("min_rad = -1.5708", "min_rad = 2.0", "joints.finger0_tip has min_rad 2 and max_rad 1.5708, expected rising"),
        ("min_rad = -1.5708", "min_rad = -4.0", "reaches from -4.00 to 1.57 rad of its servo"),
        ("finger1_tip", "finger1_top", "joints.finger1_top is no joint.*finger1_tip"),
        ("[strength]", "[strenght]", "strength"),
        ("keep_out = []", "keep_out = [{ lower_m = [0.1, 0.0, 0.0], upper_m = [0.0, 0.1] }]", "keep_out.0.*rising"),
        ("control_hz = 10.0", "control_hz = ", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_rig_is_one_line_and_exit_code_2(
    old: str, new: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rig.toml"
    path.write_text(to_toml(default_rig()).replace(old, new, 1))
    assert main(["doctor", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(expected, captured.err), captured.err
    assert captured.err.count("\n") == 1


def test_a_rig_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist.*r3l calibrate writes one"):
        read_rig(tmp_path / "rig.toml")
    (tmp_path / "big").write_bytes(bytes(2 << 20))
    with pytest.raises(UserError, match="larger than"):
        read_rig(tmp_path / "big")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_rig(tmp_path / "binary")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--robot", "dclaw"], "robot 'dclaw' needs its rig: --rig FILE"),
        (["--robot", "fake", "--rig", "RIG"], "robot 'fake' has no rig file"),
        (["--robot", "dclaw", "--rig", "RIG20"], "has control_hz 20, task 'valve' 10"),
        (["--robot", "dclaw", "--rig", "nowhere.toml"], "does not exist"),
        (["--robot", "dclaw", "--rig", "UNPLUGGED"], "port /dev/serial/by-id/none is not there"),
    ],
)
def test_a_run_says_what_is_wrong_with_its_rig(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    rig_file: Path,
    goal_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = tmp_path / "rig20.toml"
    write_rig(slow, dataclasses.replace(default_rig(), control_hz=20.0))
    unplugged = tmp_path / "unplugged.toml"
    write_rig(unplugged, default_rig("/dev/serial/by-id/none"))
    places = {"RIG": str(rig_file), "RIG20": str(slow), "UNPLUGGED": str(unplugged)}
    given = [places.get(each, each) for each in arguments]
    command = ["train", "valve", "--goals", str(goal_folder), "--runs", str(tmp_path / "runs"), *given]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists(), "nothing half-made is left"


# The doctor


def look(claw: EmulatedClaw, folder: Path, rig: ClawRig | None = None, **options: object) -> list[Line]:
    found: list[Line] = list(examine(rig or claw.rig, folder, **options))
    assert claw.has_torque == {False}
    return found


def failures(found: list[Line]) -> list[str]:
    return [line.text for line in found if line.level == "FAIL"]


def test_a_hand_in_health_has_nothing_wrong_and_moves_only_when_asked(claw: EmulatedClaw, tmp_path: Path) -> None:
    found = look(claw, tmp_path)
    assert failures(found) == []
    assert any("all 9 answer" in line.text for line in found)
    assert claw.angles == pytest.approx(REST_RAD, abs=1e-6)


@pytest.mark.slow
def test_a_wiggle_moves_every_joint_and_finds_the_one_that_is_held(claw: EmulatedClaw, tmp_path: Path) -> None:
    held = claw.servos[21]
    held.mechanics.lowest_rad = held.mechanics.highest_rad = held.angle_rad
    found = look(claw, tmp_path, wiggles=True)
    assert len(failures(found)) == 1
    assert "servo 21 (finger1_curl) was sent" in failures(found)[0]
    assert "look for what holds it" in failures(found)[0]
    assert sum("was sent" in line.text for line in found) == len(IDS)
    assert claw.angles == pytest.approx(REST_RAD, abs=0.02), "all are back"


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda claw: claw.emulator.unplug(), "is not there; no serial adapter is plugged in|there are"),
        pytest.param(
            lambda claw: claw.emulator.faults.silent.update(IDS),
            "nothing answers at any baud rate; check their power",
            marks=pytest.mark.slow,
        ),
        (
            lambda claw: [each.set_counts("baud_rate", 1) for each in claw.servos.values()],
            "answer at 57600 baud, not at 1000000",
        ),
        (lambda claw: claw.servos[12].set_counts("id", 13), r"servo 12 \(finger0_tip\) does not answer; 13 are there"),
        (lambda claw: claw.servos[12].set_counts("id", 11), "2 servos answer as 11"),
        (lambda claw: claw.servos[20].set_counts("model_number", 1020), "is a XM430-W350, expected XM430-W210"),
        (lambda claw: claw.servos[20].set_counts("firmware_version", 30), "has firmware 30, no watchdog"),
        (lambda claw: setattr(claw.servos[20], "voltage_v", 9.8), "9.8 V, expected 10.5 to 14 V"),
        (lambda claw: setattr(claw.servos[20], "temperature_c", 55.0), "at most 55 °C .*let it cool"),
        (
            lambda claw: claw.servos[22].fail(HardwareError.OVERLOAD),
            "hardware error overload; .*r3l doctor --reboot 22",
        ),
        (lambda claw: setattr(claw.servos[32], "angle_rad", 2.5), r"is at 2.50 rad, expected -1.57 to 1.57"),
        (lambda claw: setattr(claw.emulator.faults, "drop", 0.5), "wire: .* check plugs and cables|does not"),
    ],
)
def test_what_a_first_time_user_gets_wrong_is_found(
    claw: EmulatedClaw, tmp_path: Path, break_it: Callable[[EmulatedClaw], object], expected: str
) -> None:
    break_it(claw)
    found = failures(list(examine(claw.rig, tmp_path)))
    assert found
    assert re.search(expected, found[0]), found
    assert "\n" not in found[0]


def test_settings_that_a_run_changes_are_told(claw: EmulatedClaw, tmp_path: Path) -> None:
    claw.servos[10].set_counts("homing_offset", 100)
    found = [line.text for line in look(claw, tmp_path)]
    assert any(re.match(r"setting homing_offset: 10 has 0.15", text) for text in found)
    assert any(text.startswith("setting operating_mode: ") for text in found)
    assert not [line for line in look(claw, tmp_path) if line.text.startswith("setting")], (
        "the second time they are made"
    )


def test_a_reboot_clears_an_error_that_a_person_looked_after(claw: EmulatedClaw, tmp_path: Path) -> None:
    claw.servos[22].fail(HardwareError.OVERLOAD)
    assert failures(look(claw, tmp_path))
    assert failures(look(claw, tmp_path, reboots=(22,))) == []


def test_a_port_that_is_held_by_another_process_is_told_with_the_process(
    claw: EmulatedClaw, rig_file: Path, tmp_path: Path
) -> None:
    script = (
        f"import serial, sys; s = serial.Serial({claw.rig.bus.port!r}, exclusive=True); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = failures(list(examine(claw.rig, tmp_path)))
        process.communicate("\n")
    assert len(found) == 1
    assert "in use by another process" in found[0]
    assert f"held by process {process.pid}" in found[0]


def test_no_permission_is_told(claw: EmulatedClaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("serial.Serial", refuse)
    found = failures(list(examine(claw.rig, tmp_path)))
    assert "usermod -aG dialout" in found[0]


def test_the_doctor_ends_with_0_or_2(
    claw: EmulatedClaw, rig_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(rig_file), "--runs", str(tmp_path)]) == 0
    assert "ok    voltage: 12.0 to 12.0 V" in capsys.readouterr().out
    claw.servos[22].fail(HardwareError.OVERLOAD)
    assert main(["doctor", str(rig_file), "--runs", str(tmp_path)]) == 2
    assert "FAIL  servo 22" in capsys.readouterr().out


SIGNALS = [
    pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    signal.SIGTERM,
    pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_wiggle_that_is_broken_off_leaves_no_torque(claw: EmulatedClaw, rig_file: Path, number: int) -> None:
    command = [*WITH_DEFAULT_SIGNALS, sys.executable, "-m", "r3l", "doctor", str(rig_file), "--wiggle"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until_s = time.monotonic() + 60
        while claw.has_torque != {True} and time.monotonic() < until_s:
            time.sleep(0.02)
        assert claw.has_torque == {True}
        process.send_signal(number)
        try:
            assert process.wait(20) == 130
        finally:
            process.kill()
    assert claw.has_torque == {False}


# Calibration


class Person:
    """Somebody who moves the fingers as they are told, on servos that are mounted in odd ways."""

    def __init__(self, claw: EmulatedClaw, clumsy: bool = False) -> None:
        rng = np.random.default_rng(3)
        self.signs = dict(zip(IDS, rng.choice([-1, 1], len(IDS)), strict=True))
        self.offsets = dict(zip(IDS, rng.uniform(-0.8, 0.8, len(IDS)), strict=True))
        self.asked: list[str] = []
        self._claw, self._is_clumsy = claw, clumsy

    def put(self, servo: int, joint_rad: float) -> None:
        self._claw.servos[servo].angle_rad = self.offsets[servo] + self.signs[servo] * joint_rad

    def until(self, text: str) -> Iterator[None]:
        self.asked.append(text)
        if text.startswith("Hold all"):
            for servo in IDS:
                self.put(servo, 0.0)
        elif text.startswith("Turn the"):
            name = "_".join(re.findall(r"Turn the (\w+) of (\w+)", text)[0][::-1])
            if name == "finger1_curl" and self._is_clumsy:
                self.put(20, 0.8)  # another one
                self._is_clumsy = False
            else:
                self.put(20, 0.4 if name > "finger1" else 0.0)  # where it was
                self.put(IDS[NAMES.index(name)], 0.4)
        else:
            for at, servo in enumerate(IDS):
                for angle in (-0.5 - 0.05 * at, 0.6 + 0.05 * at):
                    self.put(servo, angle)
                    yield
        yield


@pytest.mark.parametrize("is_clumsy", [False, True])
def test_calibration_reads_zeros_signs_and_limits_off(claw: EmulatedClaw, is_clumsy: bool) -> None:
    person, said = Person(claw, is_clumsy), list[str]()
    rig = calibrate(claw.rig, person.until, said.append)
    for at, drive in enumerate(rig.drives):
        assert drive.sign == person.signs[drive.id]
        assert drive.offset_rad == pytest.approx(person.offsets[drive.id], abs=0.003)
        assert drive.joint.min_rad == pytest.approx(-0.45 - 0.05 * at, abs=0.005)
        assert drive.joint.max_rad == pytest.approx(0.55 + 0.05 * at, abs=0.005)
    assert len(person.asked) == 11 + is_clumsy
    assert is_clumsy == any("moved most" in text for text in said)
    assert next(problems(rig), None) is None
    assert claw.has_torque == {False}


def test_only_the_steps_asked_for_change_the_rig(claw: EmulatedClaw) -> None:
    person = Person(claw)
    rig = calibrate(claw.rig, person.until, print, ("zero",))
    assert [each.sign for each in rig.drives] == [1] * 9
    assert [each.joint for each in rig.drives] == [each.joint for each in claw.rig.drives]
    assert [each.offset_rad for each in rig.drives] == pytest.approx(list(person.offsets.values()), abs=0.003)


def test_a_horn_that_is_mounted_across_the_servos_end_is_refused(claw: EmulatedClaw) -> None:
    person = Person(claw)
    person.offsets[12] = 2.9
    with pytest.raises(UserError, match=r"joints.finger0_tip reaches from .* nothing was written"):
        calibrate(claw.rig, person.until, print, ("zero",))


def test_calibration_at_a_terminal_writes_the_file_and_without_one_nothing(claw: EmulatedClaw, tmp_path: Path) -> None:
    path = tmp_path / "new" / "rig.toml"
    command = [sys.executable, "-m", "r3l", "calibrate", str(path), "--port", claw.rig.bus.port, "--only", "zero"]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "standard input is no terminal" in found.stderr
    assert not path.exists()
    reading, writing = os.pipe()
    os.write(writing, b"\n")
    found = subprocess.run(command, stdin=reading, capture_output=True, text=True, check=False)
    os.close(reading)
    os.close(writing)
    assert found.returncode == 0, found.stderr
    assert f"next: r3l doctor {path}" in found.stdout
    written = read_rig(path)
    assert [each.offset_rad for each in written.drives] == pytest.approx(list(REST_RAD), abs=0.002)
    assert written.joints["finger0_tip"].max_rad == pytest.approx(math.pi / 2, abs=1e-3)
