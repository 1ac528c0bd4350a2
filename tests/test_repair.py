"""Verifying a run directory: every damage is found, what can be mended is, and nothing is ever lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RunMaker, make_row, tiny

from r3l.cli.main import main
from r3l.config.errors import UserError
from r3l.run.checkpoint import load_checkpoint
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore, Row
from r3l.run.goals import load_goals
from r3l.run.jsonl import read_jsonl
from r3l.run.repair.audit import Extent, Labels, Layout, Values
from r3l.run.repair.check import check
from r3l.run.repair.recover import recover
from r3l.run.truth import TruthRecorder
from r3l.run.weights import publish
from r3l.task.registry import load_task
from r3l.training.sync import train

IMAGE = (64, 64, 3)
LAYOUT = Layout(64 * 64 * 3, 9, has_diagnostic=False)
PAGE = 4096
Everything = dict[str, str]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, make_run: RunMaker) -> Path:
    """A run that has everything, killed: some of its rows are in the write-ahead log alone."""
    run = make_run(tmp_path_factory.mktemp("trained") / "run", tiny(steps=150, checkpoint_every=70))
    assert train(run)
    publish(run.acting_weights, run.read_weights(150), version=1, step=150)
    with closing(sqlite3.connect(run.truth)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS truth (time_s REAL NOT NULL, value TEXT NOT NULL)")
    recorder = TruthRecorder(run.truth)
    for step in range(500):
        recorder.record(step / 10, {"error": step / 500})
    recorder.close()
    # More rows, of which the newest are in the log alone, as a killed process leaves them.
    store = ExperienceStore(run.experience, IMAGE)
    last, segment = store.last()
    pattern = next(store.rows(last - 1))
    for step in range(60):
        store.append(replace(pattern, segment=segment + 1, step=step, time_s=1000.0 + step))
    copy = run.folder.with_name("killed")
    shutil.copytree(run.folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    store.close()
    assert (copy / "experience.sqlite-wal").stat().st_size > 10 * PAGE
    return copy


VECTORS = ("image", "proprioception", "requested", "applied", "diagnostic")


@pytest.fixture
def folder(tmp_path: Path, trained: Path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(trained, tmp_path / "run")


def settled(folder: Path) -> Path:
    """Bring all rows from the log into the database; return its path."""
    ExperienceStore(folder / "experience.sqlite", IMAGE).close()
    return folder / "experience.sqlite"


def everything(folder: Path) -> Everything:
    """Return a digest of each file, but of the lock, which names its last holder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name != "lock":
            name = str(path.relative_to(folder))
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def stored(folder: Path) -> dict[int, Row]:
    """Return all rows by sequence number, as SQLite reads them."""
    names = ("segment", "step", "phase", *VECTORS, "time_s", "sequence")
    with closing(sqlite3.connect(f"file:{folder}/experience.sqlite?mode=ro", uri=True)) as connection:
        found = {}
        for values in connection.execute(f"SELECT {', '.join(names)} FROM observation"):
            row = dict(zip(names, values, strict=True))
            row |= {name: np.frombuffer(row[name], np.float32) for name in VECTORS[1:]}
            found[row["sequence"]] = Row(**row | {"image": np.frombuffer(row["image"], np.uint8)})
    (folder / "experience.sqlite-shm").unlink(missing_ok=True)
    return found


def same(first: Row, second: Row) -> bool:
    """Return whether two rows are the same but for their labels."""
    arrays = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in VECTORS)
    return arrays and first.time_s == second.time_s and first.phase == second.phase


def damaged(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if ".damaged-" in path.name)


Output = pytest.CaptureFixture[str]


def checked(folder: Path, capsys: Output) -> tuple[int, list[str]]:
    """Check dry, which must change nothing, then for good; both must find the same. Return code and lines."""
    before = everything(folder)
    capsys.readouterr()
    dry = check(folder, is_dry=True)
    would = capsys.readouterr().out.splitlines()
    assert everything(folder) == before
    code = check(folder, is_dry=False)
    done = capsys.readouterr().out.splitlines()
    assert code == dry
    assert [line.split(":")[0] for line in would] == [line.split(":")[0] for line in done]
    return code, done


