"""The learning benchmark: bad input, records, resuming, the peer, and the page made of the records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks import judge as judging
from benchmarks import learning, peer, results, variation
from benchmarks.figures import policy_figures
from benchmarks.record import Name, Record, Unattended, differences, load_record, unattended, world
from benchmarks.running import WITH_DEFAULT_SIGNALS
from r3l.config.convert import to_dict
from r3l.config.errors import UserError
from r3l.config.schema import Config
from r3l.run.jsonl import read_jsonl
from r3l.tasks.beads import BEADS, Beads
from r3l.tasks.valve import Valve

QUICK = {
    "phases.exploration_steps": 60,
    "vae.pretrain_updates": 2,
    "classifier.pretrain_updates": 2,
    "evaluate_every": 40,
    "health.check_every": 20,
    "sac.batch_size": 16,
}
ARGUMENTS = [
    "--seeds",
    "0",
    "--steps",
    "80",
    *(part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")),
]


def evaluation(step: int, errors: list[float], threshold: float = 0.26) -> dict[str, Any]:
    starts = [{"final_error": error, "success": error <= threshold, "truth": {"error": error}} for error in errors]
    return {"step": step, "success": float(np.mean([error <= threshold for error in errors])), "starts": starts}


def record(variant: str = "default", seed: int = 0, success: float = 0.5, **changes: Any) -> Record:
    count = round(4 * success)
    errors = [0.1] * count + [1.0] * (4 - count)
    health = {"step": 500, "health/auc": 0.97, "health/held_out": 0.8, "health/elsewhere": 0.1}
    health |= {"health/average_precision": 0.9, "health/rewarded": 0.4, "health/judged_success": 0.3}
    found = Record(
        task="valve",
        variant=variant,
        seed=seed,
        command="scripts/benchmark learning",
        overrides=[],
        config=to_dict(Config(seed=seed, sync=True)),
        world=world(Valve()),
        versions={"torch": "2"},
        evaluations=[evaluation(0, [1.0] * 4), *(evaluation(step, errors) for step in (10, 20, 30))],
        unattended=Unattended(0.25, [0.2, 0.3], 0.9, [0.95, 0.85], 4000.0),
        goal_images=240,
        resets=0,
        judged=[[True, True], [False, False], [False, True]],
        metrics=[{"step": 250, "classifier_loss": 0.1}, health],
    )
    return replace(found, **changes)


def test_what_happened_unattended_is_measured_on_known_steps_alone() -> None:
    angle = np.array([0.5, 0.5, 2.0, np.nan])
    error = np.array([0.0, 0.2, 1.5, np.nan])
    found = unattended(Valve(), {"angle_rad": angle, "error": error}, 12.0)
    assert found.success == pytest.approx(2 / 3)
    assert found.coverage == pytest.approx(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)) / np.log(36))
    assert found.robot_s == 12.0


def test_cells_of_beads_tell_layouts_apart() -> None:
    task = Beads()
    places = np.array([[-0.04, -0.04, -0.04, -0.04], [-0.04, -0.04, 0.04, 0.04], [0.04, 0.04, 0.04, 0.04]])
    cells = task.cells({f"bead{bead}_m": places[:, bead] for bead in range(BEADS)})
    assert len(set(cells.tolist())) == 3


def test_differences_name_the_setting_and_leave_the_seed_aside() -> None:
    there = to_dict(Config(seed=1))
    here = json.loads(json.dumps(to_dict(Config(seed=2))))
    assert differences(there, here) == []
    del there["supervision"]  # as in a record from before runs were watched over
    assert differences(there, here) == differences(here, there) == []
    here["sac"]["batch_size"] = 64
    del here["vae"]["beta"]
    assert sorted(differences(there, here)) == [
        "sac.batch_size is 128 there, 64 here",
        f"vae.beta is {Config().vae.beta} there, missing here",
    ]


def test_every_record_is_of_the_settings_and_the_world_that_its_command_means_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parent.parent
    text = (root / "docs" / "results.md").read_text()
    commands = [line.split()[2:] for line in text.splitlines() if line.startswith("scripts/benchmark learning ")]
    asked: set[str] = set()
    monkeypatch.setattr(learning, "collect_goals", lambda task: None)
    monkeypatch.setattr(learning, "run_all", lambda chosen: asked.update(map(str, chosen.names)))
    for arguments in commands:
        places = ["--records", str(root / "benchmarks" / "learning"), "--runs", str(tmp_path / "runs")]
        assert learning.main([*arguments, *places]) == 0, capsys.readouterr().err
    assert asked >= {path.stem for path in (root / "benchmarks" / "learning").glob("*.json")}


def test_the_pages_tables_of_worlds_that_vary_are_those_of_the_recorded_runs() -> None:
    root = Path(__file__).parent.parent
    found = json.loads((root / "benchmarks" / "variation.json").read_text())
    for run in found["runs"]:
        for reached in run["worlds"].values():
            assert reached["success"] == pytest.approx(np.mean(reached["successes"]), abs=1e-6)
            assert len(reached["successes"]) == reached["episodes"] == 48
    lines = variation.table(found["runs"], ["none", "strong"])
    assert lines == found["table"]
    for page in ("tasks.md", "lab-notes.md"):
        text = (root / "docs" / page).read_text()
        assert all(line in text for line in lines[2:])


def test_figures_of_a_policy_are_those_of_its_evaluation(tmp_path: Path) -> None:
    starts = [{"success": True, "start": [1.0]}, {"success": False, "start": [2.0]}]
    policy = {"success": 0.5, "success_interval": [0.1, 0.9], "episodes": 2, "starts": starts, "more": 1}
    (tmp_path / "evaluation.json").write_text(json.dumps({"policy": policy}))
    expected = {"success": 0.5, "interval": [0.1, 0.9], "episodes": 2, "successes": [True, False]}
    assert policy_figures(tmp_path) == expected


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    whole = record()
    whole.save(tmp_path / "valve-default-0.json")
    again = load_record(tmp_path / "valve-default-0.json")
    assert again.name == whole.name
    assert again.final() == whole.final() == 0.5
    assert again.unattended == whole.unattended
    assert differences(again.config, whole.config) == []
    assert differences(again.world, whole.world) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluations": []}, "it has no evaluations"),
        ({"seed": "0"}, "seed is '0', expected"),
        ({"metrics": None}, "metrics is None, expected"),
        ({"seed": 1}, "it is of valve-default-1"),
    ],
)
def test_what_is_not_the_record_of_its_name_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "valve-default-0.json"
    replace(record(), **changes).save(path)
    with pytest.raises(UserError, match=words):
        load_record(path)


def test_only_runs_of_the_same_settings_are_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begin, end = results.MARKERS
    Path("README.md").write_text(f"{begin}\n{end}\n")
    ours = to_dict(Config(device="cpu", sync=True))
    record(config=ours).save(learning.RECORDS / "valve-default-0.json")
    other = record(seed=1, config=ours | {"window": 5})
    other.save(learning.RECORDS / "valve-default-1.json")
    assert results.main([]) == 2
    error = capsys.readouterr().err
    assert "valve-default-0 and valve-default-1" in error
    assert f"window is {Config().window} there, 5 here" in error
    assert "old" not in Path("README.md").read_text()
    short = record(seed=1, config=ours, world=world(Valve()) | {"episode_steps": 5})
    short.save(learning.RECORDS / "valve-default-1.json")
    assert results.main([]) == 2
    assert "world.episode_steps is" in capsys.readouterr().err
    assert learning.main(["--seeds", "0"]) == 2
    assert "world.episode_steps is 5 there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "valv"], ("unknown task 'valv'", "'valve'")),
        (["--variants", "no-perturbations"], ("unknown variant", "'no-perturbation'")),
        (["--seeds", "0,1,0"], ("repeats 0",)),
        (["--tasks", "valve,valve"], ("repeats valve",)),
        (["--seeds", "0,x"], ("expected numbers",)),
        (["--seeds", "0,-1"], ("expected 0 or more",)),
        (["--processes", "3"], ("at most 2",)),
        (["--set", "seed=5"], ("--seeds says",)),
        (["--set", "steps=5"], ("--steps says",)),
        (["--set", "sac.batchsize=3"], ("batchsize", "batch_size")),
        (["--variants", "stable-baselines3", "--set", "window=3"], ("without it",)),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert learning.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not list(tmp_path.iterdir())


def test_records_of_another_configuration_are_refused_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    record(seed=3).save(learning.RECORDS / "valve-default-3.json")
    assert learning.main(["--seeds", "0", "--steps", "123"]) == 2
    error = capsys.readouterr().err
    assert "valve-default-3.json" in error
    assert "steps is 30000 there, 123 here" in error
    assert learning.main(["--variants", "no-perturbation", "--set", "window=3"]) == 2
    assert "window=3" in capsys.readouterr().err
    (learning.RECORDS / "valve-default-3.json").write_text("{}")
    assert learning.main([]) == 2
    assert "not a benchmark record" in capsys.readouterr().err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valve_goals: Path) -> Path:
    """A new folder with goal images in it, worked in."""
    (tmp_path / "goals").mkdir()
    (tmp_path / "goals" / "valve").symlink_to(valve_goals)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def valve_goals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from r3l.cli.main import main

    folder = tmp_path_factory.mktemp("benchmark") / "valve"
    assert main(["goals", "valve", "--count", "24", "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_run_is_recorded_and_not_repeated_and_an_interrupted_one_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = subprocess.Popen(
        [*WITH_DEFAULT_SIGNALS, sys.executable, "-m", "benchmarks.learning", *ARGUMENTS, "--steps", "2000"],
        stderr=subprocess.DEVNULL,
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},  # benchmarks/ is no part of the package
        start_new_session=True,
    )
    folder = learning.RUNS / "valve-default-0"
    deadline = time.monotonic() + 120
    while not (folder / "experience.sqlite").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    kinds = [event["kind"] for event in read_jsonl(folder / "events.jsonl")]
    assert kinds == ["start", "stop"]
    assert learning.main(ARGUMENTS) == 2  # 80 steps: another configuration than the half-done run's
    assert "steps is 2000 there, 80 here" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text())
    config["config"]["steps"] = 300
    (folder / "config.json").write_text(json.dumps(config))
    arguments = [*ARGUMENTS, "--steps", "300"]
    assert learning.main(arguments) == 0
    kinds = [event["kind"] for event in read_jsonl(folder / "events.jsonl")]
    assert [kind for kind in kinds if not kind.startswith("reward")] == ["start", "stop", "start", "end"]
    found = load_record(learning.RECORDS / "valve-default-0.json")
    assert [entry["step"] for entry in found.evaluations] == list(range(0, 301, 40))
    assert len(found.evaluations[-1]["starts"]) == 24
    assert len(found.judged) == 72
    assert found.goal_images == 24
    assert found.unattended.robot_s >= 30.0
    assert "torch" in found.versions
    judge_is_renewed(folder, found, capsys)
    before = (learning.RECORDS / "valve-default-0.json").read_bytes()
    assert learning.main(arguments) == 0
    assert "recorded already" in capsys.readouterr().out
    assert (learning.RECORDS / "valve-default-0.json").read_bytes() == before


def judge_is_renewed(folder: Path, found: Record, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge of the same code, fitted again, is the same judge, and gives the same verdicts."""
    before = (folder / "judge.safetensors").read_bytes()
    (folder / "judge.safetensors").unlink()
    assert judging.main(["valve-default-0"]) == 0
    assert (folder / "judge.safetensors").read_bytes() == before
    again = load_record(learning.RECORDS / "valve-default-0.json")
    assert again.judged == found.judged
    assert again.events[-1]["kind"] == "judge"
    assert judging.main(["valve-default-7"]) == 2
    assert "valve-default-7" in capsys.readouterr().err


