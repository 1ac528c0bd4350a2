"""Coverage: the share of the explored latent space that the robot still visits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

Latents = NDArray[np.float32]
CELLS = 32


class Coverage:
    """A partition of the explored latent space into cells."""

    def __init__(self, exploration: Latents) -> None:
        """Fit the cells to latents [N, Z], N at least CELLS."""
        with threadpool_limits(1):
            self._cells = MiniBatchKMeans(CELLS, random_state=0, n_init=1).fit(exploration)

    def measure(self, recent: Latents) -> float:
        """Return the entropy over the cells of latents [M, Z], divided by its maximum: 0 to 1."""
        with threadpool_limits(1):
            counts = np.bincount(self._cells.predict(recent), minlength=CELLS)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum() / np.log(CELLS))
