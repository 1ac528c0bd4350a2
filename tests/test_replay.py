from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_row
from hypothesis import given
from hypothesis import strategies as st

from r3l.learner.replay import Replay, Sampled
from r3l.run.experience import PHASES, Row

Segment = tuple[int, str]
"""Number of rows and the phase of their actions."""


def rows_of_segments(segments: list[Segment]) -> list[Row]:
    """Return numbered rows: row n has proprioception n."""
    rows: list[Row] = []
    for index, (length, phase) in enumerate(segments):
        rows += [make_row(len(rows) + step, segment=index, step=step, phase=phase) for step in range(length)]
    return rows


def replay_of(rows: list[Row], *, capacity: int = 100, window: int = 3) -> Replay:
    shape = (8, 8, 3)
    replay = Replay(
        capacity,
        image_shape=shape,
        actions=3,
        latents=2,
        diagnostics=0,
        window=window,
        device=torch.device("cpu"),
    )
    for number, row in enumerate(rows):
        replay.add([row], torch.full((1, 2), number / 2))
    return replay


def numbers(replay: Replay, positions: torch.Tensor) -> list[list[int]]:
    """Return the numbers of the rows at [B, T] positions."""
    return [[int(n) for n in window] for window in replay.proprioception[:, 0][positions]]


def draw(replay: Replay, count: int = 300, phases: tuple[str, ...] = PHASES) -> Sampled:
    return replay.sample(count, np.random.default_rng(0), phases=phases)


def naive_window(rows: list[Row], last: int, oldest: int, size: int) -> list[int]:
    """Walk back from row `last`, repeating the first row of its segment that is still held."""
    window = [last]
    while len(window) < size:
        at = window[0]
        can_go_back = at - 1 >= oldest and rows[at - 1].segment == rows[at].segment
        window.insert(0, at - 1 if can_go_back else at)
    return window


def naive_path(rows: list[Row], first: int, horizon: int) -> list[int]:
    """Follow row `first` for up to `horizon` steps of its segment."""
    ahead = range(first, min(first + horizon, len(rows)))
    return [row for row in ahead if rows[row].segment == rows[first].segment]


@given(
    segments=st.lists(st.tuples(st.integers(1, 7), st.sampled_from(PHASES)), min_size=1, max_size=8),
    capacity=st.integers(2, 25),
    size=st.integers(1, 4),
    horizon=st.integers(1, 4),
    phases=st.sets(st.sampled_from(PHASES), min_size=1),
)
def test_samples_are_exactly_the_transitions_of_a_naive_model(
    segments: list[Segment], capacity: int, size: int, horizon: int, phases: set[str]
) -> None:
    rows = rows_of_segments(segments)
    replay = replay_of(rows, capacity=capacity, window=size)
    oldest = max(0, len(rows) - capacity)
    expected = set()
    for first in range(oldest + 1, len(rows)):
        if rows[first].step > 0 and PHASES[rows[first].phase] in phases:
            path = naive_path(rows, first, horizon)
            now, after = (naive_window(rows, last, oldest, size) for last in (first - 1, path[-1]))
            missing = horizon - len(path)
            followed = [1] * len(path) + [0] * missing
            expected.add((*now, *after, *path, *path[-1:] * missing, *followed))
    rng = np.random.default_rng(0)
    if not expected:
        with pytest.raises(ValueError, match="holds nothing of"):
            replay.sample(1, rng, phases=tuple(phases), horizon=horizon)
        return
    sampled = replay.sample(300, rng, phases=tuple(phases), horizon=horizon)
    parts = [numbers(replay, part) for part in (sampled.now, sampled.next, sampled.rows)]
    found = zip(*parts, sampled.followed.int().tolist(), strict=True)
    assert {(*now, *after, *path, *followed) for now, after, path, followed in found} == expected


def test_windows_repeat_the_first_row_of_a_segment_and_never_cross_its_start() -> None:
    replay = replay_of(rows_of_segments([(3, "task"), (4, "task")]))
    sampled = draw(replay)
    windows = {now[-1]: now for now in numbers(replay, sampled.now)}
    assert windows == {0: [0, 0, 0], 1: [0, 0, 1], 3: [3, 3, 3], 4: [3, 3, 4], 5: [3, 4, 5]}


def test_the_first_row_of_a_segment_is_nobody_s_next_observation() -> None:
    replay = replay_of(rows_of_segments([(2, "task"), (1, "task"), (3, "perturbation")]))
    assert {after[-1] for after in numbers(replay, draw(replay).next)} == {1, 4, 5}


def test_a_switch_of_phase_within_a_segment_is_a_transition_of_the_phase_that_acted() -> None:
    rows = [make_row(n, step=n, phase="task" if n < 3 else "perturbation") for n in range(5)]
    replay = replay_of(rows, window=2)
    sampled = draw(replay, phases=("perturbation",))
    assert {tuple(now) for now in numbers(replay, sampled.now)} == {(1, 2), (2, 3)}


