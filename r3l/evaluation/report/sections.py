"""The report's exhibits: films, reconstructions, the learned reward and the judge, and where the object was."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from r3l.evaluation.report import figures
from r3l.evaluation.report import html as page
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

APPRAISED, RECONSTRUCTED, FILMS = 1500, 10, 4
FEWEST_READ = 100
"""Frames that it takes to say how well a latent can be read."""
WINDOW = 2500
"""Env steps per point of the coverage curve."""
PERTURBED = (
    "Perturbation brings the object to places that the task policy would not visit by itself: so the task policy meets "
    "ever new starts, and the classifier ever new failures."
)
UNPERTURBED = (
    "This run never perturbs: apart from exploration all of these places are the task policy's own doing. Where the "
    "entropy collapses, the policy has met few starts: low entropy at the goal is success in training and says nothing "
    "about other starts, low entropy elsewhere is a robot that is stuck."
)
PLACED = "This run never perturbs: the object is put to a random place before each episode, which does the same work."
Positions = NDArray[np.int64]


def films(facts: RunSummary) -> str:
    """Show some evaluation episodes, next to what success looks like."""
    folder = facts.run.folder / "evaluation"
    found = facts.evaluation
    if found is None:
        raise MissingError(f"the run has not been evaluated. Films come with: r3l evaluate {facts.run.folder}")
    starts = found["policy"]["starts"]
    chosen = choose_films([start["success"] for start in starts], [start["final_error"] for start in starts])
    shown = [_film(facts, folder / f"film-{index:02d}.png", starts[index]) for index in chosen]
    return attempt(lambda: _goal_frame(facts)) + "".join(shown)


def choose_films(successes: list[bool], errors: list[float]) -> list[int]:
    """Return up to FILMS episodes, in order: successes spread over the starts, and the worst failure."""
    good = [index for index, success in enumerate(successes) if success]
    bad = [index for index, success in enumerate(successes) if not success]
    worst = [max(bad, key=lambda index: errors[index])] if bad else []
    others = good if good else [index for index in bad if index not in worst]
    count = min(FILMS - len(worst), len(others))
    spread = [others[int(place)] for place in np.linspace(0, len(others) - 1, count).round()] if count else []
    return sorted({*spread, *worst})


def _goal_frame(facts: RunSummary) -> str:
    found = load_goals(facts.run.goals, facts.task.rig.camera, facts.task.minimum_goals)
    return page.frames([page.frame([figures.png(found.train[0])], "a goal image", marked=True)])


def _film(facts: RunSummary, path: Path, start: Record) -> str:
    if not path.exists():
        return page.note(f"Not there: {path.name}.")
    film = PIL.Image.open(BytesIO(files.read(path, MAX_FILM_BYTES)), formats=["PNG"])
    strip = np.asarray(film.convert("RGB"))
    width = facts.task.rig.camera.width
    shots = [strip[:, left : left + width] for left in range(0, strip.shape[1], width)]
    steps = np.linspace(0, facts.task.episode_steps, len(shots)).round().astype(int)
    parts = [page.frame([figures.png(shot)], f"step {step}") for shot, step in zip(shots, steps, strict=True)]
    badge = (
        '<span class="badge good">success</span>' if start["success"] else '<span class="badge alarm">failure</span>'
    )
    texts = [f"from {_place(facts, start['start'])}", f"final error {facts.error(start['final_error'])}"]
    if start["steps_to_success"] is not None:
        texts.append(f"there to stay after {start['steps_to_success']} steps")
    if "judged_success" in start:
        texts.append(f"judged {'success' if start['judged_success'] else 'failure'}")
    return f"<h3>{badge} {page.escaped('; '.join(texts))}</h3>{page.frames(parts)}"


def _place(facts: RunSummary, state: list[float]) -> str:
    if len(state) == 1 and facts.unit[1] == "°":
        return f"{(np.degrees(state[0]) + 180) % 360 - 180:.0f}°"
    return "(" + ", ".join(f"{value:.3g}" for value in state) + ")"


def encoder(facts: RunSummary) -> str:
    """Show frames above what the encoder brings back, and say how much it keeps."""
    config, visited = facts.config, facts.visited
    if config.state != "latent":
        sees = "pixels, with convolutions of their own" if config.state == "pixels" else "the true state of the object"
        raise MissingError(f"this run has no encoder: its policies see {sees}")
    random = _random_steps(facts)
    chosen = np.linspace(0, len(visited) - 1, min(RECONSTRUCTED, len(visited))).round().astype(int)
    vae, frames, shown = facts.models.vae, _frames(facts, random), _frames(facts, chosen)
    parts = [
        page.frame([figures.png(original), figures.png(copy)], f"step {step + 1:,}")
        for original, copy, step in zip(shown.images, reconstruct(vae, shown).pictures, chosen, strict=True)
    ]
    many = reconstruct(vae, frames)
    text = (
        f"On {len(random):,} random frames the reconstructions explain {many.explained:.0%} of the variance between "
        f"frames, and {many.used} of {config.vae.latent_size} latents are in use. "
    )
    if config.vae.conditional:
        text += "The fingers count little: the decoder is told where they are, the latent is there for the rest. "
    return page.frames(parts) + page.paragraph(text + _readable(facts, random, frames))


def _readable(facts: RunSummary, steps: Positions, frames: Frames) -> str:
    """Say how well the object's place can be read from the latent; nothing where the truth is not known."""
    try:
        axis = object_axis(facts.visited, facts.task)
    except MissingError:
        return ""
    values = axis.values[steps]
    known = np.isfinite(values)
    if known.sum() < FEWEST_READ:
        return ""
    latents = facts.models.latents(frames.images[known]).numpy().astype(np.float64)
    unit = facts.unit[1]
    error = f"{readability(latents, axis, values[known]):.1f} {unit}".replace(" °", "°")
    guess = f" (guessing would be off by {(axis.high - axis.low) / 4:.0f}°)" if axis.is_circular else ""
    return (
        f"The object's {axis.label.split(' (')[0]} can be read from the latent with a median error of {error}{guess}."
    )


