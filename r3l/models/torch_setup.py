"""Set-up of torch and memory for one process."""

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
    """Request the memory pages of an array before another thread uses them; its contents do not change.

    A virtual machine may take longer to provide memory than to fill it. Return whether the system supports this.
    """
    first = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    with contextlib.suppress(AttributeError, OSError):
        madvise = ctypes.CDLL(None).madvise
        return bool(madvise(ctypes.c_void_p(first), ctypes.c_size_t(max(size, 0)), MADV_POPULATE_WRITE) == 0)
    return False


def tune_process() -> None:
    """Use one thread per torch operation, and keep freed memory in the process.

    glibc returns blocks above 128 KiB to the system at once; the page faults to get them again take a third of a small
    network's update. Threads share one arena, since separate arenas return memory regardless of the thresholds.
    Without glibc this does nothing.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_ARENA_MAX, 1)


def pick_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu` or `cuda`; UserError if cuda is requested and absent."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise UserError("device 'cuda' was asked for and torch finds none; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and has_cuda else "cpu")
