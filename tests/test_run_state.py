"""The state of a run: status, its JSON and the report give one answer, for real runs however they end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.night import QUICK, Night
from r3l.cli.status import collect
from r3l.config.schema import MANY, Config
from r3l.evaluation.report.document import write_report
from r3l.run.directory import Run
from r3l.run.state import Word, living_holder, moment, planned_end, run_state, wall_s
from r3l.training.shared_status import PROCESSES


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", Config(robot="fake", steps=500))


def header(run: Run) -> str:
    """Return the header of the report that a run has."""
    return run.report.read_text().split("</header>")[0]


def require_agreement(run: Run, word: Word) -> None:
    """Require that status, its JSON and the report that is there say the same about a run that is over."""
    state, values = run_state(run), json.loads(json.dumps(collect(run)))
    assert (state.word, values["state"], values["sentence"]) == (word, str(word), state.sentence)
    head = header(run)
    assert f">{word}</span></h1>" in head
    assert f"<p>{state.sentence}</p>" in head
    assert f"{MANY:,}" not in head
    assert f"<small>{state.plan}" in head


@pytest.mark.parametrize(
    ("options", "changes", "word"),
    [(("--hours", str(10 / 3600)), {}, Word.ENDED), ((), {"steps": 90}, Word.FINISHED)],
)
def test_the_report_that_a_run_writes_at_its_end_says_how_it_ended(
    tmp_path: Path, options: tuple[str, ...], changes: dict[str, Any], word: Word
) -> None:
    with Night(tmp_path, **changes) as night:
        night.start(*options)
        code, output = night.wait_for_end(300)
        assert code == 0, output
        require_agreement(Run.open(night.run.folder), word)
        assert night.events()[-1][0] == "end"


def stop(night: Night) -> None:
    assert night.command("stop").returncode == 0


def kill(night: Night) -> None:
    """Kill the supervisor, and wait until its processes have ended, too."""
    pids = [night.pid(name) for name in PROCESSES]
    night.kill()
    until_s = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until_s:
        time.sleep(0.05)


def fail(night: Night) -> None:
    os.kill(night.pid("actor"), signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "word", "words"),
    [
        (stop, Word.STOPPED, "It was stopped at step"),
        (fail, Word.FAILED, "the actor was restarted 0 times within an hour"),
        (kill, Word.INTERRUPTED, "Its process is gone without an end event"),
    ],
)
def test_status_and_report_agree_on_a_run_that_ends_early(
    tmp_path: Path, end: Callable[[Night], None], word: Word, words: str
) -> None:
    with Night(tmp_path, supervision=replace(QUICK, max_restarts=0)) as night:
        night.start("--hours", "1")
        night.wait_for(night.is_learning)
        run = Run.open(night.run.folder)
        write_report(run, run.report)
        assert collect(run)["state"] == "running"
        assert ">running</span></h1>" in header(run)
        end(night)
        if end is not kill:
            night.wait_for_end()
        write_report(run, run.report)
        require_agreement(run, word)
        assert words in run_state(run).sentence
        assert f"r3l train --resume {run.folder}" in run_state(run).sentence


@pytest.mark.parametrize(
    ("kinds", "word"),
    [
        ((), Word.NOT_STARTED),
        (("start",), Word.INTERRUPTED),
        (("start", "end"), Word.ENDED),
        (("start", "stop", "report"), Word.STOPPED),
        (("start", "failed"), Word.FAILED),
        (("start", "end", "start"), Word.INTERRUPTED),
    ],
)
def test_the_newest_start_or_end_says_what_a_run_without_a_process_is(
    run: Run, kinds: tuple[str, ...], word: Word
) -> None:
    for kind in kinds:
        run.event(kind, "the camera is gone")
    state = run_state(run)
    assert (state.word, state.reason) == (word, "the camera is gone" if word is Word.FAILED else None)


def test_a_run_that_writes_its_report_has_ended_and_one_about_to_resume_is_running(run: Run) -> None:
    with run.lock():
        run.event("start", "at step 0")
        assert run_state(run).word is Word.RUNNING
        run.event("end", "at step 0")
        assert run_state(run).word is Word.ENDED
        assert run_state(run).pid == os.getpid()
    past_s = time.time() - 60
    event = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(past_s)), "kind": "end"})
    run.events.write_text(event + "\n")
    assert run_state(run).word is Word.ENDED
    with run.lock():
        assert run_state(run).word is Word.RUNNING


def test_reading_the_state_takes_no_lock(run: Run) -> None:
    assert living_holder(run.folder) is None
    with run.lock():
        assert living_holder(run.folder) == os.getpid()


def test_a_night_ends_at_its_time_and_never_at_a_billion_steps() -> None:
    soon = time.time() + 3600
    clock = time.strftime("%a %H:%M", time.localtime(soon))
    assert planned_end(3000, None) == "of 3,000"
    assert planned_end(MANY, None) == "until stopped"
    assert planned_end(MANY, soon) == f"until {clock}"
    assert planned_end(3000, soon) == f"of 3,000 or until {clock}"
    assert moment(0.0).startswith("19")


def test_how_to_resume_names_more_time_where_the_time_was_up(run: Run) -> None:
    run.event("start", "at step 0")
    run.set_deadline(time.time() + 60)
    assert run_state(run).sentence.endswith(f"r3l train --resume {run.folder}")
    run.set_deadline(time.time() - 60)
    assert run_state(run).sentence.endswith(f"r3l train --resume {run.folder} --hours 8")


def test_a_start_without_an_end_lasted_until_its_last_row() -> None:
    def event(minute: int, kind: str) -> dict[str, str]:
        return {"time": f"1970-01-01T00:{minute:02d}:00+0000", "kind": kind}

    crashed = [event(10, "start"), event(50, "start"), event(55, "end")]
    assert wall_s(crashed, [660.0, 1800.0, 3060.0], None) == 20 * 60 + 5 * 60
    assert wall_s(crashed[:2], [660.0, 1800.0, 3060.0], None) == 20 * 60 + 60
    assert wall_s(crashed[:2], [660.0, 1800.0], 3600.0) == 20 * 60 + 10 * 60
    assert wall_s([], [660.0], None) is None
