"""Run directories from elsewhere are data: nothing in them is run, nothing huge is read, no path leads out."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, RunMaker
from safetensors.torch import save, save_file

from r3l.cli.settings import read_config
from r3l.config.convert import to_dict
from r3l.config.errors import UserError
from r3l.models.judge import Judge
from r3l.robot.base import CameraSpec
from r3l.run import weights
from r3l.run.checkpoint import LATEST, load_checkpoint, read_checkpoint, save_checkpoint
from r3l.run.directory import Run
from r3l.run.files import write_file
from r3l.run.goals import copy_goals, load_goals, save_goals
from r3l.run.jsonl import read_jsonl
from r3l.run.tensors import CheckpointError

GIB = 1 << 30
CAMERA = CameraSpec(width=64, height=64)
NESTED = b"[" * 200_000
Break = Callable[[Path, Path], object]
"""break(path, outside) damages a file or a folder; `outside` is a folder that nobody may touch."""


@pytest.fixture(autouse=True)
def _little_memory_and_time() -> Iterator[None]:
    """Let a process that takes what somebody's file promises fail: half a GiB more than it has, and seconds."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIB // 2, hard))
    begun = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - begun < 5


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the run with a whole checkpoint, goal images and a secret, which stays as it is."""
    folder = tmp_path / "outside"
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    save_goals(folder / "goals", images, images, task="valve", robot="fake", source="elsewhere")
    checkpoint(folder / "checkpoints", 7)
    (folder / "secret").write_text('{"secret": 1}\n')
    before = tree(folder)
    yield folder
    assert tree(folder) == before


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return everything below a folder: contents and when they were changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() and path.stat().st_size < GIB else b""
        found[str(path.relative_to(folder))] = (content, path.stat().st_mtime_ns)
    return found


def checkpoint(folder: Path, step: int, keep: int = 3) -> Path:
    return save_checkpoint(folder, step, {"weights": torch.full((50,), float(step))}, {"step": step}, keep=keep)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    assert 20 < len(message) < 600
    return message


def huge(path: Path, outside: Path) -> None:
    """Give a file ten GiB that take no disk."""
    with path.open("ab") as file:
        file.truncate(10 * GIB)


def pipe(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path, outside: Path) -> None:
    path.unlink()
    path.mkdir()


def link(target: str) -> Break:
    """Return what puts a link in the place of a file or folder, to what is outside by the same name or `target`."""

    def break_it(path: Path, outside: Path) -> None:
        if path.is_dir():
            path.rename(path.with_name("." + path.name))
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(outside / target)

    return break_it


def relative_link(path: Path, outside: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(outside / "secret", path.parent))


def content(value: bytes) -> Break:
    return lambda path, outside: path.write_bytes(value)


def manifest(change: Callable[[dict[str, Any]], object]) -> Break:
    def break_it(path: Path, outside: Path) -> None:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return break_it


BROKEN_CHECKPOINTS: dict[str, tuple[str, Break]] = {
    **{f"huge {name}": (name, huge) for name in ("tensors.safetensors", "meta.json", "manifest.json")},
    **{f"pipe as {name}": (name, pipe) for name in ("tensors.safetensors", "meta.json", "manifest.json")},
    **{f"folder as {name}": (name, folder_instead) for name in ("tensors.safetensors", "meta.json", "manifest.json")},
    **{
        f"{name} linked out": (name, link(f"checkpoints/step-00000007/{name}"))
        for name in ("tensors.safetensors", "meta.json", "manifest.json")
    },
    "the checkpoint linked out": (".", link("checkpoints/step-00000007")),
    "nested manifest": ("manifest.json", content(NESTED)),
    "nested meta": ("meta.json", content(NESTED)),
    "manifest of a list": ("manifest.json", content(b"[1, 2]")),
    "manifest of other types": ("manifest.json", manifest(lambda values: {name: [1] for name in values})),
    "manifest that names a file outside": (
        "manifest.json",
        manifest(lambda values: values | {"../../../outside/secret": hashlib.sha256(b"").hexdigest()}),
    ),
    "manifest that names another file alone": ("manifest.json", manifest(lambda values: {"/etc/hostname": "0"})),
}


@pytest.mark.parametrize("case", BROKEN_CHECKPOINTS)
def test_a_hostile_checkpoint_is_passed_over_for_the_previous_one(tmp_path: Path, outside: Path, case: str) -> None:
    folder = tmp_path / "run" / "checkpoints"
    checkpoint(folder, 1)
    name, break_it = BROKEN_CHECKPOINTS[case]
    break_it(checkpoint(folder, 2) / name, outside)
    warnings: list[str] = []
    found = load_checkpoint(folder, warnings.append)
    assert found is not None
    assert found[1] == {"step": 1}
    assert len(warnings) == 1
    assert "step-00000002" in one_line(CheckpointError(warnings[0]))
    for step in (3, 4):
        checkpoint(folder, step, keep=1)
    assert [path.name for path in folder.glob("step-*")] == ["step-00000004"], "and removed in its turn"


def safetensors(header: bytes | dict[str, Any], body: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


LYING_TENSORS = {
    "empty": b"",
    "header of 2**63 bytes": safetensors(b"{}", length=2**63),
    "header of all bits": safetensors(b"{}", length=2**64 - 1),
    "header longer than the file": safetensors(b"{}", length=10_000),
    "header of 100 MB and more": safetensors(b"{}", length=100_000_001),
    "nested header": safetensors(NESTED),
    "header of a list": safetensors(b"[]"),
    "tensor beyond the end": safetensors(entry([250_000_000], 0, 1_000_000_000), bytes(8)),
    "tensor before the beginning": safetensors(entry([2], -8, 0), bytes(8)),
    "shape that is not its size": safetensors(entry([1 << 40], 0, 8), bytes(8)),
    "shape that overflows": safetensors(entry([2**32, 2**32, 4], 0, 8), bytes(8)),
    "negative shape": safetensors(entry([-1, -2], 0, 8), bytes(8)),
    "unknown type": safetensors(entry([2], 0, 8, "OBJECT"), bytes(8)),
    "bytes that belong to no tensor": safetensors(entry([2], 0, 8), bytes(1000)),
    "two tensors in one place": safetensors(
        entry([2], 0, 8) | {"y": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)
    ),
}


@pytest.mark.parametrize("case", LYING_TENSORS)
def test_tensors_that_lie_about_themselves_are_refused_though_their_checksum_is_right(
    tmp_path: Path, make_run: RunMaker, case: str
) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint(folder, 1)
    path = checkpoint(folder, 2)
    (path / "tensors.safetensors").write_bytes(LYING_TENSORS[case])
    sums = {
        name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in ("tensors.safetensors", "meta.json")
    }
    (path / "manifest.json").write_text(json.dumps(sums))
    found = load_checkpoint(folder, lambda message: None)
    assert found is not None
    assert found[1] == {"step": 1}
    run = Run.create(tmp_path / "run", TINY)
    run.weights.mkdir()
    for place in (run.snapshot_path(5), run.acting_weights, run.judge):
        place.write_bytes(LYING_TENSORS[case])
    for read in (lambda: run.read_weights(5), lambda: weights.read(run.acting_weights), lambda: Judge.load(run.judge)):
        with pytest.raises(CheckpointError, match="cannot be read") as error:
            read()
        one_line(error.value)


@pytest.mark.parametrize(
    "name", ["weights/step-00000005.safetensors", "weights/acting.safetensors", "judge.safetensors"]
)
@pytest.mark.parametrize("break_it", [huge, pipe, folder_instead])
def test_published_weights_and_a_judge_that_are_no_such_files_are_refused(
    tmp_path: Path, outside: Path, name: str, break_it: Break
) -> None:
    run = Run.create(tmp_path / "run", TINY)
    run.save_weights(5, {"x": torch.zeros(2)})
    weights.publish(run.acting_weights, {"x": torch.zeros(2)}, version=1, step=5)
    save_file({"x": torch.zeros(2)}, run.judge)
    break_it(run.folder / name, outside)
    readers: dict[str, Callable[[], object]] = {
        "weights/step-00000005.safetensors": lambda: run.read_weights(5),
        "weights/acting.safetensors": lambda: weights.read(run.acting_weights),
        "judge.safetensors": lambda: Judge.load(run.judge),
    }
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        readers[name]()
    one_line(error.value)


def test_names_that_no_run_gives_are_not_weights_and_not_checkpoints(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", TINY)
    run.save_weights(5, {"x": torch.zeros(2)})
    checkpoint(run.checkpoints, 5)
    for name in (
        "step-",
        "step-x",
        "step-1e9",
        "step-²²²²²²²²",
        "step-9999999999999999999999999999999",
        "step--0000007",
    ):
        (run.weights / f"{name}.safetensors").touch()
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "step-00000006").touch()
    assert run.published() == [5]
    found = load_checkpoint(run.checkpoints, pytest.fail)
    assert found is not None
    assert found[1] == {"step": 5}


@pytest.mark.parametrize(
    "pointer",
    [
        b"../../outside/checkpoints/step-00000007",
        b"..",
        b".",
        b"/",
        b"\0",
        b"step-00000002\n" * 100,
        NESTED,
        huge,
        pipe,
    ],
)
def test_a_pointer_leads_nowhere_but_to_a_checkpoint_of_this_folder(
    tmp_path: Path, outside: Path, pointer: bytes | Break
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    for step in (1, 2):
        checkpoint(folder, step)
    (content(pointer) if isinstance(pointer, bytes) else pointer)(folder / LATEST, outside)
    found = load_checkpoint(folder, pytest.fail)
    assert found is not None
    assert found[1] == {"step": 2}
    absolute = str(outside / "checkpoints" / "step-00000007")
    write_file(folder / LATEST, absolute.encode())
    found = load_checkpoint(folder, pytest.fail)
    assert found is not None
    assert found[1] == {"step": 2}


def test_what_is_written_and_removed_follows_no_link(tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    checkpoint(folder, 1)
    links = {
        "step-00000000": "checkpoints/step-00000007",
        "step-00000002": "nowhere",
        ".step-00000002.part": "checkpoints",
        ".step-00000001.part": "checkpoints",
        ".step-00000009.part": "secret",
        "latest.part": "secret",
    }
    for name, target in links.items():
        (folder / name).symlink_to(outside / target)
    path = checkpoint(folder, 2, keep=1)
    assert not path.is_symlink()
    assert read_checkpoint(path)[1] == {"step": 2}
    assert sorted(each.name for each in folder.iterdir() if each.name != "step-00000002") == [LATEST, path.name]
    part = tmp_path / "run" / "acting.safetensors.part"
    part.symlink_to(outside / "secret")
    weights.publish(part.with_suffix(""), {"x": torch.zeros(2)}, version=1, step=5)


ENTRIES = (
    "config.json", "deadline.json", "lock", "board", "control", "world", "goals", "checkpoints", "weights", "logs",
    "judge.safetensors", "experience.sqlite", "experience.sqlite-wal", "truth.sqlite", "metrics.jsonl", "events.jsonl",
    "evaluations.jsonl", "tensorboard", "report.html", "evaluation", "config.json.part", "deadline.json.part",
    "goals.new", "goals.old", "goals/goals.json", "goals/train", "goals/train/0000.png", "checkpoints/latest",
    "checkpoints/latest.part", "checkpoints/step-00000001", "checkpoints/step-00000001/tensors.safetensors",
    "weights/acting.safetensors", "weights/acting.safetensors.part", "logs/actor.log",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, make_run: RunMaker) -> Run:
    run = make_run(tmp_path / "runs" / "first", TINY)
    checkpoint(run.checkpoints, 1)
    run.save_weights(1, {"x": torch.zeros(2)})
    run.logs.mkdir()
    return run


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("target", ["goals", "secret", "nowhere"])
def test_a_run_that_leads_out_of_itself_is_refused_in_one_line(run: Run, outside: Path, name: str, target: str) -> None:
    link(target)(run.folder / name, outside)
    with pytest.raises(UserError) as error:
        Run.open(run.folder)
    assert name in one_line(error.value)
    assert "link out of the run directory" in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "events.jsonl", "board"])
def test_a_relative_link_out_and_a_pipe_are_refused_in_one_line(run: Run, outside: Path, name: str) -> None:
    relative_link(run.folder / name, outside)
    with pytest.raises(UserError, match="link out of the run directory"):
        Run.open(run.folder)
    pipe(run.folder / name, outside)
    with pytest.raises(UserError, match="neither a file nor a folder") as error:
        Run.open(run.folder)
    assert name in one_line(error.value)


@pytest.mark.parametrize("target", ["config.json", "."])
def test_a_link_within_a_run_is_refused(run: Run, target: str) -> None:
    (run.folder / "notes").symlink_to(target)
    with pytest.raises(UserError, match="'notes' in it: it is a link; put there what it leads to"):
        Run.open(run.folder)


def test_a_lock_that_is_a_link_is_not_followed(run: Run, outside: Path) -> None:
    before = (outside / "secret").read_bytes()
    (run.folder / "lock").unlink(missing_ok=True)
    (run.folder / "lock").symlink_to(outside / "secret")
    with pytest.raises(UserError, match="lock cannot be opened"), run.lock():
        pass
    assert (outside / "secret").read_bytes() == before


def test_a_run_reached_through_a_link_is_used(run: Run, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(run.folder.parent)
    found = Run.open(tmp_path / "linked" / "first")
    assert found.config == TINY
    checkpoint(found.checkpoints, 2)
    assert read_checkpoint(run.checkpoints / "step-00000002")[1] == {"step": 2}


@pytest.mark.parametrize(
    "break_it",
    [huge, folder_instead, content(NESTED), content(b'{"format": ' + b"9" * 100_000 + b"}"), content(b"\xff")],
)
def test_a_hostile_config_is_refused_in_one_line(run: Run, outside: Path, break_it: Break) -> None:
    path = run.folder / "config.json"
    break_it(path, outside)
    with pytest.raises(UserError) as error:
        Run.open(run.folder)
    one_line(error.value)
    with pytest.raises(UserError) as error:
        read_config(path)
    one_line(error.value)


def test_a_config_of_a_version_that_is_a_book_is_refused_in_one_line(run: Run) -> None:
    saved = {"format": "one\n" * 1000, "r3l": "\x1b[2J\n" * 1000, "config": to_dict(TINY)}
    (run.folder / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="has run format") as error:
        Run.open(run.folder)
    one_line(error.value)


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_task_file_that_a_run_brings_along_is_not_run(run: Run, tmp_path: Path, is_linked: bool) -> None:
    (run.folder / "task.py").write_text("raise SystemExit('it was run')")
    task = run.folder / "task.py"
    if is_linked:
        task = tmp_path / "task.py"
        task.symlink_to(run.folder / "task.py")
    saved = {"format": 1, "config": to_dict(TINY) | {"task": str(task)}}
    (run.folder / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="task file") as error:
        Run.open(run.folder)
    one_line(error.value)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e300", "-1", '"soon"', "[]", "9" * 400])
def test_a_deadline_that_no_calendar_shows_is_none(run: Run, value: str) -> None:
    (run.folder / "deadline.json").write_text(f'{{"ends_epoch_s": {value}}}')
    assert run.deadline() is None
    run.set_deadline(1e9)
    assert run.deadline() == 1e9
    huge(run.folder / "deadline.json", run.folder)
    assert run.deadline() is None


@pytest.mark.parametrize("text", ["²", "-1", "1" * 10_000, "\0", "12 34", "\n\n\n"])
def test_a_lock_that_names_no_process_is_one_all_the_same(run: Run, text: str) -> None:
    with run.lock():
        (run.folder / "lock").write_text(text)
        assert run.holder() is not None
        with pytest.raises(UserError, match="in use by process") as error, run.lock():
            pytest.fail("two hold it")
        assert len(one_line(error.value)) < 400


def test_a_file_of_lines_gives_its_records_whatever_else_is_in_it(run: Run, outside: Path) -> None:
    lines = [b'{"step": 1}', b'{"x": "' + b"y" * 5_000_000 + b'"}', NESTED, b"5", b"\xff\xfe", b"[{}]", b'{"step": 2}']
    run.metrics.write_bytes(b"\n".join(lines))
    assert read_jsonl(run.metrics) == [{"step": 1}, {"step": 2}]
    huge(run.metrics, outside)
    with pytest.raises(UserError, match="larger than") as error:
        read_jsonl(run.metrics)
    one_line(error.value)


def png(width: int, height: int, body: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """Return a PNG whose header may promise what its body does not hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text)) for kind, text in chunks
    )


