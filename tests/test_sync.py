"""Training as a whole: without ground truth, through kills and signals, and every preset and variant."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, RunMaker, stored, tiny
from torch import Tensor

import r3l.run.truth
from r3l.config.errors import UserError
from r3l.config.presets import PRESETS, VARIANTS
from r3l.config.schema import Config
from r3l.hardware.twin import Twin
from r3l.learner.learner import Learner
from r3l.models.torch_setup import pick_device
from r3l.run.checkpoint import load_checkpoint
from r3l.run.directory import Run
from r3l.run.jsonl import read_jsonl
from r3l.run.truth import read_truth
from r3l.tasks.valve import Valve, ValveScene
from r3l.training.sync import FailedError, train

TRUTH: dict[str, tuple[Any, str]] = {
    "truth": (Twin, "truth"),
    "place": (Twin, "place"),
    "state": (ValveScene, "state"),
    "true_reward": (Valve, "true_reward"),
    "start_states": (Valve, "start_states"),
    "goal_states": (Valve, "goal_states"),
    "random_states": (Valve, "random_states"),
    "read_truth": (r3l.run.truth, "read_truth"),
}
"""Every way to ground truth but the recorder's own."""
ACKNOWLEDGE = """
import os, sys
from pathlib import Path
import torch
from r3l.run.experience import ExperienceStore
from r3l.learner.learner import Learner
from r3l.run.directory import Run
from r3l.training.sync import train
torch.set_num_threads(1)
append = ExperienceStore.append
def acknowledge(self, row):
    sequence = append(self, row)
    os.write(1, f"{sequence}\\n".encode())
    return sequence
ExperienceStore.append = acknowledge
train(Run.open(Path(sys.argv[1])))
"""
KILLED_AT_CHECKPOINT = """
import os, signal, sys
from pathlib import Path
import r3l.training.learner_loop, r3l.training.sync
from r3l.run.directory import Run
save = r3l.training.learner_loop.save_checkpoint
def save_and_die(*args, **options):
    save(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
r3l.training.learner_loop.save_checkpoint = save_and_die
r3l.training.sync.train(Run.open(Path(sys.argv[1])))
"""


class TruthReadError(Exception):
    """Training looked at ground truth."""


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these reads of ground truth raise."""

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise TruthReadError

    for name in names:
        owner, attribute = TRUTH[name]
        monkeypatch.setattr(owner, attribute, refuse)


def updates_of(run: Run) -> int:
    found = load_checkpoint(run.checkpoints, pytest.fail)
    assert found is not None
    return int(found[1]["learner"]["updates"])


def events_of(run: Run) -> list[tuple[str, str]]:
    return [(event["kind"], event["message"]) for event in read_jsonl(run.events)]


def rows_written(run: Run) -> int:
    """Return how many rows another process committed so far."""
    if not run.experience.exists():
        return 0
    with closing(sqlite3.connect(f"file:{run.experience}?mode=ro", uri=True)) as connection:
        try:
            return int(connection.execute("SELECT COUNT(*) FROM observation").fetchone()[0])
        except sqlite3.OperationalError:
            return 0


def test_training_on_the_twin_reads_no_ground_truth(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(robot="twin", steps=90)
    assert not config.reads_truth
    assert {name: getattr(config, name) for name in ("state", "reward")} == {
        name: getattr(Config(), name) for name in ("state", "reward")
    }
    run = make_run(tmp_path / "run", config)
    forbid(monkeypatch, *TRUTH)
    assert train(run)
    rows = stored(run)
    assert updates_of(run) == 30
    assert all(row.diagnostic.size == 0 for row in rows)
    segments = len({row.segment for row in rows})
    truth = read_truth(run.truth)
    assert len(truth["time_s"]) == 90 + TINY.phases.homing_steps * segments, "the recorder listens all the same"
    assert {"angle_rad", "error"} <= truth.keys()


@pytest.mark.parametrize(
    ("variant", "read"),
    [
        ("diagnostic-true-reward", "true_reward"),
        ("diagnostic-true-state", "state"),
        ("diagnostic-resets", "place"),
        ("diagnostic-resets", "random_states"),
    ],
)
def test_diagnostic_variants_do_read_ground_truth(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, variant: str, read: str
) -> None:
    config = VARIANTS[variant](tiny(robot="twin", steps=70))
    assert config.reads_truth
    run = make_run(tmp_path / "run", config)
    forbid(monkeypatch, read)
    with pytest.raises(TruthReadError):
        train(run)


def kill_after(run: Run, rows: int, pause_s: float) -> int:
    """Train in a process, kill it some time after it acknowledged `rows`; return the last row acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", ACKNOWLEDGE, str(run.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= rows:
            break
    time.sleep(pause_s)
    process.send_signal(signal.SIGKILL)
    rest, complaint = process.communicate()
    assert process.returncode == -signal.SIGKILL, complaint
    numbers = [int(number) for number in (line + rest).split("\n")[:-1]]
    return numbers[-1]


