"""The report: one page that stands alone, for a run at any stage."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import make_row

from r3l.config.models import ClassifierConfig, NoveltyConfig, SACConfig, VAEConfig
from r3l.config.presets import VARIANTS
from r3l.config.schema import Config, HealthConfig, PhasesConfig
from r3l.evaluation.evaluator import evaluate_run
from r3l.evaluation.report.document import SECTIONS, write_report
from r3l.evaluation.report.model_probes import readability
from r3l.evaluation.report.sections import choose_films
from r3l.evaluation.report.summary import duration, read_summary, total_count
from r3l.evaluation.report.visits import ObjectAxis, circular_goal, coverage, entropy, read_visits, wrap
from r3l.robot.base import SimulatedRobot
from r3l.run.checkpoint import LATEST
from r3l.run.directory import Run
from r3l.run.experience import ExperienceStore
from r3l.run.goals import save_goals
from r3l.run.truth import TruthRecorder
from r3l.task.registry import load_robot, load_task, robot_of
from r3l.training.sync import train

TINY = Config(
    robot="fake",
    steps=500,
    evaluate_every=500,
    checkpoint_every=250,
    replay_capacity=2000,
    health=HealthConfig(check_every=100),
    phases=PhasesConfig(exploration_steps=220, task_steps=20, perturbation_steps=10, homing_steps=2),
    vae=VAEConfig(latent_size=4, pretrain_updates=20, batch_size=16),
    sac=SACConfig(hidden=(16,), batch_size=16),
    classifier=ClassifierConfig(hidden=16, pretrain_updates=20, batch_size=16),
    novelty=NoveltyConfig(hidden=16, batch_size=16),
)
GONE = ("Missing:", "Cannot be shown")


class References(HTMLParser):
    """Collects what a page would fetch, and the anchors of its sections."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.sections: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]
        if tag == "section":
            self.sections.append(dict(attrs)["id"] or "")


@pytest.fixture(scope="module")
def goal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = load_task("valve")
    robot = load_robot("fake", task)
    assert isinstance(robot, SimulatedRobot)
    rng = np.random.default_rng(0)
    images = []
    with robot:
        for state in task.goal_states(30, rng):
            robot.place(state)
            images.append(robot.observe().image)
    folder = tmp_path_factory.mktemp("goals") / "valve"
    save_goals(folder, np.stack(images[:24]), np.stack(images[24:]), task="valve", robot="fake", source="test")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, goal_folder: Path) -> Run:
    run = Run.create(tmp_path_factory.mktemp("runs") / "dial", TINY)
    run.keep_goals(goal_folder)
    assert train(run)
    evaluate_run(
        run, run.newest_snapshot(), count=4, seed=0, baselines=True, out=run.folder / "evaluation", robot=simulated(run)
    )
    return run


@pytest.fixture(scope="module")
def text(finished: Run) -> str:
    return report(finished)


def simulated(run: Run) -> SimulatedRobot:
    robot = robot_of(run.config, run.rig)
    assert isinstance(robot, SimulatedRobot)
    return robot


def report(run: Run) -> str:
    write_report(run, run.report)
    return run.report.read_text()


def section(text: str, anchor: str) -> str:
    return text.split(f'<section id="{anchor}">')[1].split("</section>")[0]


def short_run(folder: Path, variant: str, finished: Run) -> Run:
    """Train a few steps of a variant; the judge is borrowed, fitting one takes seconds."""
    phases = replace(TINY.phases, exploration_steps=40)
    config = VARIANTS[variant](replace(TINY, steps=60, evaluate_every=0, phases=phases))
    run = Run.create(folder / variant, config)
    run.keep_goals(finished.goals)
    shutil.copy(finished.judge, run.judge)
    assert train(run)
    return run


def bare_run(folder: Path, rows: int) -> Run:
    """Make a run that was killed after some steps, with ground truth but nothing learned."""
    run = Run.create(folder / "bare", TINY)
    camera = load_task("valve").rig.camera
    store, recorder = ExperienceStore(run.experience, (camera.height, camera.width, 3)), TruthRecorder(run.truth)
    for number in range(rows):
        row = make_row(number, step=number % 20, phase="exploration", actions=9, side=camera.height)
        store.append(row)
        angle = number / 5
        recorder.record(row.time_s, {"angle_rad": angle, "error": float(abs(wrap(np.array(angle - 0.5))))})
    store.close()
    recorder.close()
    run.event("start", f"at step 0 of {TINY.steps}")
    return run


