"""Train on the twin as it is and in worlds that vary; see which policies stand worlds they were not trained in.

Each level of `r3l train --randomize` is trained with the same seeds, on goal images of that level. The last weights are
evaluated from the same starts on the nominal world, on the shifted one, and with each command one control period late.
A run that was interrupted goes on, one that is there is not repeated.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import parser_of, policy_figures, save_figures

NAME = "variation"
COMMAND = (sys.executable, "-m", "r3l")
WORLDS = ("none", "shifted", "delayed")
"""Levels of `r3l evaluate --randomize`."""


def run_words(words: Sequence[str], log: Path) -> None:
    """Run one command of r3l, its output in a file."""
    with log.open("ab") as out:
        subprocess.run([*COMMAND, *words], check=True, stdout=out, stderr=subprocess.STDOUT)


def collect(task: str, level: str, folder: Path) -> Path:
    """Return the goal folder of a level."""
    out = folder / f"goals-{level}"
    if not out.exists():
        subprocess.run([*COMMAND, "goals", task, "--randomize", level, "--out", str(out)], check=True)
    return out


def learn(task: str, level: str, seed: int, steps: int, folder: Path) -> Path:
    """Train a level with a seed; return the run directory."""
    run, log = folder / f"{level}-seed{seed}", folder / f"{level}-seed{seed}.log"
    if (run / "config.json").exists():
        run_words(["train", "--resume", str(run)], log)
        return run
    words = ["train", task, "--sync", "--randomize", level, "--steps", str(steps), "--seed", str(seed)]
    words += ["--goals", str(folder / f"goals-{level}"), "--runs", str(folder), "--name", run.name]
    run_words([*words, "--device", "cpu", "--set", "evaluate_every=0"], log)
    return run


def evaluate(run: Path, world: str, episodes: int) -> dict[str, Any]:
    """Return success of a run's last weights in a world, and of each start."""
    out = run / f"benchmark-{world}"
    if not (out / "evaluation.json").exists():
        words = ["evaluate", str(run), "--randomize", world, "--episodes", str(episodes), "--no-baselines"]
        run_words([*words, "--out", str(out)], run.parent / f"{run.name}.log")
    return policy_figures(out)


def table(runs: Sequence[dict[str, Any]], levels: Sequence[str]) -> list[str]:
    """Return one line for each level trained: mean success in each world, and each seed's."""
    lines = ["| trained | " + " | ".join(WORLDS) + " |", "| --- |" + " --- |" * len(WORLDS)]
    for level in levels:
        cells = []
        for world in WORLDS:
            found = [run["worlds"][world]["success"] for run in runs if run["level"] == level]
            cells.append(f"{np.mean(found):.2f} ({', '.join(f'{success:.2f}' for success in found)})")
        lines.append(f"| {level} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = parser_of(NAME, __doc__)
    parser.add_argument("--task", default="valve", help="(%(default)s)")
    parser.add_argument("--levels", nargs="*", default=["none", "mild", "strong"], help="to train (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=15_000, help="of each training (%(default)s)")
    parser.add_argument("--episodes", type=int, default=48, help="of each evaluation (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="at a time (%(default)s)")
    options = parser.parse_args(arguments)
    options.run.mkdir(parents=True, exist_ok=True)
    for level in options.levels:
        collect(options.task, level, options.run)

    def measure(job: tuple[int, str]) -> dict[str, Any]:
        seed, level = job
        run = learn(options.task, level, seed, options.steps, options.run)
        worlds = {world: evaluate(run, world, options.episodes) for world in WORLDS}
        found = ", ".join(f"{world} {worlds[world]['success']:.2f}" for world in WORLDS)
        print(f"{level}, seed {seed}: {found}", flush=True)
        return {"level": level, "seed": seed, "worlds": worlds}

    with ThreadPoolExecutor(options.processes) as pool:
        runs = list(pool.map(measure, [(seed, level) for seed in options.seeds for level in options.levels]))
    lines = table(runs, options.levels)
    print("\n".join(lines))
    save_figures(options.out, NAME, arguments, {"steps": options.steps, "table": lines, "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
