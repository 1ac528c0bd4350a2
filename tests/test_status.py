"""Status: what a run directory says about its run, whatever is missing or torn, and quickly."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunMaker, make_row, tiny

from benchmarks.running import WITH_DEFAULT_SIGNALS
from r3l.cli import status
from r3l.cli.status import collect, describe, show
from r3l.cli.status_page import render
from r3l.cli.status_view import read_view
from r3l.config.errors import UserError
from r3l.config.schema import MANY, Config, PhasesConfig
from r3l.run.directory import Run
from r3l.run.experience import SCHEMA, SCHEMA_VERSION, ExperienceStore
from r3l.run.jsonl import append_jsonl
from r3l.training.shared_status import MAGIC, SLOTS, SharedStatus, State
from r3l.training.sync import train

GIB = 1 << 30
NIGHT = Config(robot="fake", steps=360_000, real_time=True, phases=PhasesConfig(exploration_steps=20))


@contextmanager
def running(run: Run, **slots: float) -> Iterator[SharedStatus]:
    """Be the supervisor of a run that acts."""
    with run.lock():
        shared = SharedStatus.create(run.shared)
        shared["supervisor.pid"] = os.getpid()
        shared["actor.state"], shared["learner.state"] = State.ACTING, State.LEARNING
        for slot, value in slots.items():
            shared[slot.replace("__", ".")] = value
        yield shared


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)  # how deep the tests' own folders are is no matter of the page
    return Run.create(Path("run"), NIGHT)


@pytest.fixture(autouse=True)
def _short_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "RATE_INTERVAL_S", 0.1)


def fill(run: Run, rows: int, episode: int = 11, *, pause_s: float = 0.0) -> ExperienceStore:
    """Store observations in episodes, the first row of each without an action."""
    store = ExperienceStore(run.experience, (8, 8, 3))
    for number in range(rows):
        segment, step = divmod(number, episode)
        store.append(replace(make_row(), segment=segment, step=step))
        time.sleep(pause_s)
    return store


def page(run: Run) -> str:
    """Return the run's page, after its JSON proved to be strict."""
    found = collect(run)
    json.dumps(found, allow_nan=False)
    return render(found)


def test_a_run_in_sync_mode_is_described_after_its_end(tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny(sync=True, steps=90))
    train(run)
    found = collect(run)
    assert (found["state"], found["steps"], found["total_steps"]) == ("finished", 90, 90)
    assert found["robot_hours"] == pytest.approx(90 / 10 / 3600)
    assert found["checkpoint_step"] == 90
    assert found["disk"]["used_bytes"] > 90 * 64 * 64 * 3
    assert found["steps_per_s"] is None
    assert [event["kind"] for event in found["events"]] == ["start", "end"]
    assert 0 <= found["wall_hours"] < 0.1
    assert not list(run.folder.glob("*-wal")), "looking leaves nothing behind"


