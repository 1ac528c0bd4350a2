"""The command line, exit code, tables and JSON files that the benchmarks share."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import versions
from r3l.config.errors import UserError
from r3l.run.files import write_file


def make_parser(name: str, description: str | None, *, has_run: bool = False) -> argparse.ArgumentParser:
    """Return the parser of `scripts/benchmark NAME` with --out, and with --run for a benchmark that keeps a run."""
    parser = plain_parser(f"scripts/benchmark {name}", description)
    if has_run:
        parser.add_argument("--run", type=Path, default=Path("runs/benchmark") / name, help="run folder (%(default)s)")
    path = Path(f"benchmarks/{name}.json")
    parser.add_argument("--out", type=Path, default=path, help="JSON file of the figures (%(default)s)")
    return parser


def plain_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser without options that prints its description as written."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=command, description=description, formatter_class=formatter)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, those of the process if None; the result's `command` is the whole command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    options.command = " ".join([parser.prog, *given])
    return options


def exit_code(work: Callable[[], int], *, is_resumable: bool = False) -> int:
    """Do the work and return its exit code; 2 for a UserError or an OSError, 130 for SIGINT or SIGTERM."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work()
    except (UserError, OSError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; run the same command again to continue" if is_resumable else ""
        print(f"benchmark: stopped{hint}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (titles, ["---"] * len(titles), *rows)]


def policy_figures(folder: Path) -> dict[str, Any]:
    """Read from an evaluation's folder the policy's success, its 95% interval, and the success of each start."""
    found = json.loads((folder / "evaluation.json").read_text())["policy"]
    return {
        "success": found["success"],
        "interval": found["success_interval"],
        "episodes": found["episodes"],
        "successes": [start["success"] for start in found["starts"]],
    }


def save_figures(options: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write figures to `options.out` with the command and the package versions that made them, and print the path."""
    saved = {"command": options.command, "versions": versions()} | dict(figures)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(options.out, json.dumps(saved, indent=1).encode())
    print(options.out)
