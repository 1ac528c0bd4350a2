"""What `scripts/benchmark rate` runs: see r3l/benchmark/rate.py."""

import sys

from r3l.benchmark.rate import main

sys.exit(main())
