"""Draw the recorded learning curves: benchmarks/learning/*.json to benchmarks/learning.png, and print the table.

Every seed is drawn thin, the mean of a variant thick; nothing is left out. The table is what the README shows.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

RECORDS = Path("benchmarks/learning")


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="valve")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/learning.png"))
    options = parser.parse_args()
    curves: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for path in sorted(RECORDS.glob(f"{options.task}-*.json")):
        record = json.loads(path.read_text())
        points = [(entry["step"], entry["success"]) for entry in record["evaluations"]]
        curves[record["variant"]].append((record["seed"], np.array(points)))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    print("| variant | seeds | env steps | success, mean of the last three evaluations | each seed |")
    print("| --- | --- | --- | --- | --- |")
    for index, (variant, runs) in enumerate(sorted(curves.items())):
        colour = f"C{index}"
        for _, points in runs:
            axes.plot(points[:, 0], points[:, 1], color=colour, alpha=0.3, linewidth=0.8)
        shortest = min(len(points) for _, points in runs)
        mean = np.mean([points[:shortest, 1] for _, points in runs], axis=0)
        steps = runs[0][1][:shortest, 0]
        axes.plot(steps, mean, color=colour, label=f"{variant} ({len(runs)} seeds)", linewidth=2)
        finals = [float(points[-3:, 1].mean()) for _, points in runs]
        each = ", ".join(f"{final:.2f}" for final in finals)
        last = max(int(points[-1, 0]) for _, points in runs)
        print(f"| {variant} | {len(runs)} | {last:,} | {np.mean(finals):.2f} | {each} |")
    axes.set(xlabel="env steps", ylabel="success within 15°, 24 starts", ylim=(-0.02, 1.02), title=options.task)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
