"""Learn through the whole stack without hardware, with and without faults, and carry a policy over to it.

Trains on `--robot dclaw-emulated`, as `r3l train` does, `--clean` seeds without faults and `--seeds` with them: 1% of
packets with a bit turned, and a camera that is lost every `--lost-every` observations. Success of the last weights and
of the untrained ones is measured on the twin with the same rig. With `--transfer RUN`, a policy that was trained on the
twin with that rig is evaluated on the twin and on the stack, from the same starts.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import parser_of, policy_figures, save_figures
from r3l.hardware.dclaw.emulated import FAULTS_VARIABLE
from r3l.hardware.dclaw.rig import default_rig, write_rig
from r3l.run.jsonl import read_jsonl

NAME = "stack"
COMMAND = (sys.executable, "-m", "r3l")
CORRUPT = 0.01


def evaluate(run: Path, rig: Path, robot: str, episodes: int, step: int | None = None) -> dict[str, Any]:
    """Return success of a run's policy on a robot, and of each start."""
    out = run / f"benchmark-{robot}-{'last' if step is None else step}"
    words = [*COMMAND, "evaluate", str(run), "--robot", robot, "--rig", str(rig), "--episodes", str(episodes)]
    words += ["--no-baselines", "--out", str(out)] + ([] if step is None else ["--step", str(step)])
    subprocess.run(words, check=True)
    return policy_figures(out)


def learn(folder: Path, rig: Path, steps: int, seed: int, faults: dict[str, float], episodes: int) -> dict[str, Any]:
    """Train through the stack; return what the policy reached, and which events there were."""
    if not folder.exists():
        words = [*COMMAND, "train", "valve", "--robot", "dclaw-emulated", "--rig", str(rig), "--steps", str(steps)]
        words += ["--seed", str(seed), "--runs", str(folder.parent), "--name", folder.name, "--device", "cpu"]
        words += ["--set", "evaluate_every=0", "--goals", str(folder.parent / "goals")]
        subprocess.run(words, check=True, env=os.environ | {FAULTS_VARIABLE: json.dumps(faults)})
    kinds: dict[str, int] = {}
    for event in read_jsonl(folder / "events.jsonl"):
        kinds[event["kind"]] = kinds.get(event["kind"], 0) + 1
    untrained, trained = (evaluate(folder, rig, "twin", episodes, step) for step in (0, None))
    return {"seed": seed, "faults": faults, "untrained": untrained, "trained": trained, "events": kinds}


def transfer(run: Path, rig: Path, episodes: int) -> dict[str, Any]:
    """Return success of a policy on the twin and on the stack, and the difference with its interval."""
    twin, stack = (evaluate(run, rig, robot, episodes) for robot in ("twin", "dclaw-emulated"))
    apart = paired_difference(stack["successes"], twin["successes"])
    return {"twin": twin, "stack": stack, "stack_less_twin": apart}


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> list[float]:
    """Return by how much the first succeeds more often from the same starts, and the 95% interval of that.

    Source: Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data".
    """
    pairs = list(zip(first, second, strict=True))
    count = len(pairs) + 2
    more, less = (1 + sum(pair == kind for pair in pairs) for kind in ((True, False), (False, True)))
    apart = (more - less) / count
    half = 1.96 * math.sqrt(((more + less) / count - apart**2) / count)
    return [(more - less) / len(pairs), apart - half, apart + half]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = parser_of(NAME, __doc__)
    parser.add_argument("--steps", type=int, default=6000, help="of each training (%(default)s)")
    parser.add_argument("--clean", type=int, nargs="*", default=[0], help="seeds without faults (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds with faults (%(default)s)")
    parser.add_argument("--lost-every", type=int, default=2000, help="observations (%(default)s)")
    parser.add_argument("--episodes", type=int, default=48, help="of each evaluation (%(default)s)")
    parser.add_argument("--transfer", type=Path, help="run that was trained with --robot twin --rig RIG")
    parser.add_argument("--transfer-episodes", type=int, default=96, help="(%(default)s)")
    parser.add_argument("--rig", type=Path, help="rig file; the run's folder gets the default rig's otherwise")
    options = parser.parse_args(arguments)
    options.run.mkdir(parents=True, exist_ok=True)
    rig = options.rig or options.run / "hand.toml"
    if options.rig is None:
        write_rig(rig, default_rig())
    if not (options.run / "goals").exists():
        subprocess.run([*COMMAND, "goals", "valve", "--out", str(options.run / "goals")], check=True)
    faults = {"corrupt": CORRUPT, "camera_lost_every": options.lost_every}
    figures: dict[str, Any] = {"steps": options.steps, "runs": []}
    if options.transfer:
        figures["transfer"] = transfer(options.transfer, rig, options.transfer_episodes)
        apart, low, high = figures["transfer"]["stack_less_twin"]
        print(f"stack less twin: {apart:+.3f} (95% interval {low:+.3f} to {high:+.3f})", flush=True)
    for name, seeds, made in (("clean", options.clean, {}), ("faults", options.seeds, faults)):
        for seed in seeds:
            found = learn(options.run / f"{name}-seed{seed}", rig, options.steps, seed, made, options.episodes)
            figures["runs"].append(found)
            before, after = found["untrained"]["success"], found["trained"]["success"]
            print(f"{name}, seed {seed}: {before:.2f} → {after:.2f}", flush=True)
    save_figures(options.out, NAME, arguments, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