def test_a_run_in_sync_mode_is_running_while_its_lock_is_held(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", tiny(sync=True))
    assert collect(run)["state"] == "not started"
    with run.lock():
        found = collect(run)
        assert (found["state"], found["processes"]["supervisor"]["pid"]) == ("running", os.getpid())
        assert found["updates_per_s"] is None
        assert f"run by     process {os.getpid()}, " in render(found)
    assert collect(run)["state"] == "not started"


@pytest.mark.parametrize(
    ("state", "word", "reason"),
    [
        (State.ACTING, "running", None),
        (State.WAITING_FOR_LEARNER, "running", "waiting for learner"),
        (State.WAITING_FOR_WEIGHTS, "running", "waiting for weights"),
        (State.PAUSED, "paused", None),
        (State.RELAXED, "relaxed", None),
        (State.STARTING, "starting", None),
        (State.DISK_FULL, "waiting", "disk full"),
        (State.CHECK_FAILED, "waiting", "check failed"),
        (State.LEARNER_AWAY, "waiting", "learner away"),
        (State.STUCK, "waiting", "stuck"),
        (99, "starting", None),
    ],
)
def test_the_state_is_what_the_actor_does(run: Run, state: int, word: str, reason: str | None) -> None:
    with running(run, actor__state=state):
        found = collect(run)
    assert (found["state"], found["reason"]) == (word, reason)
    assert render(found).startswith(f"{run.folder}"[:40])


def test_a_dead_supervisor_is_not_running_whatever_the_board_says(run: Run) -> None:
    run.event("start", "at step 0")
    with running(run, actor__pid=1):
        assert collect(run)["state"] == "running"
    found = collect(run)
    assert found["state"] == "interrupted"
    assert found["sentence"].endswith(f"r3l train --resume {run.folder}")
    assert found["sentence"] in " ".join(render(found).split())
    assert set(found["processes"]) == {"supervisor"}
    with subprocess.Popen(["true"]) as process:
        process.wait()
    (run.folder / "lock").write_text(str(process.pid))
    shared = SharedStatus(run.shared)
    shared["supervisor.pid"] = process.pid
    assert collect(run)["state"] == "interrupted"


def test_a_lock_that_outlives_its_supervisor_is_no_supervisor(run: Run) -> None:
    code = (
        "import fcntl, os, subprocess, sys; file = open('lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write(str(os.getpid())); file.flush(); os.set_inheritable(file.fileno(), True)\n"
        "print(subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL).pid)"
    )
    command = [sys.executable, "-c", code]
    orphan = int(subprocess.run(command, cwd=run.folder, stdout=subprocess.PIPE, text=True, check=True).stdout)
    try:
        with pytest.raises(UserError, match="in use"), run.lock():
            pass
        assert collect(run)["state"] == "not started"
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_board_of_an_earlier_supervisor_is_not_believed(run: Run) -> None:
    with running(run, supervisor__pid=1, actor__state=State.PAUSED):
        found = collect(run)
    assert (found["state"], found["updates_per_s"]) == ("starting", None)


@pytest.mark.parametrize(
    ("kind", "word", "reason"),
    [("end", "ended", None), ("stop", "stopped", None), ("failed", "failed", "the camera is gone; plug it in")],
)
def test_the_last_event_says_how_a_run_ended(run: Run, kind: str, word: str, reason: str | None) -> None:
    run.event("start", "at step 0")
    run.event(kind, "the camera is gone; plug it in")
    run.event("reward-score", "over: the check passes again")
    found = collect(run)
    assert (found["state"], found["reason"]) == (word, reason)


def test_steps_are_counted_without_reading_all_rows(run: Run) -> None:
    store = fill(run, 250)
    assert collect(run)["steps"] == store.steps() == 250 - 23
    store.close()
    assert collect(run)["steps"] == 250 - 23


def test_a_running_actor_knows_its_steps_best(run: Run) -> None:
    fill(run, 30).close()
    with running(run, actor__steps=29):
        assert collect(run)["steps"] == 29


def test_a_store_that_a_killed_process_left_is_read(run: Run, tmp_path: Path) -> None:
    store = fill(run, 30)
    shutil.copytree(run.folder, tmp_path / "killed")
    store.close()
    killed = Run.open(tmp_path / "killed")
    assert killed.experience.with_name("experience.sqlite-wal").stat().st_size
    assert collect(killed)["steps"] == 30 - 3


def test_the_rate_of_env_steps_is_that_of_the_last_seconds(run: Run) -> None:
    with running(run):
        began = time.time()
        store = fill(run, 45, pause_s=0.02)
        rate, took_s = collect(run)["steps_per_s"], time.time() - began
        store.close()
        assert rate == pytest.approx(40 / took_s, rel=0.25)
        connection = sqlite3.connect(run.experience)
        connection.execute("UPDATE observation SET written_s = written_s - 3600")
        connection.commit()
        connection.close()
        assert collect(run)["steps_per_s"] == 0.0


def test_a_fast_run_has_more_recent_rows_than_are_read(run: Run) -> None:
    with running(run):
        began = time.time()
        store = fill(run, 2200)
        assert collect(run)["steps_per_s"] == pytest.approx(2000 / (time.time() - began), rel=0.5)
        store.close()


def test_the_rate_of_updates_is_seen_in_two_looks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "RATE_INTERVAL_S", 0.5)
    with running(run) as shared:
        is_over = threading.Event()

        def learn() -> None:
            while not is_over.wait(0.01):
                shared.add("learner.updates")

        thread = threading.Thread(target=learn)
        thread.start()
        first = read_view(run)
        rate = collect(run)["updates_per_s"]
        assert 30 < rate < 110
        assert describe(read_view(run), first)["updates_per_s"] == pytest.approx(rate, rel=0.4)
        is_over.set()
        thread.join()
        assert collect(run)["updates_per_s"] == 0.0


def test_updates_are_compared_with_the_env_steps_since_exploration(run: Run) -> None:
    with running(run, actor__steps=120, learner__updates=95):
        assert collect(run)["update_ratio"] == pytest.approx(0.95)
    with running(run, actor__steps=10):
        assert collect(run)["update_ratio"] is None


