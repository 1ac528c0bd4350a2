"""Inject every fault that a night may bring into a small run on the bench robot, and print what came of each.

Each fault has a run of its own: supervisor, actor and learner as `r3l train` starts them, at 50 control periods a
second, on a robot whose servos keep a record that outlives every process. Data lost are env steps that were
acknowledged before the fault and are not in the experience store after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.disks import FailingDisk, small_disk
from benchmarks.night import HZ, PERIOD_S, QUICK, SMALL, Night
from r3l.config.schema import Check, PersistenceConfig
from r3l.models.torch_setup import tune_process
from r3l.run.checkpoint import load_checkpoint
from r3l.run.files import write_file
from r3l.run.progress import progress_bar
from r3l.task.registry import load_task
from r3l.training.shared_status import State

WELL_S = 60.0
"""How long a busy machine may take until all is well again."""
SHORT = 5000
"""Env steps for which there is room on a small disk."""
AT_ONCE = 2
"""Control steps that a stop may take."""


@dataclass
class Seen:
    """What came of a fault."""

    lines: list[str] = field(default_factory=list)
    is_as_expected: bool = True
    lost: int = 0

    def note(self, text: str, *, is_well: bool = True) -> None:
        """Write down something; what is not well is not as expected."""
        self.lines.append(text if is_well else f"**{text}**")
        self.is_as_expected &= is_well


@dataclass(frozen=True)
class Fault:
    """Something that breaks in a night."""

    name: str
    expected: str
    inject: Callable[[Path, Seen], None]
    needs_root: bool = False


FAULTS: list[Fault] = []
MARKERS = ("<!-- faults: made by scripts/faults --page docs/reliability.md -->", "<!-- end of faults -->")


def fault(name: str, expected: str, *, needs_root: bool = False) -> Callable[[Callable[[Path, Seen], None]], None]:
    """Enter a function as what injects a fault."""

    def enter(inject: Callable[[Path, Seen], None]) -> None:
        FAULTS.append(Fault(name, expected, inject, needs_root))

    return enter


@contextmanager
def learning_night(folder: Path, seen: Seen, *, most_lost: int = 0, **changes: Any) -> Iterator[Night]:
    """Give a night in which both processes learn; afterwards count what was lost of what it had by then."""
    with Night(folder, **changes) as night:
        night.start()
        night.wait_for(night.is_learning, 2 * WELL_S)
        acknowledged = int(night.slot("actor.steps") - night.slot("actor.unwritten"))
        yield night
    seen.lost = max(acknowledged - night.steps(), 0)
    labels = [(row.segment, row.step) for row in night.rows()]
    are_whole = all(b == (a[0], a[1] + 1) or (b[0] > a[0] and b[1] == 0) for a, b in pairwise(labels))
    seen.is_as_expected &= seen.lost <= most_lost
    if not are_whole:
        seen.note("the store has gaps or doubles", is_well=False)


def lag_s(night: Night, since_s: float) -> float:
    """Return for how long after a moment the servos were still told to move, s."""
    moved = [line["time_s"] for line in night.servos() if line["event"] == "torque-on" and line["time_s"] > since_s]
    return float(max(moved, default=since_s) - since_s)


def goes_on(night: Night, seen: Seen) -> None:
    """Wait until the robot acts and the learner learns again."""
    steps, updates = night.slot("actor.steps"), night.slot("learner.updates")
    began_s = time.monotonic()
    night.wait_for(
        lambda: night.slot("actor.steps") > steps + 10 and night.slot("learner.updates") not in (0, updates), WELL_S
    )
    seen.note(f"goes on after {time.monotonic() - began_s:.0f} s")


def is_relaxed(night: Night, seen: Seen) -> None:
    """Note whether torque is off."""
    seen.note("relaxed" if not night.torque_is_on() else "torque is on", is_well=not night.torque_is_on())


def is_restarted(night: Night, seen: Seen, name: str, pid: int, limit_s: float) -> None:
    """Wait until a process was replaced within its limit, and five seconds."""
    began_s = time.monotonic()
    night.wait_for(lambda: night.count("restart") > 0, WELL_S)
    spent_s = time.monotonic() - began_s
    seen.note(f"found after {spent_s:.1f} s (limit {limit_s:g} s)", is_well=spent_s < limit_s + 5)
    night.wait_for(lambda: night.pid(name) not in (0, pid), WELL_S)


def ends(night: Night, seen: Seen, code: int, timeout_s: float = WELL_S) -> None:
    """Wait for the end and note its exit code."""
    found, _ = night.end(timeout_s)
    seen.note(f"exit code {found}", is_well=found == code)
    is_relaxed(night, seen)


def enter_process_faults() -> None:
    """Enter what kills and hangs processes."""
    for name, limit_s in (("actor", 2.0), ("learner", 4.0)):
        for word, number in (("killed (SIGKILL)", signal.SIGKILL), ("hung (SIGSTOP)", signal.SIGSTOP)):

            def inject(folder: Path, seen: Seen, name: str = name, number: int = number, s: float = limit_s) -> None:
                limits = replace(QUICK, actor_limit_s=s, learner_limit_s=s)
                with learning_night(folder, seen, supervision=limits) as night:
                    pid = night.pid(name)
                    os.kill(pid, number)
                    is_restarted(night, seen, name, pid, 0.0 if number == signal.SIGKILL else s)
                    goes_on(night, seen)

            relaxed = "robot relaxed, " if name == "actor" else "robot acts on, "
            fault(f"{name} {word}", f"{relaxed}process restarted, run goes on")(inject)


enter_process_faults()


@fault("supervisor killed (SIGKILL)", "processes end and relax the robot; the next start goes on")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen) as night:
        killed_s, actor = time.monotonic(), night.pid("actor")
        night.kill()
        while Path(f"/proc/{actor}").exists() and time.monotonic() - killed_s < WELL_S:
            time.sleep(0.02)
        seen.note(f"relaxed after {lag_s(night, killed_s):.2f} s", is_well=not night.torque_is_on())
        night.start()
        goes_on(night, seen)


@fault("all processes killed (SIGKILL)", "the next start goes on")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen) as night:
        pids = [night.pid(name) for name in ("actor", "learner")]
        night.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        night.start()
        goes_on(night, seen)


@fault("supervisor killed, actor hung", "the next start kills what hangs, and goes on")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen) as night:
        actor = night.pid("actor")
        os.kill(actor, signal.SIGSTOP)
        night.kill()
        night.start()
        night.wait_for(lambda: not Path(f"/proc/{actor}").exists(), WELL_S)
        seen.note("the hung actor is gone")
        goes_on(night, seen)


@fault("learner away for longer than learner_away_s", "robot acts on with the last good weights, then relaxes, waits")
def _(folder: Path, seen: Seen) -> None:
    limits = replace(QUICK, learner_away_s=2.0, learner_limit_s=600.0)
    with learning_night(folder, seen, supervision=limits) as night:
        learner, steps = night.pid("learner"), night.slot("actor.steps")
        os.kill(learner, signal.SIGSTOP)
        night.wait_for(lambda: night.state("actor") is State.LEARNER_AWAY, WELL_S)
        more = night.slot("actor.steps") - steps
        seen.note(f"acts on for {more:.0f} steps", is_well=more > 0.5 * limits.learner_away_s / PERIOD_S)
        is_relaxed(night, seen)
        os.kill(learner, signal.SIGCONT)
        goes_on(night, seen)


@fault("robot unplugged", "restarts with growing pauses; after max_restarts a safe end, exit code 3")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen, supervision=replace(QUICK, max_restarts=2, backoff_s=0.05)) as night:
        night.break_down("unplugged")
        found, _ = night.end(2 * WELL_S)
        seen.note(f"{night.count('restart')} restarts, exit code {found}", is_well=found == 3)
        seen.note("event failed", is_well=night.count("failed") == 1)


@fault("robot hangs in a call", "found, actor killed, run goes on when the robot answers")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen) as night:
        pid = night.pid("actor")
        night.break_down("hang")
        is_restarted(night, seen, "actor", pid, QUICK.actor_limit_s)
        night.break_down()
        goes_on(night, seen)


def stops_by(folder: Path, seen: Seen, number: int) -> None:
    """Stop by a signal."""
    with learning_night(folder, seen) as night:
        assert night.process is not None
        asked_s = time.monotonic()
        night.process.send_signal(number)
        commands = night.commands_after_stop()
        seen.note(f"{commands} commands more", is_well=commands <= AT_ONCE)
        found, _ = night.end(WELL_S)
        spent_s = time.monotonic() - asked_s
        is_relaxed(night, seen)
        kept = load_checkpoint(night.run.checkpoints, lambda text: seen.note(text, is_well=False))
        behind = night.steps() - (kept[1]["learner"]["steps"] if kept else 0)
        seen.note(f"checkpoint {behind} steps behind", is_well=behind < 20)
        seen.note(f"exit code {found} after {spent_s:.1f} s", is_well=found == 0 and spent_s < 10)


@fault("SIGINT", "relaxed at once, checkpoint within 10 s, exit code 0")
def _(folder: Path, seen: Seen) -> None:
    stops_by(folder, seen, signal.SIGINT)


@fault("SIGTERM", "relaxed at once, checkpoint within 10 s, exit code 0")
def _(folder: Path, seen: Seen) -> None:
    stops_by(folder, seen, signal.SIGTERM)


@fault("terminal gone (SIGHUP)", "the run goes on")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen) as night:
        assert night.process is not None
        night.process.send_signal(signal.SIGHUP)
        goes_on(night, seen)


@fault("r3l relax, r3l resume, r3l stop", "relaxed within two control steps, goes on, ends with exit code 0")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen) as night:
        night.ask("relax")
        is_relaxed(night, seen)
        night.ask("resume")
        goes_on(night, seen)
        night.ask("stop")
        ends(night, seen, 0)


@fault("a second run on the directory", "refused with one line that names the first, exit code 2")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen) as night:
        assert night.process is not None
        refused = night.ask("train", "--resume")
        is_named = f"process {night.process.pid}" in refused.stderr and refused.stderr.count("\n") == 1
        seen.note(f"exit code {refused.returncode}, {'names the first' if is_named else refused.stderr}")
        seen.is_as_expected &= refused.returncode == 2 and is_named
        goes_on(night, seen)


@fault("the time is up (--hours)", "parked, relaxed, last checkpoint, report written, exit code 0")
def _(folder: Path, seen: Seen) -> None:
    with Night(folder) as night:
        night.start("--hours", str(20 / 3600))
        ends(night, seen, 0, 3 * WELL_S)
        seen.note("report" if night.run.report.exists() else "no report", is_well=night.run.report.exists())
        has_checkpoint = load_checkpoint(night.run.checkpoints, lambda text: None) is not None
        seen.note("checkpoint" if has_checkpoint else "no checkpoint", is_well=has_checkpoint)


@fault("quota used up", "relaxed, waits, goes on when there is room")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen, steps=SHORT, quota_gib=0.5) as night:
        ballast = night.run.folder / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 29)
        night.wait_for(lambda: night.state("actor") is State.DISK_FULL, WELL_S)
        is_relaxed(night, seen)
        ballast.unlink()
        goes_on(night, seen)


@fault("disk full", "relaxed, waits, goes on when there is room", needs_root=True)
def _(folder: Path, seen: Seen) -> None:
    with small_disk(folder, 400) as disk, learning_night(disk, seen, steps=SHORT, bench=folder / "bench") as night:
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                pass
        night.wait_for(lambda: night.state("actor") is State.DISK_FULL, WELL_S)
        is_relaxed(night, seen)
        ballast.unlink()
        goes_on(night, seen)


@fault(
    "disk turns read-only (file system error)",
    "relaxed, waits; repaired and started again it goes on, at most a second lost",
    needs_root=True,
)
def _(folder: Path, seen: Seen) -> None:
    settings: dict[str, Any] = {"steps": SHORT, "bench": folder / "bench", "most_lost": round(HZ)}
    with closing(FailingDisk(folder)) as disk, learning_night(disk.folder, seen, **settings) as night:
        disk.break_down()
        night.wait_for(lambda: night.state("actor") is State.DISK_FULL, WELL_S)
        is_relaxed(night, seen)
        assert night.process is not None
        night.process.send_signal(signal.SIGTERM)
        found, output = night.end(WELL_S)
        seen.note(f"exit code {found} when stopped{f': {output[-200:]}' if found else ''}", is_well=found == 0)
        disk.repair()
        night.start()
        goes_on(night, seen)


def damages(folder: Path, seen: Seen, damage: Callable[[Path], None]) -> None:
    """Damage the newest checkpoint of a run that was stopped."""
    with learning_night(folder, seen) as night:
        night.wait_for(lambda: len(list(night.run.checkpoints.glob("step-*"))) > 1, WELL_S)
        night.ask("stop")
        night.end()
        newest = max(night.run.checkpoints.glob("step-*"))
        damage(newest / "tensors.safetensors")
        night.start()
        night.wait_for(lambda: night.count("checkpoint") > 0, WELL_S)
        seen.note("event: the one before is used")
        goes_on(night, seen)


@fault("newest checkpoint truncated", "the one before is used, with an event")
def _(folder: Path, seen: Seen) -> None:
    damages(folder, seen, lambda path: os.truncate(path, path.stat().st_size // 2))


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@fault("a bit of the newest checkpoint flipped", "the one before is used, with an event")
def _(folder: Path, seen: Seen) -> None:
    damages(folder, seen, flip)


@fault("published weights damaged", "not taken up; the last good ones act on, with an event")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen, supervision=replace(QUICK, learner_limit_s=600.0)) as night:
        os.kill(night.pid("learner"), signal.SIGSTOP)
        time.sleep(1.0)  # what it published until now is taken up
        version, steps = night.slot("actor.version"), night.slot("actor.steps")
        spoilt = night.run.acting_weights.with_name("spoilt")
        shutil.copy(night.run.acting_weights, spoilt)
        flip(spoilt)
        spoilt.rename(night.run.acting_weights)
        night.wait_for(lambda: night.count("weights") > 0, WELL_S)
        night.wait_for(lambda: night.slot("actor.steps") > steps + 20, WELL_S)
        is_same = night.slot("actor.version") == version
        seen.note("event; acts on" if is_same else "damaged weights act", is_well=is_same)
        os.kill(night.pid("learner"), signal.SIGCONT)
        goes_on(night, seen)


OBSERVATION_FAULTS = {
    "dark": ("the light goes out", "pause"),
    "saturated": ("the camera is blinded", "pause"),
    "frozen": ("the camera freezes", "pause"),
    "late": ("observations come late", "skip"),
    "nan": ("a joint reads NaN", "skip"),
    "far": ("a joint reads an impossible angle", "skip"),
    "still": ("joint readings freeze", "pause"),
    "moved": ("the camera is moved", "pause"),
}
CHECK_OF = {"nan": "joint_impossible", "far": "joint_impossible", "still": "joint_frozen"}


def enter_observation_faults() -> None:
    """Enter what goes wrong with what the robot sees."""
    for name, (words, action) in OBSERVATION_FAULTS.items():

        def inject(folder: Path, seen: Seen, name: str = name, action: str = action) -> None:
            check = CHECK_OF.get(name, name)
            with learning_night(folder, seen) as night:
                began = night.steps()
                night.break_down(name)
                night.wait_for(lambda: night.count(f"check-{check}") > 0, WELL_S)
                if action == "pause":
                    night.wait_for(lambda: night.state("actor") is State.CHECK_FAILED, WELL_S)
                    is_relaxed(night, seen)
                time.sleep(1.0)
                before, counted = night.steps(), night.slot(f"check.{check}")
                time.sleep(1.0)
                bad = night.steps() - before
                noticed = f"{before - began} steps stored until it was noticed, {bad} afterwards"
                seen.note(f"{noticed}; {counted:.0f} failed", is_well=bad == 0 or name == "late")
                night.break_down()
                goes_on(night, seen)
                night.wait_for(lambda: night.count(f"check-{check}") > 1, WELL_S)

        does = "pause, relaxed, nothing stored from then on" if action == "pause" else "those left out"
        fault(words, f"{does}; goes on by itself (checks.{CHECK_OF.get(name, name)})")(inject)


enter_observation_faults()


@fault("the light goes out, checks.dark.action=warn", "goes on with a warning")
def _(folder: Path, seen: Seen) -> None:
    checks = replace(SMALL.checks, dark=Check(12.0, "warn"))
    with learning_night(folder, seen, checks=checks) as night:
        night.break_down("dark")
        night.wait_for(lambda: night.count("check-dark") > 0, WELL_S)
        seen.note("event")
        goes_on(night, seen)


@fault("the light goes out, checks.dark.action=stop", "a safe end, exit code 3")
def _(folder: Path, seen: Seen) -> None:
    checks = replace(SMALL.checks, dark=Check(12.0, "stop"))
    with learning_night(folder, seen, checks=checks) as night:
        night.break_down("dark")
        ends(night, seen, 3)


@fault("the object is stuck", "more perturbation, then sweeps, then pause; goes on when freed and r3l resume")
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen, persistence=PersistenceConfig(600, 100)) as night:
        night.break_down("stuck")
        night.wait_for(lambda: night.state("actor") is State.STUCK, 2 * WELL_S)
        levels = [message.split("answer ")[1][0] for kind, message in night.events() if "answer " in message]
        seen.note(f"answers {', '.join(levels)}", is_well=levels == ["1", "2", "3"])
        is_relaxed(night, seen)
        night.break_down()
        night.ask("resume")
        goes_on(night, seen)


def breaks_down(night: Night, seen: Seen) -> None:
    """Wait until learning went back as often as it may, and the run ended."""
    found, _ = night.end(3 * WELL_S)
    back = [message for kind, message in night.events() if kind == "numerics" and "back to the checkpoint" in message]
    seen.note(f"{len(back)} times back", is_well=len(back) == 3)
    seen.note(f"exit code {found}", is_well=found == 3)
    is_relaxed(night, seen)


def append_nan(night: Night) -> None:
    """Append a step to the experience store whose action is NaN, as nothing of ours would."""
    copied = "phase, image, proprioception, ?, applied, diagnostic, time_s, written_s"
    query = f"INSERT INTO observation SELECT NULL, segment, step + 1, {copied} FROM observation ORDER BY sequence DESC"
    nothing = np.full(len(load_task("valve").rig.joints), np.nan, np.float32)
    with closing(sqlite3.connect(night.run.experience)) as connection, connection:
        connection.execute(f"{query} LIMIT 1", (nothing.tobytes(),))


BACK = "back to the last good checkpoint 3 times within an hour, then a safe end, exit code 3"


@fault("critics explode (learning rate 1)", BACK)
def _(folder: Path, seen: Seen) -> None:
    numerics = replace(SMALL.numerics, check_every=5, max_value=0.1)
    with Night(folder, sac=replace(SMALL.sac, learning_rate=1.0), numerics=numerics) as night:
        night.start()
        breaks_down(night, seen)


@fault("a loss becomes NaN (NaN in stored actions)", BACK)
def _(folder: Path, seen: Seen) -> None:
    with learning_night(folder, seen, numerics=replace(SMALL.numerics, check_every=1)) as night:
        acknowledged = night.ask("pause")
        seen.note("paused", is_well=acknowledged.returncode == 0)
        night.wait_for(lambda: night.state("actor") is State.PAUSED and night.slot("actor.unwritten") == 0)
        append_nan(night)
        night.ask("resume")
        breaks_down(night, seen)


@fault("night two: a finished run with more goal images", "keeps what it knew, learns from all images")
def _(folder: Path, seen: Seen) -> None:
    with Night(folder, steps=200) as night:
        night.start()
        ends(night, seen, 0, 3 * WELL_S)
        first = load_checkpoint(night.run.checkpoints, lambda text: None)
        more = folder / "more"
        shutil.copytree(night.run.goals, more)
        night.start("--steps", "320", "--goals", str(more))
        ends(night, seen, 0, 3 * WELL_S)
        second = load_checkpoint(night.run.checkpoints, lambda text: None)
        assert first is not None
        assert second is not None
        updates = [kept[1]["learner"]["updates"] for kept in (first, second)]
        goals = [len(kept[0]["goal_latents"]) for kept in (first, second)]
        seen.note(f"updates {updates[0]} then {updates[1]}", is_well=updates == [140, 260])
        seen.note(f"goal images {goals[0]} then {goals[1]}", is_well=goals[1] == 2 * goals[0])


def table(results: Sequence[tuple[Fault, Seen]]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| fault | expected | seen | data lost |", "|---|---|---|---|"]
    for each, seen in results:
        mark = "" if seen.is_as_expected else "**not as expected:** "
        lines.append(f"| {each.name} | {each.expected} | {mark}{'; '.join(seen.lines)} | {seen.lost} |")
    return "\n".join(lines)


def with_table(page: str, text: str) -> str:
    """Return a page with the table between its markers."""
    before, rest = page.split(MARKERS[0])
    return f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}"


def run_one(each: Fault, folder: Path) -> Seen:
    """Inject one fault."""
    seen = Seen()
    if each.needs_root and os.geteuid() != 0:
        seen.note("not tried: mounting a small disk needs root")
        return seen
    try:
        each.inject(folder, seen)
    except (AssertionError, subprocess.SubprocessError, OSError) as error:
        seen.note(" ".join(str(error).split())[:400], is_well=False)
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    """Inject faults; 0 when all went as expected, 1 else."""
    parser = argparse.ArgumentParser(
        prog="scripts/faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="WORDS", help="faults whose names contain this")
    parser.add_argument("--list", action="store_true", help="list the faults and inject none")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time (%(default)s)")
    parser.add_argument("--out", type=Path, help="write what was seen as JSON")
    parser.add_argument("--page", type=Path, help="put the table between this page's markers")
    tune_process()
    options = parser.parse_args(arguments)
    chosen = [each for each in FAULTS if options.only in each.name]
    if options.list or not chosen:
        print("\n".join(each.name for each in (chosen or FAULTS)))
        return 0 if chosen else 2
    with (
        progress_bar("faults", "fault", len(chosen)) as bar,
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(options.processes) as threads,
    ):

        def inject(number: int) -> tuple[Fault, Seen]:
            seen = run_one(chosen[number], Path(folder) / str(number))
            bar.update()
            return chosen[number], seen

        results = list(threads.map(inject, range(len(chosen))))
    print(table(results))
    if options.out:
        figures = [{"fault": each.name, "expected": each.expected} | vars(seen) for each, seen in results]
        write_file(options.out, json.dumps(figures, indent=1).encode())
    if options.page:
        write_file(options.page, with_table(options.page.read_text(), table(results)).encode())
    return 0 if all(seen.is_as_expected for _, seen in results) else 1


if __name__ == "__main__":
    sys.exit(main())
