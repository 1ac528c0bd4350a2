"""Status of a run: numbers that its loops report; processes share them in a small file mapped into memory."""

from __future__ import annotations

import hashlib
import mmap
import os
from enum import IntEnum
from pathlib import Path
from typing import Self

import numpy as np

from r3l.robot.observation_checks import CHECKS
from r3l.run.files import write_file


class Wanted(IntEnum):
    """A request of people or of the supervisor. The actor reads it before each env step."""

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
    """The activity of a process."""

    ABSENT = 0
    STARTING = 1
    ACTING = 2
    PAUSED = 3
    """People paused the robot."""
    RELAXED = 4
    """People relaxed the robot."""
    WAITING_FOR_LEARNER = 5
    """The actor is ahead by the max number of steps, or the learner is still loading."""
    WAITING_FOR_WEIGHTS = 6
    """Exploration is over and no policy is published yet."""
    LEARNER_AWAY = 7
    """The learner made no progress for supervision.learner_away_s."""
    DISK_FULL = 8
    """Observations cannot be written."""
    CHECK_FAILED = 9
    """An observation failed a check that pauses."""
    STUCK = 10
    """The object no longer moves, after every attempt to free it."""
    LOADING = 11
    """The learner rebuilds its replay."""
    PRETRAINING = 12
    LEARNING = 13
    WAITING_FOR_STEPS = 14
    """The learner has made every update that is owed."""
    ENDED = 15
    """The process has done its work."""


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
"""The name of each number."""
MAGIC = hashlib.sha256(",".join(SLOTS).encode()).digest()[:16]
SIZE = 4096
INDEX = {slot: index for index, slot in enumerate(SLOTS)}


class Status:
    """The state, progress and counters of a run's loops: numbers by name. Each slot has one writer."""

    def __init__(self) -> None:
        self._values = np.zeros(len(SLOTS))

    def __getitem__(self, slot: str) -> float:
        return float(self._values[INDEX[slot]])

    def __setitem__(self, slot: str, value: float) -> None:
        self._values[INDEX[slot]] = value

    def add(self, slot: str, value: float = 1.0) -> None:
        """Add to a counter; only the slot's writer may."""
        self._values[INDEX[slot]] += value

    @property
    def wanted(self) -> Wanted:
        """The current request."""
        return Wanted(int(self["wanted"]))

    def state(self, process: str) -> State:
        """Return the activity of a process."""
        return State(int(self[f"{process}.state"]))


class SharedStatus(Status):
    """A status in a file that all processes of a run map into memory. A write costs no system call.

    Each number is one aligned word, so that no reader sees a number half written.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        """Map an existing file.

        Raises:
            OSError: there is none.
            ValueError: another release of r3l wrote it.
        """
        descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size != SIZE:
                raise ValueError(f"{path} is not a board of this r3l; the next r3l train --resume makes it anew")
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            memory = mmap.mmap(descriptor, SIZE, access=access)
        finally:
            os.close(descriptor)
        if memory[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path} is not a board of this r3l; the next r3l train --resume makes it anew")
        self._values = np.frombuffer(memory, np.float64, len(SLOTS), len(MAGIC))

    @classmethod
    def create(cls, path: Path) -> Self:
        """Write a file of zeros in place of any other, synced to the disk, so that a full disk cannot hurt it later."""
        write_file(path, MAGIC.ljust(SIZE, b"\0"))
        return cls(path)

    @staticmethod
    def left_wanted(path: Path) -> Wanted:
        """Return PAUSE or RELAX where people wanted that of a supervisor that died, else RUN."""
        try:
            wanted = SharedStatus(path, writable=False).wanted
        except (OSError, ValueError, OverflowError):
            return Wanted.RUN
        return wanted if wanted in (Wanted.PAUSE, Wanted.RELAX) else Wanted.RUN
