"""Sections of the report about stored frames: episodes, encoder, reward and judge, places of the object."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from r3l.evaluation.report import figures, html
from r3l.evaluation.report.figures import BLUE, INK, Curve, Level
from r3l.evaluation.report.html import attempt
from r3l.evaluation.report.model_probes import ranking, readability, reconstruct
from r3l.evaluation.report.summary import Record, RunSummary
from r3l.evaluation.report.visits import Frames, MissingError, ObjectAxis, Values, coverage, object_axis, read_frames
from r3l.models.networks import channels_first
from r3l.run import files
from r3l.run.experience import PHASES
from r3l.run.goals import load_goals

MAX_FILM_BYTES = 16 * files.MIB
PROBED_FRAMES, RECONSTRUCTED_FRAMES, FILMS = 1500, 10, 4
MIN_READ_FRAMES = 100
"""Frames that a readability of the latent needs."""
WINDOW_STEPS = 2500
"""Env steps per point of the coverage curve."""
PERTURBED = (
    "Perturbation brings the object to places that the task policy would not visit by itself. So the task policy meets "
    "new starts, and the classifier new failures."
)
UNPERTURBED = (
    "This run never perturbs: after exploration, the task policy alone brought the object to these places. Low entropy "
    "means that the policy met few starts. At the goal it is success in training and says nothing about other starts. "
    "Elsewhere it is an object that is stuck."
)
PLACED = "This run never perturbs: the object is put to a random place before each episode instead."
Positions = NDArray[np.int64]


def films(summary: RunSummary) -> str:
    """Show some evaluation episodes below a goal image."""
    folder = summary.run.folder / "evaluation"
    found = summary.evaluation
    if found is None:
        raise MissingError(f"the run is not evaluated yet. This makes films: r3l evaluate {summary.run.folder}")
    starts = found["policy"]["starts"]
    chosen = choose_films([start["success"] for start in starts], [start["final_error"] for start in starts])
    shown = [_film(summary, folder / f"film-{index:02d}.png", starts[index]) for index in chosen]
    return attempt(lambda: _goal_frame(summary)) + "".join(shown)


def choose_films(successes: list[bool], errors: list[float]) -> list[int]:
    """Return the numbers of up to FILMS episodes: successes spread over the starts, and the worst failure."""
    good = [index for index, success in enumerate(successes) if success]
    bad = [index for index, success in enumerate(successes) if not success]
    worst = [max(bad, key=lambda index: errors[index])] if bad else []
    others = good if good else [index for index in bad if index not in worst]
    count = min(FILMS - len(worst), len(others))
    spread = [others[int(place)] for place in np.linspace(0, len(others) - 1, count).round()] if count else []
    return sorted({*spread, *worst})


def _goal_frame(summary: RunSummary) -> str:
    found = load_goals(summary.run.goals, summary.task.rig.camera, summary.task.minimum_goals)
    return html.frames([html.frame([figures.png(found.train[0])], "a goal image", marked=True)])


def _film(summary: RunSummary, path: Path, start: Record) -> str:
    if not path.exists():
        return html.note(f"Missing: {path.name}.")
    film = PIL.Image.open(BytesIO(files.read(path, MAX_FILM_BYTES)), formats=["PNG"])
    strip = np.asarray(film.convert("RGB"))
    width = summary.task.rig.camera.width
    shots = [strip[:, left : left + width] for left in range(0, strip.shape[1], width)]
    steps = np.linspace(0, summary.task.episode_steps, len(shots)).round().astype(int)
    parts = [html.frame([figures.png(shot)], f"step {step}") for shot, step in zip(shots, steps, strict=True)]
    badge = (
        '<span class="badge good">success</span>' if start["success"] else '<span class="badge alarm">failure</span>'
    )
    texts = [f"from {_place(summary, start['start'])}", f"final error {summary.error(start['final_error'])}"]
    if start["steps_to_success"] is not None:
        texts.append(f"there to stay after {start['steps_to_success']} steps")
    if "judged_success" in start:
        texts.append(f"judged {'success' if start['judged_success'] else 'failure'}")
    return f"<h3>{badge} {html.escaped('; '.join(texts))}</h3>{html.frames(parts)}"


def _place(summary: RunSummary, state: list[float]) -> str:
    if len(state) == 1 and summary.unit[1] == "°":
        return f"{(np.degrees(state[0]) + 180) % 360 - 180:.0f}°"
    return "(" + ", ".join(f"{value:.3g}" for value in state) + ")"


def encoder(summary: RunSummary) -> str:
    """Show frames above their reconstructions, and say how much the encoder keeps."""
    config, visited = summary.config, summary.visited
    if config.state != "latent":
        sees = "pixels, with convolutions of their own" if config.state == "pixels" else "the true state of the object"
        raise MissingError(f"this run has no encoder: its policies see {sees}")
    random = _random_steps(summary)
    chosen = np.linspace(0, len(visited) - 1, min(RECONSTRUCTED_FRAMES, len(visited))).round().astype(int)
    vae, frames, shown = summary.models.vae, _frames(summary, random), _frames(summary, chosen)
    parts = [
        html.frame([figures.png(original), figures.png(copy)], f"step {step + 1:,}")
        for original, copy, step in zip(shown.images, reconstruct(vae, shown).pictures, chosen, strict=True)
    ]
    many = reconstruct(vae, frames)
    text = (
        f"On {len(random):,} random frames the reconstructions explain {many.explained:.0%} of the variance between "
        f"frames, and {many.used} of {config.vae.latent_size} latents are in use. "
    )
    if config.vae.conditional:
        text += "The fingers count little: the decoder is told their pose, so that the latent keeps the rest. "
    return html.frames(parts) + html.paragraph(text + _readable(summary, random, frames))


def _readable(summary: RunSummary, steps: Positions, frames: Frames) -> str:
    """Say how well the object's place can be read from the latent; an empty text without ground truth."""
    try:
        axis = object_axis(summary.visited, summary.task)
    except MissingError:
        return ""
    values = axis.values[steps]
    known = np.isfinite(values)
    if known.sum() < MIN_READ_FRAMES:
        return ""
    latents = summary.models.latents(frames.images[known]).numpy().astype(np.float64)
    unit = summary.unit[1]
    error = f"{readability(latents, axis, values[known]):.1f} {unit}".replace(" °", "°")
    guess = f" (guessing would be off by {(axis.high - axis.low) / 4:.0f}°)" if axis.is_circular else ""
    name = axis.label.split(" (")[0]
    return f"The object's {name} can be read from the latent with a median error of {error}{guess}."


