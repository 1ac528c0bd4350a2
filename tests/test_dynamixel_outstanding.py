"""Answers that may still come: no new request is confused with one of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from r3l.hardware.dynamixel.outstanding import LATEST_S, Outstanding

SIZES = range(10, 29)


def test_without_anything_owed_sizes_differ_from_the_answer_before() -> None:
    outstanding = Outstanding()
    assert outstanding.size_for([1, 2], SIZES, 0.0) == 10
    for servo in (1, 2):
        outstanding.answered(servo, 10)
    assert outstanding.size_for([1, 2], SIZES, 0.0) == 11


def test_a_size_that_is_owed_is_not_asked_for_until_it_is_too_late_to_come() -> None:
    outstanding = Outstanding()
    outstanding.missed(1, 10, 0.0)
    assert not outstanding.is_free(1, 10, 0.5)
    assert outstanding.is_free(2, 10, 0.5)
    assert outstanding.size_for([1, 2], SIZES, 0.5) == 11
    assert outstanding.is_free(1, 10, 1.01 * LATEST_S)
    assert outstanding.size_for([1, 2], SIZES, 1.01 * LATEST_S) == 10


def test_what_was_over_longest_is_asked_for_where_every_size_was_lately() -> None:
    outstanding = Outstanding()
    for at, size in enumerate(SIZES):
        outstanding.missed(1, size, at / 1000)
        outstanding.answered(1, 28)
    assert outstanding.size_for([1], SIZES, 0.1) == 10


def test_a_servo_that_owes_answers_of_every_size_is_not_asked() -> None:
    outstanding = Outstanding()
    for size in SIZES:
        outstanding.missed(1, size, 0.0)
    assert outstanding.size_for([1], SIZES, 0.1) is None
    assert outstanding.size_for([2], SIZES, 0.1) == 10
    outstanding.clear()
    assert outstanding.size_for([1], SIZES, 0.1) == 10


@given(st.lists(st.tuples(st.sampled_from("ma"), st.integers(1, 3), st.integers(10, 28)), max_size=60))
def test_no_size_is_given_that_a_servo_still_owes(moves: list[tuple[str, int, int]]) -> None:
    outstanding, owed = Outstanding(), dict[int, set[int]]()
    for at, (kind, servo, size) in enumerate(moves):
        now_s = at / 1000
        chosen = outstanding.size_for([1, 2, 3], SIZES, now_s)
        assert chosen is None or not any(chosen in sizes for sizes in owed.values())
        if kind == "m":
            outstanding.missed(servo, size, now_s)
            owed.setdefault(servo, set()).add(size)
        else:
            outstanding.answered(servo, size)
            owed.pop(servo, None)
