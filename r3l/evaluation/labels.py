"""Marking: a person says which trials ended in success; how far the judge agrees, and the judge set by it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from r3l.config.errors import UserError
from r3l.evaluation.statistics import confusion, difference, wilson
from r3l.evaluation.trials_folder import Trials, TrialsFolder
from r3l.models.judge import Judge, recalibrate
from r3l.run.directory import Run

FEWEST = 4
"""Marks of each kind that the judge is calibrated from at least."""
JUDGE_BEFORE = "judge-before.safetensors"
HELP = "y: success. n: none. s: leave it out. u: back to the one before. q: stop, what you said is kept"


def ask(folder: TrialsFolder, found: Trials, keys: Iterator[str], say: Callable[[str], None]) -> None:
    """Ask a person about every trial that is not marked yet; each answer is kept at once."""
    marks = folder.read_marks(found)
    left = [number for number, mark in marks.items() if mark is None]
    at = 0
    if left:
        say(f"look at {folder.sheet}. {HELP}")
    while at < len(left):
        say(f"trial {left[at]} ({at + 1} of {len(left)}): a success?")
        key = next(keys, "q")
        if key == "q":
            return
        if key == "u":
            at = max(at - 1, 0)
        elif key in ("y", "n", "s"):
            marks[left[at]] = None if key == "s" else key == "y"
            folder.write_marks(marks)
            at += 1
        else:
            say(HELP)


def compare(found: Trials, verdicts: Mapping[int, bool], whose: str) -> list[str]:
    """Return lines for people: success of each policy and, of two, the difference. `verdicts` by trial."""
    lines, by_weights = [], {}
    for weights in found.weights:
        said = [verdicts[trial.number] for trial in found.of(weights) if trial.number in verdicts]
        if not said:
            continue
        low, high = wilson(said)
        by_weights[weights] = said
        solved = sum(trial.begun_solved for trial in found.of(weights) if trial.number in verdicts)
        lines.append(
            f"{whose}: weights of step {weights}: success {np.mean(said):.2f} "
            f"(95% interval {low:.2f} to {high:.2f}, {len(said)} trials; {solved} starts look solved already)"
        )
    if len(by_weights) == 2:
        (first, one), (second, other) = by_weights.items()
        apart, low, high = difference(one, other)
        lines.append(
            f"{whose}: step {first} less step {second}: {apart:+.2f} (95% interval {low:+.2f} to {high:+.2f}"
            + (")" if low > 0 or high < 0 else "; it may be chance)")
        )
    return lines


def agreement(verdicts: Mapping[int, bool], marks: Mapping[int, bool], whose: str) -> str:
    """Return a line for people: how far verdicts by trial agree with marks by trial."""
    pairs = [(mark, verdicts[number]) for number, mark in marks.items()]
    counts = confusion([mark for mark, _ in pairs], [verdict for _, verdict in pairs])
    balanced = counts["balanced_accuracy"]
    return (
        f"{whose}: agrees in {sum(mark == verdict for mark, verdict in pairs)} of {len(pairs)}, "
        f"false alarms {counts['false_positive']}, missed {counts['false_negative']}"
        + (f", balanced accuracy {balanced:.2f}" if balanced is not None else "")
    )


def calibrate(run: Run, folder: TrialsFolder, found: Trials, marks: Mapping[int, bool]) -> dict[int, bool]:
    """Set the run's judge by marks; return what it says of each marked trial when set by the other marks alone.

    The judge as it was stays in the folder; marking again begins with that one.

    Raises:
        UserError: too few marks, or the judge orders the trials the other way round; nothing is changed then.
    """
    yes = sum(marks.values())
    if min(yes, len(marks) - yes) < FEWEST:
        raise UserError(
            f"{yes} successes and {len(marks) - yes} failures are marked, expected {FEWEST} or more of each to set the "
            "judge by; it stays as it is"
        )
    kept = folder.folder / JUDGE_BEFORE
    with run.lock():
        before = Judge.load(kept if kept.exists() else run.judge)
        log_odds = folder.log_odds(found, before)
        numbers, labels = list(marks), list(marks.values())
        scores = np.array([log_odds[number] for number in numbers])
        fitted = recalibrate(before.calibration, scores, labels)
        if fitted is None:
            raise UserError("the judge takes failures for successes; it stays as it is: look at the goal images")
        if not kept.exists():
            shutil.copyfile(run.judge, kept)
        replace(before, calibration=fitted, quality={**before.quality, "marks": float(len(marks))}).save(run.judge)
    logits = (scores - before.calibration.offset) / before.calibration.slope
    said = {}
    for at, number in enumerate(numbers):
        others = [*labels[:at], *labels[at + 1 :]]
        without = recalibrate(before.calibration, np.delete(scores, at), others)
        said[number] = without is not None and without.slope * logits[at] + without.offset >= without.threshold
    return said


def mark(run: Run, folder: TrialsFolder, keys: Iterator[str], say: Callable[[str], None], *, sets_judge: bool) -> None:
    """Ask for what is not marked, say how judge and person agree, and set the judge by the marks.

    Raises:
        UserError: nothing is marked, the table cannot be read, or the judge cannot be set.
    """
    found = folder.read()
    ask(folder, found, keys, say)
    marks = {number: said for number, said in folder.read_marks(found).items() if said is not None}
    if not marks:
        raise UserError(f"no trial is marked; answer for each, or fill in {folder.marks} (yes or no) while you look")
    judged = {trial.number: trial.judged for trial in found.trials}
    for line in (*compare(found, marks, "you"), *compare(found, judged, "judge")):
        say(line)
    say(agreement(judged, marks, "judge"))
    truth = {trial.number: trial.success for trial in found.trials if trial.success is not None}
    if truth:
        say(agreement({number: truth[number] for number in marks}, marks, "ground truth"))
    if sets_judge:
        said = calibrate(run, folder, found, marks)
        say(agreement(said, marks, "judge set by your marks, each trial judged by the marks of the others"))
