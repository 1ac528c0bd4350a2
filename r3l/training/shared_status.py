"""The board: a small file that the processes of a run share in memory, so that each knows how the others are."""

from __future__ import annotations

import hashlib
import mmap
import os
from enum import IntEnum
from pathlib import Path
from typing import Self

import numpy as np

from r3l.robot.observation_checks import CHECKS


class Wanted(IntEnum):
    """What people or the supervisor want the robot to do; the actor looks before each env step."""

    RUN = 0
    PAUSE = 1
    """Move home by script, relax, wait."""
    RELAX = 2
    """Relax where it is, at once, and wait."""
    PARK = 3
    """The regular end: move home, relax, end."""
    STOP = 4
    """Relax at once and end."""


class State(IntEnum):
    """What a process is doing."""

    ABSENT = 0
    STARTING = 1
    ACTING = 2
    PAUSED = 3
    """People paused the robot."""
    RELAXED = 4
    """People relaxed the robot."""
    WAITING_FOR_LEARNER = 5
    """The actor is ahead by more than it may, or the learner has not loaded yet."""
    WAITING_FOR_WEIGHTS = 6
    """Exploration is over and no policy is published yet."""
    LEARNER_AWAY = 7
    """The learner made no progress for longer than the actor goes on alone."""
    DISK_FULL = 8
    """Observations cannot be written."""
    CHECK_FAILED = 9
    """An observation failed a check that pauses."""
    STUCK = 10
    """The object no longer moves, whatever was tried."""
    LOADING = 11
    """The learner rebuilds its replay."""
    PRETRAINING = 12
    LEARNING = 13
    WAITING_FOR_STEPS = 14
    """The learner has made every update that is owed."""
    ENDED = 15
    """The process has done what it was there for."""


PROCESSES = ("actor", "learner")
SLOTS = (
    "wanted",
    "resumed",
    "started_epoch_s",
    "deadline_epoch_s",
    "supervisor.pid",
    *(
        f"{process}.{slot}"
        for process in PROCESSES
        for slot in ("pid", "state", "progress", "restarts", "ready", "failure")
    ),
    "actor.steps",
    "actor.phase",
    "actor.unwritten",
    "actor.version",
    "actor.commands",
    "actor.on_time",
    "actor.overruns",
    "actor.worst_late_s",
    "actor.position_limited",
    "actor.speed_limited",
    "actor.refused",
    "actor.stuck_level",
    "actor.hottest_c",
    "actor.current_a",
    "actor.voltage_v",
    "learner.steps",
    "learner.updates",
    "learner.version",
    "learner.checkpoint_step",
    "learner.rollbacks",
    "learner.pretrained_share",
    *(f"check.{name}" for name in CHECKS),
)
"""Every number on the board."""
MAGIC = hashlib.sha256(",".join(SLOTS).encode()).digest()[:16]
SIZE = 4096


class SharedStatus:
    """Numbers by name, in a file that is mapped into memory: a write is seen at once and costs no system call.

    One process writes a slot; all may read. Each number is one aligned word, so none is ever seen half written.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        """Map an existing board.

        Raises:
            OSError: there is none.
            ValueError: it is not of this r3l.
        """
        descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size != SIZE:
                raise ValueError(f"{path} is not a board of this r3l; the next r3l train --resume makes it anew")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._memory = mmap.mmap(descriptor, SIZE, access=access)
        finally:
            os.close(descriptor)
        if self._memory[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path} is not a board of this r3l; the next r3l train --resume makes it anew")
        self._values = np.frombuffer(self._memory, np.float64, len(SLOTS), len(MAGIC))

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a board of zeros in place of any other; its bytes are on the disk, so that a full one cannot hurt."""
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            file.write(MAGIC.ljust(SIZE, b"\0"))
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        return cls(path)

    @staticmethod
    def left_wanted(path: Path) -> Wanted:
        """Return what people wanted of a run whose supervisor died; RUN where it did not, or they wanted nothing."""
        try:
            wanted = SharedStatus(path, writable=False).wanted
        except (OSError, ValueError, OverflowError):
            return Wanted.RUN
        return wanted if wanted in (Wanted.PAUSE, Wanted.RELAX) else Wanted.RUN

    def __getitem__(self, slot: str) -> float:
        return float(self._values[INDEX[slot]])

    def __setitem__(self, slot: str, value: float) -> None:
        self._values[INDEX[slot]] = value

    def add(self, slot: str, value: float = 1.0) -> None:
        """Count; only the slot's writer may."""
        self._values[INDEX[slot]] += value

    @property
    def wanted(self) -> Wanted:
        """What the actor is to do."""
        return Wanted(int(self["wanted"]))

    def state(self, process: str) -> State:
        """Return what a process is doing."""
        return State(int(self[f"{process}.state"]))


INDEX = {slot: index for index, slot in enumerate(SLOTS)}
