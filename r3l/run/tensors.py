"""Safetensors files, and tensors by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import SafetensorError, safe_open

from r3l.config.errors import ReportedError
from r3l.run.files import GIB, one_line, open_sized, write_file

if TYPE_CHECKING:  # torch is imported on use: `r3l status` does without it
    import torch
    from torch import Tensor

MAX_TENSOR_BYTES = 8 * GIB

Tensors: TypeAlias = "dict[str, Tensor]"


class CheckpointError(ReportedError, RuntimeError):
    """A checkpoint or weights cannot be used; the message says which and why."""


def encode_tensors(tensors: Tensors, texts: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, texts)


def save_tensors(path: Path, tensors: Tensors, meta: dict[str, Any], *, is_synced: bool = True) -> None:
    """Write tensors and JSON into one safetensors file, whole or not at all; see `write_file`."""
    write_file(path, encode_tensors(tensors, {"meta": json.dumps(meta)}), is_synced=is_synced)


def load_tensors(path: Path, max_bytes: int = MAX_TENSOR_BYTES) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors of a safetensors file and the texts in its header.

    Raises:
        OSError, ValueError: the file cannot be read, is too large, or is no safetensors file.
    """
    open_sized(path, max_bytes).close()
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(one_line(error)) from error


def require_finite(tensors: Tensors) -> None:
    """Raise CheckpointError naming the first tensor with a number that is not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"tensor {name} holds numbers that are not finite; no checkpoint of it is kept")


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> Tensors:
    """Return an optimiser's state as tensors named INDEX.KEY, its parameters counted in order."""
    import torch

    state = optimiser.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Restore what `optimiser_tensors` returned."""
    whole = optimiser.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors renamed PREFIX/NAME."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors below PREFIX/ without it."""
    start = prefix + "/"
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
