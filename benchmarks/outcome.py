"""The outcome of an injected fault, and the expectations that the injections share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.night import Night

RECOVERY_TIMEOUT_S = 60.0
"""Max time to recovery on a busy machine."""


@dataclass
class Outcome:
    """The notes on one injected fault."""

    lines: list[str] = field(default_factory=list)
    is_as_expected: bool = True
    lost: int = 0
    """Env steps that were acknowledged before the fault and are not in the experience store after it."""

    def note(self, text: str, *, is_expected: bool = True) -> None:
        """Add a line; a line that is not expected is bold and makes the outcome unexpected."""
        self.lines.append(text if is_expected else f"**{text}**")
        self.is_as_expected &= is_expected


@contextmanager
def learning_night(folder: Path, outcome: Outcome, *, max_lost: int = 0, **changes: Any) -> Iterator[Night]:
    """Yield a night in which both processes learn; afterwards count the lost env steps and check the store."""
    with Night(folder, **changes) as night:
        night.start()
        night.wait_for(night.is_learning, 2 * RECOVERY_TIMEOUT_S)
        acknowledged = int(night.status("actor.steps") - night.status("actor.unwritten"))
        yield night
    outcome.lost = max(acknowledged - night.steps(), 0)
    outcome.is_as_expected &= outcome.lost <= max_lost
    labels = [(row.segment, row.step) for row in night.rows()]
    if not all(b == (a[0], a[1] + 1) or (b[0] > a[0] and b[1] == 0) for a, b in pairwise(labels)):
        outcome.note("the store has gaps or doubles", is_expected=False)


def wait_until_learning(night: Night, outcome: Outcome) -> None:
    """Wait until the robot acts and the learner updates again."""
    steps, updates = night.status("actor.steps"), night.status("learner.updates")
    start_s = time.monotonic()
    night.wait_for(
        lambda: night.status("actor.steps") > steps + 10 and night.status("learner.updates") not in (0, updates),
        RECOVERY_TIMEOUT_S,
    )
    outcome.note(f"goes on after {time.monotonic() - start_s:.0f} s")


def note_torque(night: Night, outcome: Outcome) -> None:
    """Note whether torque is off, as expected."""
    is_on = night.torque_is_on()
    outcome.note("torque is on" if is_on else "relaxed", is_expected=not is_on)


def wait_for_restart(night: Night, outcome: Outcome, name: str, pid: int, limit_s: float) -> None:
    """Wait until a process is restarted; expect this within its time limit plus 5 s."""
    start_s = time.monotonic()
    night.wait_for(lambda: night.count("restart") > 0, RECOVERY_TIMEOUT_S)
    spent_s = time.monotonic() - start_s
    outcome.note(f"found after {spent_s:.1f} s (limit {limit_s:g} s)", is_expected=spent_s < limit_s + 5)
    night.wait_for(lambda: night.pid(name) not in (0, pid), RECOVERY_TIMEOUT_S)


def wait_for_end(night: Night, outcome: Outcome, expected_code: int, timeout_s: float = RECOVERY_TIMEOUT_S) -> None:
    """Wait for the end of the run; note exit code and torque."""
    code, _ = night.wait_for_end(timeout_s)
    outcome.note(f"exit code {code}", is_expected=code == expected_code)
    note_torque(night, outcome)