@pytest.mark.parametrize(("reason", "code"), [("a record that cannot be made", 2), ("SIGTERM", 130)])
def test_no_run_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, code: int) -> None:
    started: list[subprocess.Popen[bytes]] = []
    begin = learning.start

    def start(chosen: learning.Plan, name: Name) -> subprocess.Popen[bytes]:
        started.append(begin(chosen, name))
        return started[-1]

    def make_record(chosen: learning.Plan, name: Name) -> Record:
        if reason == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        raise UserError("no")

    def arguments(chosen: learning.Plan, name: Name) -> list[str]:
        return [sys.executable, "-c", f"import time; time.sleep({60 * name.seed})"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learning, "start", start)
    monkeypatch.setattr(learning, "make_record", make_record)
    monkeypatch.setattr(learning, "collect_goals", lambda task: None)
    monkeypatch.setattr(learning.Plan, "arguments", arguments)
    assert learning.main(["--seeds", "0,1"]) == code
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.slow
def test_the_peer_learns_on_the_instrumented_environment_and_goes_on_where_it_stopped(here: Path) -> None:
    chosen = peer.settings("valve", 0, 90) | {"evaluate_every": 45, "learning_starts": 20}
    peer.train(here / "whole", chosen)
    peer.train(here / "parts", chosen | {"steps": 45})
    first = load_file(here / "parts" / "peer.safetensors")
    peer.train(here / "parts", chosen)
    both = load_file(here / "parts" / "peer.safetensors")
    for name in peer.BUFFER:
        assert len(first[f"buffer.{name}"]) == 45
        assert len(both[f"buffer.{name}"]) == 90
        assert torch.equal(both[f"buffer.{name}"][:45], first[f"buffer.{name}"])
    assert first["buffer.actions"].abs().sum() > 0
    for folder in ("whole", "parts"):
        found = peer.record_peer(here / folder, Name("valve", peer.VARIANT, 0), "test")
        assert [entry["step"] for entry in found.evaluations] == [0, 45, 90]
        assert found.resets > 0
        assert found.goal_images == 0
        assert len(read_jsonl(here / folder / "visited.jsonl")) == 90


