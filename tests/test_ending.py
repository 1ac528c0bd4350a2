"""How a run ends, what people may still ask of it then, and what outlives its supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.night import HZ, QUICK, SMALL, Night
from r3l.cli import main as cli
from r3l.run.directory import Run
from r3l.run.progress import Unblocked
from r3l.training.orphans import is_child
from r3l.training.shared_status import SharedStatus, State, Wanted

HOURS_PER_S = 1 / 3600


@pytest.fixture
def make_night(tmp_path: Path) -> Callable[..., Night]:
    return lambda **changes: Night(tmp_path / "night", **changes)


NightMaker = Callable[..., Night]


def helper(night: Night, role: str) -> int:
    """Return the number of the helper process of a role; 0 where there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if role.encode() in words and os.fsencode(night.run.folder) in words:
            return int(folder.name)
    return 0


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """Let a process do nothing for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def torque(night: Night) -> list[str]:
    return [line["event"] for line in night.servos() if line["event"].startswith("torque")]


@pytest.mark.slow
def test_a_robot_that_a_person_relaxed_stays_so_when_the_time_is_up(make_night: NightMaker) -> None:
    with make_night() as night:
        night.start("--hours", str(25 * HOURS_PER_S))
        night.wait_for(lambda: night.status("actor.steps") > 5)
        assert night.command("relax").returncode == 0
        night.wait_for(lambda: night.state("actor") is State.RELAXED)
        told = len(torque(night))
        code, output = night.wait_for_end(90)
        assert code == 0, output
        assert night.run.report.exists()
        assert set(torque(night)[told:]) <= {"torque-off"}


@pytest.mark.slow
def test_a_robot_that_a_person_relaxed_stays_so_when_its_supervisor_was_killed(make_night: NightMaker) -> None:
    with make_night() as night:
        night.start()
        night.wait_for(lambda: night.status("actor.steps") > 5)
        assert night.command("relax").returncode == 0
        night.wait_for(lambda: night.state("actor") is State.RELAXED)
        night.kill()
        told = len(torque(night))
        night.start()
        assert night.process is not None
        night.wait_for(lambda: night.status("supervisor.pid") == night.process.pid)  # type: ignore[union-attr]
        night.wait_for(lambda: night.state("actor") is State.RELAXED and night.status("actor.ready") == 1)
        assert "torque-on" not in torque(night)[told:]
        assert night.command("resume").returncode == 0
        night.wait_for(lambda: night.state("actor") is State.ACTING)


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["signal", "word"])
def test_a_report_that_takes_long_does_not_hold_a_stop_up(make_night: NightMaker, stop: str) -> None:
    with make_night(steps=80) as night:
        night.start()
        night.wait_for(lambda: helper(night, "report") > 0, 120)
        with halted(helper(night, "report")):
            assert night.process is not None
            if stop == "signal":
                night.process.send_signal(signal.SIGINT)
            else:
                assert night.command("stop").returncode == 0
            code, output = night.wait_for_end(15)
        assert code == 0, output
        assert "report:" not in output.split("done")[-1]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["relax", "stop"])
def test_a_robot_on_its_way_home_is_relaxed_when_people_say_so(make_night: NightMaker, word: str) -> None:
    phases = replace(SMALL.phases, homing_steps=int(20 * HZ))
    with make_night(phases=phases, supervision=replace(QUICK, stop_limit_s=60.0)) as night:
        night.start("--hours", str(12 * HOURS_PER_S))
        night.wait_for(lambda: night.status("wanted") == Wanted.PARK)
        assert night.command(word).returncode == 0
        assert night.commands_after_stop() <= 2
        code, output = night.wait_for_end(60)
        assert code == 0, output


@pytest.mark.slow
def test_a_scripted_move_that_takes_longer_than_the_actors_limit_is_no_hang(make_night: NightMaker) -> None:
    phases = replace(SMALL.phases, homing_steps=int(4 * HZ))
    with make_night(phases=phases, supervision=replace(QUICK, actor_limit_s=2.0, stop_limit_s=2.0)) as night:
        night.start("--hours", str(25 * HOURS_PER_S))
        code, output = night.wait_for_end(120)
        assert code == 0, output
        assert not night.count("restart")
        assert not night.count("killed")
        assert night.steps()


@pytest.mark.slow
def test_an_actor_that_hangs_when_it_is_to_stop_is_killed_and_the_robot_relaxed(make_night: NightMaker) -> None:
    with make_night(supervision=replace(QUICK, actor_limit_s=60.0)) as night:
        night.start()
        night.wait_for(night.is_learning)
        os.kill(night.pid("actor"), signal.SIGSTOP)
        assert night.process is not None
        night.process.send_signal(signal.SIGTERM)
        night.wait_for(lambda: not night.torque_is_on(), 7)
        assert night.wait_for_end(15)[0] == 0


@pytest.mark.slow
def test_overruns_are_counted_and_ctrl_z_changes_nothing(make_night: NightMaker) -> None:
    with make_night(supervision=replace(QUICK, actor_limit_s=60.0)) as night:
        night.start()
        night.wait_for(night.is_learning)
        before = night.status("actor.overruns")
        with halted(night.pid("actor")):
            time.sleep(1.0)
        night.wait_for(lambda: night.status("actor.overruns") > before)
        assert night.process is not None
        night.process.send_signal(signal.SIGTSTP)
        assert night.command("relax").returncode == 0
        night.wait_for(lambda: night.state("actor") is State.RELAXED)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["far", "nan"])
def test_a_robot_whose_joints_cannot_be_believed_is_never_moved(make_night: NightMaker, fault: str) -> None:
    with make_night() as night:
        night.inject(fault)
        night.start()
        night.wait_for(lambda: night.state("actor") is State.CHECK_FAILED)
        assert night.command("pause").returncode == 0
        night.wait_for(lambda: night.state("actor") is State.PAUSED)
        assert "torque-on" not in torque(night)
        assert night.command("resume").returncode == 0
        night.inject()
        night.wait_for(lambda: night.status("actor.steps") > 5)
        assert not night.count("restart")


@pytest.mark.slow
def test_a_helper_does_not_outlive_its_supervisor(make_night: NightMaker) -> None:
    with make_night(steps=80) as night:
        night.start()
        night.wait_for(lambda: helper(night, "report") > 0, 120)
        report = helper(night, "report")
        with halted(report):
            night.kill()
        end_s = time.monotonic() + 20
        while Path(f"/proc/{report}").exists() and time.monotonic() < end_s:
            time.sleep(0.1)
        assert not Path(f"/proc/{report}").exists()


def test_a_run_whose_time_is_up_is_not_begun_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night = Night(tmp_path / "night")
    night.run.set_deadline(time.time() - 3600)
    assert cli.main(["train", "--resume", str(night.run.folder)]) == 0
    assert "was up at" in capsys.readouterr().out
    assert not night.servos()


def test_nothing_of_a_run_is_changed_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    night = Night(tmp_path / "night")
    holders: list[int | None] = []
    for name in ("extended", "replace_goals", "set_deadline"):
        real = getattr(Run, name)

        def change(run: Run, *given: Any, real: Callable[..., Any] = real) -> Any:
            holders.append(run.holder())
            return real(run, *given)

        monkeypatch.setattr(Run, name, change)

    def supervise(run: Run, deadline_epoch_s: float | None, lock: int) -> str:
        holders.append(run.holder())
        return "done"

    monkeypatch.setattr("r3l.cli.launch.supervise", supervise)
    command = ["train", "--resume", str(night.run.folder), "--hours", "1", "--goals", str(night.run.goals)]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert holders == [os.getpid()] * 4
    assert night.run.holder() is None


@pytest.mark.parametrize("module", ["r3l.training.worker", "r3l.processes.child"])
def test_a_child_is_known_by_any_spelling_of_its_run(tmp_path: Path, module: str) -> None:
    run = Run.create(tmp_path / "runs" / "one", SMALL)
    other = Run.create(tmp_path / "runs" / "other", SMALL)
    code = [sys.executable, "-c", "import time; time.sleep(60)", module, "actor"]
    (tmp_path / "link").symlink_to(run.folder)
    for spelling in ("runs/one", "link", f"{run.folder}/", "runs/other/../one"):
        with subprocess.Popen([*code, spelling], cwd=tmp_path) as process:
            try:
                end_s = time.monotonic() + 10  # until it has become another program
                while not is_child(process.pid, run) and time.monotonic() < end_s:
                    time.sleep(0.01)
                assert is_child(process.pid, run), spelling
                assert not is_child(process.pid, other)
            finally:
                process.kill()


@pytest.mark.parametrize("wanted", list(Wanted))
def test_what_people_wanted_is_on_the_old_board(tmp_path: Path, wanted: Wanted) -> None:
    path = tmp_path / "board"
    assert SharedStatus.left_wanted(path) is Wanted.RUN
    SharedStatus.create(path)["wanted"] = wanted
    assert SharedStatus.left_wanted(path) is (wanted if wanted in (Wanted.PAUSE, Wanted.RELAX) else Wanted.RUN)
    SharedStatus(path)["wanted"] = float("inf")
    assert SharedStatus.left_wanted(path) is Wanted.RUN


def test_output_that_nobody_takes_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    with closing(os.fdopen(writing, "w")) as stream:
        unblocked = Unblocked(stream)
        unblocked.write("first\n")
        for _ in range(100_000):
            unblocked.write("0123456789abcdef" * 16)
        assert os.read(reading, 6) == b"first\n"
        assert unblocked == stream
        os.read(reading, 1 << 20)
        unblocked.write("again\n")
        assert os.read(reading, 1 << 20).endswith(b"again\n")
    os.close(reading)


@pytest.mark.parametrize(
    ("word", "loaded", "code", "told"),
    [
        ("train", "r3l.cli.launch", 0, "stopped before anything was started"),
        ("report", "r3l.evaluation.report.document", 130, "stopped"),
    ],
)
def test_a_signal_while_torch_is_loaded_is_no_traceback(
    word: str, loaded: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loading(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if word == "train":
                os.kill(os.getpid(), signal.SIGTERM)  # what systemd sends
                time.sleep(10)
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, loaded, Loading(loaded))
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main([word, "x"]) == code
    assert signal.getsignal(signal.SIGTERM) is before
    output = capsys.readouterr()
    assert told in output.out + output.err
