"""Command a step to one joint after the other in three worlds, and draw the step responses.

The worlds are: the twin; the stack, which is the driver and emulated servos in front of the twin's world; and the twin
with the same rig (`--robot twin --rig FILE`). For each response the benchmark reads the time until the joint begins to
move, the time until it has covered 63% of the step, and the error at rest. The twin with the rig should match the
stack. The fingers touch nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.figures import exit_code, make_parser, parse, save_figures
from r3l.hardware import twin
from r3l.hardware.dclaw import emulated
from r3l.hardware.dclaw.rig import default_rig, read_rig, write_rig
from r3l.hardware.twin import SUBSTEPS_PER_S, Twin
from r3l.robot.base import SimulatedRobot
from r3l.task.base import Task
from r3l.task.registry import load_task

NAME = "actuators"
JOINTS = ("swing", "curl", "tip")
BEGUN_SHARE, MOST_SHARE = 0.05, 0.63
"""Shares of a step at which a joint has begun to move, and has covered one time constant."""
SETTLE_PERIODS = 5


class Recorder:
    """Recorder of the joint angles after each substep of a world."""

    def __init__(self, world: Twin) -> None:
        self.angles_rad: list[list[float]] = []
        self._world, self._substep = world, world.substep
        world.substep = self._record

    def _record(self) -> None:
        self._substep()
        self.angles_rad.append([angle for angle, _, _ in self._world.joint_states()])


def respond(robot: SimulatedRobot, world: Twin, task: Task, joint: int, step_rad: float, periods: int) -> list[float]:
    """Command a step to a joint; return its distance from the home angle after each substep, rad."""
    home = task.rig.home_rad
    with robot:
        robot.place(task.start_states(1, 0)[0])
        for _ in range(SETTLE_PERIODS):
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
    """Return the time at which a response reaches a share of its step, s; None if it never does."""
    gone = np.array(response) / step_rad >= share
    return float(gone.argmax() + 1) / SUBSTEPS_PER_S if gone.any() else None


def describe(response: Sequence[float], step_rad: float) -> dict[str, Any]:
    """Return the rise times and the error at rest of a response."""
    return {
        "begins_s": after_s(response, step_rad, BEGUN_SHARE),
        "mostly_there_s": after_s(response, step_rad, MOST_SHARE),
        "rests_off_mrad": round(1000 * (response[-1] - step_rad), 2),
    }


def worlds(task: Task, rig: Path) -> dict[str, tuple[SimulatedRobot, Twin]]:
    """Return the three robots, each with its world."""
    plain, stack, rigged = twin.from_task(task), emulated.from_task(task, rig=rig), twin.from_task(task, rig=rig)
    return {"twin": (plain, plain), "stack": (stack, stack.twin), "twin with the rig": (rigged, rigged)}


def draw(found: dict[str, dict[str, list[float]]], step_rad: float, path: Path) -> None:
    """Draw the responses, one panel per joint."""
    figure, axes = plt.subplots(1, len(JOINTS), figsize=(10, 3.2), sharey=True, layout="constrained")
    styles = {
        "twin": ("0.6", "-", 2.0),
        "stack": ("tab:blue", "-", 2.5),
        "twin with the rig": ("tab:orange", "--", 1.5),
    }
    for axis, joint in zip(axes, JOINTS, strict=True):
        for world, (colour, line, width) in styles.items():
            response = found[joint][world]
            times = np.arange(1, len(response) + 1) / SUBSTEPS_PER_S
            axis.plot(times, response, line, color=colour, linewidth=width, label=world)
        axis.axhline(step_rad, color="0.85", linewidth=0.8, zorder=0)
        axis.set(title=joint, xlabel="time since the command (s)")
    axes[0].set_ylabel("joint angle (rad)")
    axes[-1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def measure(options: argparse.Namespace) -> int:
    """Record the responses, print and write the figures, draw the responses."""
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
        print(f"{name:6} max distance of the stack from the twin with the rig: {1000 * apart:.2f} mrad")
    draw(found, options.step_rad, options.figure)
    print(options.figure)
    save_figures(options, figures)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 2 for bad input."""
    parser = make_parser(NAME, __doc__)
    parser.add_argument("--task", default="valve", help="task whose home pose is the start (%(default)s)")
    parser.add_argument("--rig", type=Path, help="rig file (default: the default rig)")
    parser.add_argument("--step-rad", type=float, default=0.3, help="size of the step, rad (%(default)s)")
    parser.add_argument("--periods", type=int, default=6, help="control periods to record (%(default)s)")
    figure = Path("docs/actuators.png")
    parser.add_argument("--figure", type=Path, default=figure, help="PNG file of the responses (%(default)s)")
    options = parse(parser, arguments)
    return exit_code(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
