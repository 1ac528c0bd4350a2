"""What `scripts/benchmark results` runs: see r3l/benchmark/results.py."""

import sys

from r3l.benchmark.results import main

sys.exit(main())
