"""Entry point of `python -m r3l`."""

import sys

from r3l.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
