"""What `scripts/benchmark learning` runs: see r3l/benchmark/learning.py."""

import sys

from r3l.benchmark.learning import main

sys.exit(main())
