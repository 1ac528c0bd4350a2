"""Inject every fault of a night into a small run on the fault bench, and print what happened.

Each fault has its own run: supervisor, actor and learner as `r3l train` starts them, at 50 control periods per second,
on a robot whose servos keep a record that outlives every process. Lost data are env steps that were acknowledged
before the fault and are not in the experience store after it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import injections as inject
from benchmarks.figures import exit_code, markdown_table, parse, plain_parser
from benchmarks.outcome import Outcome
from r3l.models.torch_setup import tune_process
from r3l.run.files import write_file
from r3l.run.progress import progress_bar

MARKERS = ("<!-- faults: made by scripts/faults --page docs/reliability.md -->", "<!-- end of faults -->")
MAX_MESSAGE_CHARACTERS = 400


@dataclass(frozen=True)
class Fault:
    """A fault, the expected reaction, and the function that injects it."""

    name: str
    expected: str
    inject: Callable[[Path, Outcome], None]
    needs_root: bool = False


ACTOR_DIES = "robot relaxed, process restarted, run goes on"
LEARNER_DIES = "robot acts on, process restarted, run goes on"
STOPS = "relaxed at once, checkpoint within 10 s, exit code 0"
WAITS_FOR_SPACE = "relaxed, waits, goes on when there is room"
USES_CHECKPOINT_BEFORE = "the one before is used, with an event"
ROLLS_BACK = "back to the last good checkpoint 3 times within an hour, then a safe end, exit code 3"

signal_actor = partial(inject.signal_process, name="actor", limit_s=2.0)
signal_learner = partial(inject.signal_process, name="learner", limit_s=4.0)


def observation_fault(name: str, fault: str, *, pauses: bool) -> Fault:
    """Return the row of a fault of the bench's camera or joints, which one of the run's checks finds."""
    check = inject.CHECK_OF.get(fault, fault)
    reaction = "pause, relaxed, nothing stored from then on" if pauses else "those left out"
    spoil = partial(inject.spoil_observations, fault=fault, pauses=pauses)
    return Fault(name, f"{reaction}; goes on by itself (checks.{check})", spoil)


FAULTS = [
    Fault("actor killed (SIGKILL)", ACTOR_DIES, partial(signal_actor, number=signal.SIGKILL)),
    Fault("actor hung (SIGSTOP)", ACTOR_DIES, partial(signal_actor, number=signal.SIGSTOP)),
    Fault("learner killed (SIGKILL)", LEARNER_DIES, partial(signal_learner, number=signal.SIGKILL)),
    Fault("learner hung (SIGSTOP)", LEARNER_DIES, partial(signal_learner, number=signal.SIGSTOP)),
    Fault(
        "supervisor killed (SIGKILL)",
        "processes end and relax the robot; the next start goes on",
        inject.kill_supervisor,
    ),
    Fault("all processes killed (SIGKILL)", "the next start goes on", inject.kill_all_processes),
    Fault(
        "supervisor killed, actor hung",
        "the next start kills what hangs, and goes on",
        inject.kill_supervisor_of_hung_actor,
    ),
    Fault(
        "learner away for longer than learner_away_s",
        "robot acts on with the last good weights, then relaxes, waits",
        inject.hold_learner,
    ),
    Fault(
        "robot unplugged",
        "restarts with growing pauses; after max_restarts a safe end, exit code 3",
        inject.unplug_robot,
    ),
    Fault("robot hangs in a call", "found, actor killed, run goes on when the robot answers", inject.hang_robot),
    Fault("SIGINT", STOPS, partial(inject.stop_by_signal, number=signal.SIGINT)),
    Fault("SIGTERM", STOPS, partial(inject.stop_by_signal, number=signal.SIGTERM)),
    Fault("terminal gone (SIGHUP)", "the run goes on", inject.close_terminal),
    Fault(
        "r3l relax, r3l resume, r3l stop",
        "relaxed within two control steps, goes on, ends with exit code 0",
        inject.relax_resume_stop,
    ),
    Fault(
        "a second run on the directory",
        "refused with one line that names the first, exit code 2",
        inject.start_second_run,
    ),
    Fault(
        "the time is up (--hours)",
        "parked, relaxed, last checkpoint, report written, exit code 0",
        inject.reach_time_limit,
    ),
    Fault("quota used up", WAITS_FOR_SPACE, inject.use_up_quota),
    Fault("disk full", WAITS_FOR_SPACE, inject.fill_disk, needs_root=True),
    Fault(
        "disk turns read-only (file system error)",
        "relaxed, waits; repaired and started again it goes on, at most a second lost",
        inject.break_disk,
        needs_root=True,
    ),
    Fault(
        "newest checkpoint truncated",
        USES_CHECKPOINT_BEFORE,
        partial(inject.damage_checkpoint, damage=inject.truncate),
    ),
    Fault(
        "a bit of the newest checkpoint flipped",
        USES_CHECKPOINT_BEFORE,
        partial(inject.damage_checkpoint, damage=inject.flip_bit),
    ),
    Fault(
        "published weights damaged",
        "not taken up; the last good ones act on, with an event",
        inject.damage_published_weights,
    ),
    observation_fault("the light goes out", "dark", pauses=True),
    observation_fault("the camera is blinded", "saturated", pauses=True),
    observation_fault("the camera freezes", "frozen", pauses=True),
    observation_fault("observations come late", "late", pauses=False),
    observation_fault("a joint reads NaN", "nan", pauses=False),
    observation_fault("a joint reads an impossible angle", "far", pauses=False),
    observation_fault("joint readings freeze", "still", pauses=True),
    observation_fault("the camera is moved", "moved", pauses=True),
    Fault("the light goes out, checks.dark.action=warn", "goes on with a warning", inject.darken_with_warning),
    Fault("the light goes out, checks.dark.action=stop", "a safe end, exit code 3", inject.darken_with_stop),
    Fault(
        "the object is stuck",
        "more perturbation, then sweeps, then pause; goes on when freed and r3l resume",
        inject.jam_object,
    ),
    Fault("critics explode (learning rate 1)", ROLLS_BACK, inject.explode_critics),
    Fault("a loss becomes NaN (NaN in stored actions)", ROLLS_BACK, inject.store_nan_action),
    Fault(
        "night two: a finished run with more goal images",
        "keeps what it knew, learns from all images",
        inject.continue_with_more_goals,
    ),
]


def run_fault(fault: Fault, folder: Path) -> Outcome:
    """Inject one fault; return its outcome."""
    outcome = Outcome()
    if fault.needs_root and os.geteuid() != 0:
        outcome.note("not tried: mounting a small disk needs root")
        return outcome
    try:
        fault.inject(folder, outcome)
    except (AssertionError, subprocess.SubprocessError, OSError) as error:
        outcome.note(" ".join(str(error).split())[:MAX_MESSAGE_CHARACTERS], is_expected=False)
    return outcome


def table(results: Sequence[tuple[Fault, Sequence[Outcome]]]) -> str:
    """Return the results as a Markdown table: per fault the worst outcome, and its rate if it was injected often."""
    rows = []
    for fault, outcomes in results:
        good = sum(each.is_as_expected for each in outcomes)
        worst = min(outcomes, key=lambda each: each.is_as_expected)
        rate = f"as expected in {good} of {len(outcomes)}: " if len(outcomes) > 1 else ""
        mark = rate if worst.is_as_expected else f"**{rate or 'not as expected: '}".rstrip() + "** "
        lost = max(each.lost for each in outcomes)
        rows.append([fault.name, fault.expected, f"{mark}{'; '.join(worst.lines)}", str(lost)])
    return "\n".join(markdown_table(["fault", "expected", "seen", "data lost"], rows))


def with_table(page: str, text: str) -> str:
    """Return a page with a new table between its markers."""
    before, rest = page.split(MARKERS[0])
    return f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}"


def run_all(chosen: Sequence[Fault], processes: int, repeats: int) -> list[tuple[Fault, list[Outcome]]]:
    """Inject each fault `repeats` times, in `processes` runs at a time."""
    jobs = [fault for fault in chosen for _ in range(repeats)]
    with (
        progress_bar("faults", "fault", len(jobs)) as bar,
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(processes) as threads,
    ):

        def run_job(number: int) -> Outcome:
            outcome = run_fault(jobs[number], Path(folder) / str(number))
            bar.update()
            return outcome

        outcomes = list(threads.map(run_job, range(len(jobs))))
    return [(fault, outcomes[i * repeats : (i + 1) * repeats]) for i, fault in enumerate(chosen)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Inject faults; return 0 if all outcomes are as expected, 1 if not, 2 if no fault has the given name."""
    parser = plain_parser("scripts/faults", __doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="only faults whose names contain these words")
    parser.add_argument("--list", action="store_true", help="list the faults and inject none")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time (%(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="injections of each fault (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to write the outcomes to")
    parser.add_argument("--page", type=Path, help="page to write the table to, between its markers")
    tune_process()
    options = parse(parser, arguments)
    chosen = [fault for fault in FAULTS if options.only in fault.name]
    if options.list or not chosen:
        print("\n".join(fault.name for fault in (chosen or FAULTS)))
        return 0 if chosen else 2

    def work() -> int:
        results = run_all(chosen, options.processes, options.repeat)
        text = table(results)
        print(text)
        if options.out:
            figures = [
                {"fault": fault.name, "expected": fault.expected} | vars(outcome)
                for fault, outcomes in results
                for outcome in outcomes
            ]
            write_file(options.out, json.dumps(figures, indent=1).encode())
        if options.page:
            write_file(options.page, with_table(options.page.read_text(), text).encode())
        return 0 if all(outcome.is_as_expected for _, outcomes in results for outcome in outcomes) else 1

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
