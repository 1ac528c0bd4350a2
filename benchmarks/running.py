"""A run that goes on while a benchmark looks at it, and stops some of its processes for a while."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.learning import collect_goals
from r3l.config.errors import UserError
from r3l.run.directory import Run
from r3l.training.shared_status import PROCESSES, SharedStatus

POLL_S = 0.1
EXPLORED_STEPS, LONG = 1000, 200_000
"""Env steps explored, and of a run that no benchmark comes to the end of."""
TRAIN = [sys.executable, "-m", "r3l", "train"]


def prepare(folder: Path, task: str, *, learned_steps: int) -> Run:
    """Return a run of the default preset on the twin that has explored and learned a little; one there is goes on."""
    if not (folder / "config.json").exists():
        collect_goals(task)
        options = ["--steps", str(EXPLORED_STEPS + learned_steps), "--device", "cpu", "--set", "evaluate_every=0"]
        options += ["--set", f"phases.exploration_steps={EXPLORED_STEPS}"]
        subprocess.run([*TRAIN, task, "--runs", str(folder.parent), "--name", folder.name, *options], check=True)
    return Run.open(folder)


class Running:
    """`r3l train --resume` on a run. Use as a context manager: leaving stops it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._stopped: set[int] = set()

    def __enter__(self) -> Running:
        with Path(f"{self.run.folder}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*TRAIN, "--resume", str(self.run.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TQDM_DISABLE": "1"},
                start_new_session=True,
            )
        self.began_s = time.monotonic()
        self.wait_for(lambda: self._board_is_there(), 120)
        self.shared = SharedStatus(self.run.shared, writable=False)
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._stopped):
            os.kill(pid, signal.SIGCONT)
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def _board_is_there(self) -> bool:
        """Return whether this supervisor, no earlier one, made the board."""
        try:
            return SharedStatus(self.run.shared, writable=False)["supervisor.pid"] == self.process.pid
        except (OSError, ValueError):
            return False

    def wait_for(self, is_true: Callable[[], bool], timeout_s: float) -> None:
        """Wait until something is so; UserError where it does not come."""
        end_s = time.monotonic() + timeout_s
        while not is_true():
            if self.process.poll() is not None or time.monotonic() > end_s:
                raise UserError(f"{self.run.folder} does not do what it should; see {self.run.folder}.log")
            time.sleep(POLL_S)

    def pids(self) -> list[int]:
        """Return the numbers of the supervisor and its processes."""
        return [self.process.pid, *(self.pid(name) for name in PROCESSES)]

    def pid(self, name: str) -> int:
        """Return a process' number, once it has one: a signal to 0 would end whoever sends it."""
        self.wait_for(lambda: self.shared[f"{name}.pid"] > 0, 120)
        return int(self.shared[f"{name}.pid"])

    def halt(self, *pids: int) -> None:
        """Let processes do nothing for a while."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        self._stopped |= set(pids)

    def go_on(self, *pids: int) -> None:
        """Let them go on."""
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        self._stopped -= set(pids)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def stolen_s() -> float:
    """Return the seconds that this machine wanted to run and another one ran instead, all cores together."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")
