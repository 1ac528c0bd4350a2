"""Metrics of a run: averages over a span of steps, to metrics.jsonl and TensorBoard event files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from r3l.run.jsonl import append_jsonl


class MetricsWriter:
    """Averages metrics and writes them once per `every` env steps."""

    def __init__(self, file: Path, tensorboard: Path, every: int) -> None:
        self._file, self._tensorboard = file, tensorboard
        self._shared: SummaryWriter | None = None
        self._every = every
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, metrics: Mapping[str, Tensor | float]) -> None:
        """Add the metrics of one update."""
        for name, value in metrics.items():
            self._sums[name] += float(value)
            self._counts[name] += 1

    def on_step(self, step: int) -> None:
        """Write the averages at the end of a span."""
        if step % self._every == 0 and self._counts:
            self.write(step, {name: total / self._counts[name] for name, total in self._sums.items()})
            self._sums.clear()
            self._counts.clear()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step at once.

        Raises:
            OSError: the disk is full or broken. These values are lost; the next call opens the event file again.
        """
        append_jsonl(self._file, {"step": step} | dict(values))
        if self._shared is None:
            self._shared = SummaryWriter(str(self._tensorboard))
        try:
            for name, value in values.items():
                self._shared.add_scalar(name, value, step)
        except OSError:
            self._shared = None  # its thread has died
            raise

    def close(self) -> None:
        """Flush and close the event files."""
        if self._shared is not None:
            with suppress(OSError):
                self._shared.close()
