"""Where the time of a default env step goes, and our SAC update against stable-baselines3's, on one thread.

Every part is timed in blocks that take turns, so that a busy machine slows all of them alike; medians are printed.
Needs the test extra (stable-baselines3).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger

from r3l.cli import tune_process
from r3l.config import Config
from r3l.env import RobotEnv
from r3l.experience import ExperienceStore, Row
from r3l.learner import AGENTS, Learner
from r3l.registry import load_robot, load_task
from r3l.sac import SAC, Batch, SACConfig
from r3l.safety import SafeRobot

OBSERVATION, ACTIONS, BATCH, ROWS = 43, 9, 256, 2000
"""Shapes of the comparison with stable-baselines3."""


def main() -> None:
    """Time everything and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=12, help="blocks per part")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    tune_process()
    with tempfile.TemporaryDirectory() as folder:
        parts = time_in_turns(loop_parts(Path(folder)), options.blocks, 20)
    total = parts["env step"] + sum(parts[name] for name in PER_STEP)
    print("one env step of the default preset, ms (median)")
    for name, value in parts.items():
        print(f"  {name:32} {1e3 * value:7.2f}")
    print(f"  sum: {1e3 * total:.1f} ms, {1 / total:.0f} env steps per second")
    updates = time_in_turns(peer_parts(), options.blocks, 20)
    ratio = updates["stable-baselines3"] / updates["ours, the same network"]
    shapes = f"observation {OBSERVATION}, actions {ACTIONS}, 256x2, batch {BATCH}"
    print(f"SAC update ({shapes}), ms (median)")
    for name, value in updates.items():
        print(f"  {name:32} {1e3 * value:7.2f}")
    print(f"  ours is {ratio:.2f} times as fast on the same network")
    if options.out:
        found = {"parts_s": parts, "env_steps_per_s": 1 / total, "updates_s": updates, "ratio": ratio}
        options.out.write_text(json.dumps(found, indent=2) + "\n")


PER_STEP = (
    "encode and act",
    "store and follow",
    "update task",
    "update perturbation",
    "update novelty",
    "classifier / 5",
)


def time_in_turns(parts: dict[str, Callable[[], object]], blocks: int, calls: int) -> dict[str, float]:
    """Return the median over blocks of the seconds per call, the parts taking turns."""
    spent: dict[str, list[float]] = {name: [] for name in parts}
    for block in range(blocks + 1):
        for name, part in parts.items():
            began = time.perf_counter()
            for _ in range(calls):
                part()
            if block:  # the first one warms up
                spent[name].append((time.perf_counter() - began) / calls)
    return {name: statistics.median(times) for name, times in spent.items()}


def loop_parts(folder: Path) -> dict[str, Callable[[], object]]:
    """Return what a default env step does, part by part, over a replay of random steps."""
    config, task = Config(), load_task("valve")
    rig = task.rig
    robot = load_robot("twin", task)
    env = RobotEnv(SafeRobot(robot, rig.limits, rig.max_step_rad))
    observed, info = env.reset()
    store = ExperienceStore(folder / "experience.sqlite", (rig.camera.height, rig.camera.width, 3))
    rng = np.random.default_rng(0)
    goals = torch.from_numpy(rng.integers(0, 255, (200, 3, 64, 64), np.uint8))
    learner = Learner(config, robot.spec, goals, device=torch.device("cpu"))
    policies = learner.policies()
    actions = len(rig.joints)

    def keep() -> None:
        vectors = observed["proprioception"][:actions], info["requested"], info["applied"], info["diagnostic"]
        store.append(Row(0, learner.sequence, learner.sequence % 3, observed["image"], *vectors, info["time_s"]))
        learner.follow(store)

    def step() -> None:
        nonlocal observed, info
        observed, _, _, _, info = env.step(rng.uniform(-1, 1, actions).astype(np.float32))

    def act() -> None:
        policies.see(observed["image"], observed["proprioception"][:actions], info["applied"], info["diagnostic"])
        policies.act("task", learner.generator)

    for _ in range(ROWS):
        step()
        keep()
    rows = learner.replay.newest(config.novelty.batch_size)
    states = learner.replay.latents[rows]
    return {
        "env step": step,
        "  of that, render and read": robot.observe,
        "encode and act": act,
        "store and follow": keep,
        "update task": lambda: learner._update_agents(AGENTS[:1]),
        "update perturbation": lambda: learner._update_agents(AGENTS[1:]),
        "update novelty": lambda: learner.novelty["perturbation"].update(states),
        "classifier / 5": lambda: learner._update_classifier() if rng.random() < 0.2 else None,
        "(encoder update, pretraining)": lambda: learner._update_vae(0.0) if rng.random() < 0.1 else None,
    }


class Shapes(gymnasium.Env[np.ndarray, np.ndarray]):
    """Random observations of the compared shapes."""

    observation_space = gymnasium.spaces.Box(-1, 1, (OBSERVATION,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTIONS,), np.float32)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        """Return noise."""
        return self.observation_space.sample(), {}

    def step(self, action):  # type: ignore[no-untyped-def]
        """Return noise."""
        return self.observation_space.sample(), 0.0, False, False, {}


def peer_parts() -> dict[str, Callable[[], object]]:
    """Return one update of each, sampling included, with the same shapes and both on one thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = stable_baselines3.SAC("MlpPolicy", Shapes(), learning_starts=ROWS, batch_size=BATCH, seed=0)
        peer.learn(ROWS)
    peer.set_logger(Logger(None, []))
    same = SAC(OBSERVATION, ACTIONS, SACConfig(batch_size=BATCH, layer_norm=False))
    ours = SAC(OBSERVATION, ACTIONS, SACConfig(batch_size=BATCH))
    generator = torch.Generator().manual_seed(0)
    seen, done = torch.randn(ROWS, OBSERVATION), torch.rand(ROWS, ACTIONS) * 2 - 1
    reward, discount = torch.rand(ROWS), torch.full((ROWS,), 0.97)

    def update(agent: SAC) -> None:
        rows = torch.randint(1, ROWS, (BATCH,), generator=generator)
        batch = Batch(seen[rows - 1], done[rows], reward[rows], seen[rows], discount[rows])
        agent.update(batch, generator)

    return {
        "ours, the same network": lambda: update(same),
        "ours, LayerNorm as by default": lambda: update(ours),
        "stable-baselines3": lambda: peer.train(1, BATCH),
    }


if __name__ == "__main__":
    main()
