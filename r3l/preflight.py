"""Pre-flight: what a user must know before leaving the robot alone, and what cannot work."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from r3l.actor import HOLD_STEPS
from r3l.config import Config, UserError
from r3l.env import RobotEnv
from r3l.experience import PHASES, Row
from r3l.goals import Goals
from r3l.learner import Learner
from r3l.networks import channels_first
from r3l.registry import load_robot
from r3l.robot import Robot, SimulatedRobot
from r3l.safety import SafeRobot
from r3l.task import Task
from r3l.train import pick_device

PROBE_STEPS = 240
PROBE_UPDATES, PROBE_S = 20, 4.0
CLEAR_AUC, USELESS_AUC = 0.9, 0.6
BASE_MEMORY = 1 << 30
"""Bytes of a process with torch, its models and the simulator, measured at 0.8 GiB and rounded up."""
ROW_OVERHEAD = 600
"""Bytes per stored step beside the image, the truth recorder's row included."""


@dataclass(frozen=True)
class Preflight:
    """What was found; `problems` must be empty for a run to start."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]


def check(config: Config, task: Task, goals: Goals, folder: Path) -> Preflight:
    """Probe goals, rate, memory and disk for a run of `config` that will live in `folder`."""
    lines: list[str] = []
    problems: list[str] = []
    robot = load_robot(config.robot, task, diagnostic=config.reads_truth)
    lines.append(f"goals: {len(goals.train)} for training, {len(goals.held_out)} held out")
    step_s = 1 / task.rig.control_hz
    if isinstance(robot, SimulatedRobot):
        frames, step_s = _probe(robot, task)
        auc = separability(goals.train, frames)
        lines.append(f"goals against {len(frames)} random frames: ROC-AUC {auc:.2f} for a quick classifier")
        if auc < USELESS_AUC:
            problems.append(
                f"goal images look like random frames (ROC-AUC {auc:.2f}, expected {USELESS_AUC} or more): "
                "no classifier can learn from them; take goal images of the solved task with this camera"
            )
        elif auc < CLEAR_AUC:
            lines.append(f"warning: below {CLEAR_AUC}; learning will be slow: take more, and more varied, goal images")
    lines += _time_lines(config, step_s, _update_s(config, task, robot, goals))
    for name, needed, free in (
        ("memory", _memory(config, task), available_memory()),
        ("disk", _disk(config, task), shutil.disk_usage(_existing(folder)).free),
    ):
        lines.append(f"{name}: {_gib(needed)} needed, {_gib(free)} free")
        if needed > free:
            hint = "lower replay_capacity" if name == "memory" else "free some space or take fewer --steps"
            problems.append(f"{name} is too small: {_gib(needed)} needed, {_gib(free)} free; {hint}")
    return Preflight(tuple(lines), tuple(problems))


def separability(goals: NDArray[np.uint8], frames: NDArray[np.uint8]) -> float:
    """Return the cross-validated ROC-AUC of a logistic regression on principal components: two [N, H, W, 3]."""
    images = np.concatenate([goals, frames]).astype(np.float32)
    height, width = (side // 16 * 16 for side in images.shape[1:3])
    coarse = images[:, :height, :width].reshape(len(images), 16, height // 16, 16, width // 16, 3).mean((2, 4))
    labels = np.repeat([1, 0], [len(goals), len(frames)])
    folds = max(2, min(5, len(goals), len(frames)))
    components = min(30, len(images) * (folds - 1) // folds - 1)
    model = make_pipeline(
        PCA(components, svd_solver="full"),
        StandardScaler(),
        LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"),
    )
    # Two BLAS threads on two busy cores wait for each other: 32 s instead of 0.3 s.
    with threadpool_limits(1):
        scores = cross_val_score(model, coarse.reshape(len(images), -1), labels, cv=folds, scoring="roc_auc")
    return float(scores.mean())


def _probe(robot: SimulatedRobot, task: Task) -> tuple[NDArray[np.uint8], float]:
    """Take random steps in a simulated robot of its own: its frames and the seconds per step."""
    env = RobotEnv(SafeRobot(robot, task.rig.limits, task.rig.max_step_rad))
    rng = np.random.default_rng(0)
    frames = []
    try:
        env.reset()
        began = time.monotonic()
        action = np.zeros(env.action_space.shape or (), np.float32)
        for step in range(PROBE_STEPS):
            if step % HOLD_STEPS == 0:
                action = rng.uniform(-1, 1, action.shape).astype(np.float32)
            frames.append(env.step(action)[0]["image"])
        return np.stack(frames), (time.monotonic() - began) / PROBE_STEPS
    finally:
        env.close()


def _update_s(config: Config, task: Task, robot: Robot, goals: Goals) -> float:
    """Return the seconds that one update of the run's learner takes here, measured on a replay of goal images."""
    images = channels_first(goals.train)
    learner = Learner(
        replace(config, replay_capacity=max(len(images), 16)),
        robot.spec,
        images,
        device=pick_device(config.device),
        true_reward=task.true_reward if config.reads_truth else None,
    )
    replay = learner.replay
    joints, diagnostic = np.zeros(len(robot.spec.joints), np.float32), np.zeros(len(robot.spec.diagnostic), np.float32)
    for step, image in enumerate(goals.train):
        row = Row(0, step, step % len(PHASES), image, joints, joints, joints, diagnostic, 0.0)
        replay.add(row, torch.zeros(replay.latents.shape[1]))
    learner.update()
    began = time.monotonic()
    done, spent_s = 0, 0.0
    while done < PROBE_UPDATES and spent_s < PROBE_S:
        learner.update()
        done, spent_s = done + 1, time.monotonic() - began
    return spent_s / done


def _time_lines(config: Config, step_s: float, update_s: float) -> list[str]:
    """Return what to expect of rate and end."""
    learning_s = step_s + config.update_ratio * update_s
    learned = max(config.steps - config.phases.exploration_steps, 0)
    pretrain_s = config.vae.pretrain_updates * 0.06 if config.state == "latent" else 0.0
    total_s = min(config.steps, config.phases.exploration_steps) * step_s + pretrain_s + learned * learning_s
    end = time.strftime("%a %H:%M", time.localtime(time.time() + total_s))
    rate = f"rate: about {_short(1 / learning_s)} env steps per second"
    return [f"{rate}; {config.steps} steps end about {end} ({total_s / 60:.0f} min)"]


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def _memory(config: Config, task: Task) -> int:
    camera = task.rig.camera
    row = camera.width * camera.height * 3 + 4 * (3 * len(task.rig.joints) + config.vae.latent_size) + 16
    return BASE_MEMORY + min(config.replay_capacity, config.steps + config.steps // 10) * row


def _disk(config: Config, task: Task) -> int:
    camera = task.rig.camera
    rows = config.steps * (camera.width * camera.height * 3 + ROW_OVERHEAD)
    return rows + (config.keep_checkpoints + 1) * 40 * (1 << 20)


def available_memory() -> int:
    """Return the bytes that a new process can have; what the system caches files in counts as free."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def require(found: Preflight) -> None:
    """Raise UserError for the first problem."""
    if found.problems:
        raise UserError(found.problems[0])
