"""Measure the learner's updates per second with the actor beside it, and alone.

Both runs start from the same checkpoint on the twin without real-time pacing. The first run is as `r3l train` runs it,
at one update per env step. The second is a learner process alone, which owes more updates than it can make. SIGSTOP
lets them take turns in short blocks, so that other load on the machine hits both.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.figures import exit_code, make_parser, parse, save_figures
from benchmarks.running import ENDLESS_STEPS, Running, prepare, stolen_s
from r3l.config.errors import UserError
from r3l.models.torch_setup import tune_process
from r3l.run.directory import Run
from r3l.run.progress import progress_bar
from r3l.training.shared_status import SharedStatus, State

NAME = "rate"
SETTLE_S = 1.0
"""Seconds after a switch that are not counted."""
MAX_UPDATE_RATIO = 100.0
"""Updates per env step; more than the learner can make while it is measured."""
NEVER_S = 1e6


def copy_without_limits(run: Run, folder: Path, update_ratio: float) -> Run:
    """Return a copy of the run that does not end and whose supervisor tolerates paused processes."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(run.folder, folder)
    limits = replace(
        run.config.supervision,
        actor_limit_s=NEVER_S,
        learner_limit_s=NEVER_S,
        learner_away_s=NEVER_S,
        checkpoint_every_s=NEVER_S,
    )
    config = replace(run.config, steps=ENDLESS_STEPS, update_ratio=update_ratio, supervision=limits)
    return Run.open(folder).changed(replace(config, checkpoint_every=ENDLESS_STEPS))


@contextmanager
def learner_alone(run: Run) -> Iterator[tuple[int, SharedStatus]]:
    """Start a learner process without actor and supervisor; yield its process id and its shared status."""
    shared = SharedStatus.create(run.shared)
    command = [sys.executable, "-m", "r3l.training.worker", "learner", str(run.folder)]
    process = subprocess.Popen(command)
    try:
        while shared.state("learner") is not State.LEARNING:
            if process.poll() is not None:
                raise UserError(f"the learner of {run.folder} ended; its message is above")
            time.sleep(0.1)
        yield process.pid, shared
    finally:
        process.kill()
        process.wait()


def measure(run: Run, blocks: int, seconds: float) -> dict[str, list[float]]:
    """Return the updates per second of each block and the stolen time in percent of a core, for both runs."""
    found: dict[str, list[float]] = {"with the actor": [], "alone": [], "stolen with the actor": [], "stolen alone": []}
    both = copy_without_limits(run, Path(f"{run.folder}-both"), run.config.update_ratio)
    alone = copy_without_limits(run, Path(f"{run.folder}-alone"), MAX_UPDATE_RATIO)
    with Running(both) as running, progress_bar("rate", "block", 2 * blocks) as bar:
        shared = running.shared
        running.wait_for(lambda: shared["learner.updates"] > 0 and shared.state("learner") is State.LEARNING, 300)
        running.pause(*running.pids())
        with learner_alone(alone) as (pid, lone):
            os.kill(pid, signal.SIGSTOP)
            for _ in range(blocks):
                running.resume(*running.pids())
                found["with the actor"].append(rate(shared, seconds, found["stolen with the actor"]))
                running.pause(*running.pids())
                os.kill(pid, signal.SIGCONT)
                found["alone"].append(rate(lone, seconds, found["stolen alone"]))
                os.kill(pid, signal.SIGSTOP)
                bar.update(2)
            running.resume(*running.pids())
    return found


def rate(shared: SharedStatus, seconds: float, stolen: list[float]) -> float:
    """Measure a learner's updates per second; append the stolen time in percent of a core to `stolen`."""
    time.sleep(SETTLE_S)
    updates, before, began_s = shared["learner.updates"], stolen_s(), time.monotonic()
    time.sleep(seconds)
    spent_s = time.monotonic() - began_s
    stolen.append(100 * (stolen_s() - before) / spent_s)
    return (shared["learner.updates"] - updates) / spent_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 2 for bad input."""
    parser = make_parser(NAME, __doc__, has_run=True)
    parser.add_argument("--blocks", type=int, default=10, help="blocks per run (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds per block (%(default)s)")
    tune_process()
    options = parse(parser, arguments)

    def work() -> int:
        found = measure(prepare(options.run, "valve", learned_steps=300), options.blocks, options.seconds)
        ratios = np.array(found["with the actor"]) / np.array(found["alone"])
        for name in ("with the actor", "alone"):
            print(f"{name}: {np.median(found[name]):.1f} updates/s (median of {options.blocks} blocks)")
        print(f"ratio {np.median(ratios):.3f} (median), {ratios.min():.3f} to {ratios.max():.3f}")
        save_figures(options, {"updates_per_s": found, "ratio": float(np.median(ratios))})
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