def test_page_refers_to_nothing_outside_itself(text: str) -> None:
    page = References(text)
    inside = ("data:image/png;base64,", "data:image/svg+xml;base64,", "#")
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "video", "audio"}
    assert all(reference.startswith(inside) for reference in page.found)
    assert not [words for words in ("url(", "@import", "http://", "https://") if words in text]


def test_finished_run_has_every_section_and_nothing_is_missing(text: str) -> None:
    assert References(text).sections == [anchor for anchor, *_ in SECTIONS]
    assert not [words for words in GONE if words in text]
    fewest = {"learning": 8, "films": 10, "encoder": 20, "reward": 2, "coverage": 3, "goals": 24}
    for anchor, images in fewest.items():
        assert section(text, anchor).count("<img") >= images, anchor


def test_header_says_how_far_and_how_well(text: str) -> None:
    head = text.split("</header>")[0]
    for words in ("finished", "First → last evaluation", "doing nothing", "acting at random", "judged success", "50 s"):
        assert words in head
    assert "diagnostic" not in head
    assert f"of {TINY.steps:,} planned" in head


def test_settings_mark_what_differs_from_the_default(text: str) -> None:
    text = section(text, "settings")
    assert "<b class=changed>fake</b>" in text
    assert "<b class=changed>[16]</b>" in text
    assert "<td>0.97</td>" in text.replace(" class=number", "")


def test_writing_a_report_changes_nothing_else(finished: Run) -> None:
    def content() -> dict[str, str]:
        files = (path for path in sorted(finished.folder.rglob("*")) if path.is_file() and path != finished.report)
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = content()
    report(finished)
    assert content() == before


def test_run_without_a_single_step_still_has_a_page(tmp_path: Path) -> None:
    text = report(Run.create(tmp_path / "new & <b>bold", TINY))
    assert References(text).sections == [anchor for anchor, *_ in SECTIONS]
    assert "not started" in text
    assert "new &amp; &lt;b&gt;bold" in text
    assert "Cannot be shown" in section(text, "goals")


def test_killed_run_shows_what_it_has_and_says_what_is_missing(tmp_path: Path) -> None:
    text = report(bare_run(tmp_path, 200))
    assert "r3l evaluate" in section(text, "films")
    assert "no evaluation yet" in section(text, "learning")
    assert "no checkpoint" in section(text, "encoder")
    assert "no checkpoint" in section(text, "reward")
    assert "no judge" in section(text, "reward")
    assert section(text, "coverage").count("<img") >= 2
    assert "190 of" not in text
    assert ">190<" in text
    assert '<span class="badge warn">interrupted</span>' in text
    assert "r3l train --resume" in text.split("</header>")[0]