def reward(summary: RunSummary) -> str:
    """Draw the learned reward and the judge's probability over the place of the object."""
    steps, intro = _random_steps(summary), ""
    try:
        axis = object_axis(summary.visited, summary.task)
        steps = steps[np.isfinite(axis.values[steps])]
    except MissingError as missing:
        axis = ObjectAxis(summary.visited.env_steps, "env steps", 0, len(summary.visited))
        intro = html.note(f"Over env steps instead of the object: {missing}.")
    frames, x = _frames(summary, steps), axis.values[steps]
    if summary.config.reward == "diagnostic-true-reward":
        intro += html.note("This run has no classifier: its reward is the task's true reward, which is shown instead.")
    parts = [attempt(lambda: _rewards(summary, axis, x, frames)), attempt(lambda: _judged(summary, axis, x, frames))]
    return intro + html.grid(parts) + "".join(map(html.note, summary.models.warnings))


def _rewards(summary: RunSummary, axis: ObjectAxis, x: Values, frames: Frames) -> str:
    y = summary.models.reward(frames)
    title = "True reward" if summary.config.reward == "diagnostic-true-reward" else "Learned reward"
    return html.plot(figures.over_object(axis, x, y, "task reward"), title, _separation(axis, x, y))


def _judged(summary: RunSummary, axis: ObjectAxis, x: Values, frames: Frames) -> str:
    judge = summary.models.judge()
    y = judge.probability(channels_first(frames.images)).numpy().astype(np.float64)
    level = Level("threshold of success", 1 / (1 + math.exp(-judge.calibration.threshold)))
    note = _separation(axis, x, y)
    accepted = judge.quality.get("held_out_goals_accepted")
    if accepted is not None:
        note += f" It accepts {accepted:.0%} of the held-out goal images."
    return html.plot(figures.over_object(axis, x, y, "probability of success", level), "Judge", note)


def _separation(axis: ObjectAxis, x: Values, y: Values) -> str:
    """Say how well `y` separates success from everything else."""
    text, is_success = f"On {len(x):,} random frames of the run.", axis.is_success(x)
    area = ranking(y, is_success) if axis.success else None
    if area is None:
        return text
    inside, outside = y[is_success].mean(), y[~is_success].mean()
    return f"{text} Mean {inside:.2f} at success, {outside:.2f} elsewhere; ROC-AUC {area:.2f}."


def _random_steps(summary: RunSummary) -> Positions:
    """Return random env steps in ascending order, as positions in `summary.visited`."""
    count = len(summary.visited)
    if not count:
        raise MissingError("no env step yet")
    return np.sort(np.random.default_rng(0).choice(count, min(PROBED_FRAMES, count), replace=False))


def _frames(summary: RunSummary, steps: Positions) -> Frames:
    return read_frames(summary.run.experience, summary.visited.sequence[steps], summary.task.rig.camera)


def visits(summary: RunSummary) -> str:
    """Draw the places of the object by phase and over time, and how evenly they were visited."""
    visited, phases = summary.visited, summary.config.phases
    axis = object_axis(visited, summary.task)
    window = min(WINDOW_STEPS, max(250, len(visited) // 5))
    everything = coverage(axis, np.ones(len(visited), bool), window)
    task_alone = coverage(axis, visited.phase == PHASES.index("task"), window)
    lines = [Curve("all phases", *everything, INK), Curve("task phases alone", *task_alone, BLUE, "--")]
    lines = [line for line in lines if len(line.x)]
    text = PERTURBED
    if not phases.perturbation_share:
        text = PLACED if phases.between == "diagnostic-reset" else UNPERTURBED
    parts = [
        html.plot(figures.visits(axis, visited.phase), "Where the object was", "Per phase."),
        html.plot(
            figures.where_when(axis, visited.phase),
            "Where and when",
            "One dot per shown step; a long run shows every n-th.",
        ),
    ]
    if lines:
        title = f"Entropy of visited states per {window:,} env steps"
        content = figures.curves(lines, "normalised entropy", y_range=(0, 1.02))
        parts.append(html.plot(content, title, "1: all places equally often; 0: always the same place."))
    return html.paragraph(text) + html.grid(parts)
