"""A run on the hand: whatever dies, the torque goes; what servos say is in the events; what is mended goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import RunMaker, tiny
from emulated import EmulatedClaw

from benchmarks.night import QUICK, SMALL, Night
from benchmarks.running import WITH_DEFAULT_SIGNALS
from r3l.config.schema import Check, ChecksConfig
from r3l.hardware.dclaw.rig import write_rig
from r3l.hardware.dynamixel.control_table import HardwareError
from r3l.training.shared_status import State
from r3l.training.sync import train


@pytest.fixture
def claw() -> Iterator[EmulatedClaw]:
    claw = EmulatedClaw(control_hz=10.0)
    yield claw
    claw.end()


@pytest.fixture
def night(claw: EmulatedClaw, tmp_path: Path) -> Iterator[Night]:
    """A run that acts on the hand and learns."""
    quiet = Check(1e6, "warn")
    checks = ChecksConfig(late=Check(30.0, "skip"), joint_frozen=quiet, moved=Check(1.0, "warn"))
    phases = replace(SMALL.phases, exploration_steps=20)
    with Night(tmp_path / "night", robot="dclaw", checks=checks, phases=phases, supervision=QUICK) as night:
        write_rig(tmp_path / "rig.toml", claw.rig)
        night.start("--rig", str(tmp_path / "rig.toml"))
        night.wait_for(lambda: claw.has_torque == {True} and night.status("actor.steps") > 5)
        yield night


def wait_for_torque(night: Night, claw: EmulatedClaw, has_torque: bool) -> None:
    night.wait_for(lambda: claw.has_torque == {has_torque})


def wait_for_steps(night: Night, more: int = 5) -> None:
    steps = night.status("actor.steps")
    night.wait_for(lambda: night.status("actor.steps") >= steps + more)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_an_actor_that_is_gone_leaves_no_torque_behind(night: Night, claw: EmulatedClaw, number: int) -> None:
    os.kill(night.pid("actor"), number)
    wait_for_torque(night, claw, False)
    night.wait_for(lambda: night.count("restart") == 1)
    wait_for_torque(night, claw, True)
    wait_for_steps(night)
    assert night.process is not None
    night.process.send_signal(signal.SIGTERM)
    code, output = night.wait_for_end()
    assert code == 0, output
    assert claw.has_torque == {False}
    assert not night.count("relax"), "nobody had trouble with it"


@pytest.mark.slow
def test_when_all_die_at_once_the_service_relaxes(night: Night, claw: EmulatedClaw) -> None:
    actor, learner = night.pid("actor"), night.pid("learner")
    os.kill(actor, signal.SIGSTOP)  # it would relax as an orphan
    night.kill()
    os.kill(actor, signal.SIGKILL)
    os.kill(learner, signal.SIGKILL)
    time.sleep(claw.rig.bus.watchdog_s + 0.3)
    assert claw.has_torque == {True}, "servos hold, under their cap"
    assert {servo.counts("bus_watchdog") for servo in claw.servos.values()} == {-1}, "and do not move"
    found = night.command("relax")
    assert found.returncode == 0, found.stderr
    assert claw.has_torque == {False}


@pytest.mark.slow
def test_what_servos_have_is_told_with_names_and_values_and_the_run_goes_on(night: Night, claw: EmulatedClaw) -> None:
    claw.servos[12].fail(HardwareError.OVERLOAD)
    night.wait_for(lambda: night.count("check-overload-finger0_tip") >= 1)
    claw.emulator.brown_out([20])
    night.wait_for(lambda: night.count("check-restarted-finger1_swing") >= 1)
    wait_for_steps(night)
    claw.servos[31].temperature_c = 64.0
    night.wait_for(lambda: night.state("actor") is State.CHECK_FAILED)
    wait_for_torque(night, claw, False)
    claw.servos[31].temperature_c = 45.0
    wait_for_torque(night, claw, True)
    wait_for_steps(night)
    told = [message for _, message in night.events()]
    for beginning in (
        "servo 12 (finger0_tip) had an overload (25 °C, ",
        "servo 20 (finger1_swing) had lost its torque",
        "servo 31 (finger2_curl) has 64 °C",
    ):
        assert any(message.startswith(beginning) for message in told), told
    assert not night.count("restart")


@pytest.mark.slow
def test_an_unplugged_adapter_pauses_the_run_until_it_is_back(night: Night, claw: EmulatedClaw) -> None:
    claw.emulator.unplug()
    night.wait_for(lambda: night.state("actor") is State.CHECK_FAILED)
    assert night.count("check-port") == 1
    time.sleep(3)
    claw.emulator.plug_in()
    wait_for_torque(night, claw, False)
    wait_for_torque(night, claw, True)
    wait_for_steps(night)
    assert not night.count("restart")


def test_an_error_that_only_a_person_may_clear_ends_the_run(night: Night, claw: EmulatedClaw) -> None:
    claw.servos[22].fail(HardwareError.ENCODER)
    code, output = night.wait_for_end()
    assert code == 3, output
    assert claw.has_torque == {False}
    latched = dict(night.events())["check-latched-finger1_tip"]
    assert "servo 22 (finger1_tip) has the hardware error encoder" in latched


@pytest.mark.slow
@pytest.mark.parametrize("words", [("play",), ("evaluate", "--by-eye")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_policies_on_the_hand_end_without_torque(
    tmp_path: Path, make_run: RunMaker, claw: EmulatedClaw, words: tuple[str, ...], number: int
) -> None:
    run = make_run(tmp_path / "run", tiny(steps=60))
    assert train(run)
    write_rig(tmp_path / "rig.toml", claw.rig)
    command = [
        *WITH_DEFAULT_SIGNALS,
        sys.executable,
        "-m",
        "r3l",
        *words,
        str(run.folder),
        "--robot",
        "dclaw",
        "--rig",
        "rig.toml",
    ]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        until_s = time.monotonic() + 60
        while claw.has_torque != {True} and time.monotonic() < until_s and process.poll() is None:
            time.sleep(0.02)
        time.sleep(1.0)
        process.send_signal(number)
        output = process.communicate(timeout=30)[0]
    assert process.returncode == 130, output
    assert claw.has_torque == {False}
