"""Worlds that vary on purpose: reproducible, within their level, felt by the twin; refused where nothing can vary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from conftest import RunMaker, tiny

from benchmarks.running import R3L
from benchmarks.variation import learn
from r3l.cli.main import main, parse
from r3l.cli.settings import TrainOptions, resolve
from r3l.config import Config
from r3l.config.schema import Randomization
from r3l.hardware import twin
from r3l.hardware.twin import Twin
from r3l.hardware.variation import AMOUNTS, EVERY, REACH, Worlds
from r3l.robot.base import FloatArray, Observation
from r3l.robot.monitor import Monitor
from r3l.robot.safety import make_safe
from r3l.run.goals import load_goals
from r3l.tasks.valve import Valve
from r3l.training.sync import train

TASK = Valve()
LEVELS = ("mild", "strong", "shifted")


def made(level: str | None, seed: int = 0) -> Twin:
    robot = twin.from_task(TASK)
    if level is not None:
        robot.vary(level, seed)
    return robot


def poses(count: int) -> list[FloatArray]:
    rng = np.random.default_rng(1)
    return [(TASK.rig.home_rad + rng.uniform(-0.3, 0.3, 9)).astype(np.float32) for _ in range(count)]


def driven(robot: Twin, count: int = 6) -> list[Observation]:
    seen = [robot.observe()]
    for pose in poses(count):
        robot.command(pose)
        seen.append(robot.observe())
    return seen


def same(first: list[Observation], second: list[Observation]) -> bool:
    return all(
        np.array_equal(one.image, other.image) and np.array_equal(one.joint_rad, other.joint_rad)
        for one, other in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_seed_gives_the_same_worlds_and_another_gives_others(level: str) -> None:
    found = []
    for seed in (0, 0, 1):
        with made(level, seed) as robot:
            found.append(driven(robot))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_level_of_nothing_is_the_world_as_it_is() -> None:
    with made("none") as varied, made(None) as plain:
        assert same(driven(varied), driven(plain))


def reach(level: str) -> FloatArray:
    """Return how far 60 worlds are from the nominal one, in units of AMOUNTS, [60, 6]."""
    rows = []
    worlds = Worlds(level, 0, 0.1)
    for number in range(60):
        worlds.go_to(number, 0)
        found = worlds.current
        rows.append(
            [
                abs(math.log(found.friction)) / AMOUNTS.friction,
                abs(math.log(found.mass)) / AMOUNTS.mass,
                abs(math.log(found.strength)) / AMOUNTS.strength,
                found.noise_levels / AMOUNTS.noise_levels,
                found.delay_s / AMOUNTS.delay_s,
                np.abs(found.eye_m).max() / AMOUNTS.eye_m,
            ]
        )
    return np.array(rows, np.float32)


def test_levels_are_what_they_say_and_evaluation_is_beyond_training() -> None:
    for level in LEVELS:
        near, far = REACH[level]
        found = reach(level)
        assert found.min() >= near - 1e-6
        assert found.max() <= far + 1e-6
        assert found.max() > 0.8 * far
    assert reach("strong").max() <= reach("shifted")[:, :5].min() + 1e-6


def test_a_command_that_is_late_is_felt_a_control_period_later() -> None:
    with made("delayed") as late, made(None) as plain:
        slow, quick = driven(late), driven(plain)
    assert slow[1].joint_rad == pytest.approx(slow[0].joint_rad, abs=1e-3)
    for later, sooner in zip(slow[2:], quick[1:], strict=False):
        assert later.joint_rad == pytest.approx(sooner.joint_rad, abs=0.02)


def test_what_is_observed_late_is_older_than_what_is() -> None:
    with made("strong") as robot:
        worlds = robot.worlds
        assert worlds is not None
        number = next(n for n in range(99) if (worlds.go_to(n, 0), worlds.current.latency_s > 0.03)[1])
        worlds.go_to(number, 0)
        robot.apply_variation()
        before = robot.observe().joint_rad
        robot.command((before + 0.25).astype(np.float32))
        seen = robot.observe().joint_rad
        there = np.array([angle for angle, _, _ in robot.joint_states()])
    assert (np.abs(seen - before) < np.abs(there - before)).all()


def test_the_object_and_the_fingers_are_others_and_nominal_again() -> None:
    with made("shifted") as robot:
        client, body = robot.client, robot.scene.bodies[0]
        links = range(-1, client.getNumJoints(body))
        varied = [client.getDynamicsInfo(body, link)[:2] for link in links]
        robot.vary("none", 0)
        nominal = [client.getDynamicsInfo(body, link)[:2] for link in links]
        shares = {round(one[1] / other[1], 6) for one, other in zip(varied, nominal, strict=True)}
        assert len(shares) == 1
        assert not 0.7 < shares.pop() < 1.4
        robot.place(np.array([1.0], np.float32))
        assert [client.getDynamicsInfo(body, link)[:2] for link in links] == nominal


def test_goal_images_vary_as_the_training_will_and_training_with_others_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {level: tmp_path / level for level in ("none", "strong")}
    for level, folder in folders.items():
        options = ["--count", "24", "--seed", "3", "--out", str(folder)]
        assert main(["goals", "valve", "--randomize", level, *options]) == 0
    plain, varied = (
        load_goals(folder, TASK.rig.camera, TASK.minimum_goals).train.mean((1, 2)).std(0) for folder in folders.values()
    )
    assert (varied > 3 * plain).all()
    command = ["train", "valve", "--check", "--runs", str(tmp_path / "runs"), "--goals"]
    assert main([*command, str(folders["strong"]), "--randomize", "strong"]) == 0
    capsys.readouterr()
    assert main([*command, str(folders["none"]), "--randomize", "strong"]) == 2
    assert "camera.randomize [0.0, 0.0], the rig has [0.0, 1.0]" in capsys.readouterr().err


def test_a_camera_that_is_moved_is_not_turned() -> None:
    """The valve's camera looks straight down, where a shift could turn its picture by anything."""

    def prong_rad(robot: Twin) -> float:
        image = robot.observe().image.astype(int)
        rows, columns = np.nonzero((image[..., 0] > 1.8 * image[..., 1]) & (image[..., 0] > 1.8 * image[..., 2]))
        return math.atan2(rows.mean() - 31.5, columns.mean() - 31.5)

    with made("none") as plain, made("shifted") as robot:
        for angle in (0.0, 2.0, 4.0):
            plain.place(np.array([angle], np.float32))
            for _ in range(8):
                robot.place(np.array([angle], np.float32))
                assert abs(math.remainder(prong_rad(robot) - prong_rad(plain), math.tau)) < 0.4


