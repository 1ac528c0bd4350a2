from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_row

from r3l.run.experience import FULL_SYNC_EVERY_S, ExperienceStore, StoreError
from r3l.training.store_writer import StoreWriter

SIDE = 64
SHAPE = (SIDE, SIDE, 3)
RETRY_S = 0.2
SMALL_DISK = 2 << 20
MORE_THAN_IT_HOLDS = 250
"""Rows."""
LIMITED = """
import resource, signal, sys, time
from pathlib import Path
import numpy as np
from r3l.run.experience import Row
from r3l.training.store_writer import StoreWriter

def wait_for(condition):
    until_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
acknowledged = []
writer = StoreWriter(Path(sys.argv[1]), (64, 64, 3), on_acknowledged=acknowledged.append)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
for number in range(200):
    vector = np.full(3, number, np.float32)
    image = np.full((64, 64, 3), number, np.uint8)
    writer.append(Row(number // 7, number % 7, 0, image, vector, vector, vector, vector[:0], number / 10))
wait_for(lambda: writer.failure is not None)
assert 10 < len(acknowledged) < 150, acknowledged
assert writer.unwritten == 200 - len(acknowledged)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
wait_for(lambda: not writer.unwritten)
assert writer.failure is None
writer.close()
assert acknowledged == list(range(1, 201)), acknowledged
"""


def append(writer: StoreWriter, numbers: range) -> None:
    for number in numbers:
        writer.append(make_row(number, segment=number // 7, step=number % 7, side=SIDE))


def everything(path: Path) -> list[int]:
    """Return the numbers from which the rows were made, having held every row against what it was made from."""
    store = ExperienceStore(path, SHAPE)
    rows = list(store.rows())
    store.close()
    for row in rows:
        expected = make_row(int(row.proprioception[0]), side=SIDE)
        assert np.array_equal(row.image, expected.image)
        assert np.array_equal(row.applied, expected.applied)
    return [int(row.proprioception[0]) for row in rows]


def wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _tries_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r3l.training.store_writer.RETRY_S", RETRY_S)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "experience.sqlite"


@pytest.fixture
def acknowledged() -> list[int]:
    return []


@pytest.fixture
def writer(path: Path, acknowledged: list[int]) -> Iterator[StoreWriter]:
    writer = StoreWriter(path, SHAPE, on_acknowledged=acknowledged.append)
    yield writer
    writer.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of SMALL_DISK bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], capture_output=True).returncode == 0


def test_rows_are_stored_in_their_order_and_acknowledged_by_number(
    path: Path, writer: StoreWriter, acknowledged: list[int]
) -> None:
    append(writer, range(100))
    writer.close()
    assert acknowledged == list(range(1, 101))
    assert everything(path) == list(range(100))
    assert writer.unwritten == 0


def test_a_row_is_in_the_store_when_it_is_acknowledged(path: Path) -> None:
    reader = ExperienceStore(path, SHAPE)
    reader.close()
    seen: list[int] = []

    def look(sequence: int) -> None:
        store = ExperienceStore(path, SHAPE, readonly=True)
        seen.append(store.last()[0] - sequence)
        store.close()

    writer = StoreWriter(path, SHAPE, on_acknowledged=look)
    append(writer, range(5))
    writer.close()
    assert seen == [0] * 5


def test_a_writer_goes_on_behind_what_is_stored(path: Path, acknowledged: list[int]) -> None:
    for start in (0, 10):
        writer = StoreWriter(path, SHAPE, on_acknowledged=acknowledged.append)
        assert writer.last()[0] == start
        assert writer.steps() == start - (start + 6) // 7
        append(writer, range(start, start + 10))
        writer.close()
    assert acknowledged == list(range(1, 21))
    assert everything(path) == list(range(20))


