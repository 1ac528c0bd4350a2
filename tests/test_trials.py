"""Evaluation by eye: trials that take turns, pauses of the robot, a person's marks, the judge set by them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conftest import RunMaker, tiny

from r3l.cli.main import main
from r3l.config.errors import UserError
from r3l.evaluation.labels import JUDGE_BEFORE, ask, calibrate, compare, mark
from r3l.evaluation.policies import Behaviour
from r3l.evaluation.rollout import Rollout
from r3l.evaluation.statistics import difference
from r3l.evaluation.trials import make_trials
from r3l.evaluation.trials_folder import Trial, Trials, TrialsFolder
from r3l.hardware.fake import Fake, from_task
from r3l.models.judge import Judge
from r3l.models.judge_training import fit_after_exploration
from r3l.models.networks import channels_first
from r3l.robot.base import FloatArray, Image, Observation, RobotError, Trouble
from r3l.run.directory import Run
from r3l.run.goals import Goals, load_goals
from r3l.tasks.valve import Valve
from r3l.training.sync import train

TASK = Valve()
CONFIG = tiny(phases={"between": "nothing", "perturbation_steps": 3})


class Placing:
    """Begins with the dial somewhere, as a policy that ends there, and tells what it saw."""

    def __init__(self, robot: Fake, where: Callable[[], FloatArray], name: str, told: list[str]) -> None:
        self._robot, self._where, self._name, self._told = robot, where, name, told
        self.seen: list[FloatArray] = []

    def begin(self) -> None:
        self._told.append(self._name)
        world = np.frombuffer(self._robot.save_world(), np.float64).copy()
        world[0] = self._where()[0]  # the angle of the dial
        self._robot.restore_world(world.tobytes())

    def see(self, image: Image, proprioception: FloatArray, applied: FloatArray, diagnostic: FloatArray) -> None:
        self.seen.append(proprioception)

    def choose(self) -> FloatArray:
        return np.zeros(len(self._robot.spec.joints), np.float32)


class Troubled(Fake):  # type: ignore[misc]  # a driver's class is Any here
    """A fake robot with troubles at some of its observations."""

    def __init__(self, robot: Fake) -> None:
        super().__init__(TASK.rig.limits, TASK.rig.home_rad, camera=TASK.rig.camera, goal_rad=robot.goal_rad)
        self.looks = 0
        self.at: dict[int, Trouble] = {}
        self.nan_at = -1
        self.relaxed = 0
        self.cannot_relax = False

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        return (self.at[self.looks],) if self.looks in self.at else ()

    def observe(self) -> Observation:
        self.looks += 1
        found: Observation = super().observe()
        return replace(found, joint_rad=found.joint_rad * np.nan) if self.looks == self.nan_at else found

    def relax(self) -> None:
        self.relaxed += 1
        if self.cannot_relax:
            self.cannot_relax = False
            raise RobotError("no servo confirmed it")
        super().relax()


@pytest.fixture
def goals(goal_folder: Path) -> Goals:
    return load_goals(goal_folder, TASK.rig.camera, TASK.minimum_goals)


@pytest.fixture(scope="module")
def judge() -> Judge:
    """A judge of the dial."""
    robot, rng = from_task(TASK), np.random.default_rng(0)

    def seen(states: FloatArray) -> Image:
        images = []
        for state in states:
            robot.place(state)
            images.append(robot.observe().image)
        return np.stack(images)

    with robot:
        shown, random = seen(TASK.goal_states(48, rng)), seen(TASK.random_states(200, rng))
    return fit_after_exploration(shown[:36], shown[36:], channels_first(random), seed=0)


@pytest.fixture
def stage(goals: Goals) -> Iterator[Rollout]:
    with Rollout(CONFIG, TASK, Troubled(from_task(TASK)), goals, lambda text: None) as stage:
        yield stage


def away(rng: np.random.Generator) -> FloatArray:
    """Return a state that is no success."""
    state: FloatArray = TASK.goal_states(1, rng)[0] + rng.uniform(2.0, 4.0, 1).astype(np.float32)
    return state


def policies(stage: Rollout, told: list[str]) -> tuple[dict[int, Behaviour], Placing]:
    """Return a policy that solves the task, of step 200, one that never does, of step 100, and a perturbation."""
    robot: Any = stage.robot
    rng = np.random.default_rng(0)
    good = Placing(robot, lambda: TASK.goal_states(1, rng)[0], "good", told)
    bad = Placing(robot, lambda: TASK.goal_states(1, rng)[0] + np.float32(np.pi), "bad", told)
    return {200: good, 100: bad}, Placing(robot, lambda: away(rng), "perturb", told)


def made(stage: Rollout, judge: Judge, count: int = 8) -> tuple[list[Trial], list[list[Image]], list[str]]:
    told: list[str] = []
    found: list[Trial] = []
    frames: list[list[Image]] = []

    def keep(trial: Trial, ends: list[Image]) -> None:
        found.append(trial)
        frames.append(ends)

    behaviours, perturb = policies(stage, told)
    make_trials(stage, behaviours, perturb, judge, count=count, rng=np.random.default_rng(0), on_trial=keep)
    return found, frames, told


def test_policies_take_turns_from_random_starts_and_are_judged(stage: Rollout, judge: Judge) -> None:
    found, frames, told = made(stage, judge)
    assert [trial.number for trial in found] == list(range(1, 17))
    turns = [(found[at].weights, found[at + 1].weights) for at in range(0, 16, 2)]
    assert set(turns) == {(100, 200), (200, 100)}, "both in each turn, and neither always first"
    assert told[::2] == ["perturb"] * 16
    assert {len(ends) for ends in frames} == {judge.config.frames}
    assert [trial.success for trial in found] == [trial.weights == 200 for trial in found]
    assert sum(trial.judged == trial.success for trial in found) >= 14


def test_a_success_of_the_trial_before_is_undone_first(stage: Rollout, judge: Judge) -> None:
    told: list[str] = []
    robot: Any = stage.robot
    rng = np.random.default_rng(0)
    good = Placing(robot, lambda: TASK.goal_states(1, rng)[0], "good", told)
    late = iter(
        [TASK.goal_states(1, rng)[0], TASK.goal_states(1, rng)[0], away(rng), *[TASK.goal_states(1, rng)[0]] * 9]
    )
    perturb = Placing(robot, lambda: next(late), "perturb", told)
    found: list[Trial] = []
    make_trials(stage, {1: good}, perturb, judge, count=2, rng=rng, on_trial=lambda trial, ends: found.append(trial))
    assert told == [*["perturb"] * 3, "good", *["perturb"] * 4, "good"], "four times at most"


def test_a_robot_that_pauses_has_its_trial_made_anew(
    stage: Rollout, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r3l.evaluation.rollout.RECHECK_EVERY_S", 0.0)
    robot: Any = stage.robot
    robot.at = dict.fromkeys(range(30, 34), Trouble("warm", "pause", "servo 12 is warm"))
    robot.cannot_relax = True
    found, _, told = made(stage, judge, count=1)
    assert len(found) == 2
    assert told.count("perturb") == 3, "one trial began anew"
    assert robot.relaxed >= 1


def test_a_robot_that_pauses_before_it_acts_is_waited_for(
    stage: Rollout, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r3l.evaluation.rollout.RECHECK_EVERY_S", 0.0)
    robot: Any = stage.robot
    robot.at = dict.fromkeys(range(robot.looks + 1, robot.looks + 4), Trouble("warm", "pause", "servo 12 is warm"))
    told: list[str] = []
    _, perturb = policies(stage, told)
    assert stage.episode(perturb, 3) is None
    assert robot.relaxed == 1
    assert not robot.troubles, "it was waited for"
    frames = stage.episode(perturb, 3)
    assert frames is not None
    assert len(frames) == 4


@pytest.mark.parametrize(("action", "message"), [("stop", "servo 12 has a short"), ("pause", "servo 12 has a short")])
def test_what_does_not_pass_ends_the_trials_with_the_robot_relaxed(
    goals: Goals, judge: Judge, monkeypatch: pytest.MonkeyPatch, action: Any, message: str
) -> None:
    monkeypatch.setattr("r3l.evaluation.rollout.RECHECK_EVERY_S", 0.0)
    monkeypatch.setattr("r3l.evaluation.rollout.MAX_WAIT_S", 0.05)
    robot = Troubled(from_task(TASK))
    robot.at = dict.fromkeys(range(30, 100_000), Trouble("short", action, message))
    with (
        pytest.raises(RobotError, match=message),
        Rollout(CONFIG, TASK, robot, goals, lambda text: None) as stage,
    ):
        made(stage, judge)
    with pytest.raises(RobotError, match="not connected"):
        Fake.observe(robot)


def test_a_joint_that_was_not_measured_is_not_shown_to_the_policy(stage: Rollout, judge: Judge) -> None:
    robot: Any = stage.robot
    robot.nan_at = 12
    told: list[str] = []
    behaviours, perturb = policies(stage, told)
    make_trials(
        stage, behaviours, perturb, judge, count=1, rng=np.random.default_rng(0), on_trial=lambda trial, ends: None
    )
    assert robot.looks > 12
    every: list[Any] = [*behaviours.values(), perturb]
    shown = np.stack([joints for behaviour in every for joints in behaviour.seen])
    assert np.isfinite(shown).all()
    assert len(shown) == 2 * (3 + TASK.episode_steps) - 1


@pytest.fixture
def folder(tmp_path: Path, stage: Rollout, judge: Judge) -> TrialsFolder:
    found, frames, _ = made(stage, judge)
    folder = TrialsFolder(tmp_path / "trials")
    folder.create()
    folder.keep(Trials("valve", "fake", (200, 100), tuple(found)), np.stack([np.stack(ends) for ends in frames]))
    return folder


def truths(found: Trials) -> dict[int, bool]:
    return {trial.number: bool(trial.success) for trial in found.trials}


def test_trials_are_kept_with_a_sheet_that_does_not_tell_whose_they_are(folder: TrialsFolder, judge: Judge) -> None:
    found = folder.read()
    assert len(found.trials) == 16
    assert folder.log_odds(found, judge) == pytest.approx({trial.number: trial.log_odds for trial in found.trials})
    with PIL.Image.open(folder.sheet) as sheet:
        assert sheet.size == (6 * 160, 3 * 160)
    assert folder.marks.read_text().splitlines()[:3] == ["trial,success", "1,", "2,"]
    with pytest.raises(UserError, match="never overwritten"):
        folder.create()
    fewer = replace(found, trials=found.trials[:-1])
    assert len(folder.log_odds(fewer, judge)) == 15, "as after Ctrl-C between two files"
    with pytest.raises(UserError, match="images of 16 trials, expected 17"):
        folder.log_odds(replace(found, trials=(*found.trials, found.trials[0])), judge)


def test_a_person_answers_goes_back_and_leaves_out(folder: TrialsFolder) -> None:
    found, said = folder.read(), list[str]()
    ask(folder, found, iter(["y", "?", "n", "u", "y", "s", "q"]), said.append)
    assert [folder.read_marks(found)[number] for number in (1, 2, 3, 4)] == [True, True, None, None]
    ask(folder, found, iter(["n"]), said.append)
    assert folder.read_marks(found)[3] is False, "it goes on where marks are missing"
    assert any("back" in line for line in said)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trial,success\n1,perhaps\n", "line 2: '1,perhaps', expected the number of a trial and yes or no"),
        ("trial,success\n1,y\n99,y\n", "line 3"),
        ("trial,success\nx,y\n", "line 2"),
        ("trial,success\n\xff", "cannot be read"),
    ],
)
def test_marks_that_cannot_be_read_are_told_by_line(folder: TrialsFolder, text: str, words: str) -> None:
    folder.marks.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        folder.read_marks(folder.read())


def test_a_spreadsheets_table_is_read(folder: TrialsFolder) -> None:
    folder.marks.write_bytes(b"\xef\xbb\xbftrial,success,note\r\n3, Yes ,good\r\n4,0,\r\n,,\r\n")
    marks = folder.read_marks(folder.read())
    assert (marks[1], marks[3], marks[4]) == (None, True, False)


def test_the_interval_of_a_difference_is_newcombes() -> None:
    apart, low, high = difference([True] * 56 + [False] * 14, [True] * 48 + [False] * 32)
    assert (apart, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)  # his table II, (a), method 10


def test_a_comparison_says_whether_it_may_be_chance(folder: TrialsFolder) -> None:
    found = folder.read()
    lines = compare(found, truths(found), "you")
    assert lines[0].startswith("you: weights of step 200: success 1.00")
    assert lines[2].startswith("you: step 200 less step 100: +1.00 (95% interval +0.")
    assert "chance" not in lines[2]
    assert compare(found, dict.fromkeys(truths(found), True), "you")[2].endswith("it may be chance)")


@pytest.fixture
def run(tmp_path: Path, make_run: RunMaker, judge: Judge) -> Run:
    """A run whose judge is far too strict."""
    run = make_run(tmp_path / "run", CONFIG)
    strict = replace(judge.calibration, threshold=judge.calibration.threshold + 50.0)
    replace(judge, calibration=strict).save(run.judge)
    return run


def test_the_judge_is_set_by_marks_and_again_from_the_first_one(run: Run, folder: TrialsFolder) -> None:
    found = folder.read()
    folder.write_marks(truths(found))
    before = run.judge.read_bytes()
    said: list[str] = []
    mark(run, folder, iter(()), said.append, sets_judge=True)
    assert folder.log_odds(found, Judge.load(run.judge)) != folder.log_odds(
        found, Judge.load(folder.folder / JUDGE_BEFORE)
    )
    judge, ends = Judge.load(run.judge), folder.ends()
    verdicts = {trial.number: judge.verdict(end) for trial, end in zip(found.trials, ends, strict=True)}
    assert sum(verdicts[number] == truth for number, truth in truths(found).items()) >= 15
    assert (folder.folder / JUDGE_BEFORE).read_bytes() == before
    after = run.judge.read_bytes()
    calibrate(run, folder, found, truths(found))
    assert run.judge.read_bytes() == after
    assert said[-1].startswith("judge set by your marks, each trial judged by the marks of the others: agrees in 1")
    assert any(line.startswith("ground truth: agrees in 16 of 16") for line in said)


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        (lambda number, truth: True, "16 successes and 0 failures are marked, expected 4 or more of each"),
        (lambda number, truth: not truth, "takes failures for successes"),
    ],
)
def test_marks_that_cannot_set_the_judge_leave_it(
    run: Run, folder: TrialsFolder, marks: Callable[[int, bool], bool], words: str
) -> None:
    found, before = folder.read(), run.judge.read_bytes()
    with pytest.raises(UserError, match=words):
        calibrate(run, folder, found, {number: marks(number, truth) for number, truth in truths(found).items()})
    assert run.judge.read_bytes() == before
    with run.lock(), pytest.raises(UserError, match="is in use"):
        calibrate(run, folder, found, truths(found))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_run: RunMaker) -> Run:
    run = make_run(tmp_path_factory.mktemp("runs") / "run", replace(CONFIG, steps=60))
    assert train(run)
    return run


def test_the_commands_compare_two_checkpoints_and_take_marks(
    trained: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["mark", str(trained.folder)]) == 2
    assert "has no trials to mark" in capsys.readouterr().err
    weights = [str(trained.folder), "--by-eye", "--episodes", "2"]
    run = trained
    assert main(["evaluate", *weights, "--against", "0"]) == 0
    shown = capsys.readouterr().out
    assert "judge: weights of step 60: success" in shown
    assert "judge: step 60 less step 0" in shown
    assert len(TrialsFolder(run.folder / "by-eye-1").read().trials) == 4
    monkeypatch.setattr("sys.stdin", io.StringIO("y\nn\ny\ny\n"))
    assert main(["mark", str(run.folder), "--no-set-judge"]) == 0
    assert "judge: agrees in " in capsys.readouterr().out
    assert (run.folder / "by-eye-1" / "marks.csv").read_text().split() == [
        "trial,success",
        "1,yes",
        "2,no",
        "3,yes",
        "4,yes",
    ]
    assert main(["evaluate", *weights]) == 0
    monkeypatch.setattr("sys.stdin", None)
    assert main(["mark", str(run.folder)]) == 2
    assert "no trial is marked; answer for each, or fill in" in capsys.readouterr().err
    assert main(["check", str(run.folder)]) == 0, "trials are no strangers in a run"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mark", "RUN", "--trials", "nowhere"], "no readable trials.json"),
        (["evaluate", "RUN", "--against", "0"], "add --by-eye"),
        (["evaluate", "RUN", "--by-eye", "--against", "60"], "choose another step"),
        (["evaluate", "RUN", "--by-eye", "--step", "7"], "cannot be read"),
        (["evaluate", "RUN", "--by-eye", "--out", "RUN"], "never overwritten"),
        (["evaluate", "RUN", "--by-eye", "--rig", "rig.toml"], "has no rig file"),
    ],
)
def test_bad_input_gets_one_line(
    trained: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main([str(trained.folder) if word == "RUN" else word for word in arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.count("\n") == 0
