"""Metrics of a run: averages over a span of steps, to metrics.jsonl and TensorBoard event files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from r3l.jsonl import append_jsonl


class MetricsWriter:
    """Averages what it is given and writes one line per `every` env steps."""

    def __init__(self, file: Path, tensorboard: Path, every: int) -> None:
        self._file = file
        self._board = SummaryWriter(str(tensorboard))
        self._every = every
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Take in one update's metrics."""
        for name, value in metrics.items():
            self._sums[name] += float(value)
            self._counts[name] += 1

    def on_step(self, step: int) -> None:
        """Write the averages when the span is over."""
        if step % self._every == 0 and self._counts:
            self.write(step, {name: total / self._counts[name] for name, total in self._sums.items()})
            self._sums.clear()
            self._counts.clear()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write values under a step, now."""
        append_jsonl(self._file, {"step": step} | dict(values))
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event files."""
        self._board.close()