def test_success_reward_and_coverage_are_the_newest_there_are(run: Run) -> None:
    append_jsonl(
        run.metrics, {"step": 500, "health/judged_success": 0.1, "health/auc": 0.7, "judged/episode_success": 0}
    )
    append_jsonl(run.metrics, {"step": 1000, "health/judged_success": 0.4, "health/auc": 0.97, "health/held_out": 0.8})
    append_jsonl(run.metrics, {"step": 1000, "health/elsewhere": 0.1, "coverage": 0.25, "judged/episode_success": 0.5})
    append_jsonl(run.metrics, {"step": 1250, "task/value": 3.0, "health/auc": float("nan")})
    append_jsonl(run.evaluations, {"step": 1000, "success": 0.75, "episodes": []})
    found = collect(run)
    assert found["success"] == {
        "judged": 0.4,
        "judged_step": 1000,
        "episodes": 0.5,
        "episodes_step": 1000,
        "evaluated": 0.75,
        "evaluated_step": 1000,
    }
    assert found["coverage"] == 0.25
    assert found["reward"] == {
        "word": "well",
        "ill": [],
        "step": 1000,
        "auc": 0.97,
        "held_out": 0.8,
        "elsewhere": 0.1,
    }
    assert "reward     well: ROC-AUC 0.97, goals 0.80, elsewhere 0.10, at 1,000" in render(found)


def test_the_reward_is_ill_from_its_event_until_that_is_over(run: Run) -> None:
    assert collect(run)["reward"]["word"] is None
    append_jsonl(run.metrics, {"step": 500, "health/auc": 0.5, "health/held_out": 0.5, "health/elsewhere": 0.5})
    assert collect(run)["reward"]["word"] == "not yet well"
    run.event("reward-ranking", "the classifier ranks held-out goal images hardly above other frames")
    run.event("reward-score", "the score fell")
    assert collect(run)["reward"]["ill"] == ["ranking", "score"]
    assert "ill (ranking, score)" in page(run)
    for name in ("ranking", "score"):
        run.event(f"reward-{name}", "over: the check passes again")
    append_jsonl(run.metrics, {"step": 1000, "health/auc": 0.95, "health/held_out": 0.8, "health/elsewhere": 0.1})
    assert collect(run)["reward"]["word"] == "well"


def test_counters_of_the_board_are_shown(run: Run) -> None:
    with running(
        run,
        actor__pid=os.getpid(),
        actor__restarts=2,
        learner__restarts=1,
        actor__commands=1000,
        actor__on_time=998,
        actor__overruns=2,
        actor__worst_late_s=0.042,
        actor__version=7,
        learner__version=8,
        actor__speed_limited=31,
        actor__hottest_c=47.4,
        actor__current_a=0.31,
        actor__voltage_v=11.9,
        check__dark=3,
        check__joint_frozen=1,
    ):
        run.weights.mkdir()
        run.acting_weights.write_bytes(b"")
        found = collect(run)
    text = render(found)
    assert "checks     3 dark, 1 joint frozen" in text
    assert "timing     99.8% of 1,000 on time, 2 overruns, worst 42 ms late" in text
    assert "version 7 acts, 8 published 0 s ago" in text
    assert "31 speed limited" in text
    assert "servos     47 °C and 0.31 A at most, 11.9 V at least" in text
    assert found["processes"]["actor"]["restarts"] == 2
    assert found["processes"]["actor"]["rss_bytes"] > 50 << 20
    assert found["processes"]["learner"]["pid"] is None
    assert f"actor      acting, 2 restarts, process {os.getpid()}, " in text


def test_rollbacks_a_stuck_object_and_pretraining_are_shown(run: Run) -> None:
    slots = {"learner__state": State.PRETRAINING, "learner__pretrained_share": 0.43}
    with running(run, learner__rollbacks=2, actor__stuck_level=1, **slots):
        text = page(run)
    assert "went back 2 times" in text
    assert "the object is stuck (level 1)" in text
    assert "learner    pretraining 43%, 0 restarts" in text


def test_a_robot_whose_actuators_nobody_feels_has_no_vitals(run: Run) -> None:
    with running(run, actor__commands=10):
        found = collect(run)
    assert found["vitals"] is None
    assert "servos " not in render(found)


def test_a_robot_that_keeps_no_time_is_not_said_to_be_late(run: Run) -> None:
    with running(run, actor__commands=1000):
        assert "timing     -% of 1,000 on time, - overruns" in page(run)
    with running(run, actor__commands=10, actor__overruns=10):
        assert "timing     0.0% of 10 on time, 10 overruns" in page(run)


