"""The replay: the newest rows of the experience store, in memory, for sampling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from r3l.run.experience import PHASES, Row

Rows = NDArray[np.int64]
"""Row numbers, counted from the first ever added."""


@dataclass(frozen=True)
class Sampled:
    """Positions of sampled transitions, each followed for up to N steps of its segment."""

    now: Tensor
    """[B, T] int64: the window that ends with the observation acted on, oldest first."""
    next: Tensor
    """[B, T] int64: the window after the last step followed."""
    rows: Tensor
    """[B, N] int64: the row after each step; a shorter segment repeats its last row."""
    followed: Tensor
    """[B, N] float32: 1 for a followed step, 0 for a repetition."""


class Replay:
    """A preallocated ring of rows. Images are stored once, uint8; latents are cached per row.

    `window` rows make one observation of the policies. A window never crosses the start of a segment: the segment's
    first row is repeated instead.
    """

    def __init__(
        self,
        capacity: int,
        *,
        image_shape: tuple[int, int, int],
        actions: int,
        latents: int,
        diagnostics: int,
        window: int,
        device: torch.device,
    ) -> None:
        height, width, channels = image_shape
        self.capacity, self.window, self.device = capacity, window, device
        # The system zeroes this memory page by page, as rows arrive; torch.zeros would touch all of it at once.
        self.images = torch.from_numpy(np.zeros((capacity, channels, height, width), np.uint8))
        self.proprioception = torch.zeros(capacity, actions, device=device)
        self.requested = torch.zeros(capacity, actions, device=device)
        self.applied = torch.zeros(capacity, actions, device=device)
        self.latents = torch.zeros(capacity, latents, device=device)
        self.diagnostic = torch.zeros(capacity, diagnostics, device=device)
        self._step = np.zeros(capacity, np.int64)
        self._phase = np.zeros(capacity, np.int8)
        self.added = 0
        """Rows ever added; row n is at position n % capacity."""

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def newest_phase(self) -> str:
        """Return the name of the newest row's phase."""
        return PHASES[self._phase[(self.added - 1) % self.capacity]]

    def label(self, row: int) -> tuple[str, int]:
        """Return the phase and the step of row number `row`, which must still be kept."""
        position = row % self.capacity
        return PHASES[self._phase[position]], int(self._step[position])

    def rows_of(self, phase: str) -> Tensor:
        """Return the positions of all rows of a phase: [N] int64."""
        return torch.from_numpy(np.flatnonzero(self._phase[: len(self)] == PHASES.index(phase)))

    def newest(self, count: int) -> Tensor:
        """Return the positions of the newest `count` rows, oldest first: [N] int64."""
        first = max(self.added - min(count, len(self)), 0)
        return torch.arange(first, self.added, device=self.device) % self.capacity

    def add(self, rows: Sequence[Row], latents: Tensor) -> None:
        """Append rows and their latents [N, Z], N at most the capacity; a full ring overwrites its oldest rows."""
        places = (self.added + np.arange(len(rows))) % self.capacity
        images = self.images.numpy()  # NumPy copies other strides several times as fast as torch
        for place, row in zip(places, rows, strict=True):
            images[place] = row.image.transpose(2, 0, 1)
        at = torch.from_numpy(places).to(self.device)
        for name in ("proprioception", "requested", "applied", "diagnostic"):
            table: Tensor = getattr(self, name)
            table[at] = torch.from_numpy(np.stack([getattr(row, name) for row in rows])).to(self.device)
        self.latents[at] = latents
        self._step[places] = [row.step for row in rows]
        self._phase[places] = [row.phase for row in rows]
        self.added += len(rows)

    def sample(
        self, count: int, rng: np.random.Generator, *, phases: tuple[str, ...] = PHASES, horizon: int = 1
    ) -> Sampled:
        """Draw transitions uniformly and follow each for up to `horizon` steps.

        `phases` keeps those whose first action was chosen in one of them.

        Raises:
            ValueError: the replay holds no such transition.
        """
        first = self._draw(count, rng, phases, transitions=True)
        ahead = first[:, None] + np.arange(horizon)
        # Steps count up within a segment and begin again at 0, so equality with the count means the same segment.
        steps = self._step[np.minimum(ahead, self.added - 1) % self.capacity]
        followed = (ahead < self.added) & (steps == steps[:, :1] + np.arange(horizon))
        rows = first[:, None] + np.minimum(np.arange(horizon), followed.sum(1, keepdims=True) - 1)
        return Sampled(
            now=self._windows(first - 1),
            next=self._windows(rows[:, -1]),
            rows=torch.from_numpy(rows % self.capacity).to(self.device),
            followed=torch.from_numpy(followed.astype(np.float32)).to(self.device),
        )

    def sample_rows(self, count: int, rng: np.random.Generator, *, phases: tuple[str, ...] = PHASES) -> Tensor:
        """Draw rows uniformly: their positions [count] int64."""
        return torch.from_numpy(self._draw(count, rng, phases, transitions=False) % self.capacity).to(self.device)

    def neighbours(self, rows: Tensor, reach: int, rng: np.random.Generator) -> Tensor:
        """Return for each position one up to `reach` steps away: [B] int64; itself where the segment has ended."""
        if not reach:
            return rows
        return self._shifted(rows, rng.integers(-reach, reach + 1, len(rows)))

    def previous(self, rows: Tensor) -> Tensor:
        """Return for each position that of the step before: [B] int64; itself where the segment begins."""
        return self._shifted(rows, np.full(len(rows), -1))

    def _shifted(self, rows: Tensor, offset: Rows) -> Tensor:
        position = rows.cpu().numpy()
        number = self.added - 1 - (self.added - 1 - position) % self.capacity
        other = number + offset
        is_kept = (other >= max(self.added - self.capacity, 0)) & (other < self.added)
        is_near = is_kept & (self._step[other % self.capacity] == self._step[position] + offset)
        return torch.from_numpy(np.where(is_near, other, number) % self.capacity).to(self.device)

    def observations(self, windows: Tensor) -> Tensor:
        """Return what the policies see at [B, T] positions: [B, T * (Z + 2A)]."""
        rows = windows.reshape(-1)
        parts = [table.index_select(0, rows) for table in (self.latents, self.proprioception, self.applied)]
        return torch.cat(parts, -1).reshape(len(windows), -1)

    def pixels(self, windows: Tensor) -> Tensor:
        """Return the images at [B, T] positions stacked along channels: uint8 [B, T * C, H, W]."""
        stacked = self.images[windows.cpu()]
        return stacked.flatten(1, 2).to(self.device)

    def _draw(self, count: int, rng: np.random.Generator, phases: tuple[str, ...], *, transitions: bool) -> Rows:
        wanted = np.array([phase in phases for phase in PHASES])
        oldest = max(self.added - self.capacity, 0) + int(transitions)

        def fits(rows: Rows) -> NDArray[np.bool_]:
            position = rows % self.capacity
            return wanted[self._phase[position]] & ((self._step[position] > 0) | (not transitions))

        if oldest < self.added:
            drawn = rng.integers(oldest, self.added, 2 * count + 16)
            found = drawn[fits(drawn)]
            if len(found) >= count:
                return found[:count]
            # A rare phase: choose among all its rows.
            every = np.arange(oldest, self.added)
            every = every[fits(every)]
            if len(every):
                return rng.choice(every, count)
        raise ValueError(f"the replay of {len(self)} rows holds nothing of {' or '.join(phases)} to sample")

    def _windows(self, last: Rows) -> Tensor:
        oldest = max(self.added - self.capacity, 0)
        reach = np.minimum(self._step[last % self.capacity], last - oldest)
        back = np.minimum(np.arange(self.window - 1, -1, -1)[None, :], reach[:, None])
        return torch.from_numpy((last[:, None] - back) % self.capacity).to(self.device)


def batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Yield rows in lists of `size`; the last one may be shorter."""
    source = iter(rows)
    while part := list(islice(source, size)):
        yield part
