"""Pre-flight: what cannot work is refused in one line before the first action."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import TINY, tiny
from numpy.typing import NDArray
from torch import Tensor

from r3l.config.errors import UserError
from r3l.config.presets import VARIANTS
from r3l.config.schema import MANY, Config
from r3l.learner.learner import Learner
from r3l.robot.base import SimulatedRobot
from r3l.run.goals import Goals, load_goals
from r3l.task.base import Task
from r3l.task.registry import load_robot, load_task
from r3l.tasks.valve import Valve
from r3l.training import preflight
from r3l.training.preflight import Preflight, available_memory, require, separability

GIB = 1 << 30


def check(config: Config, task: Task, goals: Goals, folder: Path, *, hours: float | None = None) -> Preflight:
    return preflight.check(
        config, task, load_robot(config.robot, task, diagnostic=config.reads_truth), goals, folder, hours=hours
    )


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def goals(goal_folder: Path) -> Goals:
    return load_goals(goal_folder, Valve().rig.camera, Valve().minimum_goals)


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "PROBE_STEPS", 90)


def noise(count: int, seed: int, brightness: int = 0) -> NDArray[np.uint8]:
    images = np.random.default_rng(seed).integers(0, 200, (count, 64, 64, 3)) + brightness
    return images.astype(np.uint8)


def refusal(found: Preflight) -> str:
    with pytest.raises(UserError) as error:
        require(found)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_that_differ_are_told_apart() -> None:
    assert separability(noise(30, 0, brightness=40), noise(60, 1)) > 0.99


def test_images_of_the_same_kind_are_not() -> None:
    values = [separability(noise(40, seed), noise(40, seed + 100)) for seed in range(6)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("counts", [(16, 60), (60, 16), (5, 5)])
def test_few_images_are_enough_to_say_something(counts: tuple[int, int]) -> None:
    assert 0.0 <= separability(noise(counts[0], 0), noise(counts[1], 1)) <= 1.0


def test_a_good_run_may_start(goals: Goals, tmp_path: Path) -> None:
    found = check(tiny(), Valve(), goals, tmp_path / "not" / "yet" / "there")
    assert found.problems == ()
    require(found)
    text = "\n".join(found.lines)
    assert "goals: 20 for training, 4 held out" in text
    assert all(word in text for word in ("ROC-AUC", "env steps per second", "memory: ", "disk: "))
    assert not list(tmp_path.iterdir())


def test_goal_images_like_random_frames_are_refused(goals: Goals, tmp_path: Path) -> None:
    task = load_task("valve")
    robot = load_robot("fake", task)
    assert isinstance(robot, SimulatedRobot)
    frames, _ = preflight.probe(robot, task)
    drawn = np.random.default_rng(0).choice(len(frames), 24)
    found = check(tiny(), task, Goals(frames[drawn], frames[drawn[:4]], goals.meta), tmp_path)
    assert "goal images look like random frames" in refusal(found)


def test_a_full_disk_is_refused(goals: Goals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(GIB, GIB, 1 << 20))
    line = refusal(check(tiny(), Valve(), goals, tmp_path))
    assert "disk is too small" in line
    assert "0.0 GiB free; free some space or take fewer --steps" in line


def test_too_little_memory_is_refused(goals: Goals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: GIB // 2)
    line = refusal(check(tiny(), Valve(), goals, tmp_path))
    assert "memory is too small" in line
    assert "0.5 GiB free; lower replay_capacity" in line


def line_of(found: Preflight, name: str) -> str:
    (line,) = [line for line in found.lines if line.startswith(name + ":")]
    return line


def hours_of(line: str) -> float:
    return float(line.removesuffix(" h").split()[-1])


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what sets how many GiB of the disk are free."""

    def leave(gib: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 0, round(gib * GIB)))

    return leave


