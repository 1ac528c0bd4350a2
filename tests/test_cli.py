"""The command line: three commands from goal images to evaluation, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import functools
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import RunMaker, tiny

import r3l.cli.main
import r3l.cli.settings
from r3l.cli.main import all_commands, load, main
from r3l.config.convert import to_dict
from r3l.config.models import JudgeConfig
from r3l.config.presets import PRESETS, VARIANTS
from r3l.models import judge_training
from r3l.run.directory import FORMAT_VERSION, Run
from r3l.run.tensors import CheckpointError

RUN_COMMANDS = ("evaluate", "mark", "export", "report", "film", "status", "check", "pause", "resume", "relax", "stop")
Captured = pytest.CaptureFixture[str]
Complain = Callable[..., str]
QUICK = {
    "robot": "fake",
    "steps": 80,
    "sync": True,
    "device": "cpu",
    "evaluate_every": 0,
    "checkpoint_every": 40,
    "replay_capacity": 1000,
    "phases": {"exploration_steps": 60, "task_steps": 10, "perturbation_steps": 5, "homing_steps": 2},
    "vae": {"image_size": 16, "batch_size": 16, "pretrain_updates": 5},
    "sac": {"hidden": [16], "batch_size": 16},
    "classifier": {"pretrain_updates": 5},
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts where nothing is, and leaves the process as it was."""
    monkeypatch.chdir(tmp_path)
    for module in ("r3l.models.torch_setup", "r3l.cli.launch"):
        monkeypatch.setattr(f"{module}.tune_process", lambda: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def complain(tmp_path: Path, capsys: Captured) -> Complain:
    """Return what runs a command that must fail with one line and write nothing; it returns the line."""

    def run(*arguments: str) -> str:
        before = contents(tmp_path)
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1, line
        assert line.startswith("r3l: ")
        assert line.endswith("\n")
        assert "Traceback" not in line
        assert contents(tmp_path) == before, "something was written"
        return line

    return run


@pytest.fixture
def goals(goal_folder: Path, tmp_path: Path) -> Path:
    """Good goal images where `r3l train valve` looks for them."""
    shutil.copytree(goal_folder, tmp_path / "goals" / "valve")
    return tmp_path / "goals" / "valve"


@pytest.fixture
def run(tmp_path: Path, make_run: RunMaker) -> Run:
    """A run that was made and never trained."""
    return make_run(tmp_path / "runs" / "first", tiny())


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        PIL.Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"shot-{number:02d}.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian", "valve"], "unknown command 'trian'; did you mean 'train'?"),
        (["--bogus"], "unknown command '--bogus'; expected a command first: goals, train, evaluate"),
        (["train", "valve", "--stepz", "5"], "unknown option '--stepz'; did you mean '--steps'?"),
        (["train", "--task", "valve"], "unknown option '--task'; task is written without a name: r3l train TASK"),
        (["train", "--task=valve"], "task is written without a name: r3l train TASK"),
        (["train", "valve", "--steps", "many"], "--steps"),
        (["train", "valve", "--steps"], "--steps"),
        (["train", "valve", "--device", "tpu"], "--device"),
        (["train", "valve", "more"], "not understood: more; see r3l train --help"),
        (["evaluate"], "PATH"),
        (["goals"], "STR"),
        (["config", "--preset", "papper"], "unknown preset 'papper'; did you mean 'paper'?"),
        (["config", "--variant", "pixel"], "unknown variant 'pixel'; did you mean 'pixels'?"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(
    complain: Complain, arguments: list[str], expected: str
) -> None:
    line = complain(*arguments)
    assert expected in line
    assert len(line) < 200, "a hint, not an essay"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], "train needs a task"),
        (["train", "valv"], "unknown task 'valv'; did you mean 'valve'?"),
        (["train", "valve", "--robot", "twinn"], "unknown robot 'twinn'; did you mean 'twin'?"),
        (["train", "valve", "--preset", "papper"], "did you mean 'paper'?"),
        (["train", "valve", "--variant", "no-perturbations"], "did you mean 'no-perturbation'?"),
        (
            ["train", "valve", "--set", "sac.batchsize=5"],
            "unknown config key 'sac.batchsize'; did you mean 'batch_size'?",
        ),
        (["train", "valve", "--set", "stepz=5"], "unknown config key 'stepz'; did you mean 'steps'?"),
        (["train", "valve", "--set", "steps"], "--set 'steps' has no value"),
        (["train", "valve", "--set", "=5"], "unknown config key ''"),
        (["train", "valve", "--set", "steps=many"], "config key 'steps' is 'many', expected int"),
        (["train", "valve", "--set", "sac=5"], "config key 'sac' is 5, expected a table"),
        (
            ["train", "valve", "--set", "state=pixels"],
            "config key 'novelty.sees' is 'latent', and state 'pixels' has none",
        ),
        (
            ["train", "valve", "--set", "state=diagnostic-true-state"],
            "config key 'classifier.sees' is 'latent', and state 'diagnostic-true-state' has none",
        ),
        (["train", "valve", "--set", "sac.hidden=5"], "config key 'sac.hidden' is 5"),
        (["train", "valve", "--set", "state=smell"], "config key 'state' is 'smell', expected one of 'latent'"),
        (["train", "valve", "--set", "sac.batch_size.x=1"], "config key 'sac.batch_size' is"),
        (["train", "valve", "--config", "missing.toml"], "missing.toml cannot be read"),
        (["train", "valve", "--steps", "0"], "'steps' is 0, expected 1"),
        (["train", "valve", "--steps", "-5"], "'steps' is -5, expected 1"),
        (["train", "valve", "--goals", "nowhere"], "goal folder nowhere is missing; make it with r3l goals valve"),
        (["train", "--resume", "nowhere"], "nowhere is not a run directory"),
        (["train", "--resume", "goals"], "goals is not a run directory"),
        (["evaluate", "nowhere"], "nowhere is not a run directory"),
        (["report", "nowhere"], "nowhere is not a run directory"),
        (["goals", "valv"], "unknown task 'valv'; did you mean 'valve'?"),
        (["goals", "valve"], "goal folder goals/valve exists and is never overwritten"),
        (["goals", "valve", "--out", "new", "--robot", "fakee"], "unknown robot 'fakee'; did you mean 'fake'?"),
        (["goals", "valve", "--out", "new", "--count", "19"], "--count 19 is too few goal images, expected 20"),
        (["goals", "valve", "--out", "new", "--count", "-1"], "--count -1 is too few"),
        (["goals", "valve", "--out", "new", "--from-folder", "nowhere"], "'nowhere' does not exist"),
    ],
)
@pytest.mark.usefixtures("goals")
def test_bad_input_is_one_line_and_nothing_is_written(complain: Complain, arguments: list[str], expected: str) -> None:
    assert expected in complain(*arguments)


