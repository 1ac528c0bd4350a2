"""Time one default env step and its parts, and compare r3l's SAC update with stable-baselines3's.

The whole step is the sync loop of the default preset, including homing; the updates of its two agents overlap on two
threads. The parts and the two SAC updates are timed one at a time on one thread. All take turns in short blocks, so
that other load on the machine hits all of them; the printed figures are medians. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger

from benchmarks.figures import exit_code, make_parser, parse, save_figures
from r3l.config.models import SACConfig
from r3l.config.schema import MANY, Config
from r3l.learner.learner import AGENTS, Learner
from r3l.models.sac import SAC, Batch
from r3l.models.torch_setup import tune_process
from r3l.robot.env import RobotEnv
from r3l.robot.safety import make_safe
from r3l.robot.scripted_moves import move
from r3l.run.experience import ExperienceStore
from r3l.task.registry import load_robot, load_task
from r3l.training.actor import Actor

NAME = "speed"
CALLS_PER_BLOCK = 20
OBSERVATION, ACTIONS, BATCH, ROWS = 43, 9, 256, 2000
"""Shapes of the comparison with stable-baselines3."""


def measure(options: argparse.Namespace) -> int:
    """Time everything, print and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        parts = time_in_turns(loop_parts(Path(folder)), options.blocks)
    total = parts["whole step"]
    print("one env step of the default preset, ms (median)")
    for name, value in parts.items():
        print(f"  {name:32} {1e3 * value:7.2f}")
    print(f"  {1 / total:.0f} env steps per second")
    updates = time_in_turns(peer_parts(), options.blocks)
    ratio = updates["stable-baselines3"] / updates["ours, the same network"]
    shapes = f"observation {OBSERVATION}, actions {ACTIONS}, 256x2, batch {BATCH}"
    print(f"SAC update ({shapes}), ms (median)")
    for name, value in updates.items():
        print(f"  {name:32} {1e3 * value:7.2f}")
    print(f"  ours is {ratio:.2f} times as fast on the same network")
    save_figures(options, {"parts_s": parts, "env_steps_per_s": 1 / total, "updates_s": updates, "ratio": ratio})
    return 0


def time_in_turns(parts: dict[str, Callable[[], object]], blocks: int) -> dict[str, float]:
    """Return the seconds per call of each part, median over blocks; the parts take turns."""
    spent: dict[str, list[float]] = {name: [] for name in parts}
    for block in range(blocks + 1):
        for name, part in parts.items():
            began = time.perf_counter()
            for _ in range(CALLS_PER_BLOCK):
                part()
            if block:  # the first block warms up
                spent[name].append((time.perf_counter() - began) / CALLS_PER_BLOCK)
    return {name: statistics.median(times) for name, times in spent.items()}


def loop_parts(folder: Path) -> dict[str, Callable[[], object]]:
    """Return the loop of the default preset and its parts, after exploration and a short pretraining."""
    config, task = Config(device="cpu"), load_task("valve")
    config = replace(config, vae=replace(config.vae, pretrain_updates=20))
    rig = task.rig
    robot = load_robot("twin", task)
    env = RobotEnv(make_safe(robot, rig))
    store = ExperienceStore(folder / "experience.sqlite", (rig.camera.height, rig.camera.width, 3))
    rng = np.random.default_rng(0)
    goals = torch.from_numpy(rng.integers(0, 255, (200, 3, 64, 64), np.uint8))
    learner = Learner(config, robot.spec, goals, device=torch.device("cpu"))
    policies = learner.policies()

    def home() -> bool:
        move(env.robot, rig.home_rad, config.phases.homing_steps)
        return True

    actor = Actor(env, store, policies, config.phases, seed=0, between=home)
    env.reset()
    while learner.steps < config.phases.exploration_steps:
        actor.step()
        learner.follow(store)
    learner.pretrain()
    kept = replace(next(store.rows(learner.sequence - 1)), segment=MANY)
    states = learner.rewards.novelty_states(learner.replay.newest(config.novelty.batch_size))
    every = config.classifier.update_every

    def whole() -> None:
        actor.step()
        learner.follow(store)
        learner.update()

    def encode() -> None:
        policies.see(kept.image, kept.proprioception, kept.applied, kept.diagnostic)

    return {
        "whole step": whole,
        "physics, render and safety": lambda: env.step(rng.uniform(-1, 1, len(rig.joints)).astype(np.float32)),
        "  of that, render and read": robot.observe,
        "encode": encode,
        "act": lambda: policies.act("task", learner.generator),
        "store": lambda: store.append(kept),
        "follow (read back, encode, keep)": lambda: learner.follow(store, 1),
        "update both agents": lambda: learner.update_agents(AGENTS),
        "update task agent alone": lambda: learner.update_agents(AGENTS[:1]),
        "update perturbation agent alone": lambda: learner.update_agents(AGENTS[1:]),
        f"update novelty (every {config.novelty.update_every})": lambda: learner.novelty["perturbation"].update(states),
        f"update classifier (every {every})": learner.update_classifier,
        "update encoder (pretraining)": lambda: learner.update_encoder(tether=0.0),
    }


class Shapes(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment of random observations with the compared shapes."""

    observation_space = gymnasium.spaces.Box(-1, 1, (OBSERVATION,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTIONS,), np.float32)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        """Return a random observation."""
        return self.observation_space.sample(), {}

    def step(self, action):  # type: ignore[no-untyped-def]
        """Return a random observation."""
        return self.observation_space.sample(), 0.0, False, False, {}


def peer_parts() -> dict[str, Callable[[], object]]:
    """Return one SAC update of r3l and of the peer, including sampling, with the same shapes on one thread."""
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
        agent.update(batch, torch.randn(2, BATCH, ACTIONS, generator=generator))

    return {
        "ours, the same network": lambda: update(same),
        "ours, LayerNorm as by default": lambda: update(ours),
        "stable-baselines3": lambda: peer.train(1, BATCH),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = make_parser(NAME, __doc__)
    parser.add_argument("--blocks", type=int, default=12, help="blocks per part (%(default)s)")
    tune_process()
    options = parse(parser, arguments)
    return exit_code(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
