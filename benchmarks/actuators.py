"""Send one joint after the other a step, in three worlds, and draw how it gets there.

The worlds: the twin; the stack, that is the driver and emulated servos in front of the twin's world; and the twin that
was given the same rig (`--robot twin --rig FILE`). What the stack adds is read off its responses: the time until a
joint begins to move, until it has gone 63% of its way, where it rests, in counts of a servo. The twin with the rig
should lie on the stack's line. Fingers are in the air, away from everything.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.figures import parser_of, save_figures
from r3l.hardware import twin
from r3l.hardware.dclaw import emulated
from r3l.hardware.dclaw.rig import default_rig, read_rig, write_rig
from r3l.hardware.twin import SUBSTEPS_PER_S, Twin
from r3l.robot.base import SimulatedRobot
from r3l.task.base import Task
from r3l.task.registry import load_task

NAME = "actuators"
JOINTS = ("swing", "curl", "tip")
BEGUN, MOST = 0.05, 0.63
"""Shares of a step at which it has begun, and has mostly been gone."""


class Recorder:
    """Writes down where the joints are after each substep of a world."""

    def __init__(self, world: Twin) -> None:
        self.angles_rad: list[list[float]] = []
        self._world, self._substep = world, world.substep
        world.substep = self._record

    def _record(self) -> None:
        self._substep()
        self.angles_rad.append([angle for angle, _, _ in self._world.joint_states()])


def respond(robot: SimulatedRobot, world: Twin, task: Task, joint: int, step_rad: float, periods: int) -> list[float]:
    """Return how far a joint is from where it was after each substep, rad, from the command of a step on."""
    home = task.rig.home_rad
    with robot:
        robot.place(task.start_states(1, 0)[0])
        for _ in range(5):
            robot.command(home)
            robot.observe()
        recorder = Recorder(world)
        target = home.copy()
        target[joint] += step_rad
        for _ in range(periods):
            robot.command(target)
            robot.observe()
    angles = np.array(recorder.angles_rad)[:, joint]
    return [float(angle) for angle in angles - home[joint]]


def after_s(response: Sequence[float], step_rad: float, share: float) -> float | None:
    """Return when a response has gone a share of its step; None where it never does."""
    gone = np.array(response) / step_rad >= share
    return float(gone.argmax() + 1) / SUBSTEPS_PER_S if gone.any() else None


def describe(response: Sequence[float], step_rad: float) -> dict[str, Any]:
    """Return what is read off a response."""
    return {
        "begins_s": after_s(response, step_rad, BEGUN),
        "mostly_there_s": after_s(response, step_rad, MOST),
        "rests_off_mrad": round(1000 * (response[-1] - step_rad), 2),
    }


def worlds(task: Task, rig: Path) -> dict[str, tuple[SimulatedRobot, Twin]]:
    """Return the robots to try, each with its world."""
    plain, stack, rigged = twin.from_task(task), emulated.from_task(task, rig=rig), twin.from_task(task, rig=rig)
    return {"twin": (plain, plain), "stack": (stack, stack.twin), "twin with the rig": (rigged, rigged)}


def draw(found: dict[str, dict[str, list[float]]], step_rad: float, path: Path) -> None:
    """Draw the responses, a joint a panel."""
    figure, axes = plt.subplots(1, len(JOINTS), figsize=(10, 3.2), sharey=True, layout="constrained")
    looks = {"twin": ("0.6", "-", 2.0), "stack": ("tab:blue", "-", 2.5), "twin with the rig": ("tab:orange", "--", 1.5)}
    for axis, joint in zip(axes, JOINTS, strict=True):
        for world, (colour, line, width) in looks.items():
            response = found[joint][world]
            times = np.arange(1, len(response) + 1) / SUBSTEPS_PER_S
            axis.plot(times, response, line, color=colour, linewidth=width, label=world)
        axis.axhline(step_rad, color="0.85", linewidth=0.8, zorder=0)
        axis.set(title=joint, xlabel="time since the command (s)")
    axes[0].set_ylabel("joint angle (rad)")
    axes[-1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = parser_of(NAME, __doc__)
    parser.add_argument("--task", default="valve", help="whose home pose is begun from (%(default)s)")
    parser.add_argument("--rig", type=Path, help="rig file; the default rig's otherwise")
    parser.add_argument("--step-rad", type=float, default=0.3, help="of each joint (%(default)s)")
    parser.add_argument("--periods", type=int, default=6, help="control periods to look for (%(default)s)")
    parser.add_argument("--figure", type=Path, default=Path("docs/actuators.png"), help="(%(default)s)")
    options = parser.parse_args(arguments)
    task = load_task(options.task)
    with tempfile.TemporaryDirectory() as folder:
        rig = options.rig or Path(folder) / "rig.toml"
        if options.rig is None:
            write_rig(rig, default_rig())
        strength = read_rig(rig).strength
        found: dict[str, dict[str, list[float]]] = {}
        for joint, name in enumerate(JOINTS):
            found[name] = {
                world: respond(robot, inside, task, joint, options.step_rad, options.periods)
                for world, (robot, inside) in worlds(task, rig).items()
            }
    figures: dict[str, Any] = {"step_rad": options.step_rad, "speed_rad_s": strength.speed_rad_s, "joints": {}}
    for name, responses in found.items():
        apart = np.abs(np.array(responses["stack"]) - responses["twin with the rig"]).max()
        figures["joints"][name] = {
            **{world: describe(response, options.step_rad) for world, response in responses.items()},
            "stack_from_twin_with_the_rig_mrad": round(1000 * float(apart), 2),
        }
        for world, response in responses.items():
            print(f"{name:6} {world:18} {describe(response, options.step_rad)}")
        print(f"{name:6} the stack and the twin with the rig are {1000 * apart:.2f} mrad apart at most")
    draw(found, options.step_rad, options.figure)
    print(options.figure)
    save_figures(options.out, NAME, arguments, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
