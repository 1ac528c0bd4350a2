"""Exported policies and play: the same actions, from one file, with little installed; what is damaged is told."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunMaker, tiny

from r3l.cli.main import main
from r3l.config.errors import UserError
from r3l.config.presets import preset_config
from r3l.evaluation.export import export, load_policy, read_exported
from r3l.evaluation.play import exported_of, open_policy, open_run, play
from r3l.hardware.fake import Fake
from r3l.robot.base import FloatArray
from r3l.run.directory import Run
from r3l.run.tensors import CheckpointError, load_tensors, save_tensors
from r3l.tasks.valve import Valve
from r3l.training.sync import train

TASK = Valve()
STEP, HOMING = 60, 30
HEAVY = ["sklearn", "scipy", "matplotlib", "tensorboard", "pybullet", "PIL", "tyro", "cv2", "serial"]
PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from r3l.evaluation.export import load_policy

policy = load_policy(Path(sys.argv[1]))
policy.begin()
size = policy.spec.camera
target = policy.act(np.zeros((size.height, size.width, 3), np.uint8), policy.spec.lower_rad)
assert target.shape == policy.spec.lower_rad.shape
print(*[name for name in sys.argv[2:] if name in sys.modules])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_run: RunMaker) -> Run:
    run = make_run(tmp_path_factory.mktemp("runs") / "run", tiny(steps=STEP, phases={"homing_steps": HOMING}))
    assert train(run)
    return run


@pytest.fixture
def path(trained: Run, tmp_path: Path) -> Path:
    path = tmp_path / "policy.safetensors"
    export(exported_of(trained, STEP), path)
    return path


class Recorder(Fake):  # type: ignore[misc]  # a driver's class is Any here
    """A fake robot that remembers what it was sent."""

    sent: list[FloatArray]

    def command(self, target_rad: FloatArray) -> FloatArray:
        self.sent.append(target_rad.copy())
        sent: FloatArray = super().command(target_rad)
        return sent


def test_the_file_acts_as_the_run_does(trained: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    robot = Recorder(TASK.rig.limits, TASK.rig.home_rad, camera=TASK.rig.camera)
    robot.sent = []
    monkeypatch.setattr("r3l.evaluation.play.load_robot", lambda *arguments, **named: robot)
    play(open_run(trained, STEP), None, None, 1, lambda text: None)
    home, targets = robot.sent[:HOMING], robot.sent[HOMING:]
    assert len(targets) == TASK.episode_steps
    alone, policy = Fake(TASK.rig.limits, TASK.rig.home_rad, camera=TASK.rig.camera), load_policy(path)
    with alone:
        for target in home:
            alone.command(target)
            alone.observe()
        policy.begin()
        for target in targets:
            seen = alone.observe()
            chosen = policy.act(seen.image, seen.joint_rad)
            assert chosen == pytest.approx(target, abs=1e-5)
            alone.command(chosen)


def test_a_program_needs_little_to_act(path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), *HEAVY], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []


def test_targets_stay_in_limits_and_in_reach(path: Path) -> None:
    policy, rng = load_policy(path), np.random.default_rng(0)
    spec = policy.spec
    size = spec.camera
    with pytest.raises(ValueError, match="expected uint8"):
        policy.act(np.zeros((8, 8, 3), np.uint8), spec.lower_rad)
    image = np.zeros((size.height, size.width, 3), np.uint8)
    with pytest.raises(ValueError, match="finite"):
        policy.act(image, np.full(9, np.nan, np.float32))
    policy.begin()
    joints = rng.uniform(spec.lower_rad, spec.upper_rad).astype(np.float32)
    before = joints
    for _ in range(50):
        target = policy.act(rng.integers(0, 256, image.shape, np.uint8), joints)
        assert np.abs(target - before).max() <= policy.max_step_rad + 1e-6
        assert (target >= spec.lower_rad - 1e-6).all()
        assert (target <= spec.upper_rad + 1e-6).all()
        joints = before = target


def damaged(path: Path, change: dict[str, Any]) -> None:
    tensors, texts = load_tensors(path)
    save_tensors(path, tensors, json.loads(texts["meta"]) | change)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"kind": "something else"},
        {"joints": [["a", 1.0, 0.0]]},
        {"joints": [["a", float("nan"), 0.0]]},
        {"joints": 3},
        {"image": [32, 32]},
        {"max_step_rad": -1.0},
        {"config": {"task": "valve", "nothing": 1}},
        {"config": []},
        {"step": None},
    ],
)
def test_a_damaged_file_is_told_in_one_line(path: Path, change: dict[str, Any]) -> None:
    damaged(path, change)
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        read_exported(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\xff" * 64])
def test_what_is_no_policy_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "policy"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_policy(path)


def test_a_policy_of_ground_truth_is_not_exported(trained: Run, tmp_path: Path) -> None:
    exported = exported_of(trained, STEP)
    with pytest.raises(UserError, match="ground truth"):
        export(replace(exported, config=preset_config("default", ("diagnostic-true-state",))), tmp_path / "policy")


def test_the_commands_export_and_play(
    trained: Run, path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["export", str(trained.folder)]) == 0
    assert "policy-00000060.safetensors" in capsys.readouterr().out
    assert main(["export", str(trained.folder)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert main(["play", str(trained.folder), "--episodes", "2"]) == 0
    shown = capsys.readouterr().out
    assert "episode 1: judged" in shown
    assert "episode 2: judged" in shown
    assert main(["play", str(path), "--episodes", "1"]) == 0
    assert "episode 1: done" in capsys.readouterr().out
    assert main(["check", str(trained.folder)]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["play", "nowhere"], "cannot be read"),
        (["play", "RUN", "--episodes", "-1"], "--episodes is -1"),
        (["play", "RUN", "--step", "7"], "cannot be read"),
        (["play", "RUN", "--robot", "twinn"], "unknown robot 'twinn'"),
        (["play", "FILE", "--step", "7"], "holds one policy"),
        (["play", "FILE", "--rig", "rig.toml"], "has no rig file"),
        (["play", "FILE", "--task", "nothing"], "unknown task 'nothing'"),
        (["play", "RUN", "--task", "valve"], "goes with an exported file"),
        (["export", "RUN", "--step", "7"], "cannot be read"),
    ],
)
def test_bad_input_gets_one_line(
    trained: Run, path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    places = {"RUN": str(trained.folder), "FILE": str(path)}
    assert main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.count("\n") == 0


def test_a_policy_file_runs_no_task_file_that_nobody_named(trained: Run, tmp_path: Path) -> None:
    exported = exported_of(trained, STEP)
    path, ran = tmp_path / "policy", tmp_path / "ran"
    (tmp_path / "task.py").write_text(f"open({str(ran)!r}, 'w')\n")
    export(replace(exported, config=replace(exported.config, task=str(tmp_path / "task.py"))), path)
    with pytest.raises(UserError, match="which would be run; name yours with --task"):
        open_policy(path)
    assert not ran.exists()
    assert open_policy(path, "valve").exported.config.task == "valve"


def test_a_policy_for_another_task_is_told(trained: Run, tmp_path: Path) -> None:
    exported = exported_of(trained, STEP)
    spec = replace(exported.spec, control_hz=20.0)
    path = tmp_path / "policy"
    export(replace(exported, spec=spec), path)
    playable = open_policy(path)
    with pytest.raises(UserError, match="was trained on 9 joints, 64x64 px, 20 Hz"):
        play(playable, None, None, 1, lambda text: None)
