"""Train the same seeds undisturbed and killed every few minutes, and compare what both have learned.

A kill is SIGKILL, at a random moment, to the whole run (which is resumed then, as `r3l train --resume` does), to its
actor or to its learner (which the supervisor starts again). Both runs of a seed go side by side. The last published
weights of each are evaluated from the same starts; the interval of the difference is over episodes, seeds as they are.
An interrupted comparison goes on, and what is recorded is not repeated.
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

from benchmarks.learning import collect_goals, going_on_later
from benchmarks.record import once, versions
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
from r3l.training.shared_status import PROCESSES, SharedStatus
from r3l.training.supervisor import is_child

RECORDS, RUNS = Path("benchmarks/kills"), Path("runs/kills")
ARMS = ("undisturbed", "killed")
VICTIMS = ("everything", *PROCESSES)
POLL_S = 0.5
Z95 = 1.96


@dataclass
class Arm:
    """One run of the comparison, and when it is killed next."""

    options: argparse.Namespace
    seed: int
    name: str
    process: subprocess.Popen[bytes] | None = None
    kill_at_s: float = field(default=float("inf"))
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        """Draw the kills from what tells this run from others."""
        self.rng = np.random.default_rng([self.seed, len(read_jsonl(self.kills))])

    @property
    def folder(self) -> Path:
        """The run directory."""
        return Path(self.options.runs / f"{self.options.task}-{self.name}-{self.seed}")

    @property
    def kills(self) -> Path:
        """Where its kills are written down, beside the run directory."""
        return Path(f"{self.folder}.kills.jsonl")

    def record(self) -> Path:
        """Return where its record goes."""
        return Path(self.options.records / f"{self.folder.name}.json")

    def start(self) -> None:
        """Begin the run, or go on with it."""
        options = self.options
        train = [sys.executable, "-m", "r3l", "train"]
        if (self.folder / "config.json").exists():
            train += ["--resume", str(self.folder)]
        else:
            train += [options.task, "--steps", str(options.steps), "--seed", str(self.seed), "--device", "cpu"]
            train += ["--runs", str(options.runs), "--name", self.folder.name]
            train += ["--set", f"evaluate_every={options.steps // 4}"]
        with Path(f"{self.folder}.log").open("ab") as log:
            self.process = subprocess.Popen(
                train,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"TQDM_DISABLE": "1"},
            )
        self._plan_kill()

    def look(self) -> bool:
        """Kill it when it is time; return whether it has ended by itself."""
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
        """Stop as Ctrl-C does."""
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
            return  # it has hardly begun
        run = Run.open(self.folder)
        pids = [int(shared[f"{name}.pid"]) for name in PROCESSES if victim in ("everything", name)]
        pids = [pid for pid in pids if is_child(pid, run)]
        if not pids and victim != "everything":
            return  # it has done its work, or is about to be started
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
    """Evaluate the last weights of a finished run; return all that the comparison is made of."""
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
    curve = [{key: entry[key] for key in kept} for entry in once(read_jsonl(run.evaluations))]
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
    """Return the comparison as a Markdown table and the difference with its interval."""
    lines = ["| seed | undisturbed | killed | kills | difference |", "|---|---|---|---|---|"]
    found: dict[str, list[np.ndarray[Any, Any]]] = {arm: [] for arm in ARMS}
    seeds = sorted({record["seed"] for record in records})
    for seed in seeds:
        of = {record["arm"]: record for record in records if record["seed"] == seed}
        if set(of) != set(ARMS):
            continue
        for arm in ARMS:
            found[arm].append(np.array(of[arm]["successes"], float))
        before, after = (found[arm][-1].mean() for arm in ARMS)
        lines.append(f"| {seed} | {before:.2f} | {after:.2f} | {len(of['killed']['kills'])} | {after - before:+.2f} |")
    if not found["killed"]:
        return "nothing to compare yet"
    means = {arm: float(np.mean([each.mean() for each in found[arm]])) for arm in ARMS}
    count = len(found["killed"])
    variance = sum(float(each.var() / len(each)) for arm in ARMS for each in found[arm]) / count**2
    difference, half = means["killed"] - means["undisturbed"], Z95 * variance**0.5
    episodes = sum(len(each) for each in found["killed"])
    lines.append(
        f"\ndifference {difference:+.3f}, 95% interval {difference - half:+.3f} to {difference + half:+.3f} "
        f"({episodes} episodes and {count} seeds an arm)"
    )
    return "\n".join(lines)


def run_all(options: argparse.Namespace, command: str) -> None:
    """Run what is not recorded yet: both arms of a seed at a time."""
    options.runs.mkdir(parents=True, exist_ok=True)
    options.records.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        running = [arm for arm in (Arm(options, seed, name) for name in ARMS) if not arm.record().exists()]
        started = list(running)
        try:
            for arm in running:
                arm.start()
            while running:
                time.sleep(POLL_S)
                running = [arm for arm in running if not arm.look()]
        finally:
            for arm in started:
                arm.stop()
        for arm in started:
            record = make_record(arm, command)
            write_file(arm.record(), json.dumps(record, indent=1).encode())
            print(f"{arm.folder.name}: {np.mean(record['successes']):.2f}, {arm.record()}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and compare; 2 for bad input, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="beads", help="r3l tasks lists them (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=12_000, help="env steps of each run (%(default)s)")
    parser.add_argument("--every", type=float, nargs=2, default=[60.0, 180.0], metavar="S", help="pause between kills")
    parser.add_argument("--episodes", type=int, default=96, help="evaluation episodes a run (%(default)s)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where records go (%(default)s)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run directories go (%(default)s)")
    tune_process()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)

    def work() -> int:
        collect_goals(options.task)
        run_all(options, " ".join(["scripts/benchmark", "kills", *given]))
        paths = sorted(options.records.glob(f"{options.task}-*.json"))
        print(compare([json.loads(path.read_text()) for path in paths]))
        return 0

    return going_on_later(work)


if __name__ == "__main__":
    sys.exit(main())
