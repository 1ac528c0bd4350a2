"""What this process asks of the system."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os

import numpy as np
import torch
from numpy.typing import NDArray

from r3l.config.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt."""
MADV_POPULATE_WRITE = 23
"""Advice of Linux' madvise, from 5.14 on."""


def populate(array: NDArray[np.uint8]) -> bool:
    """Ask the system for an array's memory, which stays as it is, ahead of its use by another thread.

    A virtual machine may take longer to come by memory than to fill it. Return whether this system can do so.
    """
    first = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    with contextlib.suppress(AttributeError, OSError):
        madvise = ctypes.CDLL(None).madvise
        return bool(madvise(ctypes.c_void_p(first), ctypes.c_size_t(max(size, 0)), MADV_POPULATE_WRITE) == 0)
    return False


def tune_process() -> None:
    """One thread for each of torch's products, and memory that is kept instead of given back after each of them.

    glibc returns blocks above 128 KiB at once and takes page faults to get them again: a third of a small network's
    update. Threads share one arena, since those of their own give memory back whatever the thresholds say. Where
    there is no glibc this does nothing.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_ARENA_MAX, 1)


def pick_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu` or `cuda`; UserError when cuda is asked for and absent."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError("device 'cuda' was asked for and torch finds none; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and has_cuda else "cpu")
