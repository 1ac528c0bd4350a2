"""TODO r3l/cli/goals.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from r3l.cli.goal_capture import HELP, GoalCapture, take_pictures
from r3l.cli.goal_collection import collect_on_twin
from r3l.cli.options import OptionalPath, ending_in_order, lines
from r3l.config.errors import UserError
from r3l.config.schema import Randomization
from r3l.robot.base import Robot, SimulatedRobot
from r3l.robot.safety import SafeRobot
from r3l.run.goals import TWIN_SOURCE, Images, read_folder, save_goals, split, variety_warnings
from r3l.run.images import contact_sheet
from r3l.run.progress import progress_bar
from r3l.task.base import Task
from r3l.task.registry import load_robot, load_task, varied


def goals(command: GoalsCommand) -> int:
    """Collect goal images into a folder."""

    task = load_task(command.task)
    out = command.out or Path("goals") / task.name
    if out.exists():
        raise UserError(f"goal folder {out} exists and is never overwritten; remove it, or choose another --out")
    rng = np.random.default_rng(command.seed)
    settings: dict[str, tuple[float, ...]] = {}
    if command.from_folder is not None:
        size = task.rig.camera
        images = read_folder(command.from_folder, (size.height, size.width), task.minimum_goals)
        source = command.from_folder.name
    else:
        robot = varied(load_robot(command.robot, task, rig=command.rig), command.randomize, command.seed)
        images, source = _collect(command, task, robot, rng)
        settings = robot.camera_settings
    for warning in variety_warnings(images):
        print(f"warning: {warning}")
    train_images, held_out = split(images, command.held_out, rng)
    save_goals(out, train_images, held_out, task=task.name, robot=command.robot, source=source, camera=settings)
    contact_sheet(images, out / "contact-sheet.png")
    print(f"{len(train_images)} goal images for training and {len(held_out)} held out are in {out}")
    print(f"look at {out / 'contact-sheet.png'}; next: r3l train {command.task}")
    return 0


def _collect(command: GoalsCommand, task: Task, robot: Robot, rng: np.random.Generator) -> tuple[Images, str]:
    """Take goal images on a robot; return them [N, H, W, 3] and who took them."""

    if isinstance(robot, SimulatedRobot) and not command.by_hand:
        if command.count < task.minimum_goals:
            raise UserError(f"--count {command.count} is too few goal images, expected {task.minimum_goals} or more")
        with robot, progress_bar("goal images", "image", command.count) as bar:
            found = collect_on_twin(task, robot, command.count, rng, lambda: bar.update() and None)
        return np.stack(found), TWIN_SOURCE
    safe, shoot = SafeRobot(robot, task.rig.limits, task.rig.max_step_rad), GoalCapture(task.minimum_goals)
    with ending_in_order(), safe:
        print(f"Arrange the object as a success looks, {task.minimum_goals} times or more. {HELP}", flush=True)
        take_pictures(safe, shoot, lines(), print, rng, _arranging(task, safe, robot, rng))
    if not shoot.is_enough:
        raise UserError(
            f"{len(shoot.images)} goal images were taken, expected {task.minimum_goals} or more; none is kept "
            "(pictures taken elsewhere: --from-folder)"
        )
    return np.stack(shoot.images), "by hand"


def _arranging(task: Task, safe: SafeRobot, robot: Robot, rng: np.random.Generator) -> Callable[[], None] | None:
    """Return what arranges the object on a simulated robot; None where a person does."""
    if not isinstance(robot, SimulatedRobot):
        return None

    def arrange() -> None:
        robot.place(task.goal_states(1, rng)[0], rng)
        safe.forget()

    return arrange


@dataclass(frozen=True)
class GoalsCommand:
    """Collect goal images: pictures of success, the only thing R3L is told about a task.

    On a robot with hardware you arrange the object and press Enter for each picture; move the fingers between two, or
    let them move (b), so that their pose tells nothing. On the twin a stand-in for your hand places the object, all by
    itself, or with --by-hand at each of your keys. With --from-folder pictures that you have are used.
    """

    task: tyro.conf.Positional[str]
    """Task to collect for; `r3l tasks` lists them."""
    count: int = 250
    """Images to collect on the twin."""
    out: OptionalPath = None
    """Folder to write; goals/TASK by default. An existing one is never overwritten."""
    from_folder: OptionalPath = None
    """Take the images of this folder instead (png, jpg, bmp)."""
    held_out: float = 0.2
    """Share of the images kept out of training, to watch for overfitting and to calibrate the judge."""
    by_hand: bool = False
    """Take pictures one key at a time on a simulated robot too."""
    robot: str = "twin"
    """Robot to collect on; `r3l robots` lists them."""
    rig: OptionalPath = None
    """Its rig file, where it has one."""
    randomize: Randomization = "none"
    """How much the twin's world varies from picture to picture; take the level that the training will have."""
    seed: int = 0