def test_a_deadline_is_when_the_run_ends(run: Run) -> None:
    with running(run, deadline_epoch_s=1_800_000_000.0):
        assert collect(run)["ends_epoch_s"] == 1_800_000_000.0
    unending = Run(run.folder, replace(run.config, steps=MANY))
    found = collect(unending)
    assert (found["total_steps"], found["ends_epoch_s"]) == (None, None)
    assert "until stopped" in render(found)


def test_steps_end_a_run_at_its_rate(run: Run) -> None:
    with running(run):
        store = fill(run, 45, pause_s=0.01)
        found = collect(run)
        store.close()
    left_s = found["ends_epoch_s"] - found["time_epoch_s"]
    assert left_s == pytest.approx((360_000 - found["steps"]) / found["steps_per_s"], rel=0.01)


def test_what_a_terminal_would_obey_is_not_shown_to_it(run: Run) -> None:
    lines = [
        {"time": "2026-01-01T00:00:00+0000", "kind": "very\nlong", "message": "\x1b[2J\x07\x00 lone \ud800 surrogate"},
        {"time": "2026-01-01T00:00:00+0000", "kind": "failed", "message": "a\nb \x1b[2J"},
    ]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = page(run)
    assert all(each.isprintable() for each in shown.replace("\n", ""))
    assert shown.encode()
    assert "failed: a b ?[2J" in shown.split("\n")[0]


def test_a_narrow_terminal_has_a_narrow_page(run: Run) -> None:
    assert max(map(len, render(collect(run), 40).split("\n"))) <= 40


def test_wall_hours_leave_out_the_time_between_runs(run: Run) -> None:
    def at(hour: int, kind: str) -> None:
        append_jsonl(run.events, {"time": f"2026-01-01T{hour:02d}:00:00+0000", "kind": kind, "message": ""})

    for hour, kind in ((0, "start"), (2, "end"), (5, "start"), (6, "checkpoint"), (8, "start"), (9, "stop")):
        at(hour, kind)
    assert collect(run)["wall_hours"] == pytest.approx(2 + 1 + 1)
    at(12, "start")
    at(13, "health")
    assert collect(run)["wall_hours"] == pytest.approx(5)
    with running(run):
        assert collect(run)["wall_hours"] > 1000


def test_disk_and_memory_have_a_forecast(run: Run) -> None:
    found = collect(Run(run.folder, replace(run.config, quota_gib=1.0)))
    assert found["disk"]["quota_bytes"] == GIB
    assert 0.9 * GIB < found["disk"]["left_bytes"] <= GIB
    assert 1.5 < found["disk"]["hours_left"] < 2.5
    assert found["memory_forecast_bytes"] > 3 * GIB


def full(run: Run) -> None:
    """Give a run one of everything."""
    fill(run, 30).close()
    SharedStatus.create(run.shared)
    (run.folder / "lock").write_text("1")
    run.event("start", "at step 0")
    append_jsonl(run.metrics, {"step": 500, "health/auc": 0.9, "coverage": 0.2})
    append_jsonl(run.evaluations, {"step": 500, "success": 0.5})
    run.checkpoints.mkdir()
    (run.checkpoints / "latest").write_text("step-00000500.1")
    run.weights.mkdir()
    run.acting_weights.write_bytes(b"weights")


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scramble(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes((byte * 7 + 13) % 256 for byte in content))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def foreign(path: Path) -> None:
    path.write_bytes(b'[1]\n"x"\n3\nnull\n{"step": "a", "kind": 3, "time": 5, "message": null, "success": "no"}\n')


def huge(path: Path) -> None:
    path.write_bytes(b'{"step": 1e400, "health/auc": ' + b"9" * 500 + b', "coverage": NaN, "success": true}\n')


FILES = (
    "board",
    "lock",
    "experience.sqlite",
    "metrics.jsonl",
    "events.jsonl",
    "evaluations.jsonl",
    "checkpoints/latest",
    "weights/acting.safetensors",
)


@pytest.mark.parametrize("damage", [remove, cut, empty, scramble, folder, foreign, huge])
def test_whatever_is_missing_or_torn_gives_a_dash(run: Run, damage: Callable[[Path], None]) -> None:
    full(run)
    page(run)
    for name in FILES:
        copy = run.folder.parent / "copy"
        shutil.copytree(run.folder, copy)
        damage(copy / name)
        page(Run.open(copy))
        shutil.rmtree(copy)
    for name in FILES:
        damage(run.folder / name)
    text = page(run)
    assert "env steps  - of 360,000, -/s" in text


