"""Outstanding answers: a late answer must never pass for an answer to a newer request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

LATEST_S = 1.0
"""Time after which an answer will not come any more."""


class Outstanding:
    """Sizes of the answers that servos may still send, by servo.

    A status packet does not name the request that it answers; its size does if no other answer of that size can come.
    Servos answer in order: once a later request is answered the older ones are over. Their sizes are still avoided
    while others are available, since an adapter may hold packets back.
    """

    def __init__(self) -> None:
        self._owed: defaultdict[int, dict[int, float]] = defaultdict(dict)
        self._over: defaultdict[int, dict[int, float]] = defaultdict(dict)
        """Sizes of requests that were never answered, and not answered before a later request was."""
        self._newest: dict[int, int] = {}
        """Size of the newest answer, which may come twice."""

    def missed(self, servo: int, size: int, now_s: float) -> None:
        """Record that an answer did not come, or that an unexpected one came."""
        self._owed[servo][size] = now_s

    def answered(self, servo: int, size: int) -> None:
        """Record an answer to the newest request."""
        self._newest[servo] = size
        if servo in self._owed:
            self._over[servo] |= self._owed.pop(servo)

    def clear(self) -> None:
        """Clear everything: the port was opened again, and no answer can come."""
        self._owed.clear()
        self._over.clear()
        self._newest.clear()

    def is_free(self, servo: int, size: int, now_s: float) -> bool:
        """Return whether an answer of this size can only answer a new request."""
        asked_s = self._owed[servo].get(size) if servo in self._owed else None
        return asked_s is None or now_s - asked_s > LATEST_S

    def size_for(self, servos: Iterable[int], sizes: range, now_s: float) -> int | None:
        """Return the smallest of these sizes that tells an answer of every servo from all others.

        If each size was asked for recently, the size whose request ended first; None if no size will do.
        """
        servos = list(servos)
        newest = {self._newest.get(servo) for servo in servos}
        if not self._owed and not self._over:
            return next((size for size in sizes if size not in newest), None)
        best: tuple[float, int] | None = None
        for size in sizes:
            if not all(self.is_free(servo, size, now_s) for servo in servos):
                continue
            over_s = max((self._over[servo].get(size, -LATEST_S) for servo in servos), default=-LATEST_S)
            age_s = LATEST_S if now_s - over_s > LATEST_S else now_s - over_s
            if age_s == LATEST_S and size not in newest:
                return size
            if best is None or age_s > best[0]:
                best = (age_s, size)
        return best[1] if best else None
