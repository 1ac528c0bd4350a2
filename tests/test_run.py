"""The run directory: never overwritten, used by one process at a time, read only when understood."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY

from r3l.cli.settings import read_config
from r3l.config.errors import UserError
from r3l.config.schema import Config
from r3l.run.directory import FORMAT_VERSION, Run, free_name
from r3l.run.tensors import CheckpointError

HOLD = """
import sys, time
from pathlib import Path
from r3l.run.directory import Run
with Run.open(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "first", TINY)


def change_config(run: Run, **changes: object) -> None:
    path = run.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    """Return the message, which is one line."""
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_run_is_found_again_as_it_was_made(run: Run) -> None:
    assert Run.open(run.folder).config == TINY


@pytest.mark.parametrize("kind", ["run", "file", "dangling link"])
def test_what_exists_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "there"
    if kind == "run":
        Run.create(folder, TINY)
        (folder / "note").write_text("mine")
    elif kind == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to(tmp_path / "nowhere")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        Run.create(folder, replace(TINY, seed=9))
    assert "never overwritten" in message(error)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_run_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        Run.create(tmp_path / "file" / "run", TINY)
    assert "cannot create run directory" in message(error)


def test_a_run_made_longer_stays_longer(run: Run) -> None:
    longer = run.extended(900)
    assert longer.config == replace(TINY, steps=900)
    assert Run.open(run.folder).config.steps == 900


def test_the_lock_keeps_a_second_process_out_until_kill_9_frees_it(run: Run) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError) as error, run.lock():
            pytest.fail("two processes hold the lock")
        assert f"in use by process {holder.pid}" in message(error)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with run.lock():
        assert (run.folder / "lock").read_text() == str(os.getpid())


READ_LOCK = """
import sys
from pathlib import Path
from r3l.run.lock import lock_holder
print("reading", flush=True)
while True:
    lock_holder(Path(sys.argv[1]))
"""


def test_readers_of_the_lock_keep_neither_its_taker_out_nor_each_other(run: Run) -> None:
    with run.lock():
        pass
    command = [sys.executable, "-c", READ_LOCK, str(run.folder)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        for _ in range(200):
            assert run.holder() is None
            with run.lock():
                assert run.holder() == os.getpid()
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


def test_the_lock_is_free_after_an_exception(run: Run) -> None:
    with pytest.raises(ValueError, match="any"), run.lock():
        raise ValueError("any")
    with run.lock():
        pass


def test_a_newer_format_is_refused_in_one_line(run: Run) -> None:
    change_config(run, format=FORMAT_VERSION + 1, r3l="9.9.9")
    with pytest.raises(UserError) as error:
        Run.open(run.folder)
    assert f"format {FORMAT_VERSION + 1} (r3l 9.9.9)" in message(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"5", b"[]", b'"text"', b"\xff\xfe", b"{}", b'{"format": 1}', b'{"format": 1, "config": 5}'],
)
def test_a_damaged_config_is_named_in_one_line(run: Run, content: bytes) -> None:
    (run.folder / "config.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        Run.open(run.folder)
    assert "config.json is damaged" in message(error)


def test_a_config_with_a_wrong_value_is_refused(run: Run) -> None:
    change_config(run, config={"stepz": 5})
    with pytest.raises(UserError) as error:
        Run.open(run.folder)
    assert "did you mean 'steps'?" in message(error)


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_what_is_not_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        Run.open(tmp_path / name)
    assert "is not a run directory" in message(error)


def test_a_run_owns_its_goal_images(run: Run, goal_folder: Path) -> None:
    run.keep_goals(goal_folder)
    copied = {path.relative_to(run.goals): path.read_bytes() for path in run.goals.rglob("*.*")}
    assert copied == {path.relative_to(goal_folder): path.read_bytes() for path in goal_folder.rglob("*.*")}


def test_events_are_appended(run: Run) -> None:
    run.event("start", "one")
    run.event("end", "two")
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert [(event["kind"], event["message"]) for event in events] == [("start", "one"), ("end", "two")]


def test_the_newest_published_weights_are_found(run: Run) -> None:
    with pytest.raises(UserError) as error:
        run.newest_snapshot()
    assert "no weights yet" in message(error)
    run.weights.mkdir()
    for step in (0, 99_999_999, 100_000_000, 250):
        run.save_weights(step, {"step": torch.tensor(step)})
    (run.weights / "step-999999999.safetensors.part").write_bytes(b"half")
    assert run.newest_snapshot() == 100_000_000
    assert int(run.read_weights(250)["step"]) == 250


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_weights_that_cannot_be_read_are_named(run: Run, content: bytes | None) -> None:
    run.weights.mkdir()
    if content is not None:
        run.snapshot_path(7).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000007\.safetensors cannot be read"):
        run.read_weights(7)


def test_the_first_free_name_is_chosen(tmp_path: Path) -> None:
    assert free_name(tmp_path / "none-yet", "valve").name == "valve-1"
    for number in (1, 2, 4):
        (tmp_path / f"valve-{number}").mkdir()
    assert free_name(tmp_path, "valve").name == "valve-3"


def test_a_config_file_is_toml_or_json_or_that_of_a_run(tmp_path: Path, run: Run) -> None:
    (tmp_path / "own.toml").write_text("steps = 5\n[sac]\nbatch_size = 7\n")
    (tmp_path / "own.json").write_text('{"steps": 5, "sac": {"batch_size": 7}}')
    assert read_config(tmp_path / "own.toml") == {"steps": 5, "sac": {"batch_size": 7}}
    assert read_config(tmp_path / "own.json") == read_config(tmp_path / "own.toml")
    found = read_config(run.folder / "config.json")
    assert set(found) == set(Config.__dataclass_fields__)
    assert found["steps"] == TINY.steps


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.toml", None),
        ("broken.toml", b"steps = "),
        ("binary.toml", b"\xff\xfe"),
        ("broken.json", b"{"),
        ("list.json", b"[1, 2]"),
        ("number.json", b"5"),
        ("inner.json", b'{"config": 5}'),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_config(tmp_path / name)
    assert f"{name} cannot be read" in message(error)
