"""The peer: stable-baselines3's SAC on `r3l/TASK-Resets-v0`, evaluated in the same way as r3l's runs.

The peer observes the true state, receives the true reward, and has its object placed before every episode. So it is an
upper bound, and an independent check of r3l's learner (variant `diagnostic-resets`). Network, batch size, learning
rates, discount and the number of random steps are r3l's. Four things differ, because the peer has no option for them:
LayerNorm in the critics, the averaged actor in evaluations, exploration noise that is correlated in time, and the
homing of the fingers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.figures import plain_parser
from benchmarks.record import Name, Record, first_per_step, unattended, versions, world
from r3l import environment_title
from r3l.config.schema import Config
from r3l.evaluation.evaluator import Evaluator
from r3l.evaluation.statistics import summarise
from r3l.models.torch_setup import tune_process
from r3l.robot.base import FloatArray, Image, SimulatedRobot
from r3l.run.files import write_file
from r3l.run.jsonl import append_jsonl, read_jsonl
from r3l.run.progress import progress_bar
from r3l.task.registry import load_robot, load_task

VARIANT = "stable-baselines3"
BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def settings(task: str, seed: int, steps: int) -> dict[str, Any]:
    """Return all settings of a run: r3l's values under the peer's names."""
    ours = Config()
    sac = ours.sac
    return {
        "learner": VARIANT,
        "task": task,
        "seed": seed,
        "steps": steps,
        "evaluate_every": ours.evaluate_every,
        "learning_starts": ours.phases.exploration_steps,
        "hidden": list(sac.hidden),
        "learning_rate": sac.learning_rate,
        "batch_size": sac.batch_size,
        "gamma": sac.discount,
        "tau": sac.tau,
        "ent_coef": f"auto_{sac.initial_temperature}",
        "target_entropy_per_action": sac.target_entropy_per_action,
    }


class PeerPolicy:
    """The peer's deterministic policy on [true state, proprioception, last command], as in its environment."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._vector = np.zeros(0, np.float32)

    def begin(self) -> None:
        """Do nothing: the policy has no memory."""

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        """Store the observation for the next action."""
        vector = np.concatenate([diagnostic, proprioception, applied])
        self._vector = np.clip(vector, -10.0, 10.0).astype(np.float32)

    def choose(self) -> FloatArray:
        """Return the mean action."""
        action: FloatArray = self._model.predict(self._vector, deterministic=True)[0]
        return action


def build(chosen: dict[str, Any]) -> Any:
    """Return the peer's learner on the instrumented environment."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.monitor import Monitor

    name = f"r3l/{environment_title(chosen['task'])}-Resets-v0"
    env = Monitor(gymnasium.make(name, true_state=True), info_keywords=("is_success",))
    actions = len(load_task(chosen["task"]).rig.joints)
    return SAC(
        "MlpPolicy",
        env,
        learning_rate=chosen["learning_rate"],
        buffer_size=chosen["steps"],
        learning_starts=chosen["learning_starts"],
        batch_size=chosen["batch_size"],
        tau=chosen["tau"],
        gamma=chosen["gamma"],
        ent_coef=chosen["ent_coef"],
        target_entropy=chosen["target_entropy_per_action"] * actions,
        policy_kwargs={"net_arch": list(chosen["hidden"])},
        seed=chosen["seed"],
        device="cpu",
    )


def save(model: Any, folder: Path) -> None:
    """Write weights, optimisers and replay without pickle, and the step file last."""
    tensors = {f"policy.{name}": tensor for name, tensor in model.policy.state_dict().items()}
    tensors["log_ent_coef"] = model.log_ent_coef.detach()
    for name, optimiser in optimisers(model).items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    buffer = model.replay_buffer
    rows = buffer.size()
    tensors |= {f"buffer.{name}": torch.from_numpy(getattr(buffer, name)[:rows]) for name in BUFFER}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "peer.part")
    (folder / "peer.part").rename(folder / "peer.safetensors")
    write_file(folder / "step.json", json.dumps({"step": model.num_timesteps, "rows": rows}).encode())


def restore(model: Any, folder: Path) -> None:
    """Restore what `save` wrote, if anything; a new episode begins."""
    if not (folder / "step.json").exists():
        return
    step = json.loads((folder / "step.json").read_text())
    tensors = load_file(folder / "peer.safetensors")
    model.policy.load_state_dict({k.removeprefix("policy."): v for k, v in tensors.items() if k.startswith("policy.")})
    with torch.no_grad():
        model.log_ent_coef.copy_(tensors["log_ent_coef"])
    for name, optimiser in optimisers(model).items():
        state = optimiser.state_dict()
        for key, tensor in tensors.items():
            if key.startswith(f"{name}."):
                _, index, part = key.split(".")
                state["state"].setdefault(int(index), {})[part] = tensor
        optimiser.load_state_dict(state)
    buffer = model.replay_buffer
    for name in BUFFER:
        getattr(buffer, name)[: step["rows"]] = tensors[f"buffer.{name}"].numpy()
    buffer.pos, buffer.full = step["rows"] % buffer.buffer_size, step["rows"] == buffer.buffer_size
    model.num_timesteps = step["step"]


def optimisers(model: Any) -> dict[str, torch.optim.Optimizer]:
    """Return the peer's optimisers by name."""
    found = {"actor": model.actor.optimizer, "critic": model.critic.optimizer, "temperature": model.ent_coef_optimizer}
    return {f"optimiser-{name}": optimiser for name, optimiser in found.items()}


