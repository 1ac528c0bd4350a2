"""Fit the judges of recorded runs again, as they would be today, and judge the runs' policies anew.

For records that are older than the judge. Each judge is fitted from the goal images and the exploration of its own run;
what the run learned stays as it is, since no judge decides anything in training. The record's event says when.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.learning import RECORDS, RUNS
from benchmarks.record import Record, judged, load_record
from r3l.config.errors import UserError
from r3l.evaluation.report.visits import connect, read_frames
from r3l.models.judge import fit_after_exploration
from r3l.models.networks import channels_first
from r3l.models.torch_setup import tune_process
from r3l.run.directory import Run
from r3l.run.experience import PHASES
from r3l.run.goals import load_goals
from r3l.run.jsonl import read_jsonl
from r3l.task.registry import load_task


def exploration_images(run: Run) -> Tensor:
    """Return what a run saw while it explored: uint8 [N, 3, H, W]."""
    with closing(connect(run.experience)) as connection:
        rows = connection.execute(
            "SELECT sequence FROM observation WHERE phase = ? ORDER BY sequence", (PHASES.index("exploration"),)
        ).fetchall()
    camera = load_task(run.config.task).rig.camera
    return channels_first(read_frames(run.experience, np.array(rows).reshape(-1), camera).images)


def renew(run: Run, record: Record) -> Record:
    """Fit the run's judge again and return the record with its episodes judged by it."""
    task = load_task(run.config.task)
    goals = load_goals(run.goals, task.rig.camera, task.minimum_goals)
    judge = fit_after_exploration(goals.train, goals.held_out, exploration_images(run), run.config.seed)
    judge.save(run.judge)
    run.event("judge", "fitted again from the same goal images and exploration, with the judge of later code")
    return replace(record, judged=judged(run, task, judge), events=read_jsonl(run.events))


def main(arguments: Sequence[str] | None = None) -> int:
    """Renew the records named; 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="+", help="of a record and its run, such as valve-default-0")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where records are (%(default)s)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run directories are (%(default)s)")
    tune_process()
    options = parser.parse_args(arguments)
    try:
        chosen = [(Run.open(options.runs / name), options.records / f"{name}.json") for name in options.name]
        for run, path in chosen:
            with run.lock():
                record = renew(run, load_record(path))
            record.save(path)
            right = np.mean([success == verdict for success, verdict in record.judged])
            print(f"{record.name}: right in {right:.2f} of {len(record.judged)} episodes, {path}", flush=True)
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