def test_noise_is_new_in_each_control_period_alone() -> None:
    with made("shifted") as robot:
        first, again = robot.observe().image, robot.observe().image
        assert np.array_equal(first, again)
        robot.command(TASK.rig.home_rad)
        assert not np.array_equal(robot.observe().image, first)


def test_another_world_comes_after_a_while_and_with_each_placing() -> None:
    with made("strong") as robot:
        numbers = []
        for _ in range(EVERY + 1):
            robot.command(TASK.rig.home_rad)
            robot.observe()
            numbers.append(robot.worlds.number)
        assert numbers == [0] * (EVERY - 1) + [1, 1]
        robot.place(np.array([1.0], np.float32))
        assert robot.worlds.number == 2


def test_a_saved_world_goes_on_as_the_world_it_was() -> None:
    with made("strong") as robot:
        robot.place(np.array([1.0], np.float32))
        driven(robot)
        world = robot.save_world()
        expected = robot.observe()
        robot.place(np.array([2.0], np.float32))
        robot.restore_world(world)
        assert np.abs(robot.observe().image.astype(int) - expected.image).mean() < 2.0
        assert robot.worlds.number == 1


def test_a_camera_that_is_moved_on_purpose_is_no_fault(goal_folder: Path) -> None:
    goals = load_goals(goal_folder, TASK.rig.camera, TASK.minimum_goals)
    for level, threshold in (("none", tiny().checks.moved.threshold), ("strong", 1.0)):
        config = tiny(robot="twin", randomize=level)
        monitor = Monitor(config, make_safe(made(None), TASK.rig), goals.train, lambda kind, message: None)
        assert monitor.checks.config.moved.threshold == threshold


def test_a_run_trains_in_worlds_that_vary_and_is_evaluated_beyond_them(
    tmp_path: Path, make_run: RunMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", tiny(robot="twin", steps=60, randomize="mild"))
    assert train(run)
    assert '"randomize": "mild"' in (run.folder / "config.json").read_text()
    found = []
    for level in ("none", "shifted"):
        assert main(["evaluate", str(run.folder), "--no-baselines", "--episodes", "2", "--randomize", level]) == 0
        with (run.folder / "evaluation" / "film-00.png").open("rb") as film:
            found.append(film.read())
    assert found[0] != found[1]


@pytest.mark.parametrize("level", get_args(Randomization))
def test_a_level_alone_sets_one_key(level: Randomization) -> None:
    found = resolve(TrainOptions(task="valve", randomize=level))
    assert found == replace(Config(), task="valve", randomize=level)


def test_the_variant_sets_the_level_and_prepares_the_encoder() -> None:
    variant = ("domain-randomization",)
    found = resolve(TrainOptions(task="valve", variant=variant))
    assert (found.randomize, found.vae.jitter) == ("strong", 0.5)
    found = resolve(TrainOptions(task="valve", variant=variant, randomize="mild", set=("vae.jitter=0.1",)))
    assert (found.randomize, found.vae.jitter) == ("mild", 0.1)


@pytest.mark.parametrize(
    ("level", "jitter"), [("none", 0.0), ("mild", 0.5), ("strong", 0.5), ("shifted", 0.0), ("delayed", 0.0)]
)
def test_the_benchmark_trains_each_level_as_its_records_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, jitter: float
) -> None:
    commands: list[Sequence[str]] = []
    monkeypatch.setattr("benchmarks.variation.run_logged", lambda command, log: commands.append(command))
    learn("valve", level, 3, 15_000, tmp_path)
    command = parse(commands[0][len(R3L) :])
    assert isinstance(command, TrainOptions)
    found = resolve(command)
    assert (found.randomize, found.vae.jitter, found.seed, found.steps) == (level, jitter, 3, 15_000)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "RUN", "--randomize", "strong"], "needs --robot twin"),
        (["evaluate", "RUN", "--randomize", "wild"], "wild"),
        (["train", "valve", "--robot", "fake", "--randomize", "mild", "--goals", "GOALS"], "needs --robot twin"),
    ],
)
def test_where_nothing_can_vary_it_is_told_in_one_line(
    tmp_path: Path,
    make_run: RunMaker,
    goal_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    run = make_run(tmp_path / "run", tiny(steps=60))
    run.weights.mkdir()
    (run.weights / "step-00000060.safetensors").touch()
    places = {"RUN": str(run.folder), "GOALS": str(goal_folder)}
    assert main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.count("\n") == 0
