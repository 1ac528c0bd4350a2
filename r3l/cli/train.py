"""`r3l train`: begin or resume a run."""

from __future__ import annotations

import signal
from contextlib import ExitStack

from r3l.cli.settings import TrainOptions


class TrainCommand(TrainOptions):
    """Train unattended from goal images: no resets, no reward function, no person in the room.

    The run directory holds the whole run. Actor and learner are two processes; a supervisor restarts a process that
    dies or hangs. Ctrl-C relaxes the robot at once and writes a checkpoint; --resume continues the run. A pre-flight
    check before the first action says what to expect.
    """

    def __call__(self) -> int:
        """Begin or resume the run.

        SIGTERM ends the command as Ctrl-C does from the first moment on: with 0 if nothing moves yet.
        """
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with ExitStack() as stack:
                try:
                    # Imports torch, which takes one or two seconds.
                    from r3l.cli.launch import prepare, train_supervised, train_sync

                    prepared = prepare(self, stack)
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
