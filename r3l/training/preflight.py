"""Pre-flight check: goal images, rate, memory and disk of a run, before the robot is left alone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
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

from r3l.config.errors import UserError
from r3l.config.schema import MANY, Config
from r3l.robot.base import Robot, SimulatedRobot
from r3l.robot.env import RobotEnv, held_action
from r3l.robot.pacing import keeps_real_time
from r3l.robot.safety import make_safe
from r3l.run.disk_space import GIB, RESERVE_BYTES, Forecast, folder_bytes, forecast, quota_bytes, room_left
from r3l.run.experience import PHASES, Row
from r3l.run.goals import Goals, camera_problem
from r3l.task.base import Task
from r3l.training.learner_loop import make_learner

PROBE_STEPS = 240
PROBE_UPDATES, PROBE_S = 20, 4.0
CLEAR_AUC, USELESS_AUC = 0.9, 0.6


@dataclass(frozen=True)
class Preflight:
    """The result of the check; `problems` must be empty for a run to start."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]


def check(
    config: Config,
    task: Task,
    robot: Robot,
    goals: Goals,
    folder: Path,
    *,
    hours: float | None = None,
    must_answer: bool = False,
) -> Preflight:
    """Check goals, rate, memory and disk for a run of `config` in `folder` that ends within `hours`.

    Raises:
        RobotError: a real robot does not answer, and it `must_answer`.
    """
    lines: list[str] = []
    problems: list[str] = []
    camera = camera_problem(goals.meta, robot.camera_settings)
    problems += [camera] if camera else []
    lines.append(f"goals: {len(goals.train)} for training, {len(goals.held_out)} held out")
    control_hz = task.rig.control_hz
    step_s, keeps_time = 1 / control_hz, keeps_real_time(config, robot)
    if isinstance(robot, SimulatedRobot):
        frames, step_s = probe(robot, task)
        step_s = max(step_s, 1 / control_hz) if keeps_time else step_s
        auc = separability(goals.train, frames)
        lines.append(f"goals against {len(frames)} random frames: ROC-AUC {auc:.2f} for a quick classifier")
        if auc < USELESS_AUC:
            problems.append(
                f"goal images look like random frames (ROC-AUC {auc:.2f}, expected {USELESS_AUC} or more): "
                "no classifier can learn from them; take goal images of the solved task with this camera"
            )
        elif auc < CLEAR_AUC:
            lines.append(f"warning: below {CLEAR_AUC}; learning will be slow: take more, and more varied, goal images")
    elif must_answer and not problems:
        with robot:
            robot.observe()
        lines.append(f"robot: {len(robot.spec.joints)} joints and a picture, nothing was moved")
    learning_s = _learning_s(config, step_s, _update_s(config, task, robot, goals))
    lines += _time_lines(config, step_s, learning_s, hours)
    found = forecast(config, task, steps_per_s=control_hz if keeps_time else 1 / learning_s)
    for line, problem in (_memory(found), *_room(config, found, folder, hours)):
        lines.append(line)
        problems += [problem] if problem else []
    return Preflight(tuple(lines), tuple(problems))


def separability(goals: NDArray[np.uint8], frames: NDArray[np.uint8]) -> float:
    """Return the cross-validated ROC-AUC of a quick classifier: goal images against frames, [N, H, W, 3] each.

    It is a logistic regression on principal components.
    """
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


def probe(robot: SimulatedRobot, task: Task) -> tuple[NDArray[np.uint8], float]:
    """Take random steps in a simulated robot of its own: its frames and the seconds per step."""
    env = RobotEnv(make_safe(robot, task.rig))
    rng = np.random.default_rng(0)
    frames = []
    try:
        env.observe()
        began = time.monotonic()
        action = np.zeros(0, np.float32)
        for step in range(PROBE_STEPS):
            action = held_action(step, action, len(robot.spec.joints), rng)
            frames.append(env.act(action).observation.image)
        return np.stack(frames), (time.monotonic() - began) / PROBE_STEPS
    finally:
        env.close()


