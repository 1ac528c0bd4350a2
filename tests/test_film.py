"""Films: what they show, how large they are, and bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
from conftest import RunMaker, tiny

from r3l.cli.main import main
from r3l.evaluation.film import CAPTION, MAX_BYTES, PAUSE_FRAMES, SIDE, captions, compose, encode, with_pauses
from r3l.hardware.twin import from_task
from r3l.run.directory import Run
from r3l.tasks.valve import Valve
from r3l.training.sync import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_run: RunMaker) -> Run:
    config = tiny(evaluate_every=40)
    run = make_run(tmp_path_factory.mktemp("film") / "run", config)
    assert train(run)
    return run


@pytest.mark.slow
def test_a_film_shows_before_during_and_after_side_by_side(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "film.webp"
    assert main(["film", str(run.folder), "--out", str(out), "--starts", "2"]) == 0
    assert out.stat().st_size < MAX_BYTES
    with PIL.Image.open(out) as film:
        assert film.format == "WEBP"
        assert film.size == (3 * SIDE, SIDE + CAPTION)
        shown = [np.asarray(frame.convert("RGB")) for frame in PIL.ImageSequence.Iterator(film)]
    assert not np.array_equal(shown[0], shown[-1])


def test_chosen_steps_are_shown(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "film.webp"
    assert main(["film", str(run.folder), "--out", str(out), "--starts", "1", "--steps", "0", "120"]) == 0
    with PIL.Image.open(out) as film:
        assert film.width == 2 * SIDE


def test_titles_pauses_and_columns() -> None:
    assert captions([0, 12_500]) == ["before training", "after 12,500 steps"]
    shots = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    paused = with_pauses(shots, 2)
    assert [int(shot[0, 0, 0]) for shot in paused] == [10, 20, *[20] * PAUSE_FRAMES, 30, 40, *[40] * PAUSE_FRAMES]
    frame = np.asarray(compose([shots, shots[::-1]], ["a", "b"])[0])
    assert (frame[CAPTION + 5, 5] == 10).all()
    assert (frame[CAPTION + 5, SIDE + 5] == 40).all()


def test_noise_that_does_not_compress_is_kept_small_by_its_quality() -> None:
    rng = np.random.default_rng(0)
    frames = [PIL.Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)) for _ in range(30)]
    assert len(encode(frames, 0.1)) < MAX_BYTES


def test_the_twins_view_for_people_is_not_what_the_robot_sees() -> None:
    with from_task(Valve()) as twin:
        seen, view = twin.observe().image, twin.view(64)
    assert view.shape == seen.shape
    assert not np.array_equal(view, seen)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--steps", "7"], "step-00000007"), (["--starts", "0"], "--starts is 0")],
)
def test_bad_input_gets_one_line(
    arguments: list[str], words: str, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "film.webp"
    assert main(["film", str(run.folder), "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in error
    assert not out.exists()


def test_a_run_without_weights_is_told_so(
    tmp_path: Path, make_run: RunMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "new", replace(tiny(), evaluate_every=0))
    assert main(["film", str(run.folder)]) == 2
    assert "no weights" in capsys.readouterr().err