def test_a_run_that_is_well_stays_as_it_is(folder: Path, capsys: Output) -> None:
    before = everything(folder)
    code, lines = checked(folder, capsys)
    assert code == 0
    (line,) = lines
    assert "all is well" in line
    assert "24 goal images, 3 checkpoints" in line
    assert f"{len(stored(folder))} rows" in line
    assert everything(folder) == before


def test_a_run_that_never_began_is_well(tmp_path: Path, make_run: RunMaker, capsys: Output) -> None:
    run = make_run(tmp_path / "run", tiny())
    assert checked(run.folder, capsys)[0] == 0
    run.experience.touch()
    assert checked(run.folder, capsys)[0] == 0
    ExperienceStore(run.experience, IMAGE).close()
    assert checked(run.folder, capsys)[0] == 0


def test_the_command_says_it_with_its_exit_code(folder: Path, capsys: Output) -> None:
    assert main(["check", str(folder)]) == 0
    (folder / "judge.safetensors").write_bytes(b"rubbish")
    before = everything(folder)
    assert main(["check", "--dry-run", str(folder)]) == 2
    assert everything(folder) == before
    assert "judge.safetensors: cannot be mended" in capsys.readouterr().out
    assert main(["check", str(folder / "nowhere")]) == 2
    assert "is not a run directory" in capsys.readouterr().err


