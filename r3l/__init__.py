"""R3L: a robot learns a skill overnight from goal images, unattended.

With `import r3l`, in any order with `import gymnasium`, Gymnasium knows the environments `r3l/TASK-v0` and
`r3l/TASK-Resets-v0` of every installed task.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0.2.0"


def environment_title(task: str) -> str:
    """Return the task's name as the ids of its environments spell it: `three-beads` as `ThreeBeads`."""
    return "".join(part.title() for part in task.split("-"))


def _register_environments() -> None:
    from importlib.metadata import entry_points

    from gymnasium.envs.registration import register

    for task in entry_points(group="r3l.tasks"):
        title, arguments = environment_title(task.name), {"task": task.name}
        # Nondeterministic: reset() moves nothing, so the same seed finds the world as the last episode left it.
        register(f"r3l/{title}-v0", "r3l.task.registry:make", nondeterministic=True, kwargs=arguments)
        register(f"r3l/{title}-Resets-v0", "r3l.evaluation.resets_env:make_limited", kwargs=arguments)


class _GymnasiumHook:
    """An import hook that registers the environments when gymnasium is imported, so that r3l need not import it."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "gymnasium":
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(cls)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register_environments()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "gymnasium" in sys.modules:
    _register_environments()
else:
    sys.meta_path.insert(0, _GymnasiumHook)


def __getattr__(name: str) -> Any:
    """Return `r3l.load_policy`; torch is imported on its first use."""
    if name != "load_policy":
        raise AttributeError(f"module 'r3l' has no attribute {name!r}")
    from r3l.evaluation.export import load_policy

    return load_policy
