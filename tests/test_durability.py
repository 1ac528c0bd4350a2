"""What an acknowledged row survives: kill -9 of its writer, and a power cut, played from a journal of all writes.

Run as a script, this file is the writer that the tests kill.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from r3l.robot.base import FloatArray, Image
from r3l.run.experience import ExperienceStore, Row
from r3l.training.store_writer import StoreWriter

SHAPE = (64, 64, 3)
ACKNOWLEDGEMENT = struct.Struct("=Qd")
"""Sequence number, and when on CLOCK_MONOTONIC."""
MAX_WAITING = 20
ENTRY = struct.Struct("=ddqqii")
WRITE, TRUNCATE, SYNC, UNLINK = 1, 2, 3, 4
SECTOR = 512
AT_MOST_S = 1.0
"""Of acknowledged rows a power cut may take so much."""


def content(sequence: int) -> tuple[Image, FloatArray]:
    """Return the image and the vector of a row, which follow from its number."""
    rng = np.random.default_rng(sequence)
    return rng.integers(0, 256, SHAPE, np.uint8), rng.uniform(-1, 1, 3).astype(np.float32)


def write(path: Path, rate_hz: float, duration_s: float) -> None:
    """Append rows to a store in a segment of their own, telling stdout which are acknowledged."""

    def tell(sequence: int) -> None:
        os.write(sys.stdout.fileno(), ACKNOWLEDGEMENT.pack(sequence, time.monotonic()))

    writer = StoreWriter(path, SHAPE, on_acknowledged=tell)
    before, segment = writer.last()
    begun_s, step = time.monotonic(), 0
    while time.monotonic() - begun_s < duration_s:
        if writer.unwritten > MAX_WAITING or (rate_hz and time.monotonic() - begun_s < step / rate_hz):
            time.sleep(0.001)
            continue
        image, vector = content(before + step + 1)
        writer.append(Row(segment + 1, step, 1, image, vector, vector, vector, vector[:0], step / 10))
        step += 1
    writer.close()


def started(path: Path, *, rate_hz: float, duration_s: float, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, str(path), str(rate_hz), str(duration_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment})


def acknowledgements(told: bytes) -> list[tuple[int, float]]:
    whole = len(told) // ACKNOWLEDGEMENT.size * ACKNOWLEDGEMENT.size
    return [(sequence, time_s) for sequence, time_s in ACKNOWLEDGEMENT.iter_unpack(told[:whole])]


def require_sound(path: Path) -> int:
    """Return the number of rows in a store, having looked at all of it."""
    store = ExperienceStore(path, SHAPE)
    labels: list[tuple[int, int]] = []
    for number, row in enumerate(store.rows(), 1):
        image, vector = content(row.sequence)
        assert row.sequence == number
        assert np.array_equal(row.image, image)
        assert np.array_equal([row.proprioception, row.requested, row.applied], [vector] * 3)
        labels.append((row.segment, row.step))
    assert store.steps() == sum(step > 0 for _, step in labels)
    store.close()
    for (segment, step), following in pairwise(labels):
        assert following in ((segment, step + 1), (segment + 1, 0))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return len(labels)


def kill_again_and_again(path: Path, kills: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    found = 0
    for number in range(kills):
        with started(path, rate_hz=0, duration_s=60) as process:
            assert process.stdout is not None
            is_early = number % 4 == 3  # while it starts, before the first row or about then
            first = b"" if is_early else process.stdout.read(ACKNOWLEDGEMENT.size)
            time.sleep(rng.uniform(0.2, 0.6) if is_early else rng.uniform(0, 0.3))
            process.kill()
            told = acknowledgements(first + process.stdout.read())
        before, found = found, require_sound(path) if path.exists() else 0
        sequences = [sequence for sequence, _ in told]
        assert sequences == list(range(before + 1, before + 1 + len(sequences)))
        assert found >= before + len(sequences)
        assert is_early or sequences
    assert found > 10 * kills


def test_kill_9_loses_and_doubles_no_acknowledged_row(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "experience.sqlite", 10)


@pytest.mark.slow
def test_kill_9_two_hundred_times_loses_and_doubles_no_acknowledged_row(tmp_path: Path) -> None:
    for seed in range(20):
        kill_again_and_again(tmp_path / f"{seed}.sqlite", 10, seed)


# Power cuts


class Entry(NamedTuple):
    """One call of the process that changed or synced a file."""

    begun_s: float
    ended_s: float
    offset: int
    kind: int
    path: str
    content: bytes


@dataclass
class File:
    """What happened to one file, from its creation on."""

    entries: list[Entry] = field(default_factory=list)


class Journal:
    """What a process did to a folder, and what of it a power cut may leave."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.entries = [entry for entry in read(path.read_bytes()) if not entry.path.endswith("-shm")]
        self._files: list[File] = []
        self._names: list[tuple[float, str, File | None]] = []
        """When a name came to stand for a file, or for none: durable once the folder is synced."""
        self._folder_synced_s: list[tuple[float, float]] = []
        named: dict[str, File] = {}
        for entry in self.entries:
            if entry.path == str(folder):
                self._folder_synced_s.append((entry.begun_s, entry.ended_s))
            elif entry.kind == UNLINK:
                named.pop(entry.path)
                self._names.append((entry.ended_s, entry.path, None))
            else:
                if entry.path not in named:
                    named[entry.path] = File()
                    self._names.append((entry.begun_s, entry.path, named[entry.path]))
                named[entry.path].entries.append(entry)

    def play(self, cut_s: float, folder: Path, rng: np.random.Generator) -> None:
        """Write into `folder` what is left when the power goes at `cut_s`."""
        synced_s = max((begun_s for begun_s, ended_s in self._folder_synced_s if ended_s <= cut_s), default=0.0)
        done = [name for name in self._names if name[0] < cut_s]
        sure = sum(time_s < synced_s for time_s, *_ in done)
        names: dict[str, File | None] = {}
        for _, path, file in done[: rng.integers(sure, len(done) + 1)]:
            names[path] = file
        for path, file in names.items():
            if file is not None:
                (folder / Path(path).name).write_bytes(left(file.entries, cut_s, rng))