def test_rows_that_gave_way_are_never_sampled() -> None:
    replay = replay_of(rows_of_segments([(30, "task")]), capacity=10, window=3)
    assert len(replay) == 10
    sampled = draw(replay)
    seen = np.array(numbers(replay, torch.cat([sampled.now, sampled.next])))
    assert seen.min() == 20
    assert seen.max() == 29
    assert (np.diff(seen) >= 0).all()
    positions = replay.sample_rows(300, np.random.default_rng(0))
    assert set(replay.proprioception[positions, 0].tolist()) == set(range(20, 30))


def test_rows_are_drawn_of_the_wanted_phases_only() -> None:
    replay = replay_of(rows_of_segments([(4, "exploration"), (3, "task"), (2, "perturbation")]))
    rng = np.random.default_rng(0)
    positions = replay.sample_rows(200, rng, phases=("exploration", "perturbation"))
    assert set(replay.proprioception[positions, 0].tolist()) == {0, 1, 2, 3, 7, 8}
    assert replay.rows_of("task").tolist() == [4, 5, 6]
    assert replay.newest_phase() == "perturbation"


def test_the_newest_rows_come_oldest_first_across_the_end_of_the_ring() -> None:
    replay = replay_of(rows_of_segments([(13, "task")]), capacity=10)
    assert replay.proprioception[replay.newest(5), 0].tolist() == [8, 9, 10, 11, 12]
    assert len(replay.newest(50)) == 10


@pytest.mark.parametrize("segments", [[], [(1, "task")], [(1, "task"), (1, "task")]])
def test_a_replay_without_a_transition_says_so(segments: list[Segment]) -> None:
    with pytest.raises(ValueError, match="holds nothing of"):
        draw(replay_of(rows_of_segments(segments)))


def test_a_rare_phase_is_found() -> None:
    rows = [make_row(n, step=n, phase="perturbation" if n == 1500 else "exploration", side=8) for n in range(3000)]
    sampled = draw(replay_of(rows, capacity=3000), count=256, phases=("perturbation",))
    assert set(sampled.next[:, -1].tolist()) == {1500}


def test_images_are_stored_once_as_uint8_and_stacked_when_sampled() -> None:
    rows = rows_of_segments([(5, "task")])
    replay = replay_of(rows, capacity=50, window=2)
    assert replay.images.dtype == torch.uint8
    assert replay.images.untyped_storage().nbytes() == 50 * 8 * 8 * 3
    stacked = replay.pixels(torch.tensor([[2, 3]]))
    assert stacked.dtype == torch.uint8
    assert stacked.shape == (1, 6, 8, 8)
    expected = np.concatenate([rows[2].image.transpose(2, 0, 1), rows[3].image.transpose(2, 0, 1)])
    assert np.array_equal(stacked[0].numpy(), expected)


def test_an_observation_is_latent_proprioception_and_applied_command_of_each_row_in_the_window() -> None:
    rows = rows_of_segments([(3, "task")])
    observation = replay_of(rows, window=2).observations(torch.tensor([[0, 1]]))
    expected = [
        0.0,
        0.0,
        *rows[0].proprioception,
        *rows[0].applied,
        0.5,
        0.5,
        *rows[1].proprioception,
        *rows[1].applied,
    ]
    torch.testing.assert_close(observation, torch.tensor(np.array([expected], np.float32)))


def test_the_same_seed_draws_the_same_transitions() -> None:
    replay = replay_of(rows_of_segments([(20, "task"), (20, "perturbation")]))
    first, second = draw(replay), draw(replay)
    assert torch.equal(first.now, second.now)
    assert torch.equal(first.next, second.next)


@given(
    segments=st.lists(st.tuples(st.integers(1, 7), st.just("task")), min_size=1, max_size=8),
    capacity=st.integers(2, 25),
    reach=st.integers(1, 4),
)
def test_neighbours_are_all_rows_of_the_segment_within_reach(
    segments: list[Segment], capacity: int, reach: int
) -> None:
    rows = rows_of_segments(segments)
    replay = replay_of(rows, capacity=capacity)
    oldest = max(0, len(rows) - capacity)
    held = torch.arange(oldest, len(rows)) % capacity
    before = replay.proprioception[replay.previous(held), 0].tolist()
    assert before == [naive_window(rows, row, oldest, 2)[0] for row in range(oldest, len(rows))]
    for row in range(oldest, len(rows)):
        near = range(max(row - reach, oldest), min(row + reach + 1, len(rows)))
        expected = {other for other in near if rows[other].segment == rows[row].segment}
        positions = torch.full((200,), row % capacity)
        found = replay.neighbours(positions, reach, np.random.default_rng(0))
        assert {int(n) for n in replay.proprioception[found, 0]} == expected


def test_without_reach_a_row_is_its_own_neighbour_and_no_number_is_drawn() -> None:
    replay, rng = replay_of(rows_of_segments([(5, "task")])), np.random.default_rng(0)
    positions = torch.arange(5)
    assert replay.neighbours(positions, 0, rng) is positions
    assert rng.random() == np.random.default_rng(0).random()
