"""What `scripts/benchmark judge` runs: see r3l/benchmark/judging.py."""

import sys

from r3l.benchmark.judging import main

sys.exit(main())
