"""Coverage: how much of what exploration saw the robot still visits, told from latents alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

Latents = NDArray[np.float32]
CELLS = 32


class Coverage:
    """Cells of the latent space, as exploration filled it."""

    def __init__(self, exploration: Latents) -> None:
        """Fit the cells to latents [N, Z], N at least CELLS."""
        with threadpool_limits(1):
            self._cells = MiniBatchKMeans(CELLS, random_state=0, n_init=1).fit(exploration)

    def measure(self, recent: Latents) -> float:
        """Return the entropy of the cells that latents [M, Z] fall into, as a share of the largest: 0 to 1."""
        with threadpool_limits(1):
            counts = np.bincount(self._cells.predict(recent), minlength=CELLS)
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum() / np.log(CELLS))
