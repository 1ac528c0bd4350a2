"""Storage: the forecast agrees with what real stores and runs take, and room is what disk and quota leave."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import RunMaker, make_row, tiny

from r3l.config.presets import VARIANTS
from r3l.config.schema import Config
from r3l.learner.learner import Learner
from r3l.robot.base import SimulatedRobot
from r3l.run.checkpoint import save_checkpoint
from r3l.run.directory import Run
from r3l.run.disk_space import (
    CHECKPOINT_BYTES,
    GIB,
    MIB,
    RESERVE_BYTES,
    SNAPSHOT_BYTES,
    TRUTH_BYTES,
    existing,
    folder_bytes,
    forecast,
    hours_left,
    is_full,
    quota_bytes,
    room_left,
    row_bytes,
)
from r3l.run.experience import ExperienceStore
from r3l.run.tensors import save_tensors
from r3l.run.truth import TruthRecorder
from r3l.task.registry import load_robot, load_task
from r3l.tasks.valve import Valve
from r3l.training.sync import train


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(("side", "joints"), [(64, 9), (64, 3), (84, 9), (32, 9), (16, 3), (128, 9)])
def test_a_row_takes_what_a_real_store_takes(tmp_path: Path, side: int, joints: int) -> None:
    path, count = tmp_path / "experience.sqlite", 1500 if side <= 64 else 600
    store = ExperienceStore(path, (side, side, 3))
    row = make_row(side=side, actions=joints)
    for step in range(count):
        store.append(replace(row, step=step))
    store.close()
    assert row_bytes(side * side * 3, joints) == pytest.approx(path.stat().st_size / count, rel=0.02)


@pytest.mark.parametrize("name", ["valve", "beads", "reposition"])
def test_a_row_of_truth_takes_no_more_than_forecast(tmp_path: Path, name: str) -> None:
    robot = load_robot("twin", load_task(name))
    assert isinstance(robot, SimulatedRobot)
    with robot:
        truth = robot.truth()
    recorder = TruthRecorder(tmp_path / "truth.sqlite")
    for period in range(2000):
        recorder.record(period / 10, {key: value + period * 1e-9 for key, value in truth.items()})
    recorder.close()
    assert (tmp_path / "truth.sqlite").stat().st_size / 2000 < 1.05 * TRUTH_BYTES


@pytest.mark.parametrize("variant", ["default", "pixels"])
def test_checkpoints_and_weights_take_no_more_than_forecast(tmp_path: Path, variant: str) -> None:
    config = replace(Config(), replay_capacity=64)
    config = config if variant == "default" else VARIANTS[variant](config)
    spec = load_robot("fake", Valve()).spec
    learner = Learner(config, spec, torch.zeros(4, 3, 64, 64, dtype=torch.uint8), device=torch.device("cpu"))
    rows = [make_row(step, step=step, side=64, actions=9) for step in range(64)]
    learner.replay.add(rows, torch.zeros(64, learner.replay.latents.shape[1]))
    learner.update()
    tensors, meta = learner.state()
    taken = folder_bytes(save_checkpoint(tmp_path, 1, tensors, meta, keep=1))
    assert CHECKPOINT_BYTES / 3 < taken < CHECKPOINT_BYTES
    assert taken < RESERVE_BYTES
    save_tensors(tmp_path / "weights", learner.weights(), {})
    assert (tmp_path / "weights").stat().st_size < SNAPSHOT_BYTES


def test_a_real_run_takes_what_was_forecast(tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny(steps=400, sync=True))
    train(run)
    found = forecast(run.config, Valve())
    growing = [run.experience, run.truth, run.metrics, run.events, *run.tensorboard.iterdir()]
    assert sum(path.stat().st_size for path in growing) == pytest.approx(400 * found.step_bytes, rel=0.1)
    assert folder_bytes(run.folder) < found.disk_bytes(400)


def test_memory_grows_with_the_replay_up_to_its_capacity() -> None:
    night = Config(steps=400_000, replay_capacity=200_000)
    found = forecast(night, Valve())
    assert 3.5 * GIB < found.memory_bytes < 4.5 * GIB
    smaller = forecast(replace(night, replay_capacity=20_000), Valve())
    assert smaller.memory_bytes < 2.25 * GIB
    assert smaller.actor_bytes == found.actor_bytes
    assert smaller.step_bytes == found.step_bytes
    assert forecast(replace(night, steps=1000), Valve()).memory_bytes < 2 * GIB


def test_a_sync_run_is_one_process() -> None:
    found = forecast(Config(sync=True), Valve())
    assert (found.actor_bytes, found.evaluator_bytes, found.supervisor_bytes) == (0, 0, 0)
    assert forecast(Config(evaluate_every=0), Valve()).evaluator_bytes == 0
    assert found.memory_bytes < forecast(Config(), Valve()).memory_bytes


def test_a_night_at_ten_steps_a_second_takes_five_gib() -> None:
    found = forecast(Config(), Valve())
    assert found.steps_per_s == 10.0
    assert 4.5 * GIB < found.disk_bytes(10 * 3600 * 10) < 6 * GIB
    assert found.hours(found.step_bytes * 36_000) == pytest.approx(1.0)
    assert forecast(Config(), Valve(), steps_per_s=20.0).hours(GIB) == pytest.approx(found.hours(GIB) / 2)
    assert found.hours(-1.0) == 0.0


def test_room_is_what_is_free_or_what_the_quota_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(bytes(10 * MIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 0, GIB))
    assert room_left(tmp_path) == GIB
    assert room_left(tmp_path, 50 * MIB) == pytest.approx(40 * MIB, abs=MIB / 2)
    assert room_left(tmp_path, 2 * GIB) == GIB
    assert room_left(tmp_path, MIB) == 0
    assert room_left(tmp_path / "not" / "yet") == GIB


def test_it_is_full_before_the_reserve_is_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10 * MIB))
    assert is_full(tmp_path, 70 * MIB)
    assert not is_full(tmp_path, 80 * MIB)
    assert is_full(tmp_path, 80 * MIB, reserve_bytes=2 * RESERVE_BYTES)
    assert not is_full(tmp_path)


def test_hours_left_follow_quota_rate_and_what_is_taken(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config(quota_gib=1.0))
    assert quota_bytes(run.config) == GIB
    hours = hours_left(run, Valve())
    assert 1.5 < hours < 2.5
    assert hours_left(run, Valve(), steps_per_s=20.0) == pytest.approx(hours / 2)
    with run.experience.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 256 * MIB)
    assert hours_left(run, Valve()) == pytest.approx(0.75 * hours, rel=0.05)


def test_a_folder_is_counted_while_files_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stays", "goes"):
        (tmp_path / name).write_bytes(bytes(MIB))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    listed = os.scandir(tmp_path)
    monkeypatch.setattr(os, "scandir", lambda folder: listed)
    (tmp_path / "goes").unlink()
    assert folder_bytes(tmp_path) == pytest.approx(MIB, abs=8192)


def test_an_empty_or_missing_folder_takes_nothing(tmp_path: Path) -> None:
    assert folder_bytes(tmp_path) == 0
    assert folder_bytes(tmp_path / "missing") == 0
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(Path("surely-missing") / "run").exists()
