"""Train the same seeds undisturbed and killed every few minutes, and compare the success of both.

A kill is SIGKILL at a random moment. It hits the whole run, which the benchmark then resumes, or its actor or its
learner, which the supervisor restarts. Both runs of a seed train at the same time. The last published weights of each
are evaluated from the same starts. The interval of the difference is over episodes, for the given seeds.
An interrupted comparison continues; a recorded run is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import exit_code, markdown_table, parse, plain_parser
from benchmarks.record import first_per_step, versions
from benchmarks.running import collect_goals, start_logged, train_command
from r3l.config.convert import to_dict
from r3l.config.errors import UserError
from r3l.evaluation.evaluator import Evaluator
from r3l.evaluation.policies import TaskPolicy
from r3l.models.policy import load_policies
from r3l.models.torch_setup import tune_process
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.files import write_file
from r3l.run.jsonl import append_jsonl, read_jsonl
from r3l.task.registry import load_task, robot_of
from r3l.training.orphans import is_child
from r3l.training.shared_status import PROCESSES, SharedStatus

RECORDS, RUNS = Path("benchmarks/kills"), Path("runs/kills")
ARMS = ("undisturbed", "killed")
VICTIMS = ("everything", *PROCESSES)
POLL_S = 0.5
Z95 = 1.96


@dataclass
class Arm:
    """One run of the comparison, and the time of its next kill."""

    options: argparse.Namespace
    seed: int
    name: str
    process: subprocess.Popen[bytes] | None = None
    kill_at_s: float = field(default=float("inf"))
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Seed the kills by the run's seed and the kills so far, so that a resumed comparison draws new ones."""
        self.rng = np.random.default_rng([self.seed, len(read_jsonl(self.kills))])

    @property
    def folder(self) -> Path:
        """The run directory."""
        return Path(self.options.runs / f"{self.options.task}-{self.name}-{self.seed}")

    @property
    def kills(self) -> Path:
        """The log of the kills, beside the run directory."""
        return Path(f"{self.folder}.kills.jsonl")

    @property
    def record(self) -> Path:
        """The file of the record."""
        return Path(self.options.records / f"{self.folder.name}.json")

    def start(self) -> None:
        """Start the run, or resume it."""
        options = self.options
        words = ["--steps", str(options.steps), "--seed", str(self.seed)]
        words += ["--set", f"evaluate_every={options.steps // 4}"]
        self.process = start_logged(train_command(self.folder, options.task, *words), Path(f"{self.folder}.log"))
        self._plan_kill()

    def has_ended(self) -> bool:
        """Return whether the run has ended by itself; kill it if a kill is due."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            if code:
                raise UserError(f"{self.folder} ended with exit code {code}; see {self.folder}.log")
            return True
        if time.monotonic() >= self.kill_at_s:
            self._kill()
        return False

    def stop(self) -> None:
        """Stop the run as Ctrl-C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()

    def _plan_kill(self) -> None:
        if self.name == "killed":
            low, high = self.options.every
            self.kill_at_s = time.monotonic() + self.rng.uniform(low, high)

    def _kill(self) -> None:
        victim = VICTIMS[int(self.rng.integers(len(VICTIMS)))]
        self._plan_kill()
        try:
            shared = SharedStatus(self.folder / "board", writable=False)
        except (OSError, ValueError):
            return  # the run has no processes yet
        run = Run.open(self.folder)
        pids = [int(shared[f"{name}.pid"]) for name in PROCESSES if victim in ("everything", name)]
        pids = [pid for pid in pids if is_child(pid, run)]
        if not pids and victim != "everything":
            return  # the victim has ended, or is about to be restarted
        steps, updates = int(shared["actor.steps"]), int(shared["learner.updates"])
        append_jsonl(self.kills, {"time_s": time.time(), "victim": victim, "step": steps, "update": updates})
        assert self.process is not None
        if victim == "everything":
            self.process.kill()
            self.process.wait()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim == "everything":
            self.start()


