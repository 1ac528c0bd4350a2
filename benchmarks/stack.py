"""Train through the whole driver stack on emulated servos, with and without faults, and transfer a policy to it.

Trains with `--robot dclaw-emulated`: the `--clean` seeds without faults, the `--seeds` with faults. The faults are a
flipped bit in 1% of the packets, and a camera that is lost every `--lost-every` observations. Success of the untrained
and of the last weights is measured on the twin with the same rig. With `--transfer RUN`, a policy trained on the twin
with that rig is evaluated on the twin and on the stack from the same starts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import exit_code, make_parser, parse, policy_figures, save_figures
from benchmarks.running import R3L, collect_goals, run_logged, train_command
from r3l.hardware.dclaw.emulated import FAULTS_VARIABLE
from r3l.hardware.dclaw.rig import default_rig, write_rig
from r3l.run.jsonl import read_jsonl

NAME = "stack"
CORRUPT_SHARE = 0.01
"""Share of packets with a flipped bit."""
Z95 = 1.96


def evaluate(run: Path, rig: Path, robot: str, episodes: int, step: int | None = None) -> dict[str, Any]:
    """Evaluate weights of a run on a robot, by default the last ones; return the figures of the policy."""
    out = run / f"benchmark-{robot}-{'last' if step is None else step}"
    command = [*R3L, "evaluate", str(run), "--robot", robot, "--rig", str(rig), "--episodes", str(episodes)]
    command += ["--no-baselines", "--out", str(out)] + ([] if step is None else ["--step", str(step)])
    run_logged(command, log_of(run))
    return policy_figures(out)


def log_of(run: Path) -> Path:
    """Return the log of the commands on a run, beside its folder."""
    return run.with_name(f"{run.name}.log")


def learn(folder: Path, rig: Path, steps: int, seed: int, faults: dict[str, float], episodes: int) -> dict[str, Any]:
    """Train through the stack if there is no run yet; return success before and after, and the number of events."""
    if not folder.exists():
        words = ["--robot", "dclaw-emulated", "--rig", str(rig), "--steps", str(steps), "--seed", str(seed)]
        words += ["--set", "evaluate_every=0", "--goals", str(folder.parent / "goals")]
        command = train_command(folder, "valve", *words)
        run_logged(command, log_of(folder), {FAULTS_VARIABLE: json.dumps(faults)})
    kinds = dict(Counter(event["kind"] for event in read_jsonl(folder / "events.jsonl")))
    untrained, trained = (evaluate(folder, rig, "twin", episodes, step) for step in (0, None))
    return {"seed": seed, "faults": faults, "untrained": untrained, "trained": trained, "events": kinds}


def transfer(run: Path, rig: Path, episodes: int) -> dict[str, Any]:
    """Evaluate a policy on the twin and on the stack; return both and the difference with its interval."""
    twin, stack = (evaluate(run, rig, robot, episodes) for robot in ("twin", "dclaw-emulated"))
    apart = paired_difference(stack["successes"], twin["successes"])
    return {"twin": twin, "stack": stack, "stack_less_twin": apart}


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> list[float]:
    """Return the difference in success rate, first minus second, from the same starts, and its 95% interval.

    Source: Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data".
    """
    pairs = list(zip(first, second, strict=True))
    count = len(pairs) + 2
    more, less = (1 + sum(pair == kind for pair in pairs) for kind in ((True, False), (False, True)))
    apart = (more - less) / count
    half = Z95 * math.sqrt(((more + less) / count - apart**2) / count)
    return [(more - less) / len(pairs), apart - half, apart + half]


def measure(options: argparse.Namespace) -> int:
    """Transfer and train as asked, print and write the figures."""
    options.run.mkdir(parents=True, exist_ok=True)
    rig = options.rig or options.run / "hand.toml"
    if options.rig is None:
        write_rig(rig, default_rig())
    collect_goals("valve", options.run / "goals")
    faults = {"corrupt": CORRUPT_SHARE, "camera_lost_every": options.lost_every}
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
    save_figures(options, figures)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 2 for bad input or a failed command."""
    parser = make_parser(NAME, __doc__, has_run=True)
    parser.add_argument("--steps", type=int, default=6000, help="env steps per training (%(default)s)")
    parser.add_argument("--clean", type=int, nargs="*", default=[0], help="seeds without faults (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds with faults (%(default)s)")
    parser.add_argument(
        "--lost-every", type=int, default=2000, help="observations between two losses of the camera (%(default)s)"
    )
    parser.add_argument("--episodes", type=int, default=48, help="episodes per evaluation (%(default)s)")
    parser.add_argument("--transfer", type=Path, metavar="RUN", help="run trained with --robot twin --rig RIG")
    parser.add_argument("--transfer-episodes", type=int, default=96, help="episodes on each robot (%(default)s)")
    parser.add_argument("--rig", type=Path, help="rig file (default: the default rig, written to the run folder)")
    options = parse(parser, arguments)
    return exit_code(lambda: measure(options), is_resumable=True)


if __name__ == "__main__":
    sys.exit(main())
