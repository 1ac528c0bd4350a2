"""Learn through the whole stack without hardware, with and without faults, and carry a policy over to it.

Trains on `--robot dclaw-emulated`, as `r3l train` does, `--clean` seeds without faults and `--seeds` with them: 1% of
packets with a bit turned, and a camera that is lost every `--lost-every` observations. Success of the last weights and
of the untrained ones is measured on the twin with the same rig. With `--transfer RUN`, a policy that was trained on the
twin with that rig is evaluated on the twin and on the stack, from the same starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r3l.benchmark.figures import parser_of, save_figures
from r3l.hardware.dclaw.emulated import FAULTS_VARIABLE
from r3l.hardware.dclaw.rig import default_rig, write_rig
from r3l.jsonl import read_jsonl
from r3l.trials import difference

NAME = "stack"
COMMAND = (sys.executable, "-m", "r3l")
CORRUPT = 0.01


def evaluate(run: Path, rig: Path, robot: str, episodes: int, step: int | None = None) -> dict[str, Any]:
    """Return success of a run's policy on a robot, and of each start."""
    out = run / f"benchmark-{robot}-{'last' if step is None else step}"
    words = [*COMMAND, "evaluate", str(run), "--robot", robot, "--rig", str(rig), "--episodes", str(episodes)]
    words += ["--no-baselines", "--out", str(out)] + ([] if step is None else ["--step", str(step)])
    subprocess.run(words, check=True)
    found = json.loads((out / "evaluation.json").read_text())["policy"]
    return {
        "success": found["success"],
        "interval": found["success_interval"],
        "episodes": found["episodes"],
        "successes": [start["success"] for start in found["starts"]],
    }


def learn(folder: Path, rig: Path, steps: int, seed: int, faults: dict[str, float], episodes: int) -> dict[str, Any]:
    """Train through the stack; return what the policy reached, and which events there were."""
    if not folder.exists():
        words = [*COMMAND, "train", "valve", "--robot", "dclaw-emulated", "--rig", str(rig), "--steps", str(steps)]
        words += ["--seed", str(seed), "--runs", str(folder.parent), "--name", folder.name, "--device", "cpu"]
        words += ["--set", "evaluate_every=0"]
        subprocess.run(words, check=True, env=os.environ | {FAULTS_VARIABLE: json.dumps(faults)})
    kinds: dict[str, int] = {}
    for event in read_jsonl(folder / "events.jsonl"):
        kinds[event["kind"]] = kinds.get(event["kind"], 0) + 1
    untrained, trained = (evaluate(folder, rig, "twin", episodes, step) for step in (0, None))
    return {"seed": seed, "faults": faults, "untrained": untrained, "trained": trained, "events": kinds}


def transfer(run: Path, rig: Path, episodes: int) -> dict[str, Any]:
    """Return success of a policy on the twin and on the stack, and the difference with its interval."""
    twin, stack = (evaluate(run, rig, robot, episodes) for robot in ("twin", "dclaw-emulated"))
    apart, low, high = difference(stack["successes"], twin["successes"])
    same = sum(one == other for one, other in zip(twin["successes"], stack["successes"], strict=True))
    return {"twin": twin, "stack": stack, "stack_less_twin": [apart, low, high], "starts_that_end_alike": same}


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
    faults = {"corrupt": CORRUPT, "camera_lost_every": options.lost_every}
    figures: dict[str, Any] = {"steps": options.steps, "runs": []}
    if options.transfer:
        figures["transfer"] = transfer(options.transfer, rig, options.transfer_episodes)
        print(json.dumps({key: figures["transfer"][key] for key in ("stack_less_twin", "starts_that_end_alike")}))
    for name, seeds, made in (("clean", options.clean, {}), ("faults", options.seeds, faults)):
        for seed in seeds:
            found = learn(options.run / f"{name}-seed{seed}", rig, options.steps, seed, made, options.episodes)
            figures["runs"].append(found)
            print(f"{name}, seed {seed}: {found['untrained']['success']:.2f} → {found['trained']['success']:.2f}")
    save_figures(options.out, NAME, arguments, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
