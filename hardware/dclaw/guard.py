"""The guard: judges the hand's health by its servos' readings, and decides what follows."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from r3l.config.schema import Action
from r3l.robot import Trouble

from ..dynamixel.chain import Drive, Readings

MAX_REBOOTS, MAX_RESTORATIONS, WITHIN_S = 3, 10, 300.0
"""Max restorations of one servo, after overloads and after lost torque or settings; then a person must check it."""
MAX_SILENT = 5
"""Readings of one servo that may be missing in a row."""


@dataclass(frozen=True)
class Health:
    """Limits from which a servo's readings are a trouble."""

    warm_c: float = 60.0
    """A warmer servo makes the hand rest and cool."""
    cool_c: float = 50.0
    """The rest ends when every servo is cooler."""
    hot_c: float = 70.0
    """A hotter servo ends the run; the servo also takes its own torque off."""
    min_voltage_v: float = 10.5
    max_voltage_v: float = 14.0


class Guard:
    """Judges readings in sequence. A latched trouble stays until a person restarts the hand."""

    def __init__(self, health: Health, drives: Sequence[Drive]) -> None:
        """Judge readings in the order of `drives`."""
        self._history: defaultdict[tuple[str, int], deque[float]] = defaultdict(deque)
        self._health, self._drives = health, tuple(drives)
        self._silent = np.zeros(len(drives), np.int64)
        self._is_warm = np.zeros(len(drives), bool)
        self._latched: dict[str, Trouble] = {}

    def begin_anew(self) -> None:
        """Clear latched troubles, since a person restarted the hand; the count of reboots stays."""
        self._silent[:], self._is_warm[:] = 0, False
        self._latched.clear()

    @property
    def latched(self) -> tuple[Trouble, ...]:
        """Troubles that only a person may clear."""
        return tuple(self._latched.values())

    def judge(self, readings: Readings) -> list[Trouble]:
        """Return the troubles in these readings, given the ones before."""
        found = [*self._temperature(readings), *self._voltage(readings), *self._silence(readings)]
        return [*self.latched, *(each for each in found if each.name not in self._latched)]

    def latch(self, drive: Drive, what: str, advice: str) -> None:
        """Latch a trouble that only a person may clear."""
        trouble = _trouble("latched", "stop", drive, what, f"{advice}, then r3l train --resume")
        self._latched[trouble.name] = trouble

    def is_too_often(self, kind: str, servo: int, most: int, now_s: float) -> bool:
        """Count an action on a servo; return whether it happened more than `most` times recently."""
        times = self._history[kind, servo]
        while times and now_s - times[0] > WITHIN_S:
            times.popleft()
        if len(times) >= most:
            return True
        times.append(now_s)
        return False

    def _temperature(self, readings: Readings) -> Iterator[Trouble]:
        health, found = self._health, readings.temperature_c
        limit = np.where(self._is_warm, health.cool_c, health.warm_c)
        self._is_warm = np.where(np.isnan(found), self._is_warm, found > limit)
        for drive, is_warm, temperature_c in zip(self._drives, self._is_warm, found, strict=True):
            if temperature_c > health.hot_c:
                what = f"has {temperature_c:.0f} °C, more than health.hot_c {health.hot_c:g} °C"
                self.latch(drive, what, "look for what it pushes against and let it cool")
            elif is_warm:
                what = f"has {temperature_c:.0f} °C, more than health.warm_c {health.warm_c:g} °C"
                yield _trouble("warm", "pause", drive, what, f"the hand rests until it has {health.cool_c:g} °C")

    def _voltage(self, readings: Readings) -> Iterator[Trouble]:
        problem = self.voltage_problem(readings)
        if problem:
            yield Trouble("voltage", "pause", problem)

    def voltage_problem(self, readings: Readings) -> str:
        """Return one line that names the servo with a wrong supply; empty if all are right."""
        health, found = self._health, readings.voltage_v
        for drive, volts in zip(self._drives, found, strict=True):
            if volts < health.min_voltage_v or volts > health.max_voltage_v:
                allowed = f"expected {health.min_voltage_v:g} to {health.max_voltage_v:g} V (the rig's [health])"
                return f"{drive.name} has {volts:.1f} V, {allowed}; check the power supply"
        return ""

    def _silence(self, readings: Readings) -> Iterator[Trouble]:
        self._silent = np.where(np.isnan(readings.joint_rad), self._silent + 1, 0)
        for drive, count in zip(self._drives, self._silent, strict=True):
            if count >= MAX_SILENT:
                what = f"did not answer {count} times in a row"
                yield _trouble("silent", "pause", drive, what, "check its cable and power")


def _trouble(kind: str, action: Action, drive: Drive, what: str, then: str) -> Trouble:
    return Trouble(f"{kind}-{drive.joint.name}", action, f"{drive.name} {what}; {then}")
