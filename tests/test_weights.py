"""Published weights: whole or not at all, and taken up only when they are good."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny
from safetensors.torch import save

from r3l.learner.learner import Learner
from r3l.models.policy import Policies, build_policies
from r3l.robot.base import RobotSpec
from r3l.run.tensors import CheckpointError, Tensors
from r3l.run.weights import MAX_BYTES, publish, read
from r3l.task.registry import load_robot, load_task
from r3l.training.policy_updates import Subscription

CPU = torch.device("cpu")
CONFIG = tiny()


@pytest.fixture(scope="module")
def spec() -> RobotSpec:
    spec: RobotSpec = load_robot("fake", load_task("valve")).spec
    return spec


@pytest.fixture(scope="module")
def learner(spec: RobotSpec) -> Learner:
    return Learner(CONFIG, spec, torch.zeros(4, 3, 64, 64, dtype=torch.uint8), device=CPU)


@pytest.fixture
def good(learner: Learner) -> Tensors:
    return {name: tensor.clone() for name, tensor in learner.weights(averaged=False).items()}


class Actor:
    """What follows published weights, without a thread."""

    def __init__(self, path: Path, spec: RobotSpec) -> None:
        self.path, self.warnings = path, list[str]()
        self.policies, _ = build_policies(CONFIG, spec, CPU)
        self.weights = Subscription(path, CONFIG, spec, CPU, self.warnings.append)

    def poll(self) -> int:
        """Read newer weights, take them up, and return the version that acts."""
        self.weights.poll()
        self.weights.update(self.policies)
        return self.weights.version


@pytest.fixture
def actor(tmp_path: Path, spec: RobotSpec) -> Actor:
    return Actor(tmp_path / "weights" / "acting.safetensors", spec)


def act(policies: Policies, spec: RobotSpec) -> list[float]:
    """Return what the task policy does at one observation."""
    policies.begin()
    joints = np.full(len(spec.joints), 0.1, np.float32)
    policies.see(np.full((64, 64, 3), 90, np.uint8), joints, joints, np.zeros(0, np.float32))
    return list(policies.act("task").tolist())


def test_what_is_published_is_read_and_acts(actor: Actor, good: Tensors, spec: RobotSpec, learner: Learner) -> None:
    before = act(actor.policies, spec)
    publish(actor.path, good, version=3, step=70)
    found = read(actor.path)
    assert (found.version, found.step) == (3, 70)
    assert found.tensors.keys() == good.keys()
    assert all(torch.equal(found.tensors[name], good[name]) for name in good)
    assert actor.poll() == 3
    assert act(actor.policies, spec) == act(learner.policies(), spec) != before
    assert actor.warnings == []


@pytest.mark.parametrize("at", ["header", "middle", "end"])
def test_a_flipped_bit_leaves_the_last_good_weights_acting(
    actor: Actor, good: Tensors, spec: RobotSpec, at: str
) -> None:
    publish(actor.path, good, version=1, step=70)
    actor.poll()
    before = act(actor.policies, spec)
    publish(actor.path, {name: tensor + 1 for name, tensor in good.items()}, version=2, step=80)
    content = bytearray(actor.path.read_bytes())
    content[{"header": 20, "middle": len(content) // 2, "end": len(content) - 2}[at]] ^= 4
    actor.path.write_bytes(content)
    assert actor.poll() == 1
    assert act(actor.policies, spec) == before
    (warning,) = actor.warnings
    assert warning.endswith("the last good weights act on")
    assert "\n" not in warning


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_not_taken_up(actor: Actor, good: Tensors, length: int) -> None:
    publish(actor.path, good, version=1, step=70)
    content = actor.path.read_bytes()
    actor.path.write_bytes(content[:length])
    assert actor.poll() == 0
    assert len(actor.warnings) == 1


def spoil_number(weights: Tensors, value: float) -> None:
    name = next(name for name in weights if name.startswith("task_actor/"))
    weights[name].view(-1)[0] = value


def cut(weights: Tensors) -> None:
    for name in list(weights):
        weights[name] = weights[name][:1]


def lose_one(weights: Tensors) -> None:
    del weights[next(name for name in weights if name.startswith("task_actor/"))]


SPOILT: dict[str, Callable[[Tensors], None]] = {
    "NaN": lambda weights: spoil_number(weights, float("nan")),
    "infinite": lambda weights: spoil_number(weights, float("inf")),
    "another shape": cut,
    "one missing": lose_one,
}


@pytest.mark.parametrize("how", SPOILT)
def test_weights_that_are_whole_but_no_good_are_not_taken_up(
    actor: Actor, good: Tensors, spec: RobotSpec, how: str
) -> None:
    publish(actor.path, good, version=1, step=70)
    actor.poll()
    before = act(actor.policies, spec)
    bad = {name: tensor.clone() for name, tensor in good.items()}
    SPOILT[how](bad)
    publish(actor.path, bad, version=2, step=80)
    assert actor.poll() == 1
    assert act(actor.policies, spec) == before
    assert len(actor.warnings) == 1
    publish(actor.path, good, version=3, step=90)
    assert actor.poll() == 3, "the next good ones are"


def test_an_older_version_is_taken_up_after_the_learner_went_back(actor: Actor, good: Tensors) -> None:
    publish(actor.path, good, version=9, step=900)
    assert actor.poll() == 9
    publish(actor.path, good, version=4, step=400)
    assert actor.poll() == 4


def test_a_file_that_cannot_be_weights_is_not_even_read(actor: Actor) -> None:
    actor.path.parent.mkdir()
    with actor.path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="larger than"):
        read(actor.path)
    assert actor.poll() == 0


def test_a_reader_sees_the_old_or_the_new(tmp_path: Path, good: Tensors, spec: RobotSpec) -> None:
    path = tmp_path / "weights" / "acting.safetensors"
    publish(path, good, version=1, step=1)
    warnings: list[str] = []
    weights = Subscription(path, CONFIG, spec, CPU, warnings.append)
    weights.start()
    policies, _ = build_policies(CONFIG, spec, CPU)
    seen = []
    for version in range(2, 40):
        publish(path, good, version=version, step=version)
        weights.update(policies)
        seen.append(weights.version)
        time.sleep(0.01)
    weights.close()
    assert warnings == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


@pytest.mark.parametrize("missing", ["version", "step", "sha256"])
def test_weights_that_do_not_say_what_they_are_are_not_taken_up(actor: Actor, good: Tensors, missing: str) -> None:
    publish(actor.path, good, version=3, step=70)
    assert actor.poll() == 3
    meta = {name: "4" for name in ("version", "step", "sha256") if name != missing}
    actor.path.write_bytes(save({name: tensor.contiguous() for name, tensor in good.items()}, meta))
    assert actor.poll() == 3
    assert "act on" in actor.warnings[-1]
