"""Figures: the options that the measuring benchmarks share, and the JSON file that each leaves behind."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import versions
from r3l.run.files import write_file


def parser_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser for `scripts/benchmark NAME` with where its run and its figures go."""
    parser = argparse.ArgumentParser(
        prog=f"scripts/benchmark {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/benchmark") / name, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/{name}.json"), help="(%(default)s)")
    return parser


def policy_figures(folder: Path) -> dict[str, Any]:
    """Return of an evaluation's folder what the policy reached: success, its 95% interval, and each start's success."""
    found = json.loads((folder / "evaluation.json").read_text())["policy"]
    return {
        "success": found["success"],
        "interval": found["success_interval"],
        "episodes": found["episodes"],
        "successes": [start["success"] for start in found["starts"]],
    }


def save_figures(path: Path, name: str, arguments: Sequence[str], figures: Mapping[str, Any]) -> None:
    """Write figures with the command and the versions that they are from, and say where they are."""
    saved = {"command": " ".join(["scripts/benchmark", name, *arguments]), "versions": versions()} | dict(figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(saved, indent=1).encode())
    print(path)
