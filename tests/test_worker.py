"""Actor and learner side by side in one process: the ratio they keep, and what they may not look at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, RunMaker, stored, tiny
from test_sync import TRUTH, forbid

from r3l.models.policy import build_policies
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore
from r3l.training.actor_loop import ActorLoop, ActorParts, act
from r3l.training.learner_loop import LearnerLoop, learn, make_learner
from r3l.training.parts import Parts
from r3l.training.shared_status import SharedStatus, State, Status, Wanted

QUICK = replace(TINY.supervision, lead_steps=8, publish_every_s=0.05)


@contextmanager
def pair(run: Run) -> Iterator[tuple[SharedStatus, list[Future[None]]]]:
    """Run both on threads, without a supervisor; leaving stops them."""
    shared = SharedStatus.create(run.shared)

    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(each, run, shared, lambda: False) for each in (act, learn)]
        try:
            yield shared, both
        finally:
            shared["wanted"] = Wanted.STOP
        for each in both:
            each.result(30)


def wait_for(both: list[Future[None]], timeout_s: float = 60.0) -> None:
    for each in both:
        each.result(timeout_s)


def test_actor_and_learner_read_no_ground_truth(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", tiny(robot="twin", steps=90, supervision=QUICK))
    forbid(monkeypatch, *TRUTH)
    with pair(run) as (shared, both):
        wait_for(both)
        assert shared["learner.updates"] == 30
        assert shared.state("actor") is shared.state("learner") is State.ENDED
    assert all(row.diagnostic.size == 0 for row in stored(run))


@pytest.mark.parametrize("steps", [20, 60, 61])
def test_a_run_that_hardly_explores_ends_all_the_same(tmp_path: Path, make_run: RunMaker, steps: int) -> None:
    run = make_run(tmp_path / "run", tiny(steps=steps, supervision=QUICK))
    with pair(run) as (shared, both):
        wait_for(both)
        assert shared["learner.updates"] == max(steps - 60, 0)
    assert sum(row.step > 0 for row in stored(run)) == steps


@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_either_side_waits_so_that_the_ratio_is_kept(tmp_path: Path, make_run: RunMaker, ratio: float) -> None:
    run = make_run(tmp_path / "run", tiny(steps=100_000, update_ratio=ratio, supervision=QUICK))
    with pair(run) as (shared, both):
        end = time.monotonic() + 60
        ahead: list[float] = []
        states = set()
        while shared["learner.updates"] < 150 * ratio and time.monotonic() < end:
            updates, steps = shared["learner.updates"], shared["actor.steps"] - TINY.phases.exploration_steps
            if updates:
                ahead.append(steps - updates / ratio)
                states |= {shared.state("actor"), shared.state("learner")}
            time.sleep(0.002)
            assert not any(each.done() for each in both)
    assert min(ahead) >= -1 / ratio - 1, "no update is made that is not owed"
    assert max(ahead) <= QUICK.lead_steps + 2, "the actor is never farther ahead than it may"
    assert State.WAITING_FOR_LEARNER in states


@pytest.mark.parametrize("wanted", [Wanted.PARK, Wanted.STOP])
def test_a_robot_that_people_relaxed_is_not_moved_when_the_run_ends_then(
    tmp_path: Path, make_run: RunMaker, wanted: Wanted
) -> None:
    """The end may come after the caller asked `is_over` and before the loop looks why the robot is held."""
    run, status = make_run(tmp_path / "run", tiny()), Status()
    parts = Parts.load(run, status)
    camera = parts.task.rig.camera
    with closing(ExperienceStore(run.experience, (camera.height, camera.width, 3))) as store:
        policies, _ = build_policies(parts.config, parts.robot.spec, torch.device("cpu"))
        with ActorLoop(parts, ActorParts(store, policies, 0)) as loop:
            loop.begin()
            loop.step()
            status["wanted"] = Wanted.RELAX
            loop.step()
            assert status.state("actor") is State.RELAXED
            commands, steps = loop.robot.counts()["commands"], loop.actor.steps
            status["wanted"] = wanted
            loop.step()
            loop.end()
            assert (loop.robot.counts()["commands"], loop.actor.steps) == (commands, steps)


def test_learning_that_broke_for_good_is_told_even_where_nothing_may_be_saved(
    tmp_path: Path, make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, status = make_run(tmp_path / "run", tiny()), Status()
    parts = Parts.load(run, status)
    learner = make_learner(parts.config, parts.task, parts.robot, parts.goals)
    monkeypatch.setattr(LearnerLoop, "has_failed", True)
    with LearnerLoop(parts, learner, lambda: False) as loop:
        loop.finish()  # nothing is loaded yet, or a rollback is under way
    assert status["learner.failure"] == 1
    assert not run.checkpoints.exists()
