"""The commands a person can type: one dataclass each, whose docstrings are what --help shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


def _optional(metavar: str) -> Any:
    """Return the help of an option that may be left out: what to write, and no word of None."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


OptionalInt = Annotated[int | None, _optional("INT")]
OptionalName = Annotated[str | None, _optional("NAME")]
OptionalPath = Annotated[Path | None, _optional("PATH")]


Level = Literal["none", "mild", "strong", "shifted", "delayed"]


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
    randomize: Level = "none"
    """How much the twin's world varies from picture to picture; take the level that the training will have."""
    seed: int = 0


@dataclass(frozen=True)
class TrainCommand:
    """Train unattended from goal images: no resets, no reward function, nobody in the room.

    The run directory holds everything. Actor and learner are processes of their own under a supervisor, which restarts
    what dies or hangs. Ctrl-C relaxes the robot at once and writes a checkpoint; --resume goes on from there. Before
    the first action a pre-flight check says what to expect.
    """

    task: Annotated[tyro.conf.Positional[str | None], _optional("TASK")] = None
    """Task to learn; not with --resume."""
    steps: OptionalInt = None
    """Env steps of the run (30000 by default: 50 minutes of robot time at 10 Hz)."""
    name: OptionalName = None
    """Name of the run directory below runs/; TASK-1, TASK-2, … by default."""
    goals: OptionalPath = None
    """Goal folder made by `r3l goals`; goals/TASK by default."""
    resume: OptionalPath = None
    """Go on with this run directory instead of beginning one; --steps, --hours or --until may extend it."""
    hours: Annotated[float | None, _optional("FLOAT")] = None
    """End after so many hours, robot parked and relaxed, however many steps that are (unless --steps says)."""
    until: Annotated[str | None, _optional("HH:MM")] = None
    """End at this time of the day, as --hours does; a time that has passed is tomorrow's."""
    sync: bool = False
    """Let actor and learner take turns in one process, deterministic by seed; nobody supervises it then."""
    randomize: Annotated[Level | None, _optional("none|mild|strong|shifted|delayed")] = None
    """How much the twin's world varies, by seed: light, camera, noise, dynamics, delays (docs/tasks.md)."""
    real_time: bool = False
    """Let a simulated robot keep the control rate of the clock on the wall, as a real one does."""
    update_ratio: Annotated[float | None, _optional("FLOAT")] = None
    """Updates of each agent per env step (1 by default); whichever of actor and learner is ahead waits."""
    quota: Annotated[float | None, _optional("GIB")] = None
    """GiB that the run directory may take; all that is free by default."""
    check: bool = False
    """Only print the pre-flight check."""
    preset: str = "default"
    """Settings to start from: default, or paper (like the authors' code)."""
    variant: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Change the preset: no-perturbation, pixels, refreshed-encoder.
    To find out why something does not learn, reading ground truth: diagnostic-true-reward, diagnostic-true-state,
    diagnostic-resets."""
    config: OptionalPath = None
    """TOML file (or a run's config.json) whose keys override the preset; `r3l config` prints all keys."""
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Override one key, for example --set sac.batch_size=256."""
    robot: OptionalName = None
    """Robot to train on; `r3l robots` lists them."""
    rig: OptionalPath = None
    """Rig file of a robot with hardware, as `r3l calibrate` writes it; the run keeps a copy. With --resume, another."""
    seed: OptionalInt = None
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, _optional("auto|cpu|cuda")] = None
    """Where the networks live."""
    runs: Path = Path("runs")
    """Folder that holds the run directories."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a run's task policy from the task's start states, beside doing nothing and acting at random.

    Prints success with its 95% interval, the final error, steps to success, and how far the judge, which sees only
    images, agrees with the ground truth. Changes nothing that the run trains on.

    On a robot that is not simulated, and with --by-eye: each start is what a perturbation episode leaves, the judge
    says how each episode ended, and last images are kept for you to mark (`r3l mark`).
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    step: OptionalInt = None
    """Published weights to evaluate; the newest by default."""
    episodes: int = 24
    """Start states."""
    seed: int = 0
    """Of the start states and finger poses."""
    baselines: bool = True
    """Also evaluate the do-nothing and the random policy."""
    out: OptionalPath = None
    """Folder for evaluation.json and the film strips; RUN/evaluation by default, replaced when it exists."""
    robot: OptionalName = None
    """Another robot than the run's to evaluate on, with the same joints; its results go to RUN/evaluation-ROBOT."""
    rig: OptionalPath = None
    """Its rig file, where it has one; the run's copy by default."""
    randomize: Level = "none"
    """How much the twin's world varies meanwhile; shifted is farther from it than any level for training."""
    by_eye: bool = False
    """From images alone on a simulated robot, too; into RUN/by-eye-1, -2, … where --out names no folder."""
    against: OptionalInt = None
    """Other published weights to compare with, by eye: the two take turns, so that no drift of the robot decides."""


@dataclass(frozen=True)
class MarkCommand:
    """Say of the trials of an evaluation by eye which ended in success, and see how far the judge agrees.

    Look at its contact-sheet.png meanwhile; or fill in its marks.csv first. Then the run's judge is set by your marks.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    trials: OptionalPath = None
    """Folder of trials; the run's newest by default."""
    set_judge: bool = True
    """Set the judge by the marks; the judge as it was stays in the folder of trials."""


@dataclass(frozen=True)
class PlayCommand:
    """Let a learned task policy act, again and again, until Ctrl-C: nothing is stored, nothing is learned.

    The run's checks look after the robot; it is relaxed however this ends.
    """

    source: tyro.conf.Positional[Path]
    """Run directory, or a file that `r3l export` wrote."""
    step: OptionalInt = None
    """Published weights of a run; the newest by default."""
    task: OptionalName = None
    """Task of an exported policy; needed where that is a Python file."""
    episodes: int = 0
    """Episodes to play; 0: until Ctrl-C."""
    robot: OptionalName = None
    """Another robot than the run's, with the same joints."""
    rig: OptionalPath = None
    """Its rig file, where it has one; the run's copy by default."""


@dataclass(frozen=True)
class ExportCommand:
    """Write a run's task policy into one file, for `r3l play` or for a program of yours.

    `r3l.exported.load_policy(FILE)` gives joint targets for images and joints, with no run, no simulator and no extra.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write; RUN/policy-STEP.safetensors by default. One that exists is never overwritten."""
    step: OptionalInt = None
    """Published weights; the newest by default."""


@dataclass(frozen=True)
class ReportCommand:
    """Write one self-contained HTML page about a run: curves, films, reconstructions, rewards, coverage, settings."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write; RUN/report.html by default."""


@dataclass(frozen=True)
class FilmCommand:
    """Write one small animation of a run's policy before, during and after training, from the same starts."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    out: OptionalPath = None
    """File to write, an animated WebP under 2 MB; RUN/film.webp by default."""
    steps: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[INT …]", help_behavior_hint="")] = ()
    """Env steps of the published weights to show; the first, the middle and the last by default."""
    starts: int = 3
    """Start states."""
    seed: int = 0
    """Of the start states and finger poses."""


@dataclass(frozen=True)
class StatusCommand:
    """Show how a run is doing: phase, steps, rates, success as judged, reward health, last events, what is left."""

    run: tyro.conf.Positional[Path]
    """Run directory; a run that has ended has a status too."""
    watch: bool = False
    """Show it anew every second until Ctrl-C."""
    json: bool = False
    """Print it as JSON instead."""


@dataclass(frozen=True)
class CheckCommand:
    """Verify a run directory file by file, and mend what can be mended.

    Exit code 0: all is well, or was mended; 2: something is wrong that nothing here can mend.
    """

    run: tyro.conf.Positional[Path]
    """Run directory that no process uses."""
    dry_run: bool = False
    """Only say what is wrong; change nothing."""


@dataclass(frozen=True)
class PauseCommand:
    """Pause a run: the fingers move home, the robot relaxes and waits for `r3l resume`."""

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class ResumeCommand:
    """Let a run that was paused or relaxed go on."""

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class RelaxCommand:
    """Relax a run's robot at once, wherever it is, and let it wait for `r3l resume`."""

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class StopCommand:
    """Stop a run: robot relaxed at once, a checkpoint written; `r3l train --resume` goes on from it."""

    run: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class ConfigCommand:
    """Print every config key with its value, as JSON that --config takes."""

    preset: str = "default"
    """default or paper."""
    variant: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Variants to apply."""


@dataclass(frozen=True)
class TasksCommand:
    """List the installed tasks."""


@dataclass(frozen=True)
class RobotsCommand:
    """List the installed robots."""


@dataclass(frozen=True)
class EmulateCommand:
    """Emulate Dynamixel servos on a pseudo-terminal: the driver's real bytes, and no servo.

    Prints the port to open. Faults of wire and adapter are made to order; SIGUSR1 unplugs the adapter for two seconds,
    SIGUSR2 is a short loss of power. Ends with Ctrl-C.
    """

    ids: tuple[int, ...] = (10, 11, 12, 20, 21, 22, 30, 31, 32)
    """Servos; the same number twice is two servos of one id. D'Claw's nine by default."""
    model: str = "XM430-W210"
    """XM430-W210, XM430-W350 or XL330-M288."""
    baud: int = 1_000_000
    """Baud rate that the servos are set to; at any other they hear nothing."""
    link: OptionalPath = None
    """Symbolic link to the port, which stays the same when the adapter was unplugged."""
    drop: float = 0.0
    """Share of packets that are lost."""
    corrupt: float = 0.0
    """Share of packets with a bit turned."""
    duplicate: float = 0.0
    """Share of answers that come twice."""
    garbage: float = 0.0
    """Share of answers with noise before them."""
    late: float = 0.0
    """Share of answers that come late."""
    late_s: float = 0.1
    """How late, in seconds."""
    echo: bool = False
    """The adapter sends back what it is sent."""
    silent: tuple[int, ...] = ()
    """Servos that hear everything and answer nothing."""
    seed: int = 0
    """Of the faults."""


@dataclass(frozen=True)
class DoctorCommand:
    """Look at a rig as a first-time user should: port, baud rate, servos, voltage, temperature, joints, wire, disk.

    A line for each thing, with the remedy where it failed; torque is off afterwards. Exit code 2: something failed.
    """

    rig: tyro.conf.Positional[Path]
    """Rig file, as `r3l calibrate` writes it."""
    wiggle: bool = False
    """Then move every joint a little, slowly, one after the other: clear the workspace, a hand on the power switch."""
    reboot: tuple[int, ...] = ()
    """Ids of servos to start anew first, which clears their hardware errors: after you looked what caused them."""
    goals: OptionalPath = None
    """Goal folder: does the camera see the workspace as these images do?"""
    runs: Path = Path("runs")
    """Folder that will hold the run directories."""


@dataclass(frozen=True)
class CalibrateCommand:
    """Read a hand's zeros, signs and limits off while you move its fingers, and write the rig file.

    The servos have no torque all the while. Nothing is written before the last step; Ctrl-C changes nothing.
    """

    rig: tyro.conf.Positional[Path]
    """Rig file to write; an existing one is where calibration begins, and only what is read off changes."""
    port: OptionalName = None
    """Serial port of the servos, best by its name in /dev/serial/by-id; the rig's by default."""
    baud: OptionalInt = None
    """Baud rate of the servos; the rig's by default, 1000000 in a new one."""
    model: OptionalName = None
    """XM430-W210, XM430-W350 or XL330-M288; the rig's by default."""
    only: tuple[Literal["zero", "signs", "limits"], ...] = ("zero", "signs", "limits")
    """Steps to do."""


Command = (
    Annotated[GoalsCommand, tyro.conf.subcommand("goals")]
    | Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[MarkCommand, tyro.conf.subcommand("mark")]
    | Annotated[PlayCommand, tyro.conf.subcommand("play")]
    | Annotated[ExportCommand, tyro.conf.subcommand("export")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[FilmCommand, tyro.conf.subcommand("film")]
    | Annotated[StatusCommand, tyro.conf.subcommand("status")]
    | Annotated[PauseCommand, tyro.conf.subcommand("pause")]
    | Annotated[ResumeCommand, tyro.conf.subcommand("resume")]
    | Annotated[RelaxCommand, tyro.conf.subcommand("relax")]
    | Annotated[StopCommand, tyro.conf.subcommand("stop")]
    | Annotated[CheckCommand, tyro.conf.subcommand("check")]
    | Annotated[DoctorCommand, tyro.conf.subcommand("doctor")]
    | Annotated[CalibrateCommand, tyro.conf.subcommand("calibrate")]
    | Annotated[EmulateCommand, tyro.conf.subcommand("emulate")]
    | Annotated[ConfigCommand, tyro.conf.subcommand("config")]
    | Annotated[TasksCommand, tyro.conf.subcommand("tasks")]
    | Annotated[RobotsCommand, tyro.conf.subcommand("robots")]
)
