"""What a process asks of the system."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from benchmarks.running import resident_bytes
from r3l.models.torch_setup import populate

MIB = 1 << 20


def test_memory_is_there_ahead_of_its_use_and_what_is_in_it_stays() -> None:
    array = np.frombuffer(mmap.mmap(-1, 128 * MIB), np.uint8)
    array[5:9] = 7
    before = resident_bytes(os.getpid())
    if not populate(array[3:-3]):
        pytest.skip("Linux before 5.14 cannot be asked for memory ahead")
    assert resident_bytes(os.getpid()) - before > 100 * MIB
    assert array.sum() == 4 * 7


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_what_holds_no_whole_page_is_left_alone(size: int) -> None:
    array = np.arange(size).astype(np.uint8)
    populate(array)
    assert np.array_equal(array, np.arange(size).astype(np.uint8))
