"""Train variants over seeds, two processes at a time, and record every curve under benchmarks/learning/.

A variant is `default`, `paper` or one of the variants of `r3l train --help`. Finished records are skipped, so that
the command resumes. Nothing is picked: every seed of every variant is kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

RECORDS = Path("benchmarks/learning")
PACKAGES = ("torch", "numpy", "pybullet", "gymnasium", "r3l")


def main() -> int:
    """Run what is missing, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="valve")
    parser.add_argument("--variants", default="default", help="comma-separated")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--steps", type=int, default=25_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="where the run directories go")
    options = parser.parse_args()
    RECORDS.mkdir(parents=True, exist_ok=True)
    goals = Path("goals") / options.task
    if not goals.exists():
        subprocess.run(["r3l", "goals", options.task], check=True)
    waiting = [
        (variant, int(seed))
        for seed in options.seeds.split(",")
        for variant in options.variants.split(",")
        if not record_path(options.task, variant, int(seed)).exists()
    ]
    running: list[tuple[str, int, Path, subprocess.Popen[bytes]]] = []
    failed = 0
    while waiting or running:
        while waiting and len(running) < 2:
            variant, seed = waiting.pop(0)
            running.append(start(options, variant, seed))
        time.sleep(1)
        for entry in [entry for entry in running if entry[3].poll() is not None]:
            running.remove(entry)
            variant, seed, folder, process = entry
            if process.returncode:
                failed += 1
                print(f"{variant} seed {seed} failed: see {folder}.log", flush=True)
                continue
            path = record(options.task, variant, seed, folder)
            print(f"{variant} seed {seed}: {path}", flush=True)
    return 1 if failed else 0


def record_path(task: str, variant: str, seed: int) -> Path:
    """Return where a curve is recorded."""
    return RECORDS / f"{task}-{variant}-{seed}.json"


def start(options: argparse.Namespace, variant: str, seed: int) -> tuple[str, int, Path, subprocess.Popen[bytes]]:
    """Start or resume one run."""
    folder = options.runs / f"{options.task}-{variant}-{seed}"
    if (folder / "config.json").exists():
        command = ["r3l", "train", "--resume", str(folder)]
    else:
        command = ["r3l", "train", options.task, "--steps", str(options.steps), "--seed", str(seed)]
        command += ["--runs", str(options.runs), "--name", folder.name]
        if variant == "paper":
            command += ["--preset", "paper"]
        elif variant != "default":
            command += ["--variant", variant]
    options.runs.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("ab") as log:
        return variant, seed, folder, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def record(task: str, variant: str, seed: int, folder: Path) -> Path:
    """Keep a finished run's resolved config, versions, evaluations and metrics in one file."""
    lines = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("evaluations", "metrics", "events")
    }
    whole = {
        "command": " ".join(["scripts/benchmark", "learning", *sys.argv[1:]]),
        "variant": variant,
        "seed": seed,
        "versions": {name: version(name) for name in PACKAGES},
        "config": json.loads((folder / "config.json").read_text())["config"],
        "evaluations": lines["evaluations"],
        "metrics": lines["metrics"][:: max(1, len(lines["metrics"]) // 50)],
        "events": lines["events"],
    }
    path = record_path(task, variant, seed)
    path.write_text(json.dumps(whole) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