@pytest.mark.parametrize("command", ["goals", "train"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("empty", "no"),
        ("unreadable", "shot-03.png' is unreadable"),
        ("truncated", "shot-03.png' is damaged or cut short"),
        ("tiny", "shot-03.png' is 4x4 px, expected at least 16"),
        ("few", "holds 19 goal images, expected at least 20"),
    ],
)
def test_bad_goal_images_are_named(
    tmp_path: Path, goal_folder: Path, complain: Complain, command: str, damage: str, expected: str
) -> None:
    if command == "goals":
        folder = pictures(tmp_path / "shots", 19 if damage == "few" else 24)
        victim, name = folder / "shot-03.png", "shot-03.png"
        arguments = ["goals", "valve", "--out", "new", "--from-folder", "shots"]
    else:
        folder = Path(shutil.copytree(goal_folder, tmp_path / "shots"))
        victim, name = folder / "train" / "0003.png", "0003.png"
        arguments = ["train", "valve", "--robot", "fake", "--goals", "shots"]
    if damage == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "unreadable":
        victim.write_bytes(b"this is no image")
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-60])
    elif damage == "tiny":
        PIL.Image.new("RGB", (4, 4)).save(victim)
    elif command == "train":
        meta = json.loads((folder / "goals.json").read_text())
        (folder / "goals.json").write_text(json.dumps(meta | {"train": 15}))
    assert expected.replace("shot-03.png", name) in complain(*arguments)


def test_an_existing_run_directory_is_never_overwritten(goals: Path, run: Run, complain: Complain) -> None:
    assert "never overwritten" in complain("train", "valve", "--robot", "fake", "--name", "first")


def test_a_run_in_use_is_left_alone(run: Run, complain: Complain) -> None:
    with (run.folder / "lock").open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "in use by process 4711" in complain("train", "--resume", str(run.folder), "--steps", "500")


@pytest.mark.parametrize("arguments", [["train", "--resume"], ["evaluate"], ["report"]])
def test_a_run_of_a_newer_version_is_refused(run: Run, complain: Complain, arguments: list[str]) -> None:
    path = run.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT_VERSION + 1, "r3l": "7.0"}))
    assert f"format {FORMAT_VERSION + 1} (r3l 7.0)" in complain(*arguments, str(run.folder))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--steps", "0"], "'steps' is 0, expected 1"),
        (["--seed", "3"], "keeps its seed"),
        (["--set", "sac.batch_size=5"], "keeps its set"),
        (["valve"], "keeps its task"),
        (["--robot", "fake"], "keeps its robot"),
    ],
)
def test_what_a_resumed_run_cannot_change_is_refused(
    run: Run, complain: Complain, arguments: list[str], expected: str
) -> None:
    assert expected in complain("train", "--resume", str(run.folder), *arguments)


def test_evaluating_before_any_weights_is_refused(run: Run, complain: Complain) -> None:
    assert "has published no weights yet" in complain("evaluate", str(run.folder))
    assert "--episodes is 0, expected 1 or more" in complain("evaluate", str(run.folder), "--episodes", "0")
    assert "step-00000007.safetensors cannot be read" in complain("evaluate", str(run.folder), "--step", "7")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that must be missing")
@pytest.mark.usefixtures("goals")
def test_a_missing_device_is_refused(complain: Complain) -> None:
    assert "'cuda' was asked for and torch finds none" in complain("train", "valve", "--device", "cuda")