@pytest.mark.parametrize("is_dry", [True, False])
def test_a_run_in_use_is_left_alone(folder: Path, is_dry: bool) -> None:
    run = Run.open(folder)
    with run.lock():
        before = everything(folder)
        with pytest.raises(UserError, match="is in use by process"):
            check(folder, is_dry=is_dry)
        assert everything(folder) == before


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[" * 100_000, b'{"format": 1, "config": {"steps": -1}}', b"\xff\xfe"]
)
def test_a_config_that_cannot_be_used_ends_it(folder: Path, capsys: Output, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    code, lines = checked(folder, capsys)
    assert code == 2
    assert lines[0].startswith("config.json: cannot be mended: ")


# The experience store


@pytest.mark.parametrize("page", [1, 2, 3, 4, 5, 6, 7, 8, 9, 50, 120, -1])
def test_a_page_of_rubbish_costs_the_rows_on_it_at_most(folder: Path, capsys: Output, page: int) -> None:
    before = stored(folder)
    path = settled(folder)
    content = bytearray(path.read_bytes())
    number = page if page > 0 else len(content) // PAGE
    content[(number - 1) * PAGE : number * PAGE] = np.random.default_rng(page % 99).bytes(PAGE)
    path.write_bytes(content)
    code, lines = checked(folder, capsys)
    assert code == 0
    after = stored(folder)
    assert len(after) >= len(before) - 8
    wrong = [number for number, row in after.items() if not same(row, before[number])]
    assert len(wrong) <= 1, "a page may have held part of an image: SQLite keeps no checksums"
    if len(after) < len(before):
        (aside,) = damaged(folder)
        assert aside.read_bytes() == content
        assert f"{len(after)} rows saved, {len(before) - len(after)} lost" in lines[0]
    assert check(folder, is_dry=False) == 0
    assert "mended" not in capsys.readouterr().out


def test_flipped_bytes_anywhere_are_mended_or_left_alone(folder: Path, capsys: Output) -> None:
    before = stored(folder)
    path = settled(folder)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    offsets = [*range(0, 100, 7), *range(100, 4 * PAGE, 1500), *rng.integers(0, len(whole), 20)]
    for offset in offsets:
        content = bytearray(whole)
        content[offset] ^= 0xFF
        for left in folder.glob("experience.sqlite*"):
            left.unlink()
        path.write_bytes(content)
        code = check(folder, is_dry=False)
        capsys.readouterr()
        if code:
            assert path.read_bytes() == content, offset
            continue
        after = stored(folder)
        assert len(after) >= len(before) - 8, offset
        assert sum(not same(row, before[number]) for number, row in after.items()) <= 1, offset
        assert all(each.read_bytes() == content for each in damaged(folder)), offset


def test_of_a_truncated_database_all_that_is_left_is_saved(folder: Path, capsys: Output) -> None:
    before = stored(folder)
    path = settled(folder)
    size = path.stat().st_size
    os.truncate(path, size * 2 // 3 + 1234)
    code, lines = checked(folder, capsys)
    assert code == 0
    after = stored(folder)
    assert 0.6 * len(before) < len(after) < 0.7 * len(before)
    assert all(same(row, before[number]) for number, row in after.items())
    assert "rows saved" in lines[0]
    assert "a checkpoint has learned up to" in lines[1]
    assert damaged(folder)[0].stat().st_size == size * 2 // 3 + 1234


def test_a_truncated_log_costs_only_what_was_in_its_tail(folder: Path, capsys: Output) -> None:
    before = stored(folder)
    log = folder / "experience.sqlite-wal"
    os.truncate(log, log.stat().st_size // 2)
    assert checked(folder, capsys)[0] == 0
    after = stored(folder)
    assert len(before) - 60 < len(after) < len(before)
    assert all(same(row, before[number]) for number, row in after.items())


def test_what_follows_damage_in_the_log_is_saved(folder: Path, capsys: Output) -> None:
    before = stored(folder)
    log = folder / "experience.sqlite-wal"
    content = bytearray(log.read_bytes())
    content[32 + 10 * (24 + PAGE) + 500] ^= 1
    log.write_bytes(content)
    assert len(stored(folder)) < len(before) - 30, "SQLite passes it over in silence"
    code, lines = checked(folder, capsys)
    assert code == 0
    assert "its write-ahead log is damaged" in lines[0]
    after = stored(folder)
    assert len(after) >= len(before) - 8
    assert all(same(row, before[number]) for number, row in after.items())
    kept = [path for path in damaged(folder) if path.name.endswith("-wal")]
    assert [path.read_bytes() for path in kept] == [content], "database and log are kept together"


def test_a_database_that_lost_all_but_its_log_gives_what_the_log_has(folder: Path, capsys: Output) -> None:
    before = stored(folder)
    os.truncate(folder / "experience.sqlite", 0)
    code, _ = checked(folder, capsys)
    after = stored(folder)
    assert code == 0
    assert 0 < len(after) <= 61
    assert all(same(row, before[number]) for number, row in after.items())


@pytest.mark.parametrize("content", [b"rubbish", b"\0" * 50_000, bytes(range(256)) * 1000, b""])
def test_a_store_of_which_nothing_can_be_read_stays_as_it_is(folder: Path, capsys: Output, content: bytes) -> None:
    (folder / "experience.sqlite-wal").unlink()
    (folder / "experience.sqlite").write_bytes(content)
    before = everything(folder)
    code, lines = checked(folder, capsys)
    assert code == 2
    assert "restore it from a copy" in lines[0]
    assert everything(folder) == before


def test_a_missing_store_is_missed_when_something_was_learned_from_it(folder: Path, capsys: Output) -> None:
    for path in folder.glob("experience.sqlite*"):
        path.unlink()
    code, lines = checked(folder, capsys)
    assert code == 2
    assert "checkpoints have learned from" in lines[0]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (x)",
        "CREATE VIEW seen AS SELECT * FROM observation",
        "CREATE TRIGGER often AFTER INSERT ON observation BEGIN DELETE FROM observation; END",
        "CREATE INDEX steps ON observation (step)",
        "UPDATE meta SET value = 2",
    ],
)
def test_a_store_with_anything_else_in_it_is_refused(folder: Path, capsys: Output, statement: str) -> None:
    with closing(sqlite3.connect(settled(folder), isolation_level=None)) as connection:
        connection.execute(statement)
    before = everything(folder)
    code, lines = checked(folder, capsys)
    assert code == 2
    assert "nothing of it is read" in lines[0]
    assert everything(folder) == before


def test_a_view_in_the_place_of_the_rows_is_refused(folder: Path, capsys: Output) -> None:
    with closing(sqlite3.connect(settled(folder), isolation_level=None)) as connection:
        connection.execute("ALTER TABLE observation RENAME TO hidden")
        connection.execute("CREATE VIEW observation AS SELECT * FROM hidden")
    before = everything(folder)
    code, lines = checked(folder, capsys)
    assert code == 2
    assert "view observation" in lines[0]
    assert everything(folder) == before


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("image = zeroblob(20000000)", "its image has 20000000 bytes, expected 12288"),
        ("image = zeroblob(70000000)", "too big"),
        ("image = 7", "not a blob"),
        ("proprioception = zeroblob(8)", "its vectors have"),
        (f"applied = x'0000c07f{'0' * 64}'", "not finite"),
        ("requested = 'text'", "not a blob"),
        ("diagnostic = zeroblob(4)", "ground truth"),
        ("phase = 9", "phase 9"),
        ("segment = 1 << 60", "segment"),
        ("step = -1", "step -1"),
        ("segment = 'x'", "a label is not a number"),
        ("time_s = 9e999", "not finite"),
    ],
)
def test_a_row_that_is_not_one_is_left_out(folder: Path, capsys: Output, change: str, fault: str) -> None:
    with closing(sqlite3.connect(settled(folder), isolation_level=None)) as connection:
        connection.execute(f"UPDATE observation SET {change} WHERE sequence = 100")
    before = stored_raw(folder)
    code, lines = checked(folder, capsys)
    assert code == 0
    assert fault in lines[0]
    after = stored(folder)
    assert set(before) - set(after) == {100}
    assert all(np.array_equal(after[number].image.tobytes(), before[number]) for number in after)


