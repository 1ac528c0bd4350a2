"""One suite for every task, then what each promises about its object."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from r3l.evaluation.evaluator import Evaluator
from r3l.evaluation.policies import DoNothing
from r3l.evaluation.statistics import summarise
from r3l.hardware.twin import Twin, from_task
from r3l.robot.base import FloatArray, Truth
from r3l.robot.safety import SafeRobot
from r3l.task.base import Task
from r3l.task.registry import load_task, task_names
from r3l.tasks.beads import BEADS, GOAL_M, LAYOUTS, TRAVEL_M, Beads
from r3l.tasks.reposition import FAR_M, FAR_RAD, GOAL_RAD, NEAR_M, NEAR_RAD, Reposition, fixed_poses, lies_flat, wrap

STEPS, HELD_STEPS, TILT = 500, 3, 0.5


@pytest.fixture(params=sorted(task_names()))
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(request.param)


@pytest.fixture
def twin(task: Task) -> Iterator[Twin]:
    with from_task(task) as twin:
        yield twin


def held_random(task: Task, twin: Twin, steps: int, seed: int = 0) -> list[Truth]:
    """Act at random as exploration does; return the truth after each step."""
    rig, rng = task.rig, np.random.default_rng(seed)
    robot = SafeRobot(twin, rig.limits, rig.max_step_rad)
    lower, upper = np.array([(joint.min_rad, joint.max_rad) for joint in rig.limits], np.float32).T
    found = []
    for step in range(steps):
        if step % HELD_STEPS == 0:
            target = rng.uniform(lower, upper).astype(np.float32)
        robot.command(target)
        robot.observe()
        found.append(twin.truth())
    return found


def rest(task: Task, twin: Twin, steps: int = 15) -> Truth:
    """Hold the fingers at home."""
    for _ in range(steps):
        twin.command(task.rig.home_rad)
        twin.observe()
    truth: Truth = twin.truth()
    return truth


@pytest.mark.parametrize("count", [1, 5, 24, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_start_is_solved_and_a_seed_repeats_them(task: Task, count: int, seed: int) -> None:
    starts = task.start_states(count, seed)
    assert len(starts) == count
    assert starts.dtype == np.float32
    assert np.array_equal(starts, task.start_states(count, seed))
    if count == 40:
        assert not np.array_equal(starts, task.start_states(count, seed + 1))
        with from_task(task) as twin:
            for start in starts:
                twin.place(start)
                assert twin.truth()["error"] > 1.15 * task.success_error


def test_goal_states_are_successes_with_a_margin(task: Task, twin: Twin) -> None:
    for state in task.goal_states(40, np.random.default_rng(0)):
        twin.place(state)
        assert twin.truth()["error"] <= 0.75 * task.success_error


def test_random_states_are_all_over_the_place(task: Task, twin: Twin) -> None:
    truths = []
    for state in task.random_states(400, np.random.default_rng(0)):
        twin.place(state)
        truths.append(twin.truth())
    cells = task.cells({name: np.array([truth[name] for truth in truths]) for name in truths[0]})
    assert cells.min() >= 0
    assert cells.max() < task.cell_count
    assert len(set(cells.tolist())) > 0.8 * task.cell_count


def test_the_object_stays_where_it_is_left(task: Task, twin: Twin) -> None:
    for start in task.start_states(6, 0):
        twin.place(start)
        before = twin.truth()["error"]
        assert rest(task, twin)["error"] == pytest.approx(before, abs=0.05 * task.success_error)


def test_doing_nothing_hardly_ever_succeeds(task: Task, twin: Twin) -> None:
    evaluator = Evaluator(task, from_task(task))
    found = summarise(evaluator.run(DoNothing(), count=40, seed=3), thresholds=task.other_thresholds)
    evaluator.close()
    assert found["success"] <= 0.05
    assert set(found["success_at"]) == {f"{threshold:g}" for threshold in task.other_thresholds}
    assert set(twin.truth()) == set(found["starts"][0]["truth"])


def test_random_actions_visit_much_of_the_space(task: Task, twin: Twin) -> None:
    truths = held_random(task, twin, STEPS)
    cells = task.cells({name: np.array([truth[name] for truth in truths]) for name in truths[0]})
    assert len(set(cells.tolist())) > 0.3 * task.cell_count


def test_the_true_reward_is_one_at_the_goal_and_falls_with_the_error(task: Task) -> None:
    with from_task(task, diagnostic=True) as twin:
        states, errors = [], []
        rng = np.random.default_rng(0)
        for state in [*task.goal_states(3, rng), *task.random_states(60, rng)]:
            twin.place(state)
            states.append(twin.observe().diagnostic)
            errors.append(twin.truth()["error"])
        assert states[0].shape == (len(task.scene().state_names),)
    reward = task.true_reward(torch.from_numpy(np.stack(states))).numpy()
    assert ((reward >= 0) & (reward <= 1)).all()
    assert reward[:3].min() > 0.7
    far = np.array(errors) > 3 * task.success_error
    assert reward[far].max(initial=0) < 0.35


def test_the_camera_sees_the_object_wherever_it_starts(task: Task, twin: Twin) -> None:
    for start in task.start_states(8, 0):
        twin.place(start)
        assert twin.occlusion() < 0.5
        assert twin.object_pixels() > 100


def place_beads(twin: Twin, *places: float) -> None:
    twin.place((np.array(places) * TRAVEL_M).astype(np.float32))


def test_beads_fixed_layouts_come_first_and_all_are_unsolved() -> None:
    starts = Beads().start_states(24, 0)
    assert len(LAYOUTS) == 8
    assert starts[:8] == pytest.approx(LAYOUTS * TRAVEL_M)
    assert (np.abs(starts - GOAL_M).mean(1) >= 0.03).all()
    assert (np.diff(starts) >= 0).all()


def test_beads_push_one_another_and_stop_at_the_ends_of_their_travel() -> None:
    task = Beads()
    with from_task(task) as twin:
        place_beads(twin, -1, -1, -1, -1)
        body, client = twin.scene.bodies[0], twin.client
        before = twin.truth()["bead3_m"]
        client.setJointMotorControl2(body, 0, client.VELOCITY_CONTROL, targetVelocity=0.5, force=5.0)
        after = rest(task, twin, 10)
        assert after["bead3_m"] - before > 0.09
        assert all(abs(after[f"bead{bead}_m"]) <= TRAVEL_M + 0.002 for bead in range(BEADS))
        truths = held_random(task, twin, 150)
    for truth in truths:
        places = [truth[f"bead{bead}_m"] for bead in range(BEADS)]
        assert all(low <= high + 0.002 for low, high in pairwise(places))
        assert max(map(abs, places)) <= TRAVEL_M + 0.002


def test_beads_error_is_the_mean_over_the_beads() -> None:
    with from_task(Beads()) as twin:
        place_beads(twin, -1, -1, 0, 1)
        truth = twin.truth()
    assert truth["error"] == pytest.approx(TRAVEL_M / 4, abs=1e-6)
    assert [truth[f"bead{bead}_error_m"] for bead in range(BEADS)] == pytest.approx([0, 0, TRAVEL_M, 0], abs=1e-6)


def test_repositions_starts_are_far_off_and_lie_flat() -> None:
    assert len(fixed_poses()) == 15
    starts = Reposition().start_states(40, 1)
    assert starts[:15] == pytest.approx(np.stack(fixed_poses()))
    for x, y, angle in starts:
        assert math.hypot(x, y) >= FAR_M or abs(wrap(float(angle) - GOAL_RAD)) >= FAR_RAD
        assert lies_flat(np.array([x, y, angle], np.float32))


@pytest.mark.parametrize(
    ("distance_m", "turned_rad", "is_success"),
    [(0.0, 0.0, True), (0.029, 0.0, True), (0.031, 0.0, False), (0.0, 0.34, True), (0.0, 0.36, False)],
)
def test_reposition_succeeds_within_both_tolerances(distance_m: float, turned_rad: float, is_success: bool) -> None:
    task = Reposition()
    with from_task(task) as twin:
        twin.place(np.array([distance_m, 0.0, GOAL_RAD + turned_rad], np.float32))
        truth = twin.truth()
    assert (truth["error"] <= task.success_error) is is_success
    assert truth["error"] == pytest.approx(max(distance_m / NEAR_M, turned_rad / NEAR_RAD), abs=1e-3)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_reposition_has_no_place_to_die_in(seed: int) -> None:
    """Random pushing takes the object to the border, and it is back upright within reach every ten seconds."""
    task = Reposition()
    with from_task(task) as twin:
        pushed = 0.0
        for _ in range(6):
            found = [*held_random(task, twin, 100, seed), rest(task, twin)]
            pushed = max(pushed, *(truth["distance_m"] for truth in found))
            assert any(truth["distance_m"] < 0.05 and truth["upright"] > 0.9 for truth in found)
            assert found[-1]["upright"] > TILT
            seed += 2
    assert pushed > 0.04


@pytest.mark.parametrize("radius_m", [0.13, 0.18])
@pytest.mark.parametrize("place_rad", np.arange(0, 2 * math.pi, math.pi / 4).tolist())
def test_reposition_slides_back_from_anywhere_on_the_border(radius_m: float, place_rad: float) -> None:
    task = Reposition()
    with from_task(task) as twin:
        rest(task, twin, 5)
        client, body = twin.client, twin.scene.bodies[0]
        where = [radius_m * math.cos(place_rad), radius_m * math.sin(place_rad), 0.08]
        client.resetBasePositionAndOrientation(body, where, client.getQuaternionFromEuler([0, 0, place_rad]))
        # A finger at home may hold it up; a finger that moves lets it pass, or pulls it in.
        found = [rest(task, twin, 20), *held_random(task, twin, 100)]
    assert min(truth["distance_m"] for truth in found) < 0.06
    assert found[-1]["upright"] > TILT


@pytest.mark.parametrize("speed_m_s", [0.6, 1.2])
def test_reposition_comes_back_when_it_is_flung(speed_m_s: float) -> None:
    task = Reposition()
    with from_task(task) as twin:
        rest(task, twin, 5)
        for way_rad in (0.5, 2.6, 4.7):
            twin.place(np.zeros(3, np.float32))
            speed = [speed_m_s * math.cos(way_rad), speed_m_s * math.sin(way_rad), 0.5]
            twin.client.resetBaseVelocity(twin.scene.bodies[0], speed, [0, 0, 0])
            found = [rest(task, twin, 40), *held_random(task, twin, 60)]
            assert min(truth["distance_m"] for truth in found) < 0.06


@pytest.mark.slow
def test_a_tipped_object_comes_upright_again_by_random_fingers() -> None:
    task = Reposition()
    with from_task(task) as twin:
        body = twin.scene.bodies[0]
        for place in ([0.03, 0.0, 0.05], [-0.02, 0.03, 0.05]):
            twin.place(fixed_poses()[0])
            turn = twin.client.getQuaternionFromEuler([math.pi / 2, 0.0, 0.5])
            twin.client.resetBasePositionAndOrientation(body, place, turn)
            assert twin.truth()["upright"] < 0.5
            truths = held_random(task, twin, 600, seed=7)
            assert max(truth["upright"] for truth in truths) > 0.9


def test_the_outermost_resting_places_of_reposition_are_touched_by_a_finger() -> None:
    """From its outermost resting places, random fingers move the object: none is out of reach."""
    task = Reposition()
    with from_task(task) as twin:
        for pose in fixed_poses()[-6:]:
            twin.place(pose)
            truths = held_random(task, twin, 60, seed=5)
            moved: FloatArray = np.array([[truth["x_m"], truth["y_m"]] for truth in truths])
            assert np.ptp(moved, axis=0).max() > 0.005
