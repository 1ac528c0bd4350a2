"""Measure the learner's updates per second with the actor beside it, and alone.

Two runs on the twin without real-time pacing, at the same point: one as `r3l train` runs it, at one update per env
step; of the other only the learner, which owes more updates than it can make. They take turns by SIGSTOP, so that a
busy machine is busy for both.
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

from benchmarks.figures import parser_of, save_figures
from benchmarks.running import LONG, Running, prepare, stolen_s
from r3l.config.errors import UserError
from r3l.models.torch_setup import tune_process
from r3l.run.directory import Run
from r3l.run.progress import progress_bar
from r3l.training.shared_status import SharedStatus, State

NAME = "rate"
SETTLE_S = 1.0
MAX_UPDATES = 100.0
"""Per env step: more than it can make while it is measured."""


def patient(run: Run, folder: Path, update_ratio: float) -> Run:
    """Return a copy of the run in which nobody minds that processes are held, and which does not end."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(run.folder, folder)
    limits = replace(
        run.config.supervision, actor_limit_s=1e6, learner_limit_s=1e6, learner_away_s=1e6, checkpoint_every_s=1e6
    )
    config = replace(run.config, steps=LONG, update_ratio=update_ratio, supervision=limits)
    return Run.open(folder).changed(replace(config, checkpoint_every=LONG))


@contextmanager
def learner_alone(run: Run) -> Iterator[tuple[int, SharedStatus]]:
    """Give a learner process without actor and supervisor: its number and its board."""
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
    """Return updates per second by block, the two taking turns, and the stolen time in percent of a core."""
    found: dict[str, list[float]] = {"with the actor": [], "alone": [], "stolen with the actor": [], "stolen alone": []}
    both = patient(run, Path(f"{run.folder}-both"), run.config.update_ratio)
    alone = patient(run, Path(f"{run.folder}-alone"), MAX_UPDATES)
    with Running(both) as running, progress_bar("rate", "block", 2 * blocks) as bar:
        shared = running.shared
        running.wait_for(lambda: shared["learner.updates"] > 0 and shared.state("learner") is State.LEARNING, 300)
        running.halt(*running.pids())
        with learner_alone(alone) as (pid, its_board):
            os.kill(pid, signal.SIGSTOP)
            for _ in range(blocks):
                running.go_on(*running.pids())
                found["with the actor"].append(rate(shared, seconds, found["stolen with the actor"]))
                running.halt(*running.pids())
                os.kill(pid, signal.SIGCONT)
                found["alone"].append(rate(its_board, seconds, found["stolen alone"]))
                os.kill(pid, signal.SIGSTOP)
                bar.update(2)
            running.go_on(*running.pids())
    return found


def rate(shared: SharedStatus, seconds: float, stolen: list[float]) -> float:
    """Return a learner's updates per second over a while; append what was stolen meanwhile."""
    time.sleep(SETTLE_S)
    updates, before, began_s = shared["learner.updates"], stolen_s(), time.monotonic()
    time.sleep(seconds)
    spent_s = time.monotonic() - began_s
    stolen.append(100 * (stolen_s() - before) / spent_s)
    return (shared["learner.updates"] - updates) / spent_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write figures; 2 for bad input."""
    parser = parser_of(NAME, __doc__)
    parser.add_argument("--blocks", type=int, default=10, help="of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per block (%(default)s)")
    tune_process()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    try:
        found = measure(prepare(options.run, "valve", learned_steps=300), options.blocks, options.seconds)
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    ratios = np.array(found["with the actor"]) / np.array(found["alone"])
    for name in ("with the actor", "alone"):
        print(f"{name}: {np.median(found[name]):.1f} updates/s (median of {options.blocks} blocks)")
    print(f"ratio {np.median(ratios):.3f} (median), {ratios.min():.3f} to {ratios.max():.3f}")
    save_figures(options.out, NAME, given, {"updates_per_s": found, "ratio": float(np.median(ratios))})
    return 0


if __name__ == "__main__":
    sys.exit(main())
