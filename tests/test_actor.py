"""The actor: which phase when, what becomes a segment, what is stored, and torque off whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunMaker, tiny

from r3l.config.models import SACConfig
from r3l.config.schema import Config, PhasesConfig
from r3l.hardware.fake import from_task
from r3l.models.encoder import NoEncoder
from r3l.models.policy import Policies
from r3l.models.sac import build_actor
from r3l.robot.base import FloatArray, Observation, Robot, RobotError, RobotSpec
from r3l.robot.env import HOLD_STEPS, RobotEnv
from r3l.robot.pacing import leaves_a_core
from r3l.robot.safety import make_safe
from r3l.robot.scripted_moves import move
from r3l.run.experience import PHASES, ExperienceStore, Row
from r3l.task.registry import load_robot, load_task
from r3l.tasks.valve import Valve
from r3l.training.actor import Actor, Phases
from r3l.training.sync import train

JOINTS, WINDOW = 9, 2
SETTINGS = PhasesConfig(
    exploration_steps=25,
    task_steps=10,
    perturbation_steps=4,
    perturbation_share=0.5,
    between="nothing",
    homing_steps=3,
)


class Bench:
    """An actor on the fake robot, with policies that nobody trained."""

    def __init__(self, folder: Path, config: PhasesConfig, *, home: bool = False, name: str = "store") -> None:
        task = Valve()
        self.robot = from_task(task)
        self.safe = make_safe(self.robot, task.rig)
        self.env = RobotEnv(self.safe)
        self.store = ExperienceStore(folder / f"{name}.sqlite", (64, 64, 3))
        torch.manual_seed(0)
        features = WINDOW * 2 * JOINTS
        actors = {phase: build_actor(features, JOINTS, SACConfig(hidden=(8,)), None) for phase in PHASES[1:]}
        self.policies = Policies(NoEncoder(), actors, WINDOW, torch.device("cpu"))
        self.env.reset()

        def go_home() -> bool:
            move(self.safe, task.rig.home_rad, config.homing_steps)
            return True

        between: Callable[[], bool] | None = go_home if home else None
        self.is_fit = True

        def inspect(observation: Observation) -> bool:
            return self.is_fit

        self.actor = Actor(self.env, self.store, self.policies, config, seed=3, between=between, inspect=inspect)

    def rows(self, steps: int) -> list[Row]:
        """Take steps and return all stored rows."""
        for _ in range(steps):
            self.actor.step()
        return list(self.store.rows())


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(config: PhasesConfig = SETTINGS, *, home: bool = False) -> Bench:
        made.append(Bench(tmp_path, config, home=home, name=f"store-{len(made)}"))
        return made[-1]

    yield make
    for bench in made:
        bench.env.close()
        bench.store.close()


def phases_of(rows: list[Row]) -> list[tuple[str, int]]:
    """Return the runs of equal phases among rows that an action led to, with their lengths."""
    names = [PHASES[row.phase] for row in rows if row.step > 0]
    return [(name, len(list(same))) for name, same in groupby(names)]


def test_exploration_comes_first_and_ends_exactly(benches: Callable[..., Bench]) -> None:
    assert phases_of(benches().rows(25 + 10 + 4)) == [("exploration", 25), ("task", 10), ("perturbation", 4)]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, "tptptptptptp"),
        (0.25, "tttptttptttp"),
        (0.75, "tpppptpppptp"),
        (1.0, "pppppppppppp"),
        (0.0, "tttttttttttt"),
    ],
)
def test_phases_alternate_by_share(share: float, expected: str) -> None:
    phases = Phases(replace(SETTINGS, perturbation_share=share))
    found = [phases.next(25) for _ in range(1200)]
    perturbations = sum(phase == "perturbation" for phase, _ in found)
    assert perturbations == pytest.approx(1200 * share, abs=1)
    lengths = {"task": 10, "perturbation": 4}
    assert all(length == lengths[phase] for phase, length in found)
    if share != 0.75:
        assert "".join(phase[0] for phase, _ in found[:12]) == expected


def test_with_share_zero_it_never_perturbs(benches: Callable[..., Bench]) -> None:
    rows = benches(replace(SETTINGS, perturbation_share=0.0)).rows(120)
    assert {PHASES[row.phase] for row in rows} == {"exploration", "task"}


def test_segments_and_steps_are_consecutive(benches: Callable[..., Bench]) -> None:
    rows = benches(home=True).rows(100)
    segments = [(number, [row.step for row in group]) for number, group in groupby(rows, lambda row: row.segment)]
    assert [number for number, _ in segments] == list(range(len(segments)))
    assert all(steps == list(range(len(steps))) for _, steps in segments)
    assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    assert sum(row.step > 0 for row in rows) == 100


def test_without_anything_between_episodes_there_is_one_segment(benches: Callable[..., Bench]) -> None:
    rows = benches().rows(80)
    assert {row.segment for row in rows} == {0}
    assert len(phases_of(rows)) > 4


def test_a_robot_that_was_relaxed_is_not_moved_before_its_readings_are_fit(
    benches: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = benches(home=True)
    bench.is_fit = False
    sent: list[FloatArray] = []
    real: Callable[[FloatArray], FloatArray] = bench.robot.command

    def command(target_rad: FloatArray) -> FloatArray:
        sent.append(target_rad)
        return real(target_rad)

    monkeypatch.setattr(bench.robot, "command", command)
    for _ in range(3):
        assert bench.actor.step() is None
    assert not sent
    bench.is_fit = True
    assert bench.actor.step() is not None
    assert sent


def test_homing_begins_a_segment_and_is_not_stored(benches: Callable[..., Bench]) -> None:
    bench = benches(home=True)
    rows = bench.rows(60)
    assert [len(list(group)) - 1 for _, group in groupby(rows, lambda row: row.segment)][:6] == [10, 10, 5, 10, 4, 10]
    times = np.array([row.time_s for row in rows])
    is_first = np.array([row.step == 0 for row in rows])
    assert np.diff(times)[~is_first[1:]] == pytest.approx(0.1)
    assert np.diff(times)[is_first[1:]] == pytest.approx(0.1 * SETTINGS.homing_steps)
    home = bench.env.units.commanded(Valve().rig.home_rad)
    firsts = [row for row in rows if row.step == 0]
    before = [rows[index - 1] for index in np.flatnonzero(is_first)[1:]]
    assert all(
        np.abs(first.proprioception - home).max() < np.abs(last.proprioception - home).max()
        for first, last in zip(firsts[1:], before, strict=True)
    )


def test_the_first_row_of_a_segment_carries_no_action(benches: Callable[..., Bench]) -> None:
    for row in benches(home=True).rows(60):
        if row.step == 0:
            assert not row.requested.any()
            assert row.applied == pytest.approx(np.clip(row.proprioception, -1, 1))


def test_what_was_requested_and_what_was_applied_are_both_stored(benches: Callable[..., Bench]) -> None:
    bench = benches()
    rows = [row for row in bench.rows(60) if row.step > 0]
    half = (bench.safe.spec.upper_rad - bench.safe.spec.lower_rad) / 2
    reach = 0.25 / half
    limited = 0
    for earlier, later in pairwise(rows):
        allowed = np.clip(later.requested, earlier.applied - reach, earlier.applied + reach)
        assert later.applied == pytest.approx(allowed, abs=1e-5)
        limited += not np.allclose(later.requested, later.applied, atol=1e-4)
    assert limited > 30


def test_a_random_action_is_held_for_some_steps(benches: Callable[..., Bench]) -> None:
    requested = [tuple(row.requested) for row in benches().rows(10) if row.step > 0]
    lengths = [len(list(group)) for _, group in groupby(requested)]
    assert lengths == [HOLD_STEPS] * 3 + [1]


def test_the_same_seed_acts_the_same(benches: Callable[..., Bench]) -> None:
    first, second = (benches(home=True).rows(60) for _ in range(2))
    assert all(np.array_equal(a.requested, b.requested) for a, b in zip(first, second, strict=True))


def test_an_actor_goes_on_in_the_middle_of_an_episode(benches: Callable[..., Bench]) -> None:
    whole, part = benches(), benches()
    expected = whole.rows(60)
    part.rows(31)
    tensors, meta = part.actor.state()
    kept, world = part.env.state(), part.robot.save_world()
    part.env.reset()
    part.robot.restore_world(world)
    part.env.restore(kept)
    resumed = Actor(part.env, part.store, part.policies, SETTINGS, seed=99, between=None)
    resumed.restore(tensors, meta, same_segment=True)
    for _ in range(29):
        resumed.step()
    found = list(part.store.rows())
    assert [(row.segment, row.step, row.phase) for row in found] == [(r.segment, r.step, r.phase) for r in expected]
    assert all(np.array_equal(a.requested, b.requested) for a, b in zip(found, expected, strict=True))


def test_after_the_robot_moved_on_a_new_segment_begins(benches: Callable[..., Bench]) -> None:
    bench = benches()
    bench.rows(31)
    tensors, meta = bench.actor.state()
    bench.rows(2)
    resumed = Actor(bench.env, bench.store, bench.policies, SETTINGS, seed=99, between=None)
    resumed.restore(tensors, meta, same_segment=False)
    row = resumed.step()
    assert row is not None
    assert (resumed.steps, row.segment, row.step) == (34, 1, 1)


class Breaking(Robot):
    """A robot that fails in the middle of a run and remembers what was done to it."""

    def __init__(self, robot: Robot, *, at: str, after: int) -> None:
        self.robot, self.at, self.left = robot, at, after
        self.calls: list[str] = []

    def _count(self, name: str) -> None:
        self.calls.append(name)
        self.left -= name == self.at
        if self.left < 0 and name == self.at:
            raise RobotError(f"{name} failed")

    @property
    def spec(self) -> RobotSpec:
        return self.robot.spec

    def connect(self) -> None:
        self.robot.connect()

    def observe(self) -> Observation:
        self._count("observe")
        return self.robot.observe()

    def command(self, target_rad: FloatArray) -> FloatArray:
        self._count("command")
        return self.robot.command(target_rad)

    def relax(self) -> None:
        self.calls.append("relax")
        self.robot.relax()

    def close(self) -> None:
        self.calls.append("close")
        self.robot.close()


@pytest.mark.parametrize(("at", "after"), [("observe", 0), ("observe", 5), ("command", 3), ("command", 40)])
def test_torque_is_off_after_an_exception_in_the_loop(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, at: str, after: int
) -> None:
    robot = Breaking(from_task(Valve()), at=at, after=after)
    monkeypatch.setattr("r3l.training.parts.robot_of", lambda config, rig: robot)
    run = make_run(tmp_path / "run", tiny())
    with pytest.raises(RobotError, match=f"{at} failed"):
        train(run)
    assert robot.calls[-1] == "close", "which relaxes, says the contract of every robot"
    with run.lock():
        pass


@pytest.mark.parametrize(
    ("changes", "cores", "leaves"),
    [
        ({}, 2, False),
        ({}, 4, True),
        ({"sync": True}, 2, True),
        ({"real_time": True}, 2, True),
        ({"robot": "bench"}, 2, True),
    ],
)
def test_a_learner_keeps_two_cores_busy_where_its_actor_leaves_them(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], cores: int, leaves: bool
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    config = replace(Config(robot="fake"), **changes)
    assert leaves_a_core(config, load_robot(config.robot, load_task("valve"))) is leaves