def read(journal: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(journal):
        begun_s, ended_s, offset, length, kind, path_length = ENTRY.unpack_from(journal, at)
        at += ENTRY.size
        path, at = journal[at : at + path_length].decode(), at + path_length
        yield Entry(begun_s, ended_s, offset, kind, path, journal[at : at + length])
        at += length


def left(entries: list[Entry], cut_s: float, rng: np.random.Generator) -> bytes:
    """Return what a file may hold after a power cut: all that was synced, and of what came later anything."""
    done = [entry for entry in entries if entry.begun_s < cut_s]
    synced = max((at for at, entry in enumerate(done) if entry.kind == SYNC and entry.ended_s <= cut_s), default=0)
    share = rng.choice([0, 0.5, 0.9, 1])
    is_prefix, is_torn = rng.integers(2, size=2)
    until = rng.integers(synced, len(done) + 1) if is_prefix else len(done)
    held = bytearray()
    for at, entry in enumerate(done[:until]):
        is_sure = at < synced
        if entry.kind == SYNC or not (is_sure or is_prefix or rng.random() < share):
            continue
        if entry.kind == TRUNCATE:
            held[entry.offset :] = bytes(max(entry.offset - len(held), 0))
            continue
        held.extend(bytes(max(entry.offset + len(entry.content) - len(held), 0)))
        for start in range(0, len(entry.content), SECTOR):
            if is_sure or not is_torn or rng.random() < 0.8:
                part = entry.content[start : start + SECTOR]
                held[entry.offset + start : entry.offset + start + len(part)] = part
    return bytes(held)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that journals what a process writes."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the journal of writes needs a C compiler on Linux")
    library = tmp_path_factory.mktemp("shim") / "powercut.so"
    source = Path(__file__).with_name("powercut.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def cut_again_and_again(shim: Path, tmp_path: Path, *, rate_hz: float, duration_s: float, cuts: int) -> None:
    folder = tmp_path / "written"
    folder.mkdir()
    journal_path = tmp_path / "journal"
    environment = {"LD_PRELOAD": str(shim), "POWERCUT_FOLDER": str(folder), "POWERCUT_JOURNAL": str(journal_path)}
    path = folder / "experience.sqlite"
    with started(path, rate_hz=rate_hz, duration_s=duration_s, **environment) as process:
        assert process.stdout is not None
        told = acknowledgements(process.stdout.read())
    assert process.returncode == 0
    assert len(told) > rate_hz * duration_s / 2
    assert require_sound(path) == len(told)
    journal = Journal(journal_path, folder)
    rng = np.random.default_rng(cuts)
    taken_s: list[float] = []
    for number, cut_s in enumerate(moments(journal, told, cuts, rng)):
        after = tmp_path / f"cut-{number}"
        after.mkdir()
        journal.play(cut_s, after, rng)
        rows = require_sound(after / "experience.sqlite")
        times_s = [time_s for _, time_s in told if time_s < cut_s]
        lost = times_s[rows:]
        taken_s.append(cut_s - lost[0] if lost else 0.0)
        assert taken_s[-1] <= AT_MOST_S, f"of {len(times_s)} acknowledged rows {rows} are left"
        shutil.rmtree(after)
    print(f"{len(told)} rows, {cuts} cuts: the oldest row lost was acknowledged {max(taken_s):.2f} s before")
    assert sum(each > 0 for each in taken_s) > cuts / 10  # else nothing was cut


def moments(journal: Journal, told: list[tuple[int, float]], cuts: int, rng: np.random.Generator) -> Iterator[float]:
    """Yield moments of power cuts: any, just before a sync ends, and while the log is copied into the database."""
    syncs = [entry.ended_s - 1e-6 for entry in journal.entries if entry.kind == SYNC]
    copies = [entry.ended_s for entry in journal.entries if entry.path.endswith(".sqlite") and entry.kind == WRITE]
    for number in range(cuts):
        choices = (None, syncs, copies)[number % 3]
        yield rng.uniform(told[0][1], told[-1][1] + 1) if choices is None else rng.choice(choices)


def test_a_power_cut_takes_at_most_a_second_of_acknowledged_rows(shim: Path, tmp_path: Path) -> None:
    cut_again_and_again(shim, tmp_path, rate_hz=100, duration_s=3.5, cuts=30)


@pytest.mark.slow
@pytest.mark.parametrize(("rate_hz", "duration_s", "cuts"), [(2.2, 12, 400), (50, 12, 300), (1000, 4, 50)])
def test_no_power_cut_of_many_takes_more_than_a_second_of_acknowledged_rows(
    shim: Path, tmp_path: Path, rate_hz: float, duration_s: float, cuts: int
) -> None:
    cut_again_and_again(shim, tmp_path, rate_hz=rate_hz, duration_s=duration_s, cuts=cuts)


if __name__ == "__main__":
    write(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
