"""Random actions against the hand: no value outside any limit reaches a register, and one that did would be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import safety
from r3l.hardware.dclaw.envelope import Envelope
from r3l.hardware.dynamixel.bus import Bus
from r3l.hardware.dynamixel.control_table import Register


@pytest.mark.parametrize("actions", [2000, pytest.param(15_000, marks=pytest.mark.slow)])
def test_nothing_outside_any_limit_reaches_a_register(actions: int, tmp_path: Path) -> None:
    out = tmp_path / "safety.json"
    assert safety.main(["--actions", str(actions), "--seed", "7", "--jobs", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["violations"] == {}
    assert found["refused"] > 0.005 * actions
    assert found["writes"]["goal_position"] > 8 * actions


def limitless(
    self: Envelope, target: np.ndarray[Any, Any], begin: object, measured: object = None
) -> np.ndarray[Any, Any]:
    sent: np.ndarray[Any, Any] = np.clip(target, -3.0, 3.0).astype(np.float32)
    return sent


def test_a_hand_without_limits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Envelope, "limit", limitless)
    violations = safety.attack(300, 0)["violations"]
    assert set(violations) >= {"pose"}, "SafeRobot keeps the steps and the joints' limits"


def test_a_goal_that_is_not_where_the_joint_is_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Bus.read

    def misread(self: Bus, servo: int, register: Register, **options: float) -> float:
        found: float = read(self, servo, register, **options)
        return found + (0.1 if register.name == "present_position" else 0.0)

    monkeypatch.setattr(Bus, "read", misread)
    assert "lunge" in safety.attack(50, 0)["violations"]
