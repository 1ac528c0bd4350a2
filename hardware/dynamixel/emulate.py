"""Run emulated servos until a signal ends them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from r3l.config import UserError, nearest

from .control_table import BAUD_RATES, MODELS
from .emulator import Emulator, Faults
from .protocol import MAX_ID
from .servo import Servo

PROBABILITIES = ("drop", "corrupt", "duplicate", "garbage", "late")
MAX_LATE_S = 60.0
UNPLUGGED_S = 2.0
"""How long SIGUSR1 unplugs the adapter."""
POLL_S = 0.1


def emulate(
    ids: Sequence[int], model: str, baud_rate: int, *, link: Path | None, faults: Faults, seed: int = 0
) -> None:
    """Emulate servos until SIGINT or SIGTERM; SIGUSR1 unplugs the adapter for two seconds, SIGUSR2 is a brown-out.

    Args:
        ids: id of each servo; an id given twice makes two servos with the same id.
        model: name of the servos' model.
        baud_rate: rate at which the servos receive.
        link: symbolic link to make to the port.
        faults: faults of the wire and the adapter.
        seed: seed of the faults.

    Raises:
        UserError: an argument is not possible.
    """
    ended, unplugged, browned_out = threading.Event(), threading.Event(), threading.Event()
    handlers = {signal.SIGINT: ended, signal.SIGTERM: ended, signal.SIGUSR1: unplugged, signal.SIGUSR2: browned_out}
    before = {number: signal.signal(number, lambda *_, it=event: it.set()) for number, event in handlers.items()}
    try:
        with _make_emulator(ids, model, baud_rate, link, faults, seed) as emulator:
            names = " ".join(map(str, ids))
            print(f"{model} with ids {names} at {baud_rate} baud on {emulator.port}; Ctrl-C ends", flush=True)
            while not ended.wait(POLL_S):
                if unplugged.is_set():
                    unplugged.clear()
                    emulator.unplug()
                    ended.wait(UNPLUGGED_S)
                    emulator.plug_in()
                if browned_out.is_set():
                    browned_out.clear()
                    emulator.brown_out()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_emulator(
    ids: Sequence[int], name: str, baud_rate: int, link: Path | None, faults: Faults, seed: int
) -> Emulator:
    """Return the emulator, not yet started; UserError names the option that is not possible."""
    models = {model.name.lower(): model for model in MODELS.values()}
    model = models.get(name.lower())
    if model is None:
        known = nearest(name.lower(), models)
        raise UserError(f"unknown servo {name!r}; {known} (known: {', '.join(sorted(models))})")
    if baud_rate not in BAUD_RATES:
        raise UserError(f"--baud is {baud_rate}, expected one of {', '.join(map(str, BAUD_RATES))}")
    wrong = [each for each in ids if not 0 <= each <= MAX_ID]
    if wrong or not ids:
        raise UserError(f"--ids has {wrong or 'nothing'}, expected numbers from 0 to {MAX_ID}")
    for option in PROBABILITIES:
        if not 0 <= getattr(faults, option) <= 1:
            raise UserError(f"--{option} is {getattr(faults, option)}, expected a probability from 0 to 1")
    if not 0 <= faults.late_s < MAX_LATE_S:
        raise UserError(f"--late-s is {faults.late_s}, expected seconds from 0 to {MAX_LATE_S:g}")
    if link is not None and (link.exists() or link.is_symlink()):
        raise UserError(f"--link {link} exists; remove it, or name another")
    servos = [Servo(each, model, baud_rate=BAUD_RATES.index(baud_rate)) for each in ids]
    return Emulator(servos, link=link.absolute() if link else None, faults=faults, seed=seed)
