"""What `scripts/benchmark control-loop` runs: see r3l/benchmark/control_loop.py."""

import sys

from r3l.benchmark.control_loop import main

sys.exit(main())