def test_a_board_of_nonsense_is_no_exception(run: Run) -> None:
    with running(run):
        for number in (1e300, -1e300, -1.0, 0.5):
            shared = SharedStatus(run.shared)
            for slot in SLOTS:
                if slot != "supervisor.pid":
                    shared[slot] = number
            page(run)
        run.shared.write_bytes(MAGIC.ljust(4096, b"\xff"))
        page(run)


def test_an_older_schema_and_a_task_that_is_gone_are_no_exception(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", replace(NIGHT, task="gone.py"))
    connection = sqlite3.connect(run.experience)
    connection.execute("CREATE TABLE observation (sequence INTEGER PRIMARY KEY, words TEXT)")
    connection.close()
    found = collect(run)
    assert (found["robot_hours"], found["disk"]["hours_left"], found["steps"]) == (None, None, None)
    render(found)


def test_a_folder_that_was_just_made_has_a_page_of_dashes(run: Run) -> None:
    text = page(run)
    assert text.splitlines()[0] == f"{run.folder}  not started"[:80]
    assert text.count(" -") > 10


def test_the_page_has_eighty_columns(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", replace(NIGHT, steps=987_654, quota_gib=500.0))
    full(run)
    with running(run) as shared:
        for slot in SLOTS:
            if not slot.endswith((".state", ".pid")):
                shared[slot] = 987_654
        run.event("robot", "word " * 60)
        lines = page(run).splitlines()
    assert max(map(len, lines)) == 80
    assert [line for line in lines if len(line) == 80 and not line.endswith("…")] == []
    assert [line.split()[0] for line in lines[1:-2] if line.endswith("…")] == []
    assert "987,654 moved" in next(line for line in lines if line.startswith(" " * 11))


def test_half_a_million_rows_are_no_delay(run: Run) -> None:
    connection = sqlite3.connect(run.experience)
    connection.executescript(SCHEMA + f"INSERT INTO meta VALUES ('schema_version', {SCHEMA_VERSION});")
    connection.execute(
        "WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < 500000) "
        "INSERT INTO observation SELECT n, (n - 1) / 50, (n - 1) % 50, 1, x'00', x'', x'', x'', x'', n, n FROM count"
    )
    connection.commit()
    connection.close()
    line = json.dumps({"step": 1, **{f"task/metric-{number}": 0.123456789 for number in range(30)}}) + "\n"
    run.metrics.write_text(line * 10_000)
    run.events.write_text(json.dumps({"time": "", "kind": "robot", "message": "x" * 200}) + "\n")
    collect(run)
    began = time.monotonic()
    found = collect(run)
    assert time.monotonic() - began < 8
    assert found["steps"] == 490_000


def test_a_run_deep_in_the_file_system_shows_its_state_all_the_same(tmp_path: Path) -> None:
    deep = Run.create(tmp_path.joinpath(*["a-folder-with-a-rather-long-name"] * 4) / "run", NIGHT)
    head = page(deep).splitlines()[0]
    assert len(head) < 80
    assert head.startswith("…")
    assert head.endswith("a-folder-with-a-rather-long-name/run  not started")


def test_a_page_and_json_are_printed_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(run, watch=False, as_json=False) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{run.folder}  not started"[:80]
    assert show(run, watch=False, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "not started"


def test_watching_as_json_prints_a_line_each_second(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", wait)
    assert show(run, watch=True, as_json=True) == 0
    assert waits == [1.0] * 3
    assert [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()] == ["not started"] * 3


def watch(run: Run, output: Any) -> subprocess.Popen[bytes]:
    command = [*WITH_DEFAULT_SIGNALS, sys.executable, "-m", "r3l", "status", str(run.folder), "--watch"]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE)


def read_until(descriptor: int, word: bytes, times: int) -> bytes:
    content = b""
    while content.count(word) < times:
        content += os.read(descriptor, 65536)
    return content


def test_watching_redraws_a_terminal_and_prints_blocks_elsewhere_until_ctrl_c(run: Run) -> None:
    outer, inner = pty.openpty()
    terminal, piped = watch(run, inner), watch(run, subprocess.PIPE)
    assert piped.stdout is not None
    drawn, printed = read_until(outer, b"\x1b[H", 2), read_until(piped.stdout.fileno(), b"not started", 2)
    assert b"not started" in drawn
    assert b"\x1b" not in printed
    assert b"\n\n" in printed
    for process in (terminal, piped):
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
        assert (process.returncode, errors) == (0, b"")
    os.close(outer)
    os.close(inner)