def reward(facts: RunSummary) -> str:
    """Draw the learned reward and the judge over where the object was."""
    steps, intro = _random_steps(facts), ""
    try:
        axis = object_axis(facts.visited, facts.task)
        steps = steps[np.isfinite(axis.values[steps])]
    except MissingError as missing:
        axis = ObjectAxis(facts.visited.env_steps, "env steps", 0, len(facts.visited))
        intro = page.note(f"Over env steps instead of the object: {missing}.")
    frames, x = _frames(facts, steps), axis.values[steps]
    if facts.config.reward == "diagnostic-true-reward":
        intro += page.note("This run has no classifier: it was rewarded by the task's true reward, drawn in its place.")
    parts = [attempt(lambda: _rewards(facts, axis, x, frames)), attempt(lambda: _judged(facts, axis, x, frames))]
    return intro + page.grid(parts) + "".join(map(page.note, facts.models.warnings))


def _rewards(facts: RunSummary, axis: ObjectAxis, x: Values, frames: Frames) -> str:
    y = facts.models.reward(frames)
    title = "True reward" if facts.config.reward == "diagnostic-true-reward" else "Learned reward"
    return page.plot(figures.over_object(axis, x, y, "task reward"), title, _separation(axis, x, y))


def _judged(facts: RunSummary, axis: ObjectAxis, x: Values, frames: Frames) -> str:
    judge = facts.models.judge()
    y = judge.probability(channels_first(frames.images)).numpy().astype(np.float64)
    level = Level("a success from here on", 1 / (1 + math.exp(-judge.calibration.threshold)))
    note = _separation(axis, x, y)
    accepted = judge.quality.get("held_out_goals_accepted")
    if accepted is not None:
        note += f" It accepts {accepted:.0%} of the goal images that were held out."
    return page.plot(figures.over_object(axis, x, y, "probability of success", level), "Judge", note)


def _separation(axis: ObjectAxis, x: Values, y: Values) -> str:
    """Say how well `y` tells success from all else."""
    text, is_success = f"On {len(x):,} random frames of the run.", axis.is_success(x)
    area = ranking(y, is_success) if axis.success else None
    if area is None:
        return text
    inside, outside = y[is_success].mean(), y[~is_success].mean()
    return f"{text} Mean {inside:.2f} where it is success, {outside:.2f} elsewhere; ROC-AUC {area:.2f}."


def _random_steps(facts: RunSummary) -> Positions:
    """Return the positions of random env steps, in the order of time."""
    count = len(facts.visited)
    if not count:
        raise MissingError("no env step yet")
    return np.sort(np.random.default_rng(0).choice(count, min(APPRAISED, count), replace=False))


def _frames(facts: RunSummary, steps: Positions) -> Frames:
    return read_frames(facts.run.experience, facts.visited.sequence[steps], facts.task.rig.camera)


def visits(facts: RunSummary) -> str:
    """Draw where the object was: by phase, over time, and how evenly."""
    visited, phases = facts.visited, facts.config.phases
    axis = object_axis(visited, facts.task)
    window = min(WINDOW, max(250, len(visited) // 5))
    everything = coverage(axis, np.ones(len(visited), bool), window)
    task_alone = coverage(axis, visited.phase == PHASES.index("task"), window)
    lines = [Curve("all phases", *everything, INK), Curve("task phases alone", *task_alone, BLUE, "--")]
    lines = [line for line in lines if len(line.x)]
    text = PERTURBED
    if not phases.perturbation_share:
        text = PLACED if phases.between == "diagnostic-reset" else UNPERTURBED
    parts = [
        page.plot(figures.visits(axis, visited.phase), "Where the object was", "Per phase."),
        page.plot(figures.where_when(axis, visited.phase), "Where and when", "One dot per step, thinned out."),
    ]
    if lines:
        title = f"Entropy of visited states per {window:,} env steps"
        content = figures.curves(lines, "normalised entropy", y_range=(0, 1.02))
        parts.append(page.plot(content, title, "1: everywhere alike; 0: always in the same place."))
    return page.paragraph(text) + page.grid(parts)
