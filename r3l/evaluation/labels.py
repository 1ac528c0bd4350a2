"""Mark trials: a person says which ended in success; the judge is compared with the marks and set by them."""

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

MIN_MARKS = 4
"""Successes, and failures, that the judge's calibration needs."""
JUDGE_BEFORE = "judge-before.safetensors"
HELP = "y: success. n: failure. s: skip. u: back to the trial before. q: stop and keep your answers"


def ask(folder: TrialsFolder, found: Trials, keys: Iterator[str], say: Callable[[str], None]) -> None:
    """Ask a person about every trial without a mark; each answer is stored at once."""
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
    """Return lines for people: the success of each policy and, for two, the difference. `verdicts` are by trial."""
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
            f"(95% interval {low:.2f} to {high:.2f}, {len(said)} trials; {solved} starts look solved)"
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
    """Return a line for people: how often verdicts agree with marks, both by trial."""
    pairs = [(mark, verdicts[number]) for number, mark in marks.items()]
    counts = confusion([mark for mark, _ in pairs], [verdict for _, verdict in pairs])
    balanced = counts["balanced_accuracy"]
    return (
        f"{whose}: agrees in {sum(mark == verdict for mark, verdict in pairs)} of {len(pairs)}, "
        f"false alarms {counts['false_positive']}, missed {counts['false_negative']}"
        + (f", balanced accuracy {balanced:.2f}" if balanced is not None else "")
    )


def calibrate(run: Run, folder: TrialsFolder, found: Trials, marks: Mapping[int, bool]) -> dict[int, bool]:
    """Calibrate the run's judge by marks; return its verdict on each marked trial when calibrated by the others.

    The judge before the first calibration stays in the folder, and every calibration starts from it.

    Raises:
        UserError: there are too few marks, or the judge ranks failures above successes. The judge is unchanged.
    """
    yes = sum(marks.values())
    if min(yes, len(marks) - yes) < MIN_MARKS:
        raise UserError(
            f"{yes} successes and {len(marks) - yes} failures are marked, expected {MIN_MARKS} or more of each; "
            "the judge is unchanged"
        )
    kept = folder.folder / JUDGE_BEFORE
    with run.lock():
        before = Judge.load(kept if kept.exists() else run.judge)
        log_odds = folder.log_odds(found, before)
        numbers, labels = list(marks), list(marks.values())
        scores = np.array([log_odds[number] for number in numbers])
        fitted = recalibrate(before.calibration, scores, labels)
        if fitted is None:
            raise UserError("the judge takes failures for successes; it is unchanged: look at the goal images")
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
    """Ask for missing marks, say how far judge and person agree, and calibrate the judge by the marks.

    Raises:
        UserError: no trial is marked, the table cannot be read, or the judge cannot be calibrated.
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
