"""Measure one night of experience: 500,000 env steps of synthetic frames in one run directory.

Measured are: the write speed; the speed and the memory of rebuilding the replay; the time to resume the run; the env
steps that the actor takes while the learner re-encodes the replay; and the time of `r3l check`.
The run directory is removed afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import exit_code, make_parser, parse, save_figures
from benchmarks.running import R3L, Running, collect_goals, resident_bytes
from r3l.config.errors import UserError
from r3l.config.schema import Config
from r3l.learner.learner import Learner
from r3l.models.networks import channels_first
from r3l.models.torch_setup import tune_process
from r3l.run.checkpoint import load_checkpoint, save_checkpoint
from r3l.run.directory import Run
from r3l.run.disk_space import GIB, folder_bytes, forecast
from r3l.run.experience import PHASES, ExperienceStore, Row
from r3l.run.goals import load_goals
from r3l.run.progress import progress_bar
from r3l.task.registry import load_robot, load_task

NAME, TASK = "capacity", "valve"
FRAMES = 4096
"""Number of different synthetic frames."""
EPISODE_STEPS = 50
EXPLORATION_ROWS = 1500
STEADY_S = 20.0
"""Time over which the usual rate of env steps is measured."""
REENCODING_S = 1.0
"""An update that takes longer re-encodes the replay."""
REENCODING_TIMEOUT_S = 300


def create(folder: Path, rows: int) -> Run:
    """Create a run of the default preset in real time whose encoder keeps learning and is refreshed often."""
    config = Config(task=TASK, real_time=True, steps=2 * rows, evaluate_every=0, device="cpu")
    vae = replace(config.vae, update_every=50, refresh_every=500, pretrain_updates=2)
    phases = replace(config.phases, exploration_steps=1000)
    classifier = replace(config.classifier, pretrain_updates=2)
    run = Run.create(folder, replace(config, vae=vae, phases=phases, classifier=classifier))
    run.keep_goals(Path("goals") / TASK)
    return run


def open_store(run: Run) -> ExperienceStore:
    """Open the experience store of the run."""
    camera = load_task(TASK).rig.camera
    return ExperienceStore(run.experience, (camera.height, camera.width, 3))


def fill(run: Run, rows: int) -> float:
    """Append synthetic rows, each committed as an actor does; return rows per second."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    joints = len(load_task(TASK).rig.joints)
    vectors = rng.uniform(-1, 1, (FRAMES, 3, joints)).astype(np.float32)
    nothing = np.zeros(0, np.float32)
    with closing(open_store(run)) as store, progress_bar("write", "row", rows) as bar:
        began_s = time.monotonic()
        for number in range(rows):
            segment, step = divmod(number, EPISODE_STEPS + 1)
            phase = 0 if number < EXPLORATION_ROWS else 1 + segment % (len(PHASES) - 1)
            chosen = vectors[number * 7 % FRAMES]
            image = frames[number * 31 % FRAMES]
            store.append(Row(segment, step, phase, image, chosen[0], chosen[1], chosen[2], nothing, number / 10))
            bar.update()
        return rows / (time.monotonic() - began_s)


def make_learner(run: Run) -> Learner:
    """Return an untrained learner for the run."""
    task = load_task(TASK)
    goals = load_goals(run.goals, task.rig.camera, task.minimum_goals)
    spec = load_robot("twin", task).spec
    return Learner(run.config, spec, channels_first(goals.train), device=torch.device("cpu"))


def learn_all(run: Run) -> dict[str, float]:
    """Feed all rows to a learner, and write the checkpoint from which the run resumes."""
    learner = make_learner(run)
    with closing(open_store(run)) as store:
        began_s = time.monotonic()
        learner.follow(store)
        followed_s = time.monotonic() - began_s
        learner.pretrain()
        rows, evicted = store.count(learner.sequence), learner.replay.added - len(learner.replay)
        oldest = next(store.rows(evicted, 1))
    assert learner.replay.label(evicted) == (PHASES[oldest.phase], oldest.step), "the oldest rows were evicted"
    learner.updates = int((learner.steps - run.config.phases.exploration_steps) * run.config.update_ratio)
    tensors, meta = learner.state()
    began_s = time.monotonic()
    save_checkpoint(run.checkpoints, learner.steps, tensors, {"learner": meta}, keep=2)
    return {
        "rows": rows,
        "rows_in_replay": len(learner.replay),
        "encoded_rows_per_s": rows / followed_s,
        "checkpoint_s": time.monotonic() - began_s,
    }


