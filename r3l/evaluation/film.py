"""Films: the policy before, during and after training from the same starts, side by side in one small animation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from r3l.config.errors import UserError
from r3l.evaluation.evaluator import Evaluator
from r3l.evaluation.policies import TaskPolicy
from r3l.models.policy import load_policies
from r3l.robot.base import SimulatedRobot
from r3l.run.directory import Run
from r3l.run.files import write_file
from r3l.run.progress import progress_bar
from r3l.task.registry import load_task, robot_of

SIDE, CAPTION = 200, 18
"""Side of a panel, and height of its caption, in pixels."""
MAX_BYTES = 2_000_000
PAUSE_FRAMES = 6
"""Copies of an episode's last frame, so that its end can be seen."""
Frames = list[NDArray[np.uint8]]


def film(run: Run, steps: Sequence[int], path: Path, *, starts: int = 3, seed: int = 0) -> Path:
    """Write an animated WebP of the policies published at `steps`, each from the same start states.

    Raises:
        UserError: the robot is not simulated, or no such weights were published.
    """
    task = load_task(run.config.task)
    robot = robot_of(run.config, run.rig)
    if not isinstance(robot, SimulatedRobot):
        raise UserError(f"robot {run.config.robot!r} is not simulated: film it with a camera")
    columns: list[Frames] = []
    bar = progress_bar("film", "episode", starts * len(steps))
    with closing(Evaluator(task, robot)) as evaluator, bar:
        for step in steps:
            policies = load_policies(run.config, robot.spec, run.read_weights(step), torch.device("cpu"))
            shots: Frames = []
            robot.on_period = lambda time_s, truth, shots=shots: shots.append(robot.view(SIDE))
            evaluator.run(TaskPolicy(policies), count=starts, seed=seed, on_episode=bar.update)
            columns.append(with_pauses(shots, len(shots) // starts))
    write_file(path, encode(compose(columns, captions(steps)), 1 / task.rig.control_hz))
    return path


def captions(steps: Sequence[int]) -> list[str]:
    """Return the caption of each column."""
    return ["before training" if step == 0 else f"after {step:,} steps" for step in steps]


def with_pauses(shots: Frames, length: int) -> Frames:
    """Repeat the last frame of each episode of `length` frames."""
    found: Frames = []
    for start in range(0, len(shots), length):
        found += shots[start : start + length] + [shots[start + length - 1]] * PAUSE_FRAMES
    return found


def compose(columns: Sequence[Frames], titles: Sequence[str]) -> list[Image.Image]:
    """Put the columns side by side under their titles, frame by frame."""
    bar = Image.new("RGB", (SIDE * len(columns), CAPTION), (24, 26, 30))
    pen = ImageDraw.Draw(bar)
    for index, title in enumerate(titles):
        pen.text((index * SIDE + 6, 3), title, fill=(235, 235, 235))
    frames = []
    for shots in zip(*columns, strict=True):
        frame = Image.new("RGB", (bar.width, SIDE + CAPTION))
        frame.paste(bar, (0, 0))
        frame.paste(Image.fromarray(np.concatenate(shots, axis=1)), (0, CAPTION))
        frames.append(frame)
    return frames


def encode(frames: Sequence[Image.Image], frame_s: float) -> bytes:
    """Return an endless animated WebP, in the best quality below MAX_BYTES."""
    for quality in (80, 65, 50, 35, 20):
        content = io.BytesIO()
        options = {"duration": round(1000 * frame_s), "loop": 0, "quality": quality, "method": 4}
        frames[0].save(content, "WEBP", save_all=True, append_images=list(frames[1:]), **options)
        if content.tell() < MAX_BYTES:
            return content.getvalue()
    raise UserError(f"the film is over {MAX_BYTES // 1_000_000} MB at the lowest quality; take fewer --starts")
