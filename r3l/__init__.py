"""R3L: a robot learns a skill overnight from pictures of success, with nobody in the room.

Importing it registers the Gymnasium environments `r3l/TASK-v0` and `r3l/TASK-Resets-v0` of every installed task.
"""

from importlib.metadata import entry_points
from typing import Any

from gymnasium.envs.registration import register

__version__ = "0.2.0"


def environment_title(task: str) -> str:
    """Return how a task is called in the names of its environments: `three-beads` as `ThreeBeads`."""
    return "".join(part.title() for part in task.split("-"))


def _register_environments() -> None:
    for task in entry_points(group="r3l.tasks"):
        title = environment_title(task.name)
        register(
            id=f"r3l/{title}-v0",
            entry_point="r3l.task.registry:make",
            kwargs={"task": task.name},
            nondeterministic=True,  # reset() never resets: the same seed finds the world as it was left
        )
        register(
            id=f"r3l/{title}-Resets-v0",
            entry_point="r3l.evaluation.resets_env:make",
            kwargs={"task": task.name},
            max_episode_steps=50,
        )


_register_environments()


def __getattr__(name: str) -> Any:
    """Offer `r3l.load_policy` without loading what learns before it is asked for."""
    if name != "load_policy":
        raise AttributeError(f"module 'r3l' has no attribute {name!r}")
    from r3l.evaluation.export import load_policy

    return load_policy
