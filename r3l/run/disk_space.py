"""Disk and memory that a run takes, and for how long the disk has room."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from r3l.config.schema import Config
from r3l.run.directory import Run
from r3l.task.base import Task

MIB, GIB = 1 << 20, 1 << 30
RESERVE_BYTES = 64 * MIB
"""Disk kept free of observations, so that a checkpoint can still be written: 22 MiB measured with an
empty replay, 34 MiB with 200,000 rows."""
CHECKPOINT_BYTES = 40 * MIB
"""Size of a checkpoint without its latents: 22 MiB measured, 38 MiB without an encoder."""
SNAPSHOT_BYTES = 4 * MIB
"""Size of published weights: 3.6 MiB measured."""
TRUTH_BYTES = 350
"""Size of a row of ground truth: 127 bytes measured on the valve, 344 on beads."""
NOTES_BYTES = 40
"""Size of metrics, curves and events per env step: 16 bytes measured."""
ACTOR_BYTES, LEARNER_BYTES, EVALUATOR_BYTES, SUPERVISOR_BYTES = 400 * MIB, 650 * MIB, 400 * MIB, 480 * MIB
"""Resident memory of each process without the replay: 308, 590, 380 and 454 MiB measured in a run on the twin,
with shared memory counted in each. The supervisor is the process that made the pre-flight check."""
PIXELS_BYTES, SYNC_BYTES = 300 * MIB, 100 * MIB
"""More memory of the learner's process if it learns from pixels, and if it also acts and evaluates."""


@dataclass(frozen=True)
class Forecast:
    """Disk and memory that a run needs."""

    step_bytes: float
    """Disk per env step."""
    fixed_bytes: int
    """Disk for any number of steps."""
    actor_bytes: int
    """Memory of the actor's process; 0 in a sync run, where the learner's process acts."""
    learner_bytes: int
    """Memory of the learner's process with a full replay."""
    evaluator_bytes: int
    """Memory of the evaluator's process; 0 in a sync run, and in a run without evaluations."""
    supervisor_bytes: int
    """Memory of the supervisor's process; 0 in a sync run."""
    steps_per_s: float
    """Env steps per second."""

    @property
    def memory_bytes(self) -> int:
        """Memory of all processes."""
        return self.actor_bytes + self.learner_bytes + self.evaluator_bytes + self.supervisor_bytes

    def disk_bytes(self, steps: float) -> int:
        """Return the disk that a number of env steps takes, with checkpoints."""
        return self.fixed_bytes + round(steps * self.step_bytes)

    def hours(self, room_bytes: float) -> float:
        """Return the hours of env steps for which there is room."""
        return max(room_bytes, 0.0) / (self.step_bytes * self.steps_per_s * 3600)


def forecast(config: Config, task: Task, *, steps_per_s: float | None = None) -> Forecast:
    """Return the needs of a run at a rate of env steps, by default the rig's control rate."""
    rig, joints = task.rig, len(task.rig.joints)
    image = rig.camera.width * rig.camera.height * 3
    episode = _mean_episode_steps(config)
    # The first observation of an episode is one more row. Ground truth also has the moves home.
    step = row_bytes(image, joints) * (1 + 1 / episode)
    step += TRUTH_BYTES * (1 + config.phases.homing_steps / episode) + NOTES_BYTES
    step += SNAPSHOT_BYTES / config.evaluate_every if config.evaluate_every else 0.0
    latents = config.latent_size()
    rows = min(config.replay_capacity, config.steps * (1 + 1 / episode))
    replay = round(rows * (image + 4 * (3 * joints + latents) + 9))
    checkpoint = CHECKPOINT_BYTES + round(rows * 4 * latents)
    learner = LEARNER_BYTES + (PIXELS_BYTES if config.state == "pixels" else 0) + replay
    return Forecast(
        step_bytes=step,
        fixed_bytes=(config.keep_checkpoints + 1) * checkpoint + 2 * SNAPSHOT_BYTES,
        actor_bytes=0 if config.sync else ACTOR_BYTES,
        learner_bytes=learner + (SYNC_BYTES if config.sync else 0),
        evaluator_bytes=0 if config.sync or not config.evaluate_every else EVALUATOR_BYTES,
        supervisor_bytes=0 if config.sync else SUPERVISOR_BYTES,
        steps_per_s=steps_per_s or rig.control_hz,
    )


def row_bytes(image_bytes: int, joints: int) -> int:
    """Return the size of a row in the experience store's file.

    SQLite keeps the head of a long row in a page that rows share, and the rest in pages of the row: 12,800 bytes for
    an image of 12,288.

    Source: sqlite.org/fileformat2.html, 1.6 B-tree Pages.
    """
    page, row = 4096, image_bytes + 12 * joints + 32
    min_head, max_head, body = (page - 12) * 32 // 255 - 23, page - 35, page - 4
    head = row
    if row > max_head:
        head = min_head + (row - min_head) % body
        head = min_head if head > max_head else head
    sharing = (page - 8) // (head + 12)
    return math.ceil((row - head) / body) * page + page // sharing


def room_left(folder: Path, quota_bytes: int = 0) -> int:
    """Return the bytes that a run in `folder` may still take: the free disk, or the rest of its quota (0: no quota)."""
    free = shutil.disk_usage(existing(folder)).free
    return max(min(free, quota_bytes - folder_bytes(folder)), 0) if quota_bytes else free


def is_full(folder: Path, quota_bytes: int = 0, *, reserve_bytes: int = RESERVE_BYTES) -> bool:
    """Return whether there is no room for observations.

    A checkpoint takes some of the reserve while it is written: before a run resumes, ask with twice the reserve.
    """
    return room_left(folder, quota_bytes) < reserve_bytes


def can_write(folder: Path) -> bool:
    """Return whether a small file can be written: a read-only or broken disk may have room."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError:
        return False
    return True


def hours_left(run: Run, task: Task, *, steps_per_s: float | None = None) -> float:
    """Return the hours for which a run has room on the disk and in its quota, at a rate of env steps."""
    room = room_left(run.folder, quota_bytes(run.config)) - RESERVE_BYTES
    return forecast(run.config, task, steps_per_s=steps_per_s).hours(room)


def quota_bytes(config: Config) -> int:
    """Return the max size of the run directory, bytes; 0 for no limit."""
    return round(config.quota_gib * GIB)


def folder_bytes(folder: Path) -> int:
    """Return the disk that the files below a folder take; files that vanish meanwhile do not count."""
    return sum(_file_bytes(folder))


def existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _file_bytes(folder: Path) -> Iterator[int]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _file_bytes(Path(entry.path))
            else:
                with suppress(FileNotFoundError):
                    yield entry.stat(follow_symlinks=False).st_blocks * 512


def _mean_episode_steps(config: Config) -> float:
    phases = config.phases
    return phases.task_steps + phases.perturbation_share * (phases.perturbation_steps - phases.task_steps)
