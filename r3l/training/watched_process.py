"""A ward: one process under supervision, started again when it dies or hangs, with pauses that grow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from r3l.config.schema import SupervisionConfig
from r3l.run.directory import Run
from r3l.training.shared_status import SharedStatus, State

HOUR_S = 3600.0
LOG_BYTES = 16 << 20
"""A log longer than this is begun anew, the old one kept beside it."""


class WatchedProcess:
    """The actor or the learner, as the supervisor sees it: by its progress on the board, not by being alive."""

    def __init__(
        self,
        name: str,
        run: Run,
        shared: SharedStatus,
        limit_s: float,
        *,
        inherited: tuple[int, ...],
        lifeline: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Supervise process `name`.

        Args:
            limit_s: without progress for so long it hangs.
            inherited: descriptors that it keeps open; the run's lock among them, so that it outlives the supervisor.
            lifeline: the reading end of a pipe that closes with the supervisor.
        """
        self.name, self._run, self._shared, self._limit_s = name, run, shared, limit_s
        self._inherited, self._lifeline, self._clock = inherited, lifeline, clock
        self._config: SupervisionConfig = run.config.supervision
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts: deque[float] = deque()
        self._starts_s = clock()
        self._progress = (-1.0, clock())

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def has_ended(self) -> bool:
        """Whether the process did what it was there for, and is gone."""
        return self._process is not None and not self.is_alive and self._shared.state(self.name) is State.ENDED

    @property
    def is_exhausted(self) -> bool:
        """Whether it was restarted as often as is allowed within an hour."""
        return len(self._restarts) > self._config.max_restarts

    def start_when_due(self) -> None:
        """Start the process, once its pause is over."""
        if self._process is None and self._clock() >= self._starts_s:
            self.start()

    def start(self) -> None:
        """Start the process now, its output going to a log."""
        self._shared[f"{self.name}.state"] = State.STARTING
        self._shared[f"{self.name}.ready"] = 0
        command = [sys.executable, "-m", "r3l.training.worker", self.name, str(self._run.folder)]
        with open_log(self._run.logs / f"{self.name}.log") as log:
            self._process = subprocess.Popen(
                [*command, "--parent", str(self._lifeline)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self._lifeline, *self._inherited),
                start_new_session=True,  # Ctrl-C is the supervisor's alone
            )
        self._progress = (-1.0, self._clock())

    def trouble(self) -> str | None:
        """Return why the process must be restarted: it died, or it hangs; None while all is well."""
        if self._process is None or self.has_ended:
            return None
        code = self._process.poll()
        if code is not None:
            return f"{self.name} died ({'signal' if code < 0 else 'exit code'} {abs(code)})"
        limit_s = self._limit_s if self._shared[f"{self.name}.ready"] else max(self._start_limit_s, self._limit_s)
        idle_s = self.idle_s
        return f"{self.name} made no progress for {idle_s:.1f} s" if idle_s > limit_s else None

    @property
    def _start_limit_s(self) -> float:
        return self._config.start_limit_s

    @property
    def idle_s(self) -> float:
        """Seconds since the process was last seen to make progress."""
        progress, now = self._shared[f"{self.name}.progress"], self._clock()
        if progress != self._progress[0]:
            self._progress = (progress, now)
        return now - self._progress[1]

    def kill(self) -> None:
        """Kill the process and wait until it is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._process is not None:
            self._process.wait()

    def plan_restart(self) -> float:
        """Let the process be started again after a pause; return its length, s."""
        now = self._clock()
        self._restarts.append(now)
        while now - self._restarts[0] > HOUR_S:
            self._restarts.popleft()
        pause_s = min(self._config.backoff_s * 2.0 ** (len(self._restarts) - 1), self._config.max_backoff_s)
        self._process, self._starts_s = None, now + pause_s
        self._shared.add(f"{self.name}.restarts")
        return pause_s

    @property
    def log_end(self) -> str:
        """The last line of its log, for the event."""
        try:
            with (self._run.logs / f"{self.name}.log").open("rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - 2000, 0))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def open_log(path: Path) -> IO[bytes]:
    """Return a log opened for appending; where the disk takes none, what is written goes nowhere."""
    try:
        path.parent.mkdir(exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_name(path.name + ".old"))
        return path.open("ab")
    except OSError:
        return open(os.devnull, "ab")