def is_mid_episode(run: Run, steps: int) -> bool:
    """Say whether there is a checkpoint of the world after so many steps, in the middle of an episode."""
    meta = run.checkpoints / f"step-{steps:08d}" / "meta.json"
    return meta.exists() and json.loads(meta.read_text())["actor"]["episode"] is not None


def test_kill_9_at_any_moment_loses_nothing_acknowledged(tmp_path: Path, make_run: RunMaker) -> None:
    config = tiny(steps=200, checkpoint_every=35, update_ratio=1.5)
    run = make_run(tmp_path / "run", config)
    rng = np.random.default_rng()
    kept: list[tuple[Any, ...]] = []
    borders = []
    for first, last in ((5, 50), (75, 160)):  # before any checkpoint or just after the first, and after some
        acknowledged = kill_after(run, int(rng.integers(first, last)), rng.uniform(0, 0.05))
        rows = stored(run)
        found = [(row.sequence, row.segment, row.step, row.image.tobytes(), row.time_s) for row in rows]
        assert len(found) >= acknowledged
        assert found[: len(kept)] == kept
        kept = found
        borders.append((len(rows), is_mid_episode(run, sum(row.step > 0 for row in rows))))
    assert train(Run.open(run.folder))
    rows = stored(run)
    assert [(row.sequence, row.segment, row.step, row.image.tobytes(), row.time_s) for row in rows][: len(kept)] == kept
    for border, goes_on in borders:
        before, after = rows[border - 1], rows[border]
        expected = (before.segment, before.step + 1) if goes_on else (before.segment + 1, 0)
        assert (after.segment, after.step) == expected, "only the world of that very step goes on in its episode"
    assert sum(row.step > 0 for row in rows) == 200
    assert updates_of(run) == int((200 - 60) * 1.5), "what was owed is made up for"
    assert [kind for kind, _ in events_of(run)] == ["start", "start", "start", "end"]


def test_killed_right_after_a_checkpoint_the_twin_goes_on_in_its_episode(tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny(steps=50, checkpoint_every=35))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_CHECKPOINT, str(run.folder)], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    before = stored(run)
    assert sum(row.step > 0 for row in before) == 35
    assert train(Run.open(run.folder))
    rows = stored(run)
    after = rows[len(before)]
    assert (after.segment, after.step) == (before[-1].segment, before[-1].step + 1)
    assert sum(row.step > 0 for row in rows) == 50


