"""Checkpoints: whole or not at all, verified, never pickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from r3l.run.checkpoint import LATEST, load_checkpoint, restore_newest, save_checkpoint
from r3l.run.files import write_file
from r3l.run.tensors import (
    CheckpointError,
    Tensors,
    load_optimiser,
    optimiser_tensors,
    save_tensors,
    under_prefix,
    with_prefix,
)

FILES = ("tensors.safetensors", "meta.json", "manifest.json")


class Crash(BaseException):
    """The process dies here; nothing may catch it."""


def content(step: int) -> tuple[Tensors, dict[str, Any]]:
    return {"weights": torch.full((3, 2), float(step)), "none": torch.zeros(0)}, {"step": step}


def save(folder: Path, step: int, keep: int = 3) -> Path:
    tensors, meta = content(step)
    return save_checkpoint(folder, step, tensors, meta, keep=keep)


def loaded_step(folder: Path, warnings: list[str] | None = None) -> int:
    """Load the newest good checkpoint and return its step, having compared all of it."""
    found = load_checkpoint(folder, (warnings if warnings is not None else []).append)
    assert found is not None
    tensors, meta = found
    expected, _ = content(meta["step"])
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    return int(meta["step"])


How = Literal["before", "after", "torn"]


class Disk:
    """Every call that changes the disk below a folder, counted; the process dies at one of them.

    Also knows what a power cut there would leave, if nothing but what was synced were kept.
    """

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, *, crash_at: int = 0, how: How = "before") -> None:
        self._folder, self._crash_at, self._how = folder, crash_at, how
        self._is_dead = False
        self._contents: dict[int, bytes] = {}
        """What of a file is on the disk, by inode."""
        self._names: dict[int, dict[str, int]] = {}
        """What of a folder is on the disk: inodes by name, by inode."""
        self._kinds: dict[int, bool] = {}
        self.calls: list[str] = []
        for path in (folder, *folder.rglob("*")):
            self._sync(path)
        patch.setattr(os, "fsync", self._fsync)
        for module, name in ((Path, "rename"), (Path, "mkdir"), (os, "unlink"), (os, "rmdir")):
            patch.setattr(module, name, self._counted(getattr(module, name), name))
        patch.setattr(Path, "open", self._open(Path.open))

    def synced(self, target: Path) -> None:
        """Make `target` what a power cut leaves where only what was synced is kept."""
        self._restore(os.stat(self._folder).st_ino, target, self._names)

    def emptied(self, target: Path) -> None:
        """Make `target` what a power cut leaves where every name is kept, and of the contents what was synced."""
        names = {
            path.stat().st_ino: {each.name: each.stat().st_ino for each in path.iterdir()}
            for path in (self._folder, *self._folder.rglob("*"))
            if path.is_dir()
        }
        self._kinds |= {path.stat().st_ino: path.is_dir() for path in self._folder.rglob("*")}
        self._restore(os.stat(self._folder).st_ino, target, names)

    def _restore(self, inode: int, target: Path, names: dict[int, dict[str, int]]) -> None:
        if not self._kinds[inode]:
            target.write_bytes(self._contents.get(inode, b""))
            return
        os.makedirs(target)
        for name, below in names.get(inode, {}).items():
            self._restore(below, target / name, names)

    def _sync(self, path: Path) -> None:
        inode = path.stat().st_ino
        self._kinds[inode] = path.is_dir()
        if path.is_dir():
            self._names[inode] = {each.name: each.stat().st_ino for each in path.iterdir()}
            self._kinds |= {each.stat().st_ino: each.is_dir() for each in path.iterdir()}
        else:
            self._contents[inode] = path.read_bytes()

    def _fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._act(f"sync {path.name}", lambda: self._sync(path))

    def _counted(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(first: Any, *others: Any, **named: Any) -> Any:
            return self._act(f"{kind} {Path(first).name}", lambda: real(first, *others, **named))

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *others: Any, **named: Any) -> Any:
            if set(mode) <= set("rbt"):
                return real(path, mode, *others, **named)
            files = list[Any]()
            try:
                self._act(f"open {path.name}", lambda: files.append(real(path, mode, *others, buffering=0, **named)))
            except Crash:
                for file in files:
                    file.close()
                raise
            write = files[0].write

            def torn(content: bytes) -> int:
                if self._how == "torn" and len(self.calls) + 1 == self._crash_at:
                    write(content[: len(content) // 2])
                return int(self._act(f"write {path.name}", lambda: write(content)))

            return Writer(files[0], torn)

        return call

    def _act(self, call: str, real: Callable[[], Any]) -> Any:
        if self._is_dead:  # the dead change nothing more, in `finally` neither
            raise Crash
        self.calls.append(call)
        is_last = len(self.calls) == self._crash_at
        if is_last and self._how != "after":
            self._is_dead = True
            raise Crash
        try:
            return real()
        finally:
            if is_last:
                self._is_dead = True
                raise Crash


class Writer:
    """A file that is written through a function."""

    def __init__(self, file: Any, write: Callable[[bytes], int]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@pytest.fixture
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing really be brought to the disk: no test can tell, and a thousand times takes a minute."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


@pytest.mark.usefixtures("_no_sync")
@pytest.mark.parametrize("how", ["before", "after", "torn"])
@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step again"])
def test_a_crash_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: How, again: bool
) -> None:
    """Killed, or without power: kept is everything, what was synced alone, or names whose content was not synced."""
    new = 1 if again else 3
    seen = set()
    for crash_at in range(1, 200):
        home = tmp_path / str(crash_at)
        save(home / "run", 1, keep=2)
        save(home / "run", 2, keep=2)
        with monkeypatch.context() as patch:
            disk = Disk(patch, home, crash_at=crash_at, how=how)
            try:
                save(home / "run", new, keep=2)
                is_crashed = False
            except Crash:
                is_crashed = True
        seen.add(disk.calls[-1].split()[0])
        disk.synced(home / "synced")
        disk.emptied(home / "emptied")
        for folder in (home / "run", home / "synced" / "run", home / "emptied" / "run"):
            message = f"{folder.parent.name} at call {crash_at}, {disk.calls[-1]}"
            warnings: list[str] = []
            step = loaded_step(folder, warnings)
            assert step == new if not is_crashed else step in (2, new), message
            assert not warnings, f"{message}: no damaged one is ever in use"
            assert len(names(folder)) >= 2, f"{message}: two are kept"
            save(folder, 4, keep=2)
            assert (folder / LATEST).read_text() == "step-00000004", message
            assert loaded_step(folder, warnings) == 4, message
            assert not warnings, message
            assert len(names(folder)) == 2, message
            assert not list(folder.glob(".step-*")), f"{message}: what a crash left over is removed"
        if not is_crashed:
            assert {"sync", "rename", "open", "write", "mkdir", "unlink", "rmdir"} == seen
            return
        shutil.rmtree(home)
    pytest.fail("the save never came to its end")


@pytest.mark.usefixtures("_no_sync")
@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_crash_during_the_first_save_leaves_it_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: How
) -> None:
    for crash_at in range(1, 100):
        home = tmp_path / str(crash_at)
        home.mkdir()
        with monkeypatch.context() as patch:
            disk = Disk(patch, home, crash_at=crash_at, how=how)
            try:
                save(home / "run", 1)
                is_crashed = False
            except Crash:
                is_crashed = True
        disk.synced(home / "synced")
        for folder in (home / "run", home / "synced" / "run"):
            found = load_checkpoint(folder, pytest.fail)
            assert found is not None or is_crashed, f"{folder.parent.name}: what was saved is there"
            save(folder, 2)
            assert loaded_step(folder) == 2
        if not is_crashed:
            return
    pytest.fail("the save never came to its end")


def test_old_checkpoints_go_when_the_pointer_to_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    save(folder, 1, keep=1)
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path)
        save(folder, 2, keep=1)
    pointed = disk.calls.index(f"rename {LATEST}.part")
    assert disk.calls[pointed + 1] == "sync run"
    removed = next(index for index, call in enumerate(disk.calls) if "step-00000001" in call)
    assert removed > pointed + 1
    assert disk.calls[removed:][:2] == ["unlink .step-00000001.part", "rename step-00000001"], "out of use first"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_detected_and_the_previous_checkpoint_used(tmp_path: Path, name: str, share: float) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    warnings: list[str] = []
    assert loaded_step(tmp_path, warnings) == 1
    assert len(warnings) == 1
    assert "step-00000002" in warnings[0]
    assert "using the previous one" in warnings[0]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_detected(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            warnings: list[str] = []
            assert loaded_step(tmp_path, warnings) == 1, f"byte {position} bit {bit} of {name}"
            assert len(warnings) == 1
    path.write_bytes(whole)
    assert loaded_step(tmp_path) == 2


def test_no_flipped_bit_of_the_pointer_loses_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    whole = (tmp_path / LATEST).read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            (tmp_path / LATEST).write_bytes(damaged)
            assert loaded_step(tmp_path) == 2


@pytest.mark.parametrize("manifest", ["{}", "[]", "5", "null", '{"meta.json": 3}'])
def test_a_manifest_that_lists_not_every_file_verifies_nothing(tmp_path: Path, manifest: str) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text(manifest)
    assert loaded_step(tmp_path) == 1


def test_a_missing_file_is_detected(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (save(tmp_path, 2) / "meta.json").unlink()
    assert loaded_step(tmp_path) == 1


def test_no_checkpoint_is_none_and_none_that_verifies_is_an_error(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert load_checkpoint(tmp_path / "missing", warnings.append) is None
    for step in (1, 2):
        (save(tmp_path, step) / "meta.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        load_checkpoint(tmp_path, warnings.append)
    assert len(warnings) == 2


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000011"]
    assert (tmp_path / LATEST).read_text() == "step-00000011"


def test_the_newest_is_never_removed(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, keep=0)
        assert loaded_step(tmp_path) == step


def test_one_step_saved_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    for number in range(4):
        save_checkpoint(tmp_path, 7, {"weights": torch.tensor([number])}, {"number": number}, keep=2)
        found = load_checkpoint(tmp_path, pytest.fail)
        assert found is not None
        assert found[1] == {"number": number}
        assert int(found[0]["weights"]) == number
    assert len(list(tmp_path.glob("step-*"))) == 2


@pytest.mark.parametrize("pointer", [None, b"", b"step-99999999", b"../../etc", b"\xff\xfe\x00", b"step-00000001\n"])
def test_a_missing_or_wrong_pointer_loses_nothing(tmp_path: Path, pointer: bytes | None) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / LATEST).unlink()
    if pointer is not None:
        (tmp_path / LATEST).write_bytes(pointer)
    is_named = pointer is not None and pointer.strip() == b"step-00000001"
    assert loaded_step(tmp_path) == (1 if is_named else 2)


def test_no_pickle_is_ever_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "step-00000002" / "tensors.safetensors")

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("a pickle was loaded")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    assert loaded_step(tmp_path) == 1


def test_a_pickle_with_a_right_checksum_is_not_run(tmp_path: Path) -> None:
    """Whoever can write a checksum still gets no code run."""
    import hashlib

    marker = tmp_path / "was-run"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (marker.touch, ())

    path = save(tmp_path, 1)
    (path / "tensors.safetensors").write_bytes(pickle.dumps(Evil()))
    hashes = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in FILES[:2]}
    (path / "manifest.json").write_text(json.dumps(hashes))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path, lambda message: None)
    assert not marker.exists()


@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: How) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    for crash_at in range(1, 20):
        with monkeypatch.context() as patch:
            Disk(patch, tmp_path, crash_at=crash_at, how=how)
            try:
                write_file(path, b"new content")
                break
            except Crash:
                assert path.read_bytes() in (b"old", b"new content")
    assert crash_at > 5
    assert path.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_a_name_points_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path)
        save(folder, 1)
    part = ".step-00000001.part"
    written = [
        [f"open {name}.part", f"write {name}.part", f"sync {name}.part", f"rename {name}.part", f"sync {place}"]
        for name, place in [*((name, part) for name in FILES), (LATEST, "run")]
    ]
    expected = ["mkdir run", f"sync {tmp_path.name}", f"mkdir {part}", *chain(*written[:-1])]
    expected += [f"rename {part}", "sync run", *written[-1]]
    assert [call for call in disk.calls if not call.startswith("unlink")] == expected


def test_published_tensors_come_back_with_any_layout(tmp_path: Path) -> None:
    tensors = {"turned": torch.arange(6.0).reshape(2, 3).T, "part": torch.arange(9)[::2], "empty": torch.zeros(4, 0)}
    save_tensors(tmp_path / "weights.safetensors", tensors, {"step": 3})
    found = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def trained(fused: bool, updates: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2, fused=fused)
    go_on(model, optimiser, updates)
    return model, optimiser


def go_on(model: nn.Module, optimiser: torch.optim.Optimizer, updates: int) -> None:
    for number in range(updates):
        optimiser.zero_grad()
        model(torch.full((3, 4), float(number))).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("updates", [0, 3])
def test_an_optimiser_goes_on_bit_for_bit(tmp_path: Path, fused: bool, updates: int) -> None:
    model, optimiser = trained(fused, updates)
    tensors = with_prefix("model", dict(model.state_dict())) | with_prefix("optimiser", optimiser_tensors(optimiser))
    save_checkpoint(tmp_path, 1, tensors, {}, keep=1)
    found = load_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    other_model, other = trained(fused, 0)
    other_model.load_state_dict(under_prefix("model", found[0]))
    load_optimiser(other, under_prefix("optimiser", found[0]))
    go_on(model, optimiser, 4)
    go_on(other_model, other, 4)
    for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_prefixes_join_and_part_names() -> None:
    tensors = with_prefix("a", {"x": torch.zeros(1)}) | with_prefix("ab", {"y": torch.ones(1)})
    assert set(tensors) == {"a/x", "ab/y"}
    assert set(under_prefix("a", tensors)) == {"x"}


def test_a_checkpoint_that_is_whole_but_of_no_use_is_passed_over_and_takes_no_good_ones_place(tmp_path: Path) -> None:
    for step in range(1, 4):
        save(tmp_path, step)
    warnings: list[str] = []
    taken: list[int] = []

    def restore(tensors: Tensors, meta: dict[str, Any]) -> None:
        if meta["step"] > 1:
            raise CheckpointError(f"checkpoint {meta['step']} is not of this run")
        taken.append(meta["step"])

    assert restore_newest(tmp_path, warnings.append, restore)
    assert taken == [1]
    assert len(warnings) == 2
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001"]
    for step in range(4, 7):
        save(tmp_path, step)
    assert [loaded_step(tmp_path), len(list(tmp_path.glob("step-*")))] == [6, 3]


def test_where_no_checkpoint_is_of_use_all_stay(tmp_path: Path) -> None:
    def refuse(tensors: Tensors, meta: dict[str, Any]) -> None:
        raise CheckpointError("not of this run")

    assert not restore_newest(tmp_path, pytest.fail, refuse)
    for step in (1, 2):
        save(tmp_path, step)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        restore_newest(tmp_path, lambda warning: None, refuse)
    assert len(list(tmp_path.glob("step-*"))) == 2
