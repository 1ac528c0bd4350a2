"""Entry point of `r3l` and `python -m r3l`."""

import os
import sys

from r3l.cli.main import main as run

QUICK = ("status", "pause", "resume", "relax", "stop", "tasks", "robots", "config")
"""Commands that compute nothing with matrices."""


def main() -> int:
    """Run the command line; return the exit code."""
    if sys.argv[1:2] and sys.argv[1] in QUICK:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's idle threads take a fourth of a quick command
    return run()


if __name__ == "__main__":
    sys.exit(main())