def test_the_page_and_the_readme_are_made_of_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    begin, end = results.MARKERS
    Path("README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert results.main([]) == 2
    assert "no records" in capsys.readouterr().err
    for seed, success in enumerate((0.5, 1.0, 0.75)):
        record(seed=seed, success=success).save(learning.RECORDS / f"valve-default-{seed}.json")
    record("no-perturbation", success=0.25).save(learning.RECORDS / "valve-no-perturbation-0.json")
    assert results.main([]) == 0
    text = Path("docs/results.md").read_text()
    assert "| default | 30 | 0.75 ± 0.14 | 0.50, 1.00, 0.75 | 0.25 ± 0.00 | 0.90 ± 0.00 | 1.11 | 20 |" in text
    assert "| no-perturbation | 30 | 0.25 | 0.25 |" in text
    assert "| default | 0.75 | 0.75, 0.75, 0.75 | 9 | 3 |" in text
    readme = Path("README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "old" not in readme
    assert "| valve | default | 30 | 0.75 ± 0.14 |" in readme
    for name in ("curves", "thresholds", "health"):
        assert (tmp_path / "benchmarks" / "figures" / f"valve-{name}.png").stat().st_size > 5000
        assert f"../benchmarks/figures/valve-{name}.png" in text
    Path("README.md").write_text("no markers")
    assert results.main([]) == 2


@pytest.mark.slow
def test_the_speed_benchmark_times_every_part_of_the_default_preset(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.speed", "--blocks", "1", "--out", str(tmp_path / "speed.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "speed.json").read_text())
    assert {"whole step", "update both agents", "update novelty (every 2)"} <= set(found["parts_s"])
    assert all(spent_s > 0 for spent_s in found["parts_s"].values())
    assert found["ratio"] > 0