ZEROS = zlib.compress(bytes(300_000_000), 9)


def meta(**values: object) -> Break:
    def break_it(path: Path, outside: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return break_it


BROKEN_GOALS: dict[str, tuple[str, Break]] = {
    "huge meta": ("goals.json", huge),
    "pipe as meta": ("goals.json", pipe),
    "nested meta": ("goals.json", content(NESTED)),
    "meta linked out": ("goals.json", link("goals/goals.json")),
    "more images than there are": ("goals.json", meta(train=10**15)),
    "a million images": ("goals.json", meta(train=99_999)),
    "fewer than none": ("goals.json", meta(held_out=-1)),
    "no size": ("goals.json", meta(image=[])),
    "a size of three": ("goals.json", meta(image=[64, 64, 3])),
    "a size like a continent": ("goals.json", meta(image=[10**9, 10**9])),
    "a version like a book": ("goals.json", meta(version="2\n" * 10_000)),
    "huge image": ("train/0001.png", huge),
    "pipe as image": ("train/0001.png", pipe),
    "image linked out": ("train/0001.png", link("goals/train/0001.png")),
    "images linked out": ("held-out", link("goals/held-out")),
    "image of 65 megapixels": ("train/0001.png", content(png(65_000, 1000, b""))),
    "image of 60 megapixels": ("train/0001.png", content(png(60_000, 1000, ZEROS))),
    "image with a bomb of text": (
        "train/0001.png", content(png(64, 64, zlib.compress(bytes(64 * 193)), (b"zTXt", b"a\0\0" + ZEROS))),
    ),
    "another format by that name": ("train/0001.png", content(b"GIF89a" + bytes(1000))),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_GOALS)
def test_hostile_goal_images_are_refused_in_one_line(run: Run, outside: Path, tmp_path: Path, case: str) -> None:
    name, break_it = BROKEN_GOALS[case]
    break_it(run.goals / name, outside)
    with pytest.raises(UserError) as error:
        load_goals(run.goals, CAMERA, 1)
    one_line(error.value)


@pytest.mark.parametrize(
    "case", [case for case in BROKEN_GOALS if "linked" in case or "huge" in case or "pipe" in case]
)
def test_goal_images_that_lead_elsewhere_are_not_copied(run: Run, outside: Path, tmp_path: Path, case: str) -> None:
    name, break_it = BROKEN_GOALS[case]
    break_it(run.goals / name, outside)
    with pytest.raises(UserError) as error:
        copy_goals(run.goals, tmp_path / "copy")
    one_line(error.value)
    assert not list(tmp_path.glob("*copy*")), "whole or not at all"


def test_an_image_with_more_in_it_than_its_size_says_costs_no_more(run: Run) -> None:
    (run.goals / "train" / "0001.png").write_bytes(png(64, 64, ZEROS))
    assert not load_goals(run.goals, CAMERA, 1).train[1].any()


def test_only_goal_images_are_copied_and_names_in_their_meta_lead_nowhere(
    run: Run, outside: Path, tmp_path: Path
) -> None:
    meta(task="../../../outside", robot="/etc", source="a\nb")(run.goals / "goals.json", outside)
    (run.goals / "more").symlink_to(outside)
    (run.goals / "train" / "run-me.sh").write_text("rm -r /")
    copy_goals(run.goals, tmp_path / "copy")
    found = load_goals(tmp_path / "copy", CAMERA, 1)
    assert (found.train == load_goals(run.goals, CAMERA, 1).train).all()
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["goals.json", "held-out", "train"]
    assert not list((tmp_path / "copy").rglob("*.sh"))


@pytest.mark.parametrize("name", ["goals", "goals.new", "goals.old"])
def test_an_exchange_of_goal_images_follows_no_link(run: Run, outside: Path, name: str) -> None:
    goals = load_goals(run.goals, CAMERA, 1)
    link("goals")(run.folder / name, outside)
    run.replace_goals(goals)
    assert not run.goals.is_symlink()
    assert (load_goals(run.goals, CAMERA, 1).train == goals.train).all()
    assert not os.path.lexists(run.folder / "goals.old")


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("config", "image_size", 80_000),
        ("config", "image_size", 0),
        ("config", "image_size", -8),
        ("config", "frames", 0),
        ("config", "updates", "many"),
        ("calibration", "slope", float("nan")),
        ("calibration", "threshold", float("inf")),
        ("quality", "held_out_auc", [1]),
        ("quality", "held_out_auc", {"a": 1}),
    ],
)
def test_a_judge_that_asks_for_what_it_has_not_is_refused(run: Run, place: str, key: str, value: object) -> None:
    judge = Judge.load(run.judge)
    header = json.loads(run.judge.read_bytes()[8:][: struct.unpack("<Q", run.judge.read_bytes()[:8])[0]])
    settings = json.loads(header["__metadata__"]["meta"])
    settings[place][key] = value
    tensors = dict(judge.body.state_dict())
    run.judge.write_bytes(save(tensors, {"meta": json.dumps(settings)}))
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        Judge.load(run.judge)
    assert "allocate" not in one_line(error.value), "no memory is asked for"


def test_a_judge_of_numbers_that_are_none_is_refused(run: Run) -> None:
    judge = Judge.load(run.judge)
    with torch.no_grad():
        next(judge.body.parameters()).fill_(float("nan"))
    judge.save(run.judge)
    with pytest.raises(CheckpointError, match="not finite") as error:
        Judge.load(run.judge)
    one_line(error.value)