def stored_raw(folder: Path) -> dict[int, bytes]:
    with closing(sqlite3.connect(folder / "experience.sqlite")) as connection:
        return dict(connection.execute("SELECT sequence, image FROM observation").fetchall())


def test_nothing_joins_across_rows_that_are_lost(folder: Path, capsys: Output) -> None:
    before = stored(folder)
    inside = next(number for number, row in before.items() if row.step > 3 and before[number + 2].step == row.step + 2)
    with closing(sqlite3.connect(settled(folder), isolation_level=None)) as connection:
        connection.execute("DELETE FROM observation WHERE sequence = ?", (inside,))
    code, lines = checked(folder, capsys)
    assert code == 0
    assert f"row {inside + 1}" in lines[0]
    assert "does not follow the row before it" in lines[0]
    assert f"1 of the rows up to {max(before)} are missing" in lines[1]
    after = stored(folder)
    assert set(before) - set(after) == {inside}
    assert after[inside + 1].step == 0
    assert after[inside + 1].segment == before[inside].segment + 1
    assert after[inside + 2].step == 1
    assert all(
        (after[number].segment, after[number].step) == (row.segment, row.step)
        for number, row in before.items()
        if number < inside
    )
    assert after[max(after)].segment == before[max(before)].segment + 1
    assert all(same(row, before[number]) for number, row in after.items())
    code, lines = checked(folder, capsys)
    assert code == 0
    assert [line.split(": ")[1] for line in lines[:-1]] == ["note"], "mended once and for all"


def test_rows_without_gaps_keep_their_labels() -> None:
    labels = Labels()
    given = [(1, 0, 0), (2, 0, 1), (3, 1, 0), (4, 4, 0), (5, 4, 1)]
    assert [labels.of(*each) for each in given] == [each[1:] for each in given]
    assert labels.of(7, 4, 3) == (5, 0)
    assert labels.of(8, 4, 4) == (5, 1)
    assert labels.of(9, 5, 0) == (6, 0)


