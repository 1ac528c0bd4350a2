"""Fit the judge of recorded runs again with the present code, and judge the policies of these runs again.

For records that are older than the judge. Each judge is fitted to the goal images and the exploration of its own run.
The learned policies stay as they are, because training does not use the judge. The record gets an event with the time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.figures import exit_code, parse, plain_parser
from benchmarks.learning import RECORDS, RUNS
from benchmarks.record import Record, judged, load_record
from r3l.evaluation.report.visits import connect, read_frames
from r3l.models.judge_training import fit_after_exploration
from r3l.models.networks import channels_first
from r3l.models.torch_setup import tune_process
from r3l.run.directory import Run
from r3l.run.experience import PHASES
from r3l.run.goals import load_goals
from r3l.run.jsonl import read_jsonl
from r3l.task.registry import load_task


def exploration_images(run: Run) -> Tensor:
    """Return the images of a run's exploration: uint8 [N, 3, H, W]."""
    with closing(connect(run.experience)) as connection:
        rows = connection.execute(
            "SELECT sequence FROM observation WHERE phase = ? ORDER BY sequence", (PHASES.index("exploration"),)
        ).fetchall()
    camera = load_task(run.config.task).rig.camera
    return channels_first(read_frames(run.experience, np.array(rows).reshape(-1), camera).images)


def renew(run: Run, record: Record) -> Record:
    """Fit the judge of the run again, and return the record with the verdicts of the new judge."""
    task = load_task(run.config.task)
    goals = load_goals(run.goals, task.rig.camera, task.minimum_goals)
    judge = fit_after_exploration(goals.train, goals.held_out, exploration_images(run), run.config.seed)
    judge.save(run.judge)
    run.event("judge", "fitted again from the same goal images and exploration, with the judge of later code")
    return replace(record, judged=judged(run, task, judge), events=read_jsonl(run.events))


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew the named records; return 2 for bad input."""
    parser = plain_parser("scripts/benchmark judge", __doc__)
    parser.add_argument("name", nargs="+", help="name of a record and its run, for example valve-default-0")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records (%(default)s)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the run directories (%(default)s)")
    tune_process()
    options = parse(parser, arguments)

    def work() -> int:
        chosen = [(Run.open(options.runs / name), options.records / f"{name}.json") for name in options.name]
        for run, path in chosen:
            with run.lock():
                record = renew(run, load_record(path))
            record.save(path)
            right = np.mean([success == verdict for success, verdict in record.judged])
            print(f"{record.name}: right in {right:.2f} of {len(record.judged)} episodes, {path}", flush=True)
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
