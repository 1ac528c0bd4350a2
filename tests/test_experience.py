from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_row

from r3l.run.experience import MAX_NUMBERS, SCHEMA, SCHEMA_VERSION, TALLY_EVERY, ExperienceStore, Row, StoreError

SHAPE = (8, 8, 3)
WRITER = """
import sys
from pathlib import Path
import numpy as np
from r3l.run.experience import ExperienceStore, Row

store = ExperienceStore(Path(sys.argv[1]), (8, 8, 3))
while True:
    number = store.last()[0] + 1
    vector = np.full(3, number, np.float32)
    image = np.full((8, 8, 3), number % 256, np.uint8)
    print(store.append(Row(0, number - 1, 1, image, vector, vector, vector, vector[:0], number / 10)), flush=True)
"""

GUARDED = """
import resource, sys
from pathlib import Path
from r3l.run.experience import ExperienceStore, StoreError

store = ExperienceStore(Path(sys.argv[1]), (8, 8, 3), readonly=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(store.rows())
except StoreError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "experience.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[ExperienceStore]:
    store = ExperienceStore(path, SHAPE)
    yield store
    store.close()


def rows_of(path: Path, *, readonly: bool = False) -> list[Row]:
    """Return all rows of a store, which is closed whatever happens: Python 3.13 warns of a connection left open."""
    with closing(ExperienceStore(path, SHAPE, readonly=readonly)) as store:
        return list(store.rows())


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
        rows_of(path)


def test_a_file_overwritten_in_the_middle_is_refused_at_the_latest_when_it_is_read(path: Path) -> None:
    store = ExperienceStore(path, SHAPE)
    for number in range(300):
        store.append(make_row(number))
    store.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = b"\xff" * (2 * len(content) // 3 - len(content) // 3)
    path.write_bytes(content)
    with pytest.raises(StoreError):
        rows_of(path)


def test_a_full_disk_is_a_store_error_and_every_acknowledged_row_is_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remembered(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **options))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", remembered)
    store = ExperienceStore(path, SHAPE)
    connections[0].execute("PRAGMA max_page_count=40")
    acknowledged: list[int] = []

    def fill() -> None:
        while True:
            acknowledged.append(store.append(make_row(len(acknowledged))))

    with pytest.raises(StoreError, match="full"):
        fill()
    store.close()
    assert len(acknowledged) > 10
    assert [row.sequence for row in rows_of(path)] == acknowledged


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


def filled(path: Path, rows: int = 3) -> None:
    store = ExperienceStore(path, SHAPE)
    for number in range(rows):
        store.append(make_row(number, step=number))
    store.close()


def change(path: Path, statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


def refusal(path: Path, *, readonly: bool = True) -> str:
    """Return why a store is refused when it is opened or read."""
    with pytest.raises(StoreError) as raised:
        rows_of(path, readonly=readonly)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "change_to",
    [
        "image = zeroblob(191)",
        "image = zeroblob(193)",
        "image = zeroblob(60000)",
        "image = x''",
        "image = 'text'",
        "image = 7",
        "proprioception = zeroblob(16)",
        "proprioception = zeroblob(11)",
        "requested = zeroblob(8), applied = zeroblob(8), proprioception = zeroblob(8)",
        "applied = 'text'",
        "diagnostic = zeroblob(2)",
        f"diagnostic = zeroblob({4 * MAX_NUMBERS + 4})",
        "segment = 'first'",
        "segment = -1",
        "step = 1.5",
        "step = 9223372036854775807",
        "phase = 3",
        "phase = -1",
        "time_s = 'noon'",
        "time_s = x'00'",
        "sequence = -2",
    ],
)
def test_a_malformed_row_is_refused_by_its_number_wherever_it_is_from(path: Path, change_to: str) -> None:
    filled(path)
    change(path, f"UPDATE observation SET {change_to} WHERE sequence = 2")
    if "sequence" in change_to:
        assert [row.sequence for row in rows_of(path)] == [1, 3]
        return
    told = refusal(path)
    assert "row 2 of" in told
    assert "r3l check" in told


def test_an_oversized_blob_is_refused_before_it_takes_memory(path: Path) -> None:
    filled(path)
    change(path, "UPDATE observation SET image = zeroblob(100000000) WHERE sequence = 2")
    found = subprocess.run([sys.executable, "-c", GUARDED, str(path)], capture_output=True, text=True, check=True)
    message, grown_mib = found.stdout.splitlines()
    assert "row 2 of" in message
    assert int(grown_mib) < 10


@pytest.mark.parametrize("label", ["segment = 'first'", "segment = -1", "step = x'00'"])
def test_a_newest_row_without_labels_is_refused(path: Path, label: str) -> None:
    filled(path)
    change(path, f"UPDATE observation SET {label} WHERE sequence = 3")
    store = ExperienceStore(path, SHAPE)
    for read in (store.last, store.newest_labels):
        with pytest.raises(StoreError, match="row 3 of"):
            read()
    store.close()


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize(
    "foreign",
    [
        "DROP TABLE observation",
        "DROP TABLE meta",
        "ALTER TABLE observation DROP COLUMN applied",
        "ALTER TABLE observation ADD COLUMN reward REAL",
        "CREATE TABLE more (value)",
        "CREATE INDEX quick ON observation (segment)",
        "CREATE TRIGGER hidden AFTER INSERT ON observation BEGIN DELETE FROM meta; END",
        "DROP TABLE observation; CREATE VIEW observation AS SELECT 1 AS sequence",
        "DROP TABLE observation; CREATE VIRTUAL TABLE observation USING fts5(sequence)",
        "DROP TABLE observation; CREATE TABLE observation (sequence)",
    ],
)
def test_a_database_that_is_no_experience_store_is_refused_and_left_alone(
    path: Path, foreign: str, readonly: bool
) -> None:
    filled(path)
    change(path, foreign)
    before = path.read_bytes()
    assert "is no experience store" in refusal(path, readonly=readonly)
    assert path.read_bytes() == before


@pytest.mark.parametrize("meta", ["DELETE FROM meta", "UPDATE meta SET value = 'x' WHERE key = 'schema_version'"])
def test_a_store_that_does_not_say_its_version_is_refused(path: Path, meta: str) -> None:
    filled(path)
    change(path, meta)
    assert "has schema" in refusal(path)


def test_a_reader_neither_creates_nor_changes_a_store(path: Path) -> None:
    with pytest.raises(StoreError):
        ExperienceStore(path, SHAPE, readonly=True)
    assert not path.exists()
    path.touch()
    with pytest.raises(StoreError):
        ExperienceStore(path, SHAPE, readonly=True)
    path.unlink()
    writer = ExperienceStore(path, SHAPE)
    writer.append(make_row())
    log = path.with_name(path.name + "-wal")
    before = (path.read_bytes(), log.read_bytes())
    reader = ExperienceStore(path, SHAPE, readonly=True)
    assert reader.steps() == 0
    reader.sync()
    with pytest.raises(StoreError):
        reader.append(make_row())
    reader.close()
    assert (path.read_bytes(), log.read_bytes()) == before
    writer.close()


def test_a_slow_consumer_keeps_no_transaction_open(path: Path, store: ExperienceStore) -> None:
    for number in range(3):
        store.append(make_row(number))
    reader = ExperienceStore(path, SHAPE, readonly=True)
    rows = reader.rows()
    next(rows)
    log = path.with_name(path.name + "-wal")
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA busy_timeout=0")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert log.stat().st_size == 0
    store.append(make_row(3))
    assert next(rows).sequence == 2
    reader.close()


def test_rows_of_a_large_store_come_in_order_though_they_are_read_in_parts(
    store: ExperienceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r3l.run.experience.READ_BYTES", 5 * 192)
    for number in range(23):
        store.append(make_row(number))
    assert [row.sequence for row in store.rows()] == list(range(1, 24))
    for limit in (0, 1, 4, 5, 6, 10, 11, 20, 30):
        assert [row.sequence for row in store.rows(3, limit)] == list(range(4, min(4 + limit, 24)))


def counted(store: ExperienceStore) -> None:
    """Hold what a store counts against its rows."""
    rows = list(store.rows())
    assert store.steps() == sum(row.step > 0 for row in rows)
    for upto in {-1, 0, 1, 5, *(row.sequence + more for row in rows for more in (-1, 0, 1))}:
        assert store.count(upto) == sum(row.sequence <= upto for row in rows)


@pytest.mark.parametrize("lost", ["sequence = 0", "sequence <= 4", "sequence % 5 = 2", "sequence >= 20"])
def test_counts_are_exact_with_and_without_a_kept_tally_and_whatever_was_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr("r3l.run.experience.TALLY_EVERY", 7)
    store = ExperienceStore(path, SHAPE)
    counted(store)
    for number in range(24):
        store.append(make_row(number, segment=number // 5, step=number % 5))
    counted(store)
    store.close()
    salvaged = path.with_name("salvaged.sqlite")
    ExperienceStore(salvaged, SHAPE).close()
    change(salvaged, f"ATTACH '{path}' AS old; INSERT INTO observation SELECT * FROM old.observation WHERE NOT {lost}")
    store = ExperienceStore(salvaged, SHAPE)
    counted(store)
    for number in range(20):
        store.append(make_row(number, segment=100, step=number))
    counted(store)
    store.close()


def test_counting_reads_only_what_came_since_the_tally(path: Path) -> None:
    filled(path, TALLY_EVERY + 2)
    change(path, "UPDATE observation SET step = 0 WHERE sequence <= 1000")  # behind the tally's back
    store = ExperienceStore(path, SHAPE)
    assert store.steps() == TALLY_EVERY + 1
    store.close()


@pytest.mark.parametrize(
    "tally",
    ["value = 'many'", "value = -1", "value = 9999999", "value = CASE key WHEN 'tally_steps' THEN 99999 ELSE 2 END"],
)
def test_an_impossible_tally_is_not_believed(path: Path, tally: str) -> None:
    filled(path, TALLY_EVERY + 2)
    change(path, f"UPDATE meta SET {tally} WHERE key LIKE 'tally_%'")
    store = ExperienceStore(path, SHAPE)
    counted_steps, counted_rows = store.steps(), store.count(TALLY_EVERY)
    store.close()
    assert (counted_steps, counted_rows) == (TALLY_EVERY + 1, TALLY_EVERY)


def test_appending_syncs_what_came_half_a_second_before(
    store: ExperienceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(make_row(0))
    now = time.monotonic()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for later_s, syncs in ((0.3, 0), (0.49, 0), (0.6, 1), (0.7, 1), (1.05, 1), (1.15, 2)):
        monkeypatch.setattr(time, "monotonic", lambda later_s=later_s: now + later_s)
        store.append(make_row(1))
        assert len(synced) == syncs, later_s
    store.sync()
    store.sync()
    assert len(synced) == 3
    assert store.unsynced_s() == 0
    monkeypatch.undo()


def test_a_row_with_more_numbers_than_readers_take_is_refused(store: ExperienceStore) -> None:
    with pytest.raises(ValueError, match="at most"):
        store.append(make_row(diagnostics=MAX_NUMBERS + 1))
    store.append(make_row(diagnostics=MAX_NUMBERS))
    assert len(next(store.rows()).diagnostic) == MAX_NUMBERS