def test_rows_that_wait_are_unwritten(path: Path) -> None:
    may_go, is_waiting = threading.Event(), threading.Event()

    def wait(sequence: int) -> None:
        is_waiting.set()
        may_go.wait(10)

    writer = StoreWriter(path, SHAPE, on_acknowledged=wait)
    append(writer, range(4))
    is_waiting.wait(10)
    assert writer.unwritten == 3  # the first is committed
    may_go.set()
    writer.close()
    assert writer.unwritten == 0


def test_the_last_row_is_synced_within_a_second_though_none_follows(
    path: Path, writer: StoreWriter, acknowledged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[float, int]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        rows = len(acknowledged)
        real(descriptor)
        synced.append((time.monotonic(), rows))

    monkeypatch.setattr(os, "fsync", fsync)
    for count in (1, 3):
        append(writer, range(count - 1, count))
        append(writer, range(count, count + 1))
        wait_for(lambda count=count: len(acknowledged) == count + 1)  # type: ignore[misc]
        since_s = time.monotonic()
        wait_for(lambda count=count: any(rows > count for _, rows in synced))  # type: ignore[misc]
        assert synced[-1][0] - since_s < 5
    calls = len(synced)
    time.sleep(2 * FULL_SYNC_EVERY_S)
    assert len(synced) == calls  # nothing to sync


def test_a_full_disk_loses_and_doubles_nothing_and_writing_goes_on_when_there_is_room(small_disk: Path) -> None:
    path, filler, acknowledged = small_disk / "experience.sqlite", small_disk / "filler", list[int]()
    filler.write_bytes(bytes(SMALL_DISK // 2))
    writer = StoreWriter(path, SHAPE, on_acknowledged=acknowledged.append)
    append(writer, range(MORE_THAN_IT_HOLDS // 2))
    wait_for(lambda: writer.failure is not None)
    assert writer.failure is not None
    assert "\n" not in writer.failure
    assert "free the disk" in writer.failure
    before = len(acknowledged)
    assert writer.unwritten == MORE_THAN_IT_HOLDS // 2 - before > 0
    time.sleep(2.2 * RETRY_S)  # tried again, in vain
    assert remount(small_disk, "size=8m")
    filler.unlink()
    append(writer, range(MORE_THAN_IT_HOLDS // 2, MORE_THAN_IT_HOLDS))
    wait_for(lambda: not writer.unwritten)
    assert writer.failure is None
    writer.close()
    assert acknowledged == list(range(1, MORE_THAN_IT_HOLDS + 1))
    assert everything(path) == list(range(MORE_THAN_IT_HOLDS))


def test_a_disk_that_becomes_read_only_loses_and_doubles_nothing(small_disk: Path) -> None:
    path, filler, acknowledged = small_disk / "experience.sqlite", small_disk / "filler", list[int]()
    filler.write_bytes(bytes(SMALL_DISK // 2))
    writer = StoreWriter(path, SHAPE, on_acknowledged=acknowledged.append)
    append(writer, range(MORE_THAN_IT_HOLDS))
    wait_for(lambda: writer.failure is not None)
    wait_for(lambda: remount(small_disk, "ro"))  # while no file is open for writing
    wait_for(lambda: "readonly" in str(writer.failure))
    assert remount(small_disk, "rw,size=16m")
    wait_for(lambda: not writer.unwritten)
    writer.close()
    assert acknowledged == list(range(1, MORE_THAN_IT_HOLDS + 1))
    assert everything(path) == list(range(MORE_THAN_IT_HOLDS))


def test_files_that_may_not_grow_lose_and_double_nothing(path: Path) -> None:
    found = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    store = ExperienceStore(path, SHAPE)
    assert [(row.sequence - 1, row.image.mean()) for row in store.rows()] == [(number, number) for number in range(200)]
    store.close()


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_commit_that_is_reported_as_failed_is_not_repeated_where_it_happened(
    path: Path, acknowledged: list[int], monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    writer = StoreWriter(path, SHAPE, on_acknowledged=acknowledged.append)
    append(writer, range(3))
    wait_for(lambda: len(acknowledged) == 3)
    real = ExperienceStore.append

    def failing(store: ExperienceStore, row: object) -> int:
        monkeypatch.setattr(ExperienceStore, "append", real)
        if is_committed:
            real(store, row)  # type: ignore[arg-type]
        raise StoreError("disk I/O error")

    monkeypatch.setattr(ExperienceStore, "append", failing)
    append(writer, range(3, 6))
    wait_for(lambda: writer.failure == "disk I/O error")
    wait_for(lambda: not writer.unwritten)
    writer.close()
    assert acknowledged == [1, 2, 3, 4, 5, 6]
    assert everything(path) == [0, 1, 2, 3, 4, 5]


def test_a_sync_that_fails_is_tried_again_and_forgotten_when_it_succeeds_though_no_row_follows(
    path: Path, writer: StoreWriter, acknowledged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    is_broken = threading.Event()
    is_broken.set()

    def fsync(descriptor: int) -> None:
        if is_broken.is_set():
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    append(writer, range(2))
    wait_for(lambda: "Input/output error" in str(writer.failure))
    append(writer, range(2, 4))
    time.sleep(1.5 * RETRY_S)
    assert writer.unwritten >= 2  # nothing is acknowledged while what came before is not on the disk
    is_broken.clear()
    wait_for(lambda: not writer.unwritten and writer.failure is None)
    writer.close()
    assert everything(path) == list(range(4))
    assert acknowledged == [1, 2, 3, 4]


def test_close_returns_in_time_though_nothing_can_be_written(small_disk: Path) -> None:
    writer = StoreWriter(small_disk / "experience.sqlite", SHAPE)
    append(writer, range(MORE_THAN_IT_HOLDS))
    wait_for(lambda: writer.failure is not None)
    begun_s = time.monotonic()
    writer.close(timeout_s=3)
    assert time.monotonic() - begun_s < 15
    assert writer.unwritten > 0
    assert remount(small_disk, "size=16m")
    assert everything(small_disk / "experience.sqlite") == list(range(MORE_THAN_IT_HOLDS - writer.unwritten))


def test_a_writer_that_hangs_does_not_hold_up_its_closing(path: Path) -> None:
    may_go = threading.Event()

    def wait(sequence: int) -> None:
        may_go.wait(10)

    writer = StoreWriter(path, SHAPE, on_acknowledged=wait)
    append(writer, range(2))
    begun_s = time.monotonic()
    writer.close(timeout_s=0.3)
    assert 0.2 < time.monotonic() - begun_s < 9
    assert writer.unwritten == 1
    may_go.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_died_says_so_when_it_is_given_more(path: Path) -> None:
    def die(sequence: int) -> None:
        raise ZeroDivisionError("no matter of the disk")

    writer = StoreWriter(path, SHAPE, on_acknowledged=die)
    append(writer, range(1))
    writer.close()
    with pytest.raises(StoreError, match="died: ZeroDivisionError") as raised:
        append(writer, range(1, 2))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert everything(path) == [0]


def test_a_closed_writer_takes_nothing_more(path: Path) -> None:
    writer = StoreWriter(path, SHAPE)
    writer.close()
    with pytest.raises(StoreError, match="is closed"):
        append(writer, range(1))


def test_a_row_that_no_store_can_hold_is_refused_at_once(writer: StoreWriter) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        writer.append(make_row(side=8))
    row = make_row(side=SIDE)
    object.__setattr__(row, "image", row.image.astype(np.int8))
    with pytest.raises(ValueError, match="expected uint8"):
        writer.append(row)
    assert writer.unwritten == 0


def test_a_store_that_cannot_be_opened_is_told_at_once(path: Path) -> None:
    path.write_bytes(b"not a database" * 300)
    with pytest.raises(StoreError, match="cannot be used"):
        StoreWriter(path, SHAPE)