def rebuild(folder: Path) -> dict[str, float]:
    """Rebuild the replay from the store in a fresh process, so that the growth in memory is that of the replay."""
    run = Run.open(folder)
    found = load_checkpoint(run.checkpoints, print)
    assert found is not None
    learner = make_learner(run)
    before = resident_bytes(os.getpid())
    with closing(open_store(run)) as store:
        began_s = time.monotonic()
        learner.restore(found[0], found[1]["learner"], store)
        spent_s = time.monotonic() - began_s
    replay = learner.replay
    tables = (replay.images, replay.proprioception, replay.requested, replay.applied, replay.latents)
    allocated = sum(table.numel() * table.element_size() for table in tables)
    return {
        "rows_per_s": len(replay) / spent_s,
        "seconds": spent_s,
        "grown_gib": (resident_bytes(os.getpid()) - before) / GIB,
        "preallocated_gib": allocated / GIB,
    }


def resume(run: Run) -> dict[str, float]:
    """Resume the run; measure the time, the memory, and the env steps that the actor takes during a re-encoding."""
    with Running(run) as running:
        shared = running.shared
        running.wait_for(lambda: shared["learner.ready"] == 1, 600)
        resumed_s = time.monotonic() - running.started_s
        running.wait_for(lambda: shared["actor.steps"] > 0, 60)
        before = shared["actor.steps"]
        time.sleep(STEADY_S)
        usual = (shared["actor.steps"] - before) / STEADY_S
        reencoding_s, steps = watch_reencoding(running)
        actor, learner = (resident_bytes(running.pid(name)) / GIB for name in ("actor", "learner"))
    task = load_task(TASK)
    expected = forecast(run.config, task)
    return {
        "resumed_s": resumed_s,
        "actor_gib": actor,
        "actor_forecast_gib": expected.actor_bytes / GIB,
        "learner_gib": learner,
        "learner_forecast_gib": expected.learner_bytes / GIB,
        "reencoding_s": reencoding_s,
        "steps_per_s_meanwhile": steps / reencoding_s,
        "steps_per_s_before": usual,
    }


def watch_reencoding(running: Running) -> tuple[float, float]:
    """Wait for an update that re-encodes the replay; return its seconds and the env steps taken meanwhile."""
    shared = running.shared
    end_s = time.monotonic() + REENCODING_TIMEOUT_S
    while time.monotonic() < end_s:
        updates, steps, began_s = shared["learner.updates"], shared["actor.steps"], time.monotonic()
        while shared["learner.updates"] == updates and time.monotonic() < end_s:
            time.sleep(0.02)
        spent_s = time.monotonic() - began_s
        if spent_s > REENCODING_S:
            return spent_s, shared["actor.steps"] - steps
    raise UserError(f"no re-encoding within {REENCODING_TIMEOUT_S} s; see {running.log}")


def measure(run: Run, rows: int) -> dict[str, Any]:
    """Fill the run, and return all figures."""
    folder = run.folder
    found: dict[str, Any] = {"written_rows_per_s": fill(run, rows)} | learn_all(run)
    code = "import json, pathlib, sys; from benchmarks.capacity import rebuild; "
    code += "print(json.dumps(rebuild(pathlib.Path(sys.argv[1]))))"
    child = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    found["rebuild"] = json.loads(child.stdout.splitlines()[-1])
    found["go_on"] = resume(run)
    expected = forecast(run.config, load_task(TASK))
    found["disk_gib"] = folder_bytes(folder) / GIB
    found["disk_forecast_gib"] = expected.disk_bytes(found["rows"] * EPISODE_STEPS / (EPISODE_STEPS + 1)) / GIB
    began_s = time.monotonic()
    checked = subprocess.run([*R3L, "check", str(folder)], check=False)
    found["check"] = {"seconds": time.monotonic() - began_s, "exit_code": checked.returncode}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 2 for bad input."""
    parser = make_parser(NAME, __doc__, has_run=True)
    parser.add_argument("--rows", type=int, default=500_000, help="rows in the experience store (%(default)s)")
    tune_process()
    options = parse(parser, arguments)

    def work() -> int:
        collect_goals(TASK)
        run = create(options.run, options.rows)
        try:
            found = measure(run, options.rows)
        finally:  # create() refuses a folder that exists, so this one is ours
            shutil.rmtree(run.folder, ignore_errors=True)
        print(json.dumps(found, indent=1))
        save_figures(options, found)
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
