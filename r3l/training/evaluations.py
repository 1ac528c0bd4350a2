"""Evaluations of a supervised run: a process beside the run evaluates its snapshots."""

from __future__ import annotations

import subprocess

from r3l.run.directory import Run
from r3l.run.jsonl import read_steps
from r3l.training.watched_process import start_worker


class Evaluations:
    """Evaluates the snapshots on the success curve, one after the other, in processes beside the run."""

    def __init__(self, run: Run, lifeline: int) -> None:
        """Evaluate what is not on the curve yet; `lifeline` is a pipe's reading end that closes with the supervisor."""
        self._run, self._lifeline = run, lifeline
        self._tried = {line["step"] for line in read_steps(run.evaluations)}
        self._process: subprocess.Popen[bytes] | None = None

    def go_on(self) -> bool:
        """Start the next evaluation when none is running; return whether one is running then."""
        if self._process is None or self._process.poll() is not None:
            self._process, every = None, self._run.config.evaluate_every
            for step in self._run.published() if every else ():
                if step % every == 0 and step not in self._tried:
                    self._tried.add(step)
                    self._process = start_worker("evaluate", self._run, self._lifeline, "--step", str(step))
                    break
        return self._process is not None

    def close(self) -> None:
        """End the running evaluation."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
