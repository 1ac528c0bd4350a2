"""A watched process: it is started again after a growing pause when it dies or hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from r3l.run.directory import Run
from r3l.training.shared_status import SharedStatus, State

HOUR_S = 3600.0
MAX_LOG_BYTES = 16 << 20
"""A longer log is renamed and a new one is started."""
LOG_END_BYTES = 2000


def start_worker(
    role: str, run: Run, lifeline: int, *options: str, inherited: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start a process of the run, its output in the log of its role.

    Args:
        lifeline: the reading end of a pipe that closes with the supervisor.
        inherited: other descriptors that the process keeps open.
    """
    command = [sys.executable, "-m", "r3l.training.worker", role, str(run.folder), "--parent", str(lifeline), *options]
    with open_log(run.logs / f"{role}.log") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lifeline, *inherited),
            start_new_session=True,  # Ctrl-C reaches the supervisor alone
        )


class WatchedProcess:
    """The actor or the learner under supervision: it counts as well while the progress in its status grows."""

    def __init__(
        self,
        name: str,
        run: Run,
        status: SharedStatus,
        limit_s: float,
        *,
        lock: int,
        lifeline: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch process `name`, which is not started yet.

        Args:
            limit_s: max time without progress.
            lock: descriptor of the run's lock, which the process holds beyond the supervisor's end.
            lifeline: the reading end of a pipe that closes with the supervisor.
        """
        self.name, self._run, self._status, self._limit_s = name, run, status, limit_s
        self._lock, self._lifeline, self._clock = lock, lifeline, clock
        self._config = run.config.supervision
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts: deque[float] = deque()
        self._start_s = clock()
        self._progress = (-1.0, clock())
        """The newest progress, and when it came, s."""

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def has_ended(self) -> bool:
        """Whether the process did all its work and is gone."""
        return self._process is not None and not self.is_alive and self._status.state(self.name) is State.ENDED

    @property
    def is_exhausted(self) -> bool:
        """Whether the process was restarted more often within an hour than supervision.max_restarts."""
        return len(self._restarts) > self._config.max_restarts

    @property
    def idle_s(self) -> float:
        """Seconds since the last progress."""
        progress, now = self._status[f"{self.name}.progress"], self._clock()
        if progress != self._progress[0]:
            self._progress = (progress, now)
        return now - self._progress[1]

    def start_when_due(self) -> None:
        """Start the process when its pause is over."""
        if self._process is None and self._clock() >= self._start_s:
            self._status[f"{self.name}.state"] = State.STARTING
            self._status[f"{self.name}.ready"] = 0
            self._process = start_worker(self.name, self._run, self._lifeline, inherited=(self._lock,))
            self._progress = (-1.0, self._clock())

    def trouble(self) -> str | None:
        """Return why the process must be restarted: it died, or it hangs; None if it is well."""
        if self._process is None or self.has_ended:
            return None
        code = self._process.poll()
        if code is not None:
            return f"{self.name} died ({'signal' if code < 0 else 'exit code'} {abs(code)})"
        limit_s, idle_s = self._limit_s, self.idle_s
        is_at_work = self._status[f"{self.name}.ready"] and self._status.state(self.name) is not State.ENDED
        if not is_at_work:  # a busy machine takes long to load Python's modules, and to unload them
            limit_s = max(self._config.start_limit_s, limit_s)
        return f"{self.name} made no progress for {idle_s:.1f} s" if idle_s > limit_s else None

    def kill(self) -> None:
        """Kill the process and wait until it is gone."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()

    def plan_restart(self) -> float:
        """Let the process start again after a pause; return the length of the pause, s."""
        now = self._clock()
        self._restarts.append(now)
        while now - self._restarts[0] > HOUR_S:
            self._restarts.popleft()
        pause_s = min(self._config.backoff_s * 2.0 ** (len(self._restarts) - 1), self._config.max_backoff_s)
        self._process, self._start_s = None, now + pause_s
        self._status.add(f"{self.name}.restarts")
        return pause_s

    @property
    def log_end(self) -> str:
        """The last line of the log."""
        try:
            with (self._run.logs / f"{self.name}.log").open("rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - LOG_END_BYTES, 0))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def open_log(path: Path) -> IO[bytes]:
    """Return a log opened for appending; the null device where the disk takes no log."""
    try:
        path.parent.mkdir(exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".old"))
        return path.open("ab")
    except OSError:
        return open(os.devnull, "ab")
