"""What `scripts/benchmark kills` runs: see r3l/benchmark/kills.py."""

import sys

from r3l.benchmark.kills import main

sys.exit(main())
