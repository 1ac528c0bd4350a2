"""Where `r3l` and `python -m r3l` begin: a word to a running run goes at once, without loading what learns."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from r3l.config.errors import UserError
from r3l.training.control_socket import WORDS, ask


def main() -> int:
    """Tell a running run what is wanted, or run any other command; return the exit code."""
    words = sys.argv[1:]
    if len(words) == 2 and words[0] in WORDS and (Path(words[1]) / "control").is_socket():
        try:
            print(ask(Path(words[1]), words[0]))
        except UserError as error:
            print(f"r3l: {error}", file=sys.stderr)
            return 2
        return 0
    is_training = words[:1] == ["train"]
    try:
        if is_training:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # while what learns is loaded, a second or two
        from r3l.cli.main import main as run
    except KeyboardInterrupt:
        print("stopped before anything was started")
        return 0 if is_training else 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
