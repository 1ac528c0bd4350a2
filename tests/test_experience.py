from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import make_row

from r3l.experience import SCHEMA, SCHEMA_VERSION, ExperienceStore, Row, StoreError

SHAPE = (8, 8, 3)
WRITER = """
import sys
from pathlib import Path
import numpy as np
from r3l.experience import ExperienceStore, Row

store = ExperienceStore(Path(sys.argv[1]), (8, 8, 3))
while True:
    number = store.last()[0] + 1
    vector = np.full(3, number, np.float32)
    image = np.full((8, 8, 3), number % 256, np.uint8)
    print(store.append(Row(0, number - 1, 1, image, vector, vector, vector, vector[:0], number / 10)), flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "experience.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[ExperienceStore]:
    store = ExperienceStore(path, SHAPE)
    yield store
    store.close()


def same(found: Row, expected: Row) -> bool:
    names = [field.name for field in fields(Row) if field.name != "sequence"]
    return all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in names)


def test_rows_come_back_as_they_were_written(path: Path) -> None:
    store = ExperienceStore(path, SHAPE)
    written = [make_row(number, segment=number // 3, step=number % 3, diagnostics=2) for number in range(7)]
    assert [store.append(row) for row in written] == [1, 2, 3, 4, 5, 6, 7]
    store.close()
    reopened = ExperienceStore(path, SHAPE)
    found = list(reopened.rows())
    reopened.close()
    assert [row.sequence for row in found] == [1, 2, 3, 4, 5, 6, 7]
    assert all(same(*pair) for pair in zip(found, written, strict=True))
    assert found[0].image.dtype == np.uint8
    assert found[0].image.shape == SHAPE
    assert {found[0].proprioception.dtype, found[0].diagnostic.dtype} == {np.dtype(np.float32)}


@pytest.mark.parametrize("column", ["proprioception", "requested", "applied", "diagnostic"])
def test_vectors_of_another_dtype_are_stored_as_float32(store: ExperienceStore, column: str) -> None:
    row = make_row(1)
    object.__setattr__(row, column, np.array([0.5, -1.0, 0.25], np.float64))
    store.append(row)
    assert getattr(next(store.rows()), column).tolist() == [0.5, -1.0, 0.25]


def test_rows_follow_a_sequence_number_up_to_a_limit(store: ExperienceStore) -> None:
    for number in range(6):
        store.append(make_row(number))
    assert [row.sequence for row in store.rows(after=2)] == [3, 4, 5, 6]
    assert [row.sequence for row in store.rows(after=2, limit=3)] == [3, 4, 5]
    assert list(store.rows(after=6)) == []


def test_a_reader_follows_the_rows_of_a_writer(path: Path, store: ExperienceStore) -> None:
    reader = ExperienceStore(path, SHAPE)
    store.append(make_row(0))
    assert [row.sequence for row in reader.rows()] == [1]
    store.append(make_row(1))
    assert [row.sequence for row in reader.rows(after=1)] == [2]
    reader.close()


def test_last_and_steps_count_what_happened(store: ExperienceStore) -> None:
    assert store.last() == (0, -1)
    assert store.steps() == 0
    for number, (segment, step) in enumerate([(0, 0), (0, 1), (0, 2), (4, 0), (4, 1)]):
        store.append(make_row(number, segment=segment, step=step))
    assert store.last() == (5, 4)
    assert store.steps() == 3


def test_a_store_of_another_schema_version_is_refused(path: Path) -> None:
    ExperienceStore(path, SHAPE).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (SCHEMA_VERSION + 1,))
    connection.close()
    with pytest.raises(StoreError, match=f"has schema {SCHEMA_VERSION + 1}, expected {SCHEMA_VERSION}"):
        ExperienceStore(path, SHAPE)


@pytest.mark.parametrize("content", [b"not a database" * 300, b"SQLite format 3\x00" + bytes(4096)])
def test_a_corrupted_file_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be used"):
        ExperienceStore(path, SHAPE)
    assert path.read_bytes() == content


def test_a_truncated_file_is_refused_at_the_latest_when_it_is_read(path: Path) -> None:
    store = ExperienceStore(path, SHAPE)
    for number in range(300):
        store.append(make_row(number))
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError):
        list(ExperienceStore(path, SHAPE).rows())


def test_a_file_overwritten_in_the_middle_is_refused_at_the_latest_when_it_is_read(path: Path) -> None:
    store = ExperienceStore(path, SHAPE)
    for number in range(300):
        store.append(make_row(number))
    store.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = b"\xff" * (2 * len(content) // 3 - len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(StoreError):
        list(ExperienceStore(path, SHAPE).rows())


def test_a_full_disk_is_a_store_error_and_every_acknowledged_row_is_kept(path: Path) -> None:
    store = ExperienceStore(path, SHAPE)
    store._connection.execute("PRAGMA max_page_count=40")
    acknowledged: list[int] = []

    def fill() -> None:
        while True:
            acknowledged.append(store.append(make_row(len(acknowledged))))

    with pytest.raises(StoreError, match="full"):
        fill()
    store.close()
    assert len(acknowledged) > 10
    assert [row.sequence for row in ExperienceStore(path, SHAPE).rows()] == acknowledged


def test_a_folder_that_does_not_exist_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        ExperienceStore(tmp_path / "missing" / "experience.sqlite", SHAPE)


@pytest.mark.parametrize("died_after", ["connect", "journal_mode", "tables"])
def test_a_store_whose_creation_was_cut_short_is_created_when_opened_again(path: Path, died_after: str) -> None:
    path.touch()
    if died_after != "connect":
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        if died_after == "tables":
            connection.executescript("BEGIN;" + SCHEMA + "COMMIT;")
        connection.close()
    store = ExperienceStore(path, SHAPE)
    assert store.append(make_row()) == 1
    store.close()


def test_an_image_of_another_shape_is_refused_before_it_is_stored(store: ExperienceStore) -> None:
    with pytest.raises((StoreError, ValueError)):
        store.append(make_row(side=4))
    assert list(store.rows()) == []


def acknowledged_before_kill(path: Path, rows: int, linger_s: float) -> int:
    """Kill a writer some time after its first `rows` acknowledgements; return the last sequence that it printed."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        head = [writer.stdout.readline() for _ in range(rows)]
        time.sleep(linger_s)
        writer.send_signal(signal.SIGKILL)
        # The last line may have been cut by the kill: only whole lines acknowledge.
        lines = [line for line in head + writer.stdout.readlines() if line.endswith("\n")]
    assert writer.returncode == -signal.SIGKILL
    return int(lines[-1])


def test_kill_9_of_the_writer_loses_no_acknowledged_row(path: Path) -> None:
    for rows, linger_s in ((1, 0.0), (200, 0.0137), (50, 0.0491)):
        acknowledged = acknowledged_before_kill(path, rows, linger_s)
        store = ExperienceStore(path, SHAPE)
        found = list(store.rows())
        store.close()
        assert len(found) >= acknowledged
        assert [row.sequence for row in found] == list(range(1, len(found) + 1))
        for row in found:
            assert row.proprioception.tolist() == [row.sequence] * 3
            assert (row.image == row.sequence % 256).all()