def test_an_error_of_several_lines_is_folded(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> None:
        raise CheckpointError("one\n  two")

    monkeypatch.setattr(r3l.cli.main, "parse", fail)
    assert main(["tasks"]) == 2
    assert capsys.readouterr().err == "r3l: one   two\n"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl"), sqlite3.OperationalError("full")],
)
def test_a_disk_that_fails_is_one_line(error: Exception, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(r3l.cli.main, "parse", fail)
    assert main(["tasks"]) == 2
    assert capsys.readouterr().err == f"r3l: {error}; check the disk's free space and permissions, then go on\n"


def test_an_interrupt_is_one_line_and_130(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(r3l.cli.main, "parse", interrupt)
    assert main(["tasks"]) == 130
    assert capsys.readouterr().err == "r3l: stopped; nothing acknowledged is lost\n"


def test_help_names_every_command(capsys: Captured) -> None:
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert not end.value.code
        text = capsys.readouterr().out
        assert all(f"\n  {name}" in text for name in all_commands())


def test_the_version_is_printed(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out == f"r3l {r3l.__version__}\n"


@pytest.mark.parametrize("name", all_commands())
def test_help_of_a_command_names_every_option(capsys: Captured, name: str) -> None:
    kind = load(name, all_commands()[name])
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert dataclasses.is_dataclass(kind)
    positional = {"task"} | ({"run"} if name in RUN_COMMANDS else set())
    positional |= {"rig"} if name in {"doctor", "calibrate"} else {"source"}
    for field in dataclasses.fields(kind):
        assert field.name in positional or f"--{field.name.replace('_', '-')}" in text


def test_tasks_and_robots_are_listed(capsys: Captured) -> None:
    assert main(["tasks"]) == 0
    assert "turn a three-prong valve" in capsys.readouterr().out
    assert main(["robots"]) == 0
    assert {"fake", "twin"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("preset", PRESETS)
def test_config_prints_what_config_takes(capsys: Captured, preset: str) -> None:
    assert main(["config", "--preset", preset, "--variant", "no-perturbation"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(to_dict(VARIANTS["no-perturbation"](PRESETS[preset]()))))


def test_options_come_after_the_config_file_and_set() -> None:
    Path("own.json").write_text(json.dumps({"steps": 11, "seed": 5, "sac": {"batch_size": 9}}))
    command = r3l.cli.main.parse(
        ["train", "valve", "--config", "own.json", "--set", "sac.batch_size=10", "--set", "seed=6", "--seed", "7"]
    )
    assert isinstance(command, r3l.cli.settings.TrainOptions)
    found = r3l.cli.settings.resolve(command)
    assert (found.steps, found.seed, found.sac.batch_size) == (11, 7, 10)


def test_a_whole_run_from_goal_images_to_the_report(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = functools.partial(judge_training.fit, config=JudgeConfig(updates=20))
    monkeypatch.setattr("r3l.models.judge_training.fit", quick)
    assert main(["goals", "valve", "--robot", "fake", "--count", "40"]) == 0
    assert "goal images for training and 8 held out are in goals/valve" in capsys.readouterr().out
    Path("quick.json").write_text(json.dumps(QUICK))

    before = contents(tmp_path)
    assert main(["train", "valve", "--config", "quick.json", "--check"]) == 0
    output = capsys.readouterr().out
    assert all(
        word in output for word in ("ROC-AUC", "env steps per second", "memory:", "disk:", "nothing was started")
    )
    assert contents(tmp_path) == before
    assert not Path("runs").exists()

    assert main(["train", "valve", "--config", "quick.json"]) == 0
    assert "done; next: r3l evaluate runs/valve-1" in capsys.readouterr().out
    folder = tmp_path / "runs" / "valve-1"
    run = Run.open(folder)
    assert run.config.steps == 80
    taken = contents(tmp_path / "goals" / "valve")
    assert taken.pop("contact-sheet.png"), "for people, not for the run"
    assert contents(run.goals) == taken

    shutil.rmtree("goals")  # a run needs nothing outside itself
    before = contents(folder)
    assert main(["train", "--resume", "runs/valve-1", "--steps", "90", "--check"]) == 0
    assert {name: value for name, value in contents(folder).items() if name != "lock"} == {
        name: value for name, value in before.items() if name != "lock"
    }
    assert main(["train", "--resume", "runs/valve-1", "--steps", "90"]) == 0
    assert Run.open(folder).config.steps == 90
    assert run.newest_snapshot() == 90

    before = contents(folder)
    assert main(["evaluate", "runs/valve-1", "--episodes", "2"]) == 0
    output = capsys.readouterr().out
    for name in ("policy", "untrained", "do-nothing", "random"):
        assert f"{name}: success" in output
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    new = {name.split("/")[0] for name in after.keys() - before.keys()}
    assert new == {"evaluation"}
    found = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert found["policy"]["episodes"] == 2

    assert main(["report", "runs/valve-1"]) == 0
    assert (folder / "report.html").read_text().lstrip().startswith("<!")