def test_damaged_file_costs_its_section_alone(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy")
    run = Run.open(tmp_path / "copy")
    (run.folder / "evaluation" / "evaluation.json").write_text("{")
    run.judge.write_bytes(b"nothing")
    for path in run.weights.iterdir():
        path.write_bytes(b"nothing")
    text = report(run)
    for anchor in ("films", "encoder", "reward"):
        assert "Cannot be shown" in section(text, anchor)
    for anchor in ("learning", "coverage", "goals", "safety"):
        assert "Cannot be shown" not in section(text, anchor)


def test_corrupt_checkpoint_is_told_and_the_previous_one_used(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "copy")
    run = Run.open(tmp_path / "copy")
    newest = (run.checkpoints / LATEST).read_text()
    (run.checkpoints / newest / "tensors.safetensors").write_bytes(b"nothing")
    text = section(report(run), "reward")
    assert "using the previous one" in text
    assert text.count("<img") == 2


def test_run_without_ground_truth_is_drawn_over_env_steps(finished: Run, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "rig", ignore=shutil.ignore_patterns("truth.sqlite"))
    text = report(Run.open(tmp_path / "rig"))
    assert "Over env steps instead" in section(text, "reward")
    assert section(text, "reward").count("<img") == 2
    assert "no ground truth" in section(text, "coverage")
    assert "median error" not in section(text, "encoder")


def test_diagnostic_run_says_what_it_reads(finished: Run, tmp_path: Path) -> None:
    text = report(short_run(tmp_path, "diagnostic-true-state", finished))
    head = text.split("</header>")[0]
    assert "diagnostic run: reads ground truth" in head
    assert "true reward instead of goal images" in head
    assert "no encoder" in section(text, "encoder")
    assert "no classifier" in section(text, "reward")
    assert section(text, "reward").count("<img") == 2


def test_pixels_run_has_a_classifier_and_no_encoder(finished: Run, tmp_path: Path) -> None:
    text = report(short_run(tmp_path, "pixels", finished))
    assert "convolutions of their own" in section(text, "encoder")
    assert "Learned reward" in section(text, "reward")
    assert section(text, "reward").count("<img") == 2


def test_coverage_says_what_no_perturbation_means(finished: Run, text: str, tmp_path: Path) -> None:
    assert "never perturbs" not in text
    shutil.copytree(finished.folder, tmp_path / "lonely", ignore=shutil.ignore_patterns("weights", "checkpoints"))
    config = replace(TINY, phases=replace(TINY.phases, perturbation_share=0.0))
    assert "never perturbs" in section(report(Run(tmp_path / "lonely", config)), "coverage")


def test_truth_goes_to_the_later_row_where_the_clock_ran_twice(tmp_path: Path) -> None:
    store, recorder = ExperienceStore(tmp_path / "e.sqlite", (8, 8, 3)), TruthRecorder(tmp_path / "t.sqlite")
    for time, angle in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.4), (3, 0.5)):
        store.append(replace(make_row(time, step=time), time_s=float(time)))
        recorder.record(float(time), {"angle_rad": angle, "error": angle})
    store.close()
    recorder.close()
    found = read_visits(tmp_path / "e.sqlite", tmp_path / "t.sqlite").truth["angle_rad"]
    np.testing.assert_array_equal(found, [0.1, math.nan, math.nan, 0.4, 0.5])


@pytest.mark.parametrize("goal", [0.5, -3.0, 3.1])
def test_goal_angle_is_found_from_the_error_alone(goal: float) -> None:
    angle = np.random.default_rng(0).uniform(-math.pi, math.pi, 100)
    error = np.abs(wrap(angle - goal))
    assert circular_goal(angle, error) == pytest.approx(goal)
    assert circular_goal(angle, error**2) is None


def test_entropy_is_one_where_all_places_are_alike_and_zero_in_a_single_one() -> None:
    assert entropy(np.full(36, 10)) == pytest.approx(1)
    assert entropy(np.array([2, 2, 0, 0])) == pytest.approx(0.5)
    assert entropy(np.array([0, 50, 0])) == 0
    assert entropy(np.array([7])) == 0


def test_readability_tells_latents_that_know_the_angle_from_noise() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(-180, 180, 400)
    axis = ObjectAxis(angle, "true angle (°)", -180, 180, is_circular=True)
    knowing = np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle))], 1)
    assert readability(knowing, axis, angle) < 3
    assert readability(rng.normal(size=(400, 2)), axis, angle) > 60


def test_coverage_leaves_out_windows_with_few_steps() -> None:
    axis = ObjectAxis(np.linspace(0, 1, 400), "place", 0, 1)
    chosen = np.arange(400) >= 190
    steps, found = coverage(axis, chosen, 100)
    np.testing.assert_array_equal(steps, [300, 400])
    assert (found > 0.5).all()


def test_films_show_successes_and_the_worst_failure() -> None:
    assert choose_films([True] * 6 + [False, False], [0.1] * 6 + [1, 2]) == [0, 2, 5, 7]
    assert choose_films([True] * 5, [0.1] * 5) == [0, 1, 3, 4]
    assert choose_films([False, False], [1, 2]) == [0, 1]
    assert choose_films([True], [0.1]) == [0]


def test_counters_add_up_over_restarts() -> None:
    assert total_count([250.0, 500.0, 100.0, 350.0]) == 850
    assert total_count([]) == 0


def test_wall_time_leaves_out_the_pause_between_two_starts(tmp_path: Path) -> None:
    run = bare_run(tmp_path, 30)
    events = [("start", "00:00:00"), ("stop", "00:10:00"), ("start", "09:00:00"), ("end", "09:05:00")]
    lines = [json.dumps({"time": f"2026-01-01T{at}+0000", "kind": kind, "message": ""}) for kind, at in events]
    run.events.write_text("\n".join(lines))
    wall = read_summary(run).wall_s()
    assert wall is not None
    assert duration(wall) == "15 min"