def train(folder: Path, chosen: dict[str, Any]) -> None:
    """Train up to the configured steps and evaluate on the way; resume an interrupted run at its last evaluation."""
    from stable_baselines3.common.callbacks import BaseCallback

    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "config.json", json.dumps({"config": chosen}, indent=2).encode())
    task = load_task(chosen["task"])
    robot = load_robot("twin", task, diagnostic=True)
    assert isinstance(robot, SimulatedRobot)
    evaluator = Evaluator(task, robot)
    model = build(chosen)
    model.learn(0)
    restore(model, folder)
    visited = folder / "visited.jsonl"

    class TruthLog(BaseCallback):
        """A log of the ground truth of every step; only the record uses it."""

        def _on_step(self) -> bool:
            append_jsonl(visited, {"step": self.num_timesteps, **self.locals["infos"][0]["truth"]})
            bar.update()
            return True

    try:
        with progress_bar(folder.name, "step", chosen["steps"], model.num_timesteps) as bar:
            while True:
                known = {entry["step"] for entry in read_jsonl(folder / "evaluations.jsonl")}
                if model.num_timesteps not in known:
                    episodes = evaluator.run(PeerPolicy(model))
                    summary = summarise(episodes, thresholds=task.other_thresholds)
                    append_jsonl(folder / "evaluations.jsonl", {"step": model.num_timesteps} | summary)
                save(model, folder)
                if model.num_timesteps >= chosen["steps"]:
                    break
                count = min(chosen["evaluate_every"], chosen["steps"] - model.num_timesteps)
                model.learn(count, reset_num_timesteps=False, callback=TruthLog())
    finally:
        evaluator.close()
        model.get_env().close()


def record_peer(folder: Path, name: Name, command: str) -> Record:
    """Return the record of a finished run."""
    task = load_task(name.task)
    chosen = json.loads((folder / "config.json").read_text())["config"]
    by_step = {line["step"]: line for line in read_jsonl(folder / "visited.jsonl")}
    lines = [by_step[step] for step in sorted(by_step)]
    truth = {key: np.array([line[key] for line in lines]) for key in lines[0]}
    return Record(
        task=name.task,
        variant=VARIANT,
        seed=name.seed,
        command=command,
        overrides=[],
        config=chosen,
        world=world(task),
        versions=versions(),
        evaluations=first_per_step(read_jsonl(folder / "evaluations.jsonl")),
        unattended=unattended(task, truth, chosen["steps"] / task.rig.control_hz),
        goal_images=0,
        resets=chosen["steps"] // task.episode_steps,
    )


def main() -> int:
    """Train one seed into a folder; `scripts/benchmark learning` starts this process."""
    parser = plain_parser("python -m benchmarks.peer", __doc__)
    parser.add_argument("task")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    tune_process()
    train(options.folder, settings(options.task, options.seed, options.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
