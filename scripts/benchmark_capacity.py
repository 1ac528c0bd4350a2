"""What `scripts/benchmark capacity` runs: see r3l/benchmark/capacity.py."""

import sys

from r3l.benchmark.capacity import main

sys.exit(main())
