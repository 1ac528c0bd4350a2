"""Train on the nominal twin and on randomized twins; evaluate each policy in worlds that it was not trained in.

Each level of `r3l train --randomize` is trained with the same seeds, on goal images of that level. The last weights are
evaluated from the same starts in the nominal world, in the shifted world, and with each command one control period
late. An interrupted run is resumed; a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import exit_code, make_parser, markdown_table, parse, policy_figures, save_figures
from benchmarks.running import R3L, collect_goals, run_logged, train_command

NAME = "variation"
WORLDS = ("none", "shifted", "delayed")
"""Levels of `r3l evaluate --randomize`."""
VARIED_LIGHT = ("mild", "strong")
"""Levels that train with the variant domain-randomization; the others train with the default settings."""


def learn(task: str, level: str, seed: int, steps: int, folder: Path) -> Path:
    """Train a level with a seed, or resume it; return the run directory."""
    run = folder / f"{level}-seed{seed}"
    words = ["--sync", "--randomize", level, "--steps", str(steps), "--seed", str(seed)]
    words += ["--variant", "domain-randomization"] if level in VARIED_LIGHT else []
    words += ["--goals", str(folder / f"goals-{level}"), "--set", "evaluate_every=0"]
    run_logged(train_command(run, task, *words), folder / f"{run.name}.log")
    return run


def evaluate(run: Path, world: str, episodes: int) -> dict[str, Any]:
    """Evaluate the last weights of a run in a world; return the figures of the policy."""
    out = run / f"benchmark-{world}"
    if not (out / "evaluation.json").exists():
        words = ["--randomize", world, "--episodes", str(episodes), "--no-baselines", "--out", str(out)]
        run_logged([*R3L, "evaluate", str(run), *words], run.parent / f"{run.name}.log")
    return policy_figures(out)


def table(runs: Sequence[dict[str, Any]], levels: Sequence[str]) -> list[str]:
    """Return a Markdown table: mean success and the success of each seed, per trained level and world."""
    rows = []
    for level in levels:
        cells = [level]
        for world in WORLDS:
            found = [run["worlds"][world]["success"] for run in runs if run["level"] == level]
            cells.append(f"{np.mean(found):.2f} ({', '.join(f'{success:.2f}' for success in found)})")
        rows.append(cells)
    return markdown_table(["trained", *WORLDS], rows)


def measure(options: argparse.Namespace) -> int:
    """Train and evaluate all levels and seeds, print and write the figures."""
    options.run.mkdir(parents=True, exist_ok=True)
    for level in options.levels:
        collect_goals(options.task, options.run / f"goals-{level}", "--randomize", level)

    def run_job(job: tuple[int, str]) -> dict[str, Any]:
        seed, level = job
        run = learn(options.task, level, seed, options.steps, options.run)
        worlds = {world: evaluate(run, world, options.episodes) for world in WORLDS}
        found = ", ".join(f"{world} {worlds[world]['success']:.2f}" for world in WORLDS)
        print(f"{level}, seed {seed}: {found}", flush=True)
        return {"level": level, "seed": seed, "worlds": worlds}

    with ThreadPoolExecutor(options.processes) as pool:
        runs = list(pool.map(run_job, [(seed, level) for seed in options.seeds for level in options.levels]))
    lines = table(runs, options.levels)
    print("\n".join(lines))
    save_figures(options, {"steps": options.steps, "table": lines, "runs": runs})
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 2 for bad input or a failed command."""
    parser = make_parser(NAME, __doc__, has_run=True)
    parser.add_argument("--task", default="valve", help="task (%(default)s)")
    parser.add_argument("--levels", nargs="*", default=["none", "mild", "strong"], help="levels to train (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds per level (%(default)s)")
    parser.add_argument("--steps", type=int, default=15_000, help="env steps per training (%(default)s)")
    parser.add_argument("--episodes", type=int, default=48, help="episodes per evaluation (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time (%(default)s)")
    options = parse(parser, arguments)
    return exit_code(lambda: measure(options), is_resumable=True)


if __name__ == "__main__":
    sys.exit(main())