def test_a_night_on_a_real_robot_says_for_how_long_the_disk_lasts(
    goals: Goals, tmp_path: Path, free: Callable[[float], None]
) -> None:
    free(20)
    night = tiny(steps=MANY, real_time=True, checkpoint_every=2500, replay_capacity=200_000)
    found = check(night, Valve(), goals, tmp_path / "run", hours=10.0)
    assert found.problems == ()
    assert "ends at" in line_of(found, "rate")
    assert line_of(found, "rate").split()[2] == "10"
    # 10 h at 10 Hz are 360,000 env steps of 13 kB.
    needed = float(line_of(found, "disk").split()[1])
    assert 4.5 < needed < 5.5
    assert hours_of(line_of(found, "disk")) == pytest.approx(10 * 20 / needed, rel=0.1)


def test_a_deadline_that_the_disk_does_not_reach_is_refused(
    goals: Goals, tmp_path: Path, free: Callable[[float], None]
) -> None:
    free(3)
    night = tiny(steps=MANY, real_time=True)
    assert "disk is too small" in refusal(check(night, Valve(), goals, tmp_path, hours=10.0))
    assert "take fewer --hours" in refusal(check(night, Valve(), goals, tmp_path, hours=10.0))
    assert check(night, Valve(), goals, tmp_path, hours=2.0).problems == ()


def test_a_run_without_an_end_needs_no_more_than_there_is(
    goals: Goals, tmp_path: Path, free: Callable[[float], None]
) -> None:
    free(3)
    found = check(tiny(steps=MANY, real_time=True), Valve(), goals, tmp_path)
    assert found.problems == ()
    assert "ends when it is stopped" in line_of(found, "rate")
    assert 4 < hours_of(line_of(found, "disk")) < 7


def test_steps_end_a_run_before_its_deadline(goals: Goals, tmp_path: Path, free: Callable[[float], None]) -> None:
    free(3)
    found = check(tiny(real_time=True), Valve(), goals, tmp_path, hours=1000.0)
    assert found.problems == ()
    assert "120 steps end about" in line_of(found, "rate")


def test_a_quota_is_shown_and_refuses_what_does_not_fit(goals: Goals, tmp_path: Path) -> None:
    config = tiny(steps=MANY, real_time=True, quota_gib=2.0)
    (tmp_path / "old").write_bytes(bytes(1 << 20))
    found = check(config, Valve(), goals, tmp_path, hours=10.0)
    line = refusal(found)
    assert "quota is too small" in line
    assert "raise --quota or take fewer --hours" in line
    assert line_of(found, "quota").split()[4] == "2.0"
    assert 2.5 < hours_of(line_of(found, "quota")) < 4
    assert check(config, Valve(), goals, tmp_path, hours=2.0).problems == ()
    assert not any(line.startswith("quota") for line in check(tiny(), Valve(), goals, tmp_path).lines)


def test_what_a_run_has_on_the_disk_is_not_asked_for_again(
    goals: Goals, tmp_path: Path, free: Callable[[float], None]
) -> None:
    config = tiny(steps=10_000, real_time=True)
    free(0.2)
    assert "disk is too small" in refusal(check(config, Valve(), goals, tmp_path))
    with (tmp_path / "experience.sqlite").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 300 << 20)
    assert check(config, Valve(), goals, tmp_path).problems == ()


def test_files_in_the_cache_do_not_count_as_used_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= physical
    text = "MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable:   50 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert available_memory() == 50 * 1024

    def missing(path: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert available_memory() == physical


@pytest.mark.parametrize("variant", ["no-perturbation", "pixels", "diagnostic-true-state"])
def test_the_rate_of_every_kind_of_agent_is_measured(goals: Goals, tmp_path: Path, variant: str) -> None:
    found = check(VARIANTS[variant](tiny()), Valve(), goals, tmp_path)
    assert any("env steps per second" in line for line in found.lines)


def test_the_rate_counts_everything_that_learns(goals: Goals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Learner.update_classifier

    def slow(self: Learner) -> dict[str, Tensor]:
        time.sleep(0.5)
        return update(self)

    monkeypatch.setattr(Learner, "update_classifier", slow)
    (line,) = [line for line in check(tiny(), Valve(), goals, tmp_path).lines if line.startswith("rate:")]
    rate = float(line.split()[2])
    assert TINY.classifier.update_every == 5
    assert 5 < rate < 10.5, "half a second more in every fifth update"
