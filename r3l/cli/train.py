"""`r3l train`: begin or resume a run."""

from __future__ import annotations

import signal
from contextlib import ExitStack

from r3l.cli.settings import TrainCommand


def train(command: TrainCommand) -> int:
    """Begin or resume a run; return the exit code.

    From its first moment on SIGTERM ends the command as Ctrl-C does: with 0 if nothing moves yet.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            try:
                from r3l.cli.launch import prepare, train_supervised, train_sync  # imports torch: one or two seconds

                prepared = prepare(command, stack)
                if prepared is None:
                    return 0
                run, ends_epoch_s, lock = prepared
                if not run.config.sync:
                    return train_supervised(run, ends_epoch_s, lock)
            except KeyboardInterrupt:
                print("stopped before anything was started")
                return 0
            return train_sync(run)
    finally:
        signal.signal(signal.SIGTERM, before)
