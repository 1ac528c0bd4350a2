"""Run directories and exported policies of release 0.1.0 can be used.

release-0.1.0.tar.xz was made with the code of the tag v0.1.0:

    r3l train valve --robot fake --sync --steps 60 --seed 1 --goals goals/valve --set phases.exploration_steps=30 \
        --set vae.pretrain_updates=0 --set vae.image_size=8 --set vae.keypoints=0 --set vae.latent_size=4 \
        --set novelty.hidden=8 --set novelty.embedding=8 --set classifier.hidden=8 --set classifier.pretrain_updates=5 \
        --set evaluate_every=60 --set checkpoint_every=60 --set keep_checkpoints=1 --set 'sac.hidden=[8, 8]'

Then the code of that release read every tensor, and wrote it again with two bits of mantissa, so that the archive is
small; published the last weights for an actor; exported the policy; and wrote the targets with which that policy
answers random observations. TensorBoard's files are left out.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import r3l
from r3l.models.judge import Judge
from r3l.run import weights
from r3l.run.directory import Run
from r3l.run.repair.check import check
from r3l.training.sync import train

ARCHIVE = Path(__file__).with_name("release-0.1.0.tar.xz")
STEPS = 60


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `run` and the exported policy `policy.safetensors`."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def folder(release: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(release / "run", tmp_path / "run")


def test_the_check_finds_a_run_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(folder, is_dry=False) == 0
    shown = capsys.readouterr().out
    assert "all is well (60 goal images, 1 checkpoints, 62 rows, 3 published weights)" in shown


def test_weights_and_judge_of_a_run_are_read(folder: Path) -> None:
    run = Run.open(folder)
    assert run.published() == [0, STEPS]
    acting = weights.read(run.acting_weights)
    assert (acting.version, acting.step) == (1, STEPS)
    evaluated = run.read_weights(STEPS)
    assert evaluated.keys() == acting.tensors.keys()
    assert all(torch.equal(tensor, evaluated[name]) for name, tensor in acting.tensors.items())
    assert Judge.load(run.judge).calibration.slope > 0


def test_a_run_is_resumed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.open(folder).extended(STEPS + 15)
    assert train(run)
    assert run.published() == [0, STEPS, STEPS + 15]
    assert check(folder, is_dry=False) == 0
    assert "note" not in capsys.readouterr().out


def test_an_exported_policy_acts_as_in_its_release(release: Path) -> None:
    policy, rng = r3l.load_policy(release / "policy.safetensors"), np.random.default_rng(0)
    policy.begin()
    for expected in json.loads((release / "targets.json").read_text()):
        image = rng.integers(0, 256, (64, 64, 3), np.uint8)
        joint_rad = rng.uniform(policy.spec.lower_rad, policy.spec.upper_rad).astype(np.float32)
        assert policy.act(image, joint_rad) == pytest.approx(expected, abs=1e-5)
