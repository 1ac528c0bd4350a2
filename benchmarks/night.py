"""A night of seconds: a small run on the fault bench, in processes of its own, for tests that disturb it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.running import R3L, WITH_DEFAULT_SIGNALS, resume_command
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
"""Environment variables for the bench's folder and its control rate."""
HZ = 50.0
PERIOD_S = 1 / HZ
LATE_S = 0.5
"""Lateness at which an observation fails the check; a busy machine alone causes less."""
COMMAND_TIMEOUT_S = 120.0
QUICK = SupervisionConfig(backoff_s=0.1, checkpoint_every_s=3.0, actor_limit_s=2.0, publish_every_s=0.2)
"""Time limits for a run of seconds."""
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
"""A run that learns within seconds and does not end by itself."""


class Night:
    """A run directory and the supervisor of its run. Use as a context manager: leaving it kills all processes."""

    def __init__(self, folder: Path, *, bench: Path | None = None, **changes: Any) -> None:
        """Create a run of SMALL with changes below `folder`, with goal images and a judge fitted to noise.

        Folder `bench` holds the servos and the faults of the robot; by default it is beside the run.
        """
        self.bench = bench or folder / "bench"
        self.bench.mkdir(parents=True)
        self.run = Run.create(folder / "run", replace(SMALL, **changes))
        save_goals(self.run.goals, *goal_images(), task="valve", robot="bench", source="test")
        save_noise_judge(self.run.judge)
        self.process: subprocess.Popen[str] | None = None
        self.env = os.environ | {FOLDER_VARIABLE: str(self.bench), RATE_VARIABLE: str(HZ), "TQDM_DISABLE": "1"}

    def __enter__(self) -> Night:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        for name in PROCESSES:
            if pid := int(self.status(f"{name}.pid")):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def start(self, *options: str) -> None:
        """Start or resume the run with `r3l train --resume`."""
        self.process = subprocess.Popen(
            [*WITH_DEFAULT_SIGNALS, *resume_command(self.run.folder, *options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.env,
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another r3l command on the run, for example `pause`."""
        return subprocess.run(
            [*R3L, *words, str(self.run.folder)],
            check=False,
            capture_output=True,
            text=True,
            env=self.env,
            timeout=COMMAND_TIMEOUT_S,
        )

    def wait_for(self, is_true: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait for a condition; AssertionError with the events if the run ends or the time is up before."""
        end_s = time.monotonic() + timeout_s
        while not is_true():
            assert self.process is not None
            assert self.process.poll() is None, f"the run ended: {self.process.communicate()[0]}"
            assert time.monotonic() < end_s, f"timed out; events: {self.events()}; {self.logs()}"
            time.sleep(0.01)

    def wait_for_end(self, timeout_s: float = 60.0) -> tuple[int, str]:
        """Wait for the end of the run; return its exit code and its output."""
        assert self.process is not None
        output = self.process.communicate(timeout=timeout_s)[0]
        return self.process.returncode, output

    def kill(self) -> None:
        """Kill the supervisor alone, as kill -9 does."""
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def inject(self, *names: str) -> None:
        """Set the faults of the bench (r3l.hardware.fault_bench.FAULTS); without names all faults end."""
        part = self.bench / "faults.part"
        part.write_text(json.dumps(names))
        part.rename(self.bench / "faults.json")

    def events(self) -> list[tuple[str, str]]:
        """Return kind and message of each event of the run."""
        return [(event["kind"], event["message"]) for event in read_jsonl(self.run.events)]

    def count(self, kind: str) -> int:
        """Return the number of events of a kind."""
        return sum(each == kind for each, _ in self.events())

    def logs(self) -> dict[str, str]:
        """Return the end of each log."""
        return {path.name: path.read_text()[-1500:] for path in self.run.logs.glob("*.log")}

    def servos(self) -> list[dict[str, Any]]:
        """Return the log of the commands to the servos."""
        return read_jsonl(self.bench / "servos.log")

    def commands_after_stop(self) -> int:
        """Wait for the stop and for torque off; return the number of commands between them."""
        self.wait_for(lambda: self.status("wanted") >= Wanted.STOP)
        stop_s = time.monotonic()
        self.wait_for(lambda: not self.torque_is_on())
        return sum(line["event"] == "torque-on" and line["time_s"] > stop_s for line in self.servos())

    def torque_is_on(self) -> bool:
        """Return whether the servos hold torque now."""
        changes = [line["event"] for line in self.servos() if line["event"].startswith("torque")]
        return bool(changes) and changes[-1] == "torque-on"

    def rows(self) -> list[Row]:
        """Return the rows of the experience store."""
        camera = load_task(self.run.config.task).rig.camera
        with closing(ExperienceStore(self.run.experience, (camera.height, camera.width, 3))) as store:
            return list(store.rows())

    def steps(self) -> int:
        """Return the number of env steps stored."""
        return sum(row.step > 0 for row in self.rows())

    def status(self, name: str) -> float:
        """Return a number of the shared status; 0 if there is none yet."""
        try:
            return SharedStatus(self.run.shared, writable=False)[name]
        except (OSError, ValueError):
            return 0.0

    def state(self, process: str) -> State:
        """Return the state of a process."""
        return State(int(self.status(f"{process}.state")))

    def pid(self, process: str) -> int:
        """Wait until a process has an id and return it: a signal to id 0 would hit the test itself."""
        self.wait_for(lambda: self.status(f"{process}.pid") > 0)
        return int(self.status(f"{process}.pid"))

    def is_learning(self) -> bool:
        """Return whether the learner updates and the actor uses its weights."""
        return self.status("learner.updates") > 5 and self.status("actor.version") > 0


def goal_images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Take goal images of the bench's dial; return those for training and those held out."""
    task = load_task("valve")
    rig: Any = load_robot("bench", task)  # benchmarks know no driver's class
    with rig:
        states = task.goal_states(24, np.random.default_rng(0))
        images = np.stack([rig.take(float(state[0])) for state in states])
    return images[:20], images[20:]


def save_noise_judge(path: Path) -> None:
    """Save a judge that is quickly fitted to noise, for runs in which its verdicts do not matter."""
    images = channels_first(np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8))
    examples = Examples(images[:8], images[8:])
    fit(examples, examples, torch.Generator().manual_seed(0), JudgeConfig(updates=2, batch_size=4)).save(path)
