"""Orphans: processes of a run whose supervisor was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from r3l.run.directory import Run
from r3l.training.shared_status import PROCESSES, SharedStatus

POLL_S = 0.05
ORPHAN_LIMIT_S = 7.0
"""An orphan ends by itself within five seconds, with the robot relaxed; one that hangs is killed after this time."""
MODULES = (b"r3l.training.worker", b"r3l.processes.child")
"""The module in the command line of a run's process; release 0.1 started the second one."""


def end_orphans(run: Run) -> None:
    """Wait until orphans have ended, then kill those that hang: they hold the run's lock."""
    holder = run.holder()
    if holder is None or Path(f"/proc/{holder}").exists():
        return
    try:
        status = SharedStatus(run.shared)
    except (OSError, ValueError):
        return
    limit_s = time.monotonic() + ORPHAN_LIMIT_S
    for pid in (int(status[f"{name}.pid"]) for name in PROCESSES):
        while is_child(pid, run) and time.monotonic() < limit_s:
            time.sleep(POLL_S)
        if is_child(pid, run):
            os.kill(pid, signal.SIGKILL)
    while run.holder() is not None and time.monotonic() < limit_s + 1:
        time.sleep(POLL_S)


def is_child(pid: int, run: Run) -> bool:
    """Return whether process `pid` is an actor, a learner or a helper of the run."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        cwd, folder = Path(f"/proc/{pid}/cwd").resolve(), run.folder.resolve()
    except OSError:
        return False
    is_worker = any(module in words for module in MODULES)
    return is_worker and any(Path(cwd, os.fsdecode(word)).resolve() == folder for word in words)