def _update_s(config: Config, task: Task, robot: Robot, goals: Goals) -> float:
    """Measure the seconds of one update of the run's learner, on a replay of goal images."""
    capacity = max(len(goals.train), 16)
    learner = make_learner(replace(config, replay_capacity=capacity), task, robot, goals)
    replay = learner.replay
    joints, diagnostic = np.zeros(len(robot.spec.joints), np.float32), np.zeros(len(robot.spec.diagnostic), np.float32)
    rows = [
        Row(0, step, step % len(PHASES), image, joints, joints, joints, diagnostic, 0.0)
        for step, image in enumerate(goals.train)
    ]
    replay.add(rows, torch.zeros(len(rows), replay.latents.shape[1]))
    learner.update()
    began = time.monotonic()
    done, spent_s = 0, 0.0
    while done < PROBE_UPDATES and spent_s < PROBE_S:
        learner.update()
        done, spent_s = done + 1, time.monotonic() - began
    return spent_s / done


def _learning_s(config: Config, step_s: float, update_s: float) -> float:
    """Return the seconds per env step after exploration: in sync mode actor and learner take turns."""
    updates_s = config.update_ratio * update_s
    return step_s + updates_s if config.sync else max(step_s, updates_s)


def _time_lines(config: Config, step_s: float, learning_s: float, hours: float | None) -> list[str]:
    """Return the expected rate and end."""
    learned = max(config.steps - config.phases.exploration_steps, 0)
    pretrain_s = config.vae.pretrain_updates * 0.06 if config.state == "latent" else 0.0
    total_s = min(config.steps, config.phases.exploration_steps) * step_s + pretrain_s + learned * learning_s
    rate = f"rate: about {_short(1 / learning_s)} env steps per second"
    if hours is not None and hours * 3600 < total_s:
        return [f"{rate}; ends at {_clock(hours * 3600)} ({hours:.1f} h)"]
    if config.steps >= MANY:
        return [f"{rate}; ends when it is stopped"]
    return [f"{rate}; {config.steps} steps end about {_clock(total_s)} ({total_s / 60:.0f} min)"]


def _clock(ahead_s: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(time.time() + ahead_s))


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def _memory(found: Forecast) -> tuple[str, str]:
    """Return the line on memory, and the problem or an empty text."""
    needed, free = found.memory_bytes, available_memory()
    figures = f"{_gib(needed)} needed, {_gib(free)} free"
    problem = f"memory is too small: {figures}; lower replay_capacity" if needed > free else ""
    return f"memory: {figures}", problem


def _room(config: Config, found: Forecast, folder: Path, hours: float | None) -> Iterator[tuple[str, str]]:
    """Yield the line on the disk, and that on the quota if there is one, each with the problem or an empty text."""
    taken, quota = folder_bytes(folder), quota_bytes(config)
    spare = max(found.fixed_bytes - taken, 0) + RESERVE_BYTES
    needed = _needed(config, found, taken, hours)
    places = [("disk", room_left(folder), "free", "free some space")]
    places += [("quota", max(quota - taken, 0), "left", "raise --quota")] if quota else []
    for name, room, word, advice in places:
        figures = f"{_gib(room)} {word}" if needed is None else f"{_gib(needed)} needed, {_gib(room)} {word}"
        problem = f"{name} is too small: {figures}; {advice} or take fewer {'--hours' if hours else '--steps'}"
        is_enough = needed is None or needed <= room
        yield f"{name}: {figures}, which lasts for {_short(found.hours(room - spare))} h", "" if is_enough else problem


def _needed(config: Config, found: Forecast, taken: int, hours: float | None) -> int | None:
    """Return the bytes that the run will add to its folder; None if only people end it."""
    if hours is not None:
        steps = min(config.steps, hours * 3600 * found.steps_per_s)
        return max(found.fixed_bytes - taken, 0) + round(steps * found.step_bytes) + RESERVE_BYTES
    if config.steps >= MANY:
        return None
    return max(found.disk_bytes(config.steps) - taken, 0) + RESERVE_BYTES


def available_memory() -> int:
    """Return the bytes that a new process can have. The system's cache of files counts as free."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def require(found: Preflight) -> None:
    """Raise UserError for the first problem."""
    if found.problems:
        raise UserError(found.problems[0])
