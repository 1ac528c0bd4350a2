"""A night in small: a run under supervision on the bench robot, in processes of its own, for what disturbs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from r3l.config.models import ClassifierConfig, JudgeConfig, NoveltyConfig, SACConfig, VAEConfig
from r3l.config.schema import Check, ChecksConfig, Config, PhasesConfig, SupervisionConfig
from r3l.models.judge_training import Examples, fit
from r3l.models.networks import channels_first
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore, Row
from r3l.run.goals import save_goals
from r3l.run.jsonl import read_jsonl
from r3l.task.registry import load_robot, load_task
from r3l.training.shared_status import PROCESSES, SharedStatus, State, Wanted

FOLDER_VARIABLE, RATE_VARIABLE = "R3L_BENCH", "R3L_BENCH_HZ"
"""What tells the bench its folder and its control rate."""
HZ = 50.0
PERIOD_S = 1 / HZ
LATE_S = 0.5
"""Observations that come later fail a check: a busy machine alone is not that late."""
ASK_LIMIT_S = 120.0
COMMAND = [sys.executable, "-m", "r3l"]
QUICK = SupervisionConfig(backoff_s=0.1, checkpoint_every_s=3.0, actor_limit_s=2.0, publish_every_s=0.2)
"""Times that suit a run of seconds."""
SMALL = Config(
    robot="bench",
    steps=100_000,
    device="cpu",
    update_ratio=1.0,
    evaluate_every=0,
    checkpoint_every=1000,
    keep_checkpoints=3,
    replay_capacity=20_000,
    phases=PhasesConfig(exploration_steps=60, task_steps=20, perturbation_steps=10, homing_steps=2),
    vae=VAEConfig(latent_size=4, image_size=16, batch_size=16, pretrain_updates=5, update_every=0),
    sac=SACConfig(hidden=(32, 32), batch_size=16, horizon=3),
    novelty=NoveltyConfig(hidden=16, embedding=8, batch_size=16, update_every=1),
    classifier=ClassifierConfig(hidden=16, batch_size=16, pretrain_updates=5, update_every=5),
    checks=ChecksConfig(late=Check(LATE_S * HZ, "skip")),
    supervision=QUICK,
)
"""A run that learns within seconds and never ends by itself."""


class Night:
    """One run directory and the process that supervises it. Use as a context manager: leaving kills everything."""

    def __init__(self, folder: Path, *, bench: Path | None = None, **changes: Any) -> None:
        """Make a run of SMALL with changes below `folder`, with goal images and a judge of noise.

        The robot's servos and faults are in folder `bench`, by default beside the run.
        """
        self.bench = bench or folder / "bench"
        self.bench.mkdir(parents=True)
        self.run = Run.create(folder / "run", replace(SMALL, **changes))
        save_goals(self.run.goals, *goal_images(), task="valve", robot="bench", source="test")
        judge_of_noise(self.run.judge)
        self.process: subprocess.Popen[str] | None = None
        self.env = os.environ | {FOLDER_VARIABLE: str(self.bench), RATE_VARIABLE: str(HZ), "TQDM_DISABLE": "1"}

    def __enter__(self) -> Night:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for name in PROCESSES:
            if pid := int(self.slot(f"{name}.pid")):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def start(self, *options: str) -> None:
        """Go on with the run, as a person would."""
        self.process = subprocess.Popen(
            [*COMMAND, "train", "--resume", str(self.run.folder), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.env,
        )

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another r3l command on the run."""
        command = [*COMMAND, *words, str(self.run.folder)]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=self.env, timeout=ASK_LIMIT_S)

    def wait_for(self, is_true: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until something is so; AssertionError with the events where it does not come, or the run ends before."""
        end = time.monotonic() + timeout_s
        while not is_true():
            assert self.process is not None
            assert self.process.poll() is None, f"the run ended: {self.process.communicate()[0]}"
            assert time.monotonic() < end, f"timed out; events: {self.events()}; {self.logs()}"
            time.sleep(0.01)

    def end(self, timeout_s: float = 60.0) -> tuple[int, str]:
        """Wait until the run has ended; return its exit code and what it printed."""
        assert self.process is not None
        output = self.process.communicate(timeout=timeout_s)[0]
        return self.process.returncode, output

    def kill(self) -> None:
        """Kill the supervisor, as kill -9 does; its processes are left to themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def break_down(self, *names: str) -> None:
        """Break what is named (r3l.hardware.fault_bench.FAULTS), and mend everything else."""
        part = self.bench / "faults.part"
        part.write_text(json.dumps(names))
        part.rename(self.bench / "faults.json")

    def events(self) -> list[tuple[str, str]]:
        """Return kinds and messages of the run's events."""
        return [(event["kind"], event["message"]) for event in read_jsonl(self.run.events)]

    def count(self, kind: str) -> int:
        """Return how many events of a kind there are."""
        return sum(each == kind for each, _ in self.events())

    def logs(self) -> dict[str, str]:
        """Return the ends of the processes' logs."""
        return {path.name: path.read_text()[-1500:] for path in self.run.logs.glob("*.log")}

    def servos(self) -> list[dict[str, Any]]:
        """Return what the servos were told."""
        return read_jsonl(self.bench / "servos.log")

    def commands_after_stop(self) -> int:
        """Wait until the supervisor has told the actor to stop; return how many commands the servos got after that."""
        self.wait_for(lambda: self.slot("wanted") >= Wanted.STOP)
        told_s = time.monotonic()
        self.wait_for(lambda: not self.torque_is_on())
        return sum(line["event"] == "torque-on" and line["time_s"] > told_s for line in self.servos())

    def torque_is_on(self) -> bool:
        """Return whether the servos hold torque now, whoever told them last."""
        told = [line["event"] for line in self.servos() if line["event"].startswith("torque")]
        return bool(told) and told[-1] == "torque-on"

    def rows(self) -> list[Row]:
        """Return what is stored."""
        camera = load_task(self.run.config.task).rig.camera
        with closing(ExperienceStore(self.run.experience, (camera.height, camera.width, 3))) as store:
            return list(store.rows())

    def steps(self) -> int:
        """Return the number of env steps stored."""
        return sum(row.step > 0 for row in self.rows())

    def slot(self, name: str) -> float:
        """Return a number of the board; 0 before there is one."""
        try:
            return SharedStatus(self.run.shared, writable=False)[name]
        except (OSError, ValueError):
            return 0.0

    def state(self, process: str) -> State:
        """Return what a process is doing."""
        return State(int(self.slot(f"{process}.state")))

    def pid(self, process: str) -> int:
        """Return a process' number, once it has one: a signal to 0 would end whoever sends it."""
        self.wait_for(lambda: self.slot(f"{process}.pid") > 0)
        return int(self.slot(f"{process}.pid"))

    def is_learning(self) -> bool:
        """Return whether both processes do what they are there for."""
        return self.slot("learner.updates") > 5 and self.slot("actor.version") > 0


def goal_images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Take pictures of the bench's dial at its goal, as a person would: for training, and held out."""
    task = load_task("valve")
    rig: Any = load_robot("bench", task)  # the core knows no driver's class
    with rig:
        states = task.goal_states(24, np.random.default_rng(0))
        images = np.stack([rig.take(float(state[0])) for state in states])
    return images[:20], images[20:]


def judge_of_noise(path: Path) -> None:
    """Write a judge that is fitted in no time: for runs in which its verdicts do not matter."""
    images = channels_first(np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8))
    examples = Examples(images[:8], images[8:])
    fit(examples, examples, torch.Generator().manual_seed(0), JudgeConfig(updates=2, batch_size=4)).save(path)
