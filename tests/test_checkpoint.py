"""Checkpoints: whole or not at all, verified, never pickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from r3l.checkpoint import (
    LATEST,
    CheckpointError,
    Tensors,
    load_checkpoint,
    load_optimiser,
    missing_keys,
    optimiser_tensors,
    save_checkpoint,
    save_tensors,
    under_prefix,
    with_prefix,
    write_file,
)

FILES = ("tensors.safetensors", "meta.json", "manifest.json")


class CrashError(Exception):
    """The process dies here."""


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


def crash_at_call(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the process die before its `number`-th call that changes the disk."""
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= number:  # the dead write nothing more, in `finally` neither
                raise CrashError
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "open", counted(Path.open))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))


@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step again"])
def test_a_crash_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    for number in range(1, 100):
        folder = tmp_path / str(number)
        save(folder, 1, keep=1)
        with monkeypatch.context() as patch:
            crash_at_call(patch, number)
            try:
                save(folder, 1 if again else 2, keep=1)
                is_crashed = False
            except CrashError:
                is_crashed = True
        warnings: list[str] = []
        step = loaded_step(folder, warnings)
        assert step in (1, 2)
        assert is_crashed or step == (1 if again else 2)
        assert not warnings
        save(folder, 3, keep=1)
        assert loaded_step(folder) == 3
        assert not list(folder.glob(".step-*")), "what a crash left over is removed"
        if not is_crashed:
            assert number > 12
            return
    pytest.fail("the save never came to its end")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
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
    for position in sorted({0, 1, 7, 8, 20, len(whole) // 2, len(whole) - 1} & set(range(len(whole)))):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            warnings: list[str] = []
            assert loaded_step(tmp_path, warnings) == 1, f"byte {position} bit {bit} of {name}"
            assert len(warnings) == 1
    path.write_bytes(whole)
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


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    for number in range(1, 4):
        with monkeypatch.context() as patch:
            crash_at_call(patch, number)
            with pytest.raises(CrashError):
                write_file(path, b"new content")
        assert path.read_bytes() == b"old"
    write_file(path, b"new content")
    assert path.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_a_name_points_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        calls.append("sync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        calls.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    save(tmp_path, 1)
    folder = ".step-00000001.part"
    written = [[f"sync {name}.part", f"rename {name}.part", f"sync {folder}"] for name in FILES]
    after = [f"rename {folder}", f"sync {tmp_path.name}"]
    pointer = [f"sync {LATEST}.part", f"rename {LATEST}.part", f"sync {tmp_path.name}"]
    assert calls == [*(call for calls_of_one in written for call in calls_of_one), *after, *pointer]


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
    assert missing_keys(tensors, ("a", "ab", "b")) == ["b"]