@pytest.mark.parametrize("side", [4, 8, 12, 20, 36, 64])
def test_salvage_reads_rows_of_every_size_as_sqlite_does(tmp_path: Path, side: int) -> None:
    path, layout = tmp_path / "experience.sqlite", Layout(side * side * 3, 3, has_diagnostic=True)
    store = ExperienceStore(path, (side, side, 3))
    for number in range(300):
        store.append(make_row(number, segment=number // 20, step=number % 20, side=side, diagnostics=2))
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        expected = connection.execute("SELECT * FROM observation").fetchall()
    assert recovered(path, layout) == expected, "rows in the log"
    store.close()
    assert recovered(path, layout) == expected, "rows in the database"


def recovered(path: Path, layout: Layout) -> list[Values]:
    """Return all rows that are recovered from a store."""
    fresh = path.with_name("fresh.sqlite")
    extent = recover(path, fresh, layout)
    with closing(sqlite3.connect(fresh)) as connection:
        found = connection.execute("SELECT * FROM observation").fetchall()
    assert extent == Extent(len(found), max(values[0] for values in found))
    return found


# All else


def test_a_corrupt_checkpoint_goes_out_of_use(folder: Path, capsys: Output) -> None:
    checkpoints = folder / "checkpoints"
    newest = checkpoints / (checkpoints / "latest").read_text()
    content = bytearray((newest / "tensors.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "tensors.safetensors").write_bytes(content)
    code, lines = checked(folder, capsys)
    assert code == 0
    assert len(lines) == 3
    assert not newest.exists()
    (aside,) = damaged(checkpoints)
    assert (aside / "tensors.safetensors").read_bytes() == content
    assert (checkpoints / "latest").read_text() == "step-00000140"
    found = load_checkpoint(checkpoints, pytest.fail)
    assert found is not None
    assert found[1]["learner"]["steps"] == 140
    assert train(Run.open(folder).extended(215)), "the run goes on"


def test_without_a_good_checkpoint_it_says_that_learning_begins_anew(folder: Path, capsys: Output) -> None:
    for path in (folder / "checkpoints").glob("step-*/manifest.json"):
        path.write_text("[]")
    code, lines = checked(folder, capsys)
    assert code == 0
    assert any("learning begins anew" in line for line in lines)
    assert load_checkpoint(folder / "checkpoints", pytest.fail) is None


@pytest.mark.parametrize("content", [None, b"", b"step-00000007", b"\xff"])
def test_latest_names_a_good_checkpoint_again(folder: Path, capsys: Output, content: bytes | None) -> None:
    latest = folder / "checkpoints" / "latest"
    latest.unlink() if content is None else latest.write_bytes(content)
    assert checked(folder, capsys)[0] == 0
    assert latest.read_text() == "step-00000150"


def test_what_a_cut_off_write_left_behind_is_removed(folder: Path, capsys: Output) -> None:
    before = everything(folder)
    for name in ("config.json.part", "weights/acting.safetensors.part", "checkpoints/.step-00000200.part/meta.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"rubbish")
    code, lines = checked(folder, capsys)
    assert (code, len(lines)) == (0, 4)
    assert everything(folder) == before


def test_weights_that_cannot_be_read_or_are_not_finite_go_out_of_use(folder: Path, capsys: Output) -> None:
    run = Run.open(folder)
    tensors = run.read_weights(150)
    run.save_weights(10, tensors)
    run.save_weights(20, {name: tensor * np.nan for name, tensor in tensors.items()})
    content = bytearray(run.acting_weights.read_bytes())
    content[-1] ^= 1
    run.acting_weights.write_bytes(content)
    run.snapshot_path(150).write_bytes(b"rubbish")
    code, lines = checked(folder, capsys)
    assert code == 0
    assert run.published() == [0, 10]
    assert not run.acting_weights.exists()
    assert len(damaged(folder)) == 3
    assert sum("mended" in line for line in lines[:-1]) == 3


@pytest.mark.parametrize("damage", ["image", "meta", "missing image", "many", "missing"])
def test_goal_images_cannot_be_mended(folder: Path, capsys: Output, damage: str) -> None:
    goals = folder / "goals"
    meta = json.loads((goals / "goals.json").read_text())
    if damage == "image":
        (goals / "train" / "0003.png").write_bytes(b"rubbish")
    elif damage == "meta":
        (goals / "goals.json").write_text("{")
    elif damage == "missing image":
        (goals / "held-out" / "0000.png").unlink()
    elif damage == "many":
        (goals / "goals.json").write_text(json.dumps(meta | {"train": 10**15}))
    else:
        shutil.rmtree(goals)
    before = everything(folder)
    code, lines = checked(folder, capsys)
    assert code == 2
    assert lines[0].startswith("goals: cannot be mended: ")
    assert everything(folder) == before


def test_an_exchange_of_goal_images_that_was_cut_off_is_undone(folder: Path, capsys: Output) -> None:
    (folder / "goals").rename(folder / "goals.old")
    assert checked(folder, capsys)[0] == 0
    task = load_task("valve")
    assert len(load_goals(folder / "goals", task.rig.camera, task.minimum_goals).train) == 20


def test_a_damaged_record_of_ground_truth_is_put_aside(folder: Path, capsys: Output) -> None:
    truth = folder / "truth.sqlite"
    content = bytearray(truth.read_bytes())
    content[PAGE : 2 * PAGE] = os.urandom(PAGE)
    truth.write_bytes(content)
    code, _ = checked(folder, capsys)
    assert code == 0
    (aside,) = damaged(folder)
    assert aside.read_bytes() == content
    TruthRecorder(truth).close()


def test_ground_truth_with_a_transaction_that_was_cut_off_is_well(folder: Path, capsys: Output) -> None:
    truth = folder / "truth.sqlite"
    with closing(sqlite3.connect(truth, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN")
        for number in range(2000):
            connection.execute("INSERT INTO truth VALUES (?, '{}')", (number,))
        shutil.copytree(folder, folder.with_name("killed"))
        connection.execute("ROLLBACK")
    killed = folder.with_name("killed")
    assert (killed / "truth.sqlite-journal").stat().st_size > 512
    assert checked(killed, capsys)[0] == 0
    assert not damaged(killed)


def test_lines_that_are_cut_off_are_told_and_rubbish_is_taken_out(folder: Path, capsys: Output) -> None:
    events, metrics = folder / "events.jsonl", folder / "metrics.jsonl"
    events.write_bytes(events.read_bytes() + b'{"kind": "cut o')
    metrics.write_bytes(b'{"step": 1}\n{"ste\n\xff\xfe\0\n7\n{"step": 2}\n' + b"[" * 3_000_000 + b'\n{"step": 3}\n')
    content = metrics.read_bytes()
    code, lines = checked(folder, capsys)
    assert code == 0
    assert any(line.startswith("events.jsonl: note: 1 of its") for line in lines)
    assert any(line.startswith("metrics.jsonl: mended: ") for line in lines)
    assert [line["step"] for line in read_jsonl(metrics)] == [1, 2, 3]
    (aside,) = damaged(folder)
    assert aside.read_bytes() == content


@pytest.mark.parametrize("where", ["experience.sqlite", "goals/train/0000.png", "checkpoints/step-00000150", "more"])
@pytest.mark.parametrize("kind", ["outside", "nowhere"])
def test_a_link_out_of_the_run_is_refused(folder: Path, tmp_path: Path, capsys: Output, where: str, kind: str) -> None:
    outside = tmp_path / "outside"
    path = folder / where
    if kind == "nowhere":
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif path.exists():
        path.rename(outside)
    else:
        outside.touch()
    path.symlink_to(outside)
    kept = outside.read_bytes() if outside.is_file() else None
    code, lines = checked(folder, capsys)
    assert code == 2
    assert lines[0] == f"{where}: cannot be mended: it is a link out of the run directory; put there what it leads to"
    assert path.is_symlink()
    assert kept == (outside.read_bytes() if outside.is_file() else None)


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "checkpoints/latest"])
def test_a_link_within_the_run_is_refused_for_what_is_written_there_would_be_lost(
    folder: Path, capsys: Output, name: str
) -> None:
    store = folder / "experience.sqlite"
    before = store.read_bytes()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(store)
    code, lines = checked(folder, capsys)
    assert code == 2
    assert lines[0] == f"{name}: cannot be mended: it is a link; put there what it leads to"
    assert store.read_bytes() == before


LOG_HEADER, FRAME = 32, 24 + PAGE


@pytest.mark.parametrize("at", [0, 3, 4, 8, 11, 12, 16, 20, 24, 28])
def test_a_bit_turned_in_the_logs_header_costs_no_row(folder: Path, capsys: Output, at: int) -> None:
    before, log = stored(folder), folder / "experience.sqlite-wal"
    content = bytearray(log.read_bytes())
    content[at] ^= 1
    log.write_bytes(content)
    (folder / "experience.sqlite-shm").unlink(missing_ok=True)
    code, lines = checked(folder, capsys)
    assert code == 0, lines
    assert_all_kept(stored(folder), before)


@pytest.mark.parametrize("at", [8, 12])
def test_a_bit_turned_in_the_salt_of_a_frame_costs_no_row(folder: Path, capsys: Output, at: int) -> None:
    before, log = stored(folder), folder / "experience.sqlite-wal"
    content = bytearray(log.read_bytes())
    content[LOG_HEADER + 20 * FRAME + at] ^= 1
    log.write_bytes(content)
    (folder / "experience.sqlite-shm").unlink(missing_ok=True)
    code, lines = checked(folder, capsys)
    assert code == 0, lines
    assert_all_kept(stored(folder), before)


def test_a_frame_of_zeros_in_the_log_costs_one_row_at_most(folder: Path, capsys: Output) -> None:
    before, log = stored(folder), folder / "experience.sqlite-wal"
    content = bytearray(log.read_bytes())
    content[LOG_HEADER + 20 * FRAME : LOG_HEADER + 21 * FRAME] = bytes(FRAME)
    log.write_bytes(content)
    (folder / "experience.sqlite-shm").unlink(missing_ok=True)
    code, lines = checked(folder, capsys)
    assert code == 0, lines
    after = stored(folder)
    assert len(after) >= len(before) - 1
    assert all(same(row, before[number]) for number, row in after.items())


def test_frames_that_an_earlier_use_of_the_log_left_are_no_damage(folder: Path, capsys: Output) -> None:
    log = folder / "experience.sqlite-wal"
    store = ExperienceStore(folder / "experience.sqlite", IMAGE)
    pattern = next(store.rows(store.last()[0] - 1))
    with closing(sqlite3.connect(folder / "experience.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    size = log.stat().st_size
    store.append(replace(pattern, segment=pattern.segment + 1, step=0, time_s=2000.0))
    killed = shutil.copytree(folder, folder.with_name("killed"), ignore=shutil.ignore_patterns("*-shm"))
    store.close()
    assert (killed / "experience.sqlite-wal").stat().st_size == size, "the log began anew"
    code, lines = checked(killed, capsys)
    assert code == 0
    assert "all is well" in lines[0]


def test_an_empty_log_beside_a_damaged_store_is_no_obstacle(folder: Path, capsys: Output) -> None:
    before, path = stored(folder), settled(folder)
    content = bytearray(path.read_bytes())
    content[:PAGE] = bytes(PAGE)
    path.write_bytes(content)
    path.with_name(path.name + "-wal").touch()
    assert checked(folder, capsys)[0] == 0
    assert_all_kept(stored(folder), before)


def test_a_row_whose_last_page_is_zeros_is_left_out(tmp_path: Path) -> None:
    path, layout = tmp_path / "experience.sqlite", Layout(64 * 64 * 3, 3, has_diagnostic=True)
    store = ExperienceStore(path, IMAGE)
    for number in range(10):
        store.append(make_row(number, step=number, side=64, diagnostics=2))
    store.close()
    content = bytearray(path.read_bytes())
    content[-PAGE:] = bytes(PAGE)
    path.write_bytes(content)
    assert [values[0] for values in recovered(path, layout)] == list(range(1, 10))


def assert_all_kept(found: dict[int, Row], before: dict[int, Row]) -> None:
    assert found.keys() == before.keys()
    assert all(same(found[sequence], before[sequence]) for sequence in before)


def test_a_log_whose_store_is_gone_gives_its_rows(folder: Path, capsys: Output) -> None:
    (folder / "experience.sqlite").unlink()
    code, lines = checked(folder, capsys)
    assert code == 0, lines
    assert stored(folder)


@pytest.mark.parametrize("stops", range(1, 6))
def test_a_repair_that_is_cut_off_anywhere_is_done_by_the_next_one(
    folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, stops: int
) -> None:
    store = folder / "experience.sqlite"
    with store.open("r+b") as file:
        file.seek(20 * PAGE)
        file.write(b"\xff" * PAGE)
    whole = shutil.copytree(folder, folder.with_name("whole"))
    assert check(whole, is_dry=False) == 0
    expected = stored(whole)
    assert expected
    renames = 0
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += self.name.startswith("experience")
        if renames == stops:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with suppress(KeyboardInterrupt):
        check(folder, is_dry=False)
    monkeypatch.undo()
    capsys.readouterr()
    assert check(folder, is_dry=False) == 0, capsys.readouterr().out
    assert_all_kept(stored(folder), expected)
    assert not (folder / "experience.mending").exists()
    assert check(folder, is_dry=False) == 0


def test_what_r3l_did_not_write_is_left_alone(folder: Path, capsys: Output) -> None:
    ours = [folder / "config.json.part", folder / "weights" / "acting.safetensors.part"]
    theirs = [folder / "thesis.part" / "chapter", folder / "weights" / "download.part", folder / "notes.part"]
    theirs.append(folder / "checkpoints" / "step-notes" / "mine")
    for path in (*ours, *theirs):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert check(folder, is_dry=False) == 0
    assert [path.read_text() for path in theirs] == ["mine"] * 4
    assert not any(path.exists() for path in ours)


@pytest.mark.parametrize(
    "name",
    [
        *("experience.sqlite", "experience.sqlite-wal", "experience.sqlite-shm", "experience.sqlite-journal"),
        *("metrics.jsonl", "events.jsonl", "checkpoints/latest", "judge.safetensors", "weights/acting.safetensors"),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_put_out_of_use(folder: Path, capsys: Output, name: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "kept").write_text("mine")
    capsys.readouterr()
    check(folder, is_dry=False)
    shown = capsys.readouterr().out
    assert "it is a folder where a file belongs; out of use" in shown
    assert not path.is_dir()
    assert [each.read_text() for each in folder.rglob("kept")] == ["mine"]


def test_whatever_numbers_say_is_a_finding_and_no_traceback(folder: Path, capsys: Output) -> None:
    goals = folder / "goals" / "goals.json"
    said = json.loads(goals.read_text())
    for wrong in ({"image": [float("inf"), 64]}, {"image": [10**6, 10**6]}, {"image": [-1, 64]}, {"train": 1e400}):
        goals.write_text(json.dumps(said | wrong))
        assert check(folder, is_dry=False) == 2
        assert "goals: cannot be mended" in capsys.readouterr().out


@pytest.mark.parametrize("sequence", ["Infinity", "1e400", "-5", "null"])
def test_a_checkpoint_that_says_nonsense_is_passed_over(folder: Path, capsys: Output, sequence: str) -> None:
    newest = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text()
    resign(newest, (newest / "meta.json").read_text(), sequence)
    assert check(folder, is_dry=False) == 0
    assert f"checkpoints/{newest.name}: mended" in capsys.readouterr().out


def resign(path: Path, meta: str, sequence: str) -> None:
    """Let a checkpoint say another sequence number, with a manifest that fits."""
    values = json.loads(meta)
    values["learner"]["sequence"] = "SEQUENCE"
    content = json.dumps(values).replace('"SEQUENCE"', sequence).encode()
    (path / "meta.json").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["meta.json"] = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_file_of_lines_without_end_is_not_read(folder: Path, capsys: Output) -> None:
    with (folder / "metrics.jsonl").open("wb") as file:
        file.truncate(10**12)
    assert check(folder, is_dry=False) == 2
    assert "metrics.jsonl: cannot be mended: it has" in capsys.readouterr().out


def test_a_pipe_is_refused_and_not_waited_for(folder: Path, capsys: Output) -> None:
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    os.mkfifo(folder / "metrics.jsonl")
    code = check(folder, is_dry=True)
    assert code == 2
    assert "neither a file nor a folder" in capsys.readouterr().out


def test_files_too_large_to_be_read_are_not(folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = folder / "checkpoints" / "step-00000150" / "tensors.safetensors"
    with newest.open("r+b") as file:
        file.truncate(5 << 30)
    reads: list[Path] = []
    real = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        reads.append(self)
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert check(folder, is_dry=False) == 0
    assert newest not in reads
    assert "5120 MiB" in capsys.readouterr().out
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert check(folder, is_dry=False) == 2


def test_a_task_of_ones_own_is_not_run(folder: Path, tmp_path: Path, capsys: Output) -> None:
    task, trace = tmp_path / "task.py", tmp_path / "trace"
    task.write_text(f"open({str(trace)!r}, 'w')")
    saved = json.loads((folder / "config.json").read_text())
    saved["config"]["task"] = str(task)
    (folder / "config.json").write_text(json.dumps(saved))
    assert checked(folder, capsys)[0] == 0
    assert not trace.exists()
    with closing(sqlite3.connect(settled(folder), isolation_level=None)) as connection:
        connection.execute("UPDATE observation SET applied = zeroblob(4) WHERE sequence = 5")
    assert checked(folder, capsys)[0] == 0
    assert 5 not in stored(folder)
