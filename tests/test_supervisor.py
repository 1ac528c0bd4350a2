"""A run under supervision: it loses nothing, stops safely, and goes on by itself, whatever dies or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.night import PERIOD_S, QUICK, SMALL, Night
from r3l.run.checkpoint import load_checkpoint
from r3l.run.directory import Run
from r3l.task.registry import load_task
from r3l.training.shared_status import SharedStatus, State
from r3l.training.watched_process import WatchedProcess

NightMaker = Callable[..., Night]


@pytest.fixture
def make_night(tmp_path: Path) -> NightMaker:
    """Return what makes a run under supervision, not yet started."""

    def make(name: str = "night", **changes: Any) -> Night:
        return Night(tmp_path / name, **changes)

    return make


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_run_ends_by_its_steps_parked_relaxed_and_reported(make_night: NightMaker) -> None:
    with make_night(steps=150) as night:
        night.start()
        code, output = night.wait_for_end(120)
        assert code == 0, output
        assert night.steps() == 150
        found = load_checkpoint(night.run.checkpoints, pytest.fail)
        assert found is not None
        assert found[1]["learner"]["updates"] == 90, "every update that was owed has been made"
        assert night.run.newest_snapshot() == 150
        assert night.run.report.exists()
        assert not night.torque_is_on()
        sent = [line["target_rad"] for line in night.servos() if line["event"] == "torque-on"]
        home = load_task("valve").rig.home_rad
        away = np.abs(np.subtract(sent, home)).max(1)
        assert away[-1] < away[-2] or away[-1] == 0, "the last moves are those home"
        assert [kind for kind, _ in night.events()] == ["start", "end"]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_relaxes_at_once_writes_a_checkpoint_and_ends_with_0(make_night: NightMaker, number: int) -> None:
    with make_night() as night:
        night.start()
        night.wait_for(night.is_learning)
        assert night.process is not None
        asked_s = time.monotonic()
        night.process.send_signal(number)
        assert night.commands_after_stop() <= 2
        code, output = night.wait_for_end(15)
        assert code == 0, output
        assert time.monotonic() - asked_s < 10
        assert not night.torque_is_on()
        assert f"r3l train --resume {night.run.folder}" in output
        steps = night.steps()
        found = load_checkpoint(night.run.checkpoints, pytest.fail)
        assert found is not None
        assert steps - 10 <= found[1]["learner"]["steps"] <= steps
        night.start()
        night.wait_for(lambda: night.status("actor.steps") > steps + 5 and night.is_learning())


def test_a_process_that_has_done_its_work_may_take_its_time_to_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", SMALL)
    status, now_s = SharedStatus.create(run.shared), [0.0]
    watched = WatchedProcess("actor", run, status, 2.0, lock=-1, lifeline=-1, clock=lambda: now_s[0])
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        monkeypatch.setattr("r3l.training.watched_process.start_worker", lambda *given, **named: process)
        try:
            watched.start_when_due()
            status["actor.ready"], status["actor.state"] = 1, State.ACTING
            assert watched.trouble() is None
            now_s[0] = 3.0
            assert watched.trouble() == "actor made no progress for 3.0 s"
            status["actor.state"] = State.ENDED
            assert watched.trouble() is None
            now_s[0] = SMALL.supervision.start_limit_s + 3.0
            assert watched.trouble() is not None
        finally:
            process.kill()


BROKEN = [
    pytest.param("actor", signal.SIGKILL),
    pytest.param("learner", signal.SIGSTOP, marks=pytest.mark.slow),
    pytest.param("actor", signal.SIGTERM, marks=pytest.mark.slow),
    pytest.param("learner", signal.SIGTERM, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("process", "number"), BROKEN)
def test_a_process_that_dies_or_hangs_is_started_again(make_night: NightMaker, process: str, number: int) -> None:
    supervision = replace(QUICK, actor_limit_s=1.0, learner_limit_s=2.0)
    with make_night(supervision=supervision) as night:
        night.start()
        night.wait_for(night.is_learning)
        before, steps = night.pid(process), night.status("actor.steps")
        os.kill(before, number)
        began_s = time.monotonic()
        night.wait_for(lambda: night.count("restart") == 1, 15)
        limit_s = supervision.actor_limit_s if process == "actor" else supervision.learner_limit_s
        assert time.monotonic() - began_s < limit_s + 5
        assert is_gone(before)
        if process == "actor":
            told = [line for line in night.servos() if line["event"].startswith("torque")]
            off = [index for index, line in enumerate(told) if line["event"] == "torque-off"]
            assert off, "somebody took the torque off"
            assert not night.torque_is_on() or told[-1]["pid"] != before
        night.wait_for(lambda: night.pid(process) != before and night.status("actor.steps") > steps + 20)
        night.wait_for(night.is_learning)
        assert not [message for kind, message in night.events() if kind == "failed"]
    kept = [(row.segment, row.step) for row in night.rows()]
    assert kept == sorted(kept)
    assert len(set(kept)) == len(kept)


def test_people_pause_resume_relax_and_stop_but_start_no_second_run(make_night: NightMaker) -> None:
    with make_night() as night:
        night.start()
        night.wait_for(night.is_learning)
        second = night.command("train", "--resume")
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert night.process is not None
        assert f"in use by process {night.process.pid}" in second.stderr
        assert night.command("pause").returncode == 0
        night.wait_for(lambda: night.state("actor") is State.PAUSED)
        assert not night.torque_is_on()
        steps = night.status("actor.steps")
        time.sleep(10 * PERIOD_S)
        assert night.status("actor.steps") == steps
        assert night.command("resume").returncode == 0
        night.wait_for(lambda: night.status("actor.steps") > steps + 5)
        assert night.command("relax").returncode == 0
        night.wait_for(lambda: night.state("actor") is State.RELAXED)
        assert not night.torque_is_on()
        assert night.command("resume").returncode == 0
        night.wait_for(lambda: night.state("actor") is State.ACTING)
        assert night.command("stop").returncode == 0
        code, output = night.wait_for_end(15)
        assert code == 0, output
        assert not night.torque_is_on()
        asked_and_done = ["asked", "pause", "asked", "resume"]
        assert [kind for kind, _ in night.events()] == ["start", *asked_and_done, *asked_and_done, "asked", "stop"]
        assert night.command("pause").returncode == 2, "nobody is there to be asked any more"


@pytest.mark.slow
def test_a_deadline_parks_relaxes_and_reports_and_is_kept(make_night: NightMaker) -> None:
    with make_night() as night:
        night.start("--hours", str(12 / 3600))
        code, output = night.wait_for_end(90)
        assert code == 0, output
        assert night.run.report.exists()
        assert not night.torque_is_on()
        assert [kind for kind, _ in night.events()] == ["start", "end"]
        again = night.command("train", "--check", "--resume")
        assert again.returncode == 0


def is_importing_no_more(night: Night) -> bool:
    """Return whether the command is at work: it heeds SIGTERM."""
    assert night.process is not None
    caught = next(
        line for line in Path(f"/proc/{night.process.pid}/status").read_text().split("\n") if line.startswith("SigCgt")
    )
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["before the start", "starting", "exploring", "pretraining", "ending"])
def test_a_signal_ends_any_phase_with_0(make_night: NightMaker, phase: str, number: int) -> None:
    phases = replace(SMALL.phases, exploration_steps=500 if phase == "exploring" else 60)
    vae = replace(SMALL.vae, pretrain_updates=100_000 if phase == "pretraining" else 5)
    with make_night(phases=phases, vae=vae, steps=150 if phase == "ending" else 100_000) as night:
        has_come: dict[str, Callable[[], bool]] = {
            "before the start": lambda: is_importing_no_more(night),
            "starting": lambda: night.state("actor") is State.STARTING,
            "exploring": lambda: night.status("actor.steps") > 20,
            "pretraining": lambda: night.state("learner") is State.PRETRAINING,
            "ending": lambda: night.state("learner") is State.ENDED,
        }
        night.start()
        night.wait_for(has_come[phase])
        assert night.process is not None
        asked_s = time.monotonic()
        night.process.send_signal(number)
        code, output = night.wait_for_end(15)
        assert code == 0, output
        assert time.monotonic() - asked_s < 10
        assert "Traceback" not in output
        assert not night.torque_is_on()