def make_record(arm: Arm, command: str) -> dict[str, Any]:
    """Evaluate the last weights of a finished run; return its record."""
    run = Run.open(arm.folder)
    task = load_task(run.config.task)
    robot = robot_of(run.config, run.rig)
    assert isinstance(robot, SimulatedRobot)
    evaluator = Evaluator(task, robot)
    try:
        policies = load_policies(run.config, robot.spec, run.read_weights(run.config.steps), torch.device("cpu"))
        episodes = evaluator.run(TaskPolicy(policies), count=arm.options.episodes, seed=1)
    finally:
        evaluator.close()
    kept = ("step", "success", "median_final_error")
    curve = [{key: entry[key] for key in kept} for entry in first_per_step(read_jsonl(run.evaluations))]
    return {
        "task": task.name,
        "arm": arm.name,
        "seed": arm.seed,
        "command": command,
        "config": to_dict(run.config),
        "versions": versions(),
        "kills": read_jsonl(arm.kills),
        "events": read_jsonl(run.events),
        "curve": curve,
        "successes": [episode.success for episode in episodes],
        "final_errors": [round(episode.final_error, 4) for episode in episodes],
    }


def compare(records: Sequence[dict[str, Any]]) -> str:
    """Return the comparison as a Markdown table, and the difference with its interval."""
    rows = []
    found: dict[str, list[np.ndarray[Any, Any]]] = {arm: [] for arm in ARMS}
    seeds = sorted({record["seed"] for record in records})
    for seed in seeds:
        of = {record["arm"]: record for record in records if record["seed"] == seed}
        if set(of) != set(ARMS):
            continue
        for arm in ARMS:
            found[arm].append(np.array(of[arm]["successes"], float))
        before, after = (found[arm][-1].mean() for arm in ARMS)
        kills = len(of["killed"]["kills"])
        rows.append([str(seed), f"{before:.2f}", f"{after:.2f}", str(kills), f"{after - before:+.2f}"])
    if not found["killed"]:
        return "nothing to compare yet"
    means = {arm: float(np.mean([each.mean() for each in found[arm]])) for arm in ARMS}
    count = len(found["killed"])
    variance = sum(float(each.var() / len(each)) for arm in ARMS for each in found[arm]) / count**2
    difference, half = means["killed"] - means["undisturbed"], Z95 * variance**0.5
    episodes = sum(len(each) for each in found["killed"])
    end = (
        f"difference {difference:+.3f}, 95% interval {difference - half:+.3f} to {difference + half:+.3f} "
        f"({episodes} episodes and {count} seeds per arm)"
    )
    return "\n".join([*markdown_table(["seed", *ARMS, "kills", "difference"], rows), "", end])


def run_all(options: argparse.Namespace) -> None:
    """Train and record every arm that has no record, both arms of a seed at the same time."""
    options.runs.mkdir(parents=True, exist_ok=True)
    options.records.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        running = [arm for arm in (Arm(options, seed, name) for name in ARMS) if not arm.record.exists()]
        started = list(running)
        try:
            for arm in running:
                arm.start()
            while running:
                time.sleep(POLL_S)
                running = [arm for arm in running if not arm.has_ended()]
        finally:
            for arm in started:
                arm.stop()
        for arm in started:
            record = make_record(arm, options.command)
            write_file(arm.record, json.dumps(record, indent=1).encode())
            print(f"{arm.folder.name}: {np.mean(record['successes']):.2f}, {arm.record}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return 2 for bad input, 130 if interrupted."""
    parser = plain_parser("scripts/benchmark kills", __doc__)
    parser.add_argument("--task", default="beads", help="task, as listed by r3l tasks (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of both arms (%(default)s)")
    parser.add_argument("--steps", type=int, default=12_000, help="env steps per run (%(default)s)")
    pause = "min and max seconds between kills (%(default)s)"
    parser.add_argument("--every", type=float, nargs=2, default=[60.0, 180.0], metavar="S", help=pause)
    parser.add_argument("--episodes", type=int, default=96, help="evaluation episodes per run (%(default)s)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records (%(default)s)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the run directories (%(default)s)")
    tune_process()
    options = parse(parser, arguments)

    def work() -> int:
        collect_goals(options.task)
        run_all(options)
        paths = sorted(options.records.glob(f"{options.task}-*.json"))
        print(compare([json.loads(path.read_text()) for path in paths]))
        return 0

    return exit_code(work, is_resumable=True)


if __name__ == "__main__":
    sys.exit(main())
