"""The page on new tasks, followed: its files are written, its commands run, with fewer steps and pictures."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium
import numpy as np
import PIL.Image
import pytest

from r3l.cli.main import main
from r3l.hardware.twin import from_task
from r3l.run.jsonl import read_jsonl
from r3l.task.registry import load_task

PAGE = (Path(__file__).parent.parent / "docs" / "new-task.md").read_text()
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SHORT = """
steps = 90
evaluate_every = 80
[phases]
exploration_steps = 60
[vae]
pretrain_updates = 2
[classifier]
pretrain_updates = 2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder with the page's files in it, worked in."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "short.toml").write_text(SHORT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, *more: str) -> int:
    program, *arguments = line.split()
    assert program == "r3l"
    return main([*arguments, *more])


def test_the_page_has_both_tasks_and_their_commands() -> None:
    assert set(FILES) == {"drawer.toml", "drawer.py", "swing.toml", "swing.py"}
    assert [line.split()[1] for line in COMMANDS] == ["goals", "train", "evaluate", "report", "goals", "train"]


def test_the_drawer_is_a_sound_task(folder: Path) -> None:
    task = load_task("drawer.py")
    starts = task.start_states(24, 0)
    with from_task(task) as twin:
        for states, solved in ((starts, False), (task.goal_states(24, np.random.default_rng(0)), True)):
            for state in states:
                twin.place(state)
                assert (twin.truth()["error"] <= task.success_error) is solved
        twin.place(np.array([0.02], np.float32))
        places = []
        rng = np.random.default_rng(0)
        for step in range(300):
            if step % 3 == 0:
                target = rng.uniform(*np.array([(j.min_rad, j.max_rad) for j in task.rig.limits]).T)
            twin.command(target.astype(np.float32))
            twin.observe()
            places.append(twin.truth()["place_m"])
    assert np.ptp(places) > 0.03
    assert np.abs(places).max() <= 0.055


@pytest.mark.slow
def test_the_drawers_commands_run_with_fewer_steps_and_go_on_from_another_folder(
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    goals, train, evaluate, report = COMMANDS[:4]
    assert run(goals, "--count", "24") == 0
    assert "r3l train drawer.py" in capsys.readouterr().out
    assert run(train.replace("--steps 10000", ""), "--config", "short.toml", "--device", "cpu") == 0
    assert run(evaluate, "--episodes", "2") == 0
    assert run(report) == 0
    records = read_jsonl(folder / "runs" / "drawer-1" / "evaluations.jsonl")
    assert [record["step"] for record in records] == [0, 80]
    assert {"place_m", "error"} <= set(records[0]["starts"][0]["truth"])
    assert (folder / "runs" / "drawer-1" / "report.html").stat().st_size > 10_000
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert run(f"r3l train --resume {folder / 'runs' / 'drawer-1'} --steps 95") == 0


@pytest.mark.slow
def test_the_swing_trains_on_a_world_that_nobody_here_wrote(folder: Path) -> None:
    pytest.importorskip("pygame")
    (folder / "pictures").mkdir()
    env = gymnasium.make("Pendulum-v1", render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    for index in range(24):
        env.state = np.array([0.004 * index, 0.0])  # type: ignore[attr-defined]
        PIL.Image.fromarray(env.render()).save(folder / "pictures" / f"{index:02d}.png")  # type: ignore[arg-type]
    goals, train = COMMANDS[4:]
    assert run(goals) == 0
    assert run(train, "--config", "short.toml", "--device", "cpu") == 0
    kinds = [event["kind"] for event in read_jsonl(folder / "runs" / "swing-1" / "events.jsonl")]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train missing.py", ("missing.py", "does not exist")),
        ("goals drawer.py --robot gym", ("drawer", "gym = ")),
        ("goals broken.py", ("broken.py", "SyntaxError")),
        ("goals divides.py", ("divides.py", "ZeroDivisionError")),
        ("goals drawer.py --seed -1", ("--seed is -1", "0 or more")),
        ("goals empty.py", ("empty.py", "expected one subclass")),
        ("goals swing.py --robot gym", ("0 goal images were taken", "--from-folder")),
        ("goals swing.py", ("swing", "scene()", "docs/new-task.md")),
    ],
)
def test_bad_task_files_get_one_line(
    arguments: str,
    words: tuple[str, ...],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # nobody is there to take pictures
    (folder / "broken.py").write_text("def task(:\n")
    (folder / "empty.py").write_text("x = 1\n")
    (folder / "divides.py").write_text("x = 1 / 0\n")
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("file", "line", "other", "words"),
    [
        ("drawer.toml", "control_hz = 10.0", "control_hz = nan", "rig.control_hz is nan, expected more than 0"),
        ("drawer.toml", "max_step_rad = 0.25", "max_step_rad = 0", "rig.max_step_rad is 0"),
        ("drawer.toml", "width = 64", "width = 0", "rig.camera is 0x64 px, expected 16"),
        (
            "drawer.toml",
            "finger0_swing = { min_rad = -0.6",
            "finger0_swing = { min_rad = 0.7",
            "rig.joints.finger0_swing",
        ),
        ("drawer.py", 'name = "drawer"', 'name = "../drawer"', "expected letters, digits"),
        ("drawer.py", 'name = "drawer"', "title = 3", "name is None, expected text"),
        ("drawer.py", "episode_steps = 30", 'episode_steps = "30"', "episode_steps is '30', expected a whole number"),
        ("drawer.py", "    @property\n    def rig", "    @property\n    def rigg", "'drawer.py' cannot be made"),
    ],
)
def test_a_task_that_is_not_whole_gets_one_line(
    file: str, line: str, other: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / file).read_text()
    assert text.count(line) == 1
    (folder / file).write_text(text.replace(line, other))
    assert main(["goals", "drawer.py"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert words in error
    assert not (folder / "goals").exists()


def test_a_task_file_may_use_dataclasses(folder: Path) -> None:
    text = (folder / "drawer.py").read_text()
    more = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    (folder / "drawer.py").write_text(more + text + "\n\n@dataclass\nclass Push:\n    force_n: float = 1.0\n")
    assert load_task("drawer.py").name == "drawer"
