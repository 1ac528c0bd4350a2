"""Time how long each r3l command that computes nothing takes to answer.

The figure is the processor time of the whole process, user and system, as the median of several. The commands take
turns, so that other load on the machine hits all of them. RUN is a run directory where no run is going on.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import exit_code, make_parser, markdown_table, parse, save_figures
from r3l.config.schema import Config
from r3l.run.directory import Run

NAME = "startup"
MAX_S = 0.4
"""Processor time within which a command is to answer."""
COMMANDS = {
    "--version": 0,
    "--help": 0,
    "train --help": 0,
    "config": 0,
    "tasks": 0,
    "robots": 0,
    "status RUN": 0,
    "pause RUN": 2,
    "resume RUN": 2,
    "relax RUN": 0,
    "stop RUN": 2,
}
"""The commands and their exit codes."""


def measure(options: argparse.Namespace) -> int:
    """Time every command, print and write the figures; return 1 if one takes longer than MAX_S."""
    spent_s: dict[str, list[float]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", Config(task="valve"))
        for _ in range(options.repeats):
            for command, code in COMMANDS.items():
                words = command.replace("RUN", str(run.folder)).split()
                expected = None if options.any_code else code
                spent_s[command].append(processor_s([options.python, "-m", "r3l", *words], expected, run.folder))
    found = {command: statistics.median(values) for command, values in spent_s.items()}
    rows = [[f"r3l {command}", f"{value:.2f}"] for command, value in found.items()]
    print("\n".join(markdown_table(["command", "processor time, s"], rows)))
    save_figures(options, {"machine": machine(), "repeats": options.repeats, "processor_s": found})
    return int(max(found.values()) > MAX_S)


def processor_s(command: Sequence[str], code: int | None, folder: Path) -> float:
    """Return the processor time of a command that runs in `folder`; AssertionError if its exit code is not `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code in (None, done.returncode), f"{' '.join(command)}: {done.stderr}"
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def machine() -> dict[str, str | int | None]:
    """Return the processor, the number of its cores and the system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return {"processor": model, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = make_parser(NAME, __doc__)
    parser.add_argument("--repeats", type=int, default=9, help="processes per command (%(default)s)")
    parser.add_argument("--python", default=sys.executable, help="Python whose r3l is timed (this one)")
    parser.add_argument("--any-code", action="store_true", help="accept any exit code, for another version of r3l")
    options = parse(parser, arguments)
    return exit_code(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
