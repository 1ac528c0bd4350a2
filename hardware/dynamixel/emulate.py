"""`r3l emulate`: emulated servos until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from r3l.cli.devices import EmulateCommand
from r3l.config import UserError, nearest

from .control_table import BAUD_RATES, MODELS
from .emulator import Emulator, Faults
from .protocol import MAX_ID
from .servo import Servo

PROBABILITIES = ("drop", "corrupt", "duplicate", "garbage", "late")


def emulator_of(command: EmulateCommand) -> Emulator:
    """Return the emulator that a command asks for, not yet started; UserError says what is wrong with it."""
    models = {model.name.lower(): model for model in MODELS.values()}
    if command.model.lower() not in models:
        known = nearest(command.model.lower(), models)
        raise UserError(f"unknown servo {command.model!r}; {known} (known: {', '.join(sorted(models))})")
    if command.baud not in BAUD_RATES:
        raise UserError(f"--baud is {command.baud}, expected one of {', '.join(map(str, BAUD_RATES))}")
    wrong = [each for each in command.ids if not 0 <= each <= MAX_ID]
    if wrong or not command.ids:
        raise UserError(f"--ids has {wrong or 'nothing'}, expected numbers from 0 to {MAX_ID}")
    for name in PROBABILITIES:
        if not 0 <= getattr(command, name) <= 1:
            raise UserError(f"--{name} is {getattr(command, name)}, expected a probability from 0 to 1")
    if not 0 <= command.late_s < 60:
        raise UserError(f"--late-s is {command.late_s}, expected seconds from 0 to 60")
    if command.link is not None and (command.link.exists() or command.link.is_symlink()):
        raise UserError(f"--link {command.link} exists; remove it, or name another")
    model, rate = models[command.model.lower()], BAUD_RATES.index(command.baud)
    faults = Faults(
        **{name: getattr(command, name) for name in PROBABILITIES},
        late_s=command.late_s,
        echo=command.echo,
        silent=set(command.silent),
    )
    servos = [Servo(each, model, baud_rate=rate) for each in command.ids]
    return Emulator(servos, link=_absolute(command.link), faults=faults, seed=command.seed)


def emulate(command: EmulateCommand) -> int:
    """Emulate servos until SIGINT or SIGTERM; SIGUSR1 unplugs for two seconds, SIGUSR2 is a brown-out."""
    over, unplugged, browned = threading.Event(), threading.Event(), threading.Event()
    handlers = {signal.SIGINT: over, signal.SIGTERM: over, signal.SIGUSR1: unplugged, signal.SIGUSR2: browned}
    before = {number: signal.signal(number, lambda *_, it=event: it.set()) for number, event in handlers.items()}
    try:
        with emulator_of(command) as emulator:
            ids = " ".join(map(str, command.ids))
            print(f"{command.model} with ids {ids} at {command.baud} baud on {emulator.port}; Ctrl-C ends", flush=True)
            while not over.wait(0.1):
                if unplugged.is_set():
                    unplugged.clear()
                    emulator.unplug()
                    over.wait(2.0)
                    emulator.plug_in()
                if browned.is_set():
                    browned.clear()
                    emulator.brown_out()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path else None