def wait_for(is_true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_ctrl_c_ends_with_a_checkpoint_and_a_run_that_goes_on(tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny(steps=50_000, sync=True))
    process = subprocess.Popen(
        [sys.executable, "-m", "r3l", "train", "--resume", str(run.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
    try:
        wait_for(lambda: rows_written(run) > 75 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        output, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, complaint
    assert "Traceback" not in complaint
    assert f"go on with: r3l train --resume {run.folder}" in output
    steps = sum(row.step > 0 for row in stored(run))
    assert (run.checkpoints / "latest").read_text() == f"step-{steps:08d}"
    assert run.newest_snapshot() == steps
    assert events_of(run)[-1][0] == "stop"
    segments = len({row.segment for row in stored(run)})
    assert train(Run.open(run.folder).extended(steps + 5))
    rows = stored(run)
    assert sum(row.step > 0 for row in rows) == steps + 5
    assert len({row.segment for row in rows}) <= segments + 1, "the episode went on"
    assert updates_of(run) == steps + 5 - 60


def test_a_stop_during_pretraining_is_obeyed_at_once_and_costs_nothing(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, run = (make_run(tmp_path / name, tiny(steps=70)) for name in ("undisturbed", "stopped"))
    assert train(undisturbed)
    updates: list[float] = []
    real = Learner.update_encoder

    def stop_during_the_first(self: Learner, *, tether: float) -> dict[str, Tensor]:
        updates.append(tether)
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, tether=tether)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update_encoder", stop_during_the_first)
        assert not train(run)
    assert len(updates) == 1 < run.config.vae.pretrain_updates
    assert events_of(run)[-1][0] == "stop"
    before = load_checkpoint(run.checkpoints, print)
    assert before is not None
    assert before[1]["learner"]["is_pretrained"] is False
    assert before[1]["learner"]["pretraining"] == 1
    assert train(Run.open(run.folder))
    expected, found = (load_checkpoint(each.checkpoints, print) for each in (undisturbed, run))
    assert expected is not None
    assert found is not None
    assert all(torch.equal(tensor, found[0][name]) for name, tensor in expected[0].items())


def test_a_corrupted_checkpoint_is_passed_over_and_said(tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny(steps=100, checkpoint_every=40))
    assert train(run)
    newest = run.checkpoints / (run.checkpoints / "latest").read_text() / "tensors.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    assert train(run.extended(115))
    (message,) = [message for kind, message in events_of(run) if kind == "checkpoint"]
    assert "step-00000100 is corrupt" in message
    assert "using the previous one" in message
    rows = stored(run)
    assert sum(row.step > 0 for row in rows) == 115
    assert updates_of(run) == 55
    starts = [row.sequence for row in rows if row.step == 0]
    before = max(row.sequence for row in rows if row.step > 0 and row.sequence < starts[-1])
    assert before + 1 in starts


def test_with_no_checkpoint_that_verifies_nothing_is_trained(tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny(steps=20))
    assert train(run)
    for path in run.checkpoints.glob("step-*/meta.json"):
        path.write_text("{}")
    with pytest.raises(r3l.run.tensors.CheckpointError, match="none of the 1 checkpoints"):
        train(run.extended(30))
    assert sum(row.step > 0 for row in stored(run)) == 20


def test_the_curve_has_a_point_for_the_untrained_and_each_published_policy(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Valve, "episode_steps", 6)
    run = make_run(tmp_path / "run", tiny(steps=100, evaluate_every=40))
    assert train(run)
    curve = read_jsonl(run.evaluations)
    assert [point["step"] for point in curve] == [0, 40, 80]
    assert all(point["episodes"] == 24 and 0 <= point["success"] <= 1 and "judge" in point for point in curve)
    assert sorted(int(path.stem.split("-")[1]) for path in run.weights.iterdir()) == [0, 40, 80, 100]
    assert train(run.extended(125))
    assert [point["step"] for point in read_jsonl(run.evaluations)] == [0, 40, 80, 120]


def test_evaluation_on_the_way_changes_nothing_that_is_learned(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Valve, "episode_steps", 2)
    runs = [make_run(tmp_path / str(every), tiny(steps=75, evaluate_every=every)) for every in (0, 30)]
    assert all(train(run) for run in runs)
    first, second = (load_checkpoint(run.checkpoints, pytest.fail) for run in runs)
    assert first is not None
    assert second is not None
    assert all(bool((first[0][name] == second[0][name]).all()) for name in first[0])


def test_metrics_are_written(tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny(steps=250))
    assert train(run)
    (line,) = read_jsonl(run.metrics)
    assert line["step"] == 250
    assert {"task/critic_loss", "perturbation/reward", "safety/commands", "recent/task_reward"} <= line.keys()
    assert all(np.isfinite(value) for value in line.values())
    assert list(run.tensorboard.iterdir())


def shrunk(config: Config) -> Config:
    """Make a preset small enough to run a few updates."""
    small = tiny(steps=66)
    return replace(
        config,
        robot="fake",
        steps=66,
        device="cpu",
        evaluate_every=0,
        replay_capacity=1000,
        phases=replace(config.phases, exploration_steps=60, task_steps=5, homing_steps=2),
        vae=replace(config.vae, image_size=16, batch_size=8, pretrain_updates=2),
        sac=replace(config.sac, hidden=(16,), batch_size=8),
        novelty=replace(config.novelty, hidden=small.novelty.hidden, batch_size=8),
        classifier=replace(config.classifier, batch_size=8, update_every=2, pretrain_updates=2),
    )


def variant(name: str) -> Config:
    config = VARIANTS[name](shrunk(PRESETS["default"]()))
    return config if config.randomize == "none" else replace(config, robot="twin")


@pytest.mark.parametrize(
    "config",
    [*(shrunk(make()) for make in PRESETS.values()), *(variant(name) for name in VARIANTS)],
    ids=[*PRESETS, *VARIANTS],
)
def test_every_preset_and_variant_learns_and_goes_on(tmp_path: Path, make_run: RunMaker, config: Config) -> None:
    run = make_run(tmp_path / "run", config)
    assert train(run)
    assert train(run.extended(70))
    assert updates_of(run) == 10
    segments = [list(rows) for _, rows in groupby(stored(run), lambda row: row.segment)]
    assert len(segments) > 2


def test_a_diagnostic_reset_needs_a_simulated_robot(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r3l.robot.scripted_moves.SimulatedRobot", Twin)  # so that the fake counts as a real robot
    run = make_run(tmp_path / "run", variant("diagnostic-resets"))
    with pytest.raises(UserError, match="needs a simulated robot"):
        train(run)


def test_a_run_without_goal_images_says_so(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", tiny())
    with pytest.raises(UserError, match="does not exist"):
        train(run)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda")


def test_config_on_disk_is_the_one_trained_with(tmp_path: Path, make_run: RunMaker) -> None:
    run = make_run(tmp_path / "run", tiny(steps=5, seed=11))
    before = (run.folder / "config.json").read_bytes()
    assert train(run)
    assert (run.folder / "config.json").read_bytes() == before
    assert json.loads(before)["config"]["seed"] == 11


def test_learning_that_breaks_goes_back_some_times_and_then_ends_the_run(tmp_path: Path, make_run: RunMaker) -> None:
    config = tiny(steps=200)
    numerics = replace(config.numerics, check_every=5, max_value=0.1, max_rollbacks_per_hour=2)
    run = make_run(tmp_path / "run", replace(config, sac=replace(config.sac, learning_rate=1.0), numerics=numerics))
    with pytest.raises(FailedError, match="cannot go on"):
        train(run)
    told = [message for kind, message in events_of(run) if kind == "numerics"]
    assert len(told) == 3
    assert all("back to the checkpoint at update 0" in message for message in told[:2])
    assert "went back too often" in told[2]
    assert events_of(run)[-1][0] == "failed"
    found = load_checkpoint(run.checkpoints, pytest.fail)
    assert found is not None
    assert found[1]["learner"]["updates"] == 0, "nothing of what broke is kept"


def test_a_disk_that_takes_nothing_ends_the_run(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("r3l.training.learner_loop.save_checkpoint", refuse)
    with pytest.raises(OSError, match="no space left"):
        train(make_run(tmp_path / "run", tiny(steps=70)))
