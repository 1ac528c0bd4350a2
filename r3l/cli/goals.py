"""`r3l goals`: collect goal images into a folder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import tyro

from r3l.cli.options import OptionalPath, signals_interrupt, typed_lines
from r3l.config.errors import UserError
from r3l.config.schema import Randomization


@dataclass(frozen=True)
class GoalsCommand:
    """Collect goal images: pictures of success, all that R3L is told about a task.

    On a real robot a person arranges the object and presses Enter for each picture. Move the fingers between two
    pictures, or press b to let them move, so that their pose says nothing about success. On the twin a simulated hand
    arranges the object. With --from-folder the goal images are pictures that you already have.
    """

    task: tyro.conf.Positional[str]
    """Task to collect goal images for; `r3l tasks` lists the tasks."""
    count: int = 250
    """Number of images to collect on the twin."""
    out: OptionalPath = None
    """Folder to write; goals/TASK by default. An existing folder is never overwritten."""
    from_folder: OptionalPath = None
    """Folder of pictures (png, jpg, bmp) to take instead."""
    held_out: float = 0.2
    """Share of the images kept out of training; they measure overfitting and calibrate the judge."""
    by_hand: bool = False
    """Take a picture per key on a simulated robot too."""
    robot: str = "twin"
    """Robot to collect goal images on; `r3l robots` lists the robots."""
    rig: OptionalPath = None
    """Rig file of the robot, if the robot needs one."""
    randomize: Randomization = "none"
    """How much the twin's world varies from picture to picture; choose the level of the training."""
    seed: int = 0
    """Seed of the arrangements and of the held-out images."""

    def __call__(self) -> int:
        import numpy as np

        from r3l.cli.goal_capture import capture_by_hand
        from r3l.cli.goal_collection import collect_on_twin
        from r3l.robot.base import SimulatedRobot
        from r3l.run.goals import TWIN_SOURCE, read_folder, save_goals, split, variety_warnings
        from r3l.run.images import contact_sheet
        from r3l.run.progress import progress_bar
        from r3l.task.registry import load_robot, load_task, varied

        task = load_task(self.task)
        out = self.out or Path("goals") / task.name
        if out.exists():
            raise UserError(f"goal folder {out} exists and is never overwritten; remove it, or choose another --out")
        rng = np.random.default_rng(self.seed)
        settings: dict[str, tuple[float, ...]] = {}
        if self.from_folder is not None:
            size = (task.rig.camera.height, task.rig.camera.width)
            images, source = read_folder(self.from_folder, size, task.minimum_goals), self.from_folder.name
        else:
            robot = varied(load_robot(self.robot, task, rig=self.rig), self.randomize, self.seed)
            if self.by_hand or not isinstance(robot, SimulatedRobot):
                with signals_interrupt():
                    say = functools.partial(print, flush=True)
                    images, source = np.stack(capture_by_hand(task, robot, typed_lines(), say, rng)), "by hand"
            elif self.count < task.minimum_goals:
                raise UserError(f"--count {self.count} is too few goal images, expected {task.minimum_goals} or more")
            else:
                with robot, progress_bar("goal images", "image", self.count) as bar:
                    images = np.stack(collect_on_twin(task, robot, self.count, rng, lambda: bar.update() and None))
                source = TWIN_SOURCE
            settings = robot.camera_settings
        for warning in variety_warnings(images):
            print(f"warning: {warning}")
        train_images, held_out = split(images, self.held_out, rng)
        save_goals(out, train_images, held_out, task=task.name, robot=self.robot, source=source, camera=settings)
        contact_sheet(images, out / "contact-sheet.png")
        print(f"{len(train_images)} goal images for training and {len(held_out)} held out are in {out}")
        print(f"look at {out / 'contact-sheet.png'}; next: r3l train {self.task}")
        return 0
