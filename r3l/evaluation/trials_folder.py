"""The folder of an evaluation by eye: its trials, their last images, and the marks of a person."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from r3l.config.errors import UserError
from r3l.models.judge import Judge
from r3l.run.files import read, read_json, write_file
from r3l.run.images import contact_sheet
from r3l.run.tensors import load_tensors, save_tensors

FORMAT_VERSION = 1
TRIALS, SHEET, MARKS, ENDS = "trials.json", "contact-sheet.png", "marks.csv", "ends.safetensors"
YES, NO = ("y", "yes", "1", "true"), ("n", "no", "0", "false")
COLUMNS, SIDE_PX = 6, 160
"""Columns of the contact sheet, and width of an image in it."""
MAX_MARKS_BYTES = 1 << 20


@dataclass(frozen=True)
class Trial:
    """One episode from a random start."""

    number: int
    """From 1, in the order in which the trials were made."""
    weights: int
    """Step at which the policy's weights were published."""
    judged: bool
    """The judge's verdict."""
    log_odds: float
    """Log odds of success by the judge, which its verdict is made from."""
    begun_solved: bool = False
    """Whether the judge takes the start for a success, too: perturbation did not move the object away."""
    success: bool | None = None
    """Success by the ground truth; None for a robot without ground truth."""


@dataclass(frozen=True)
class Trials:
    """The result of an evaluation by eye."""

    task: str
    robot: str
    weights: tuple[int, ...]
    """Steps of the compared weights."""
    trials: tuple[Trial, ...] = ()
    version: int = FORMAT_VERSION

    def of(self, weights: int) -> list[Trial]:
        """Return the trials of one policy."""
        return [trial for trial in self.trials if trial.weights == weights]


class TrialsFolder:
    """A folder of trials: trials.json, the last images of each trial, a contact sheet, and a table of a person's marks.

    Contact sheet and table do not name the policy of a trial.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sheet, self.marks = folder / SHEET, folder / MARKS

    def create(self) -> None:
        """Make the folder; UserError if it exists."""
        try:
            self.folder.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(f"{self.folder} exists and is never overwritten; choose another --out") from error

    def keep(self, found: Trials, ends: NDArray[np.uint8]) -> None:
        """Write the trials so far, with the last images of each, [N, F, H, W, 3]."""
        save_tensors(self.folder / ENDS, {"ends": torch.from_numpy(ends)}, {"version": FORMAT_VERSION})
        contact_sheet(list(ends[:, -1]), self.sheet, COLUMNS, SIDE_PX, is_numbered=True)
        self.write_marks({trial.number: None for trial in found.trials})
        write_file(self.folder / TRIALS, json.dumps(asdict(found), indent=2).encode())

    def read(self) -> Trials:
        """Return the trials; UserError if there are none."""
        path = self.folder / TRIALS
        try:
            found = read_json(path)
            if found["version"] != FORMAT_VERSION:
                raise UserError(f"{path} has format {found['version']!r:.20}, expected {FORMAT_VERSION}")
            trials = tuple(_trial(values) for values in found["trials"])
            return Trials(str(found["task"]), str(found["robot"]), tuple(map(int, found["weights"])), trials)
        except OSError as error:
            raise UserError(f"{self.folder} has no readable {TRIALS}; r3l evaluate RUN --by-eye makes it") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); make the trials again") from error

    def ends(self) -> Tensor:
        """Return the last images of all trials, uint8 [N, F, 3, H, W]; UserError if they cannot be read."""
        path = self.folder / ENDS
        try:
            ends = load_tensors(path)[0]["ends"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}); make the trials again") from error
        if ends.dtype != torch.uint8 or ends.dim() != 5 or ends.shape[-1] != 3:
            raise UserError(f"{path} holds {ends.dtype} {list(ends.shape)}, expected images; make the trials again")
        return ends.movedim(-1, 2)

    def log_odds(self, found: Trials, judge: Judge) -> dict[int, float]:
        """Return a judge's log odds of success of each trial, by the trial's number."""
        ends = self.ends()
        if len(ends) < len(found.trials):  # one more if writing was interrupted
            raise UserError(f"{self.folder} has images of {len(ends)} trials, expected {len(found.trials)}")
        return {trial.number: judge.end_log_odds(end) for trial, end in zip(found.trials, ends, strict=False)}

    def write_marks(self, marks: Mapping[int, bool | None]) -> None:
        """Write the table of marks: trial, success."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", "success"])
        writer.writerows([number, {True: "yes", False: "no", None: ""}[mark]] for number, mark in marks.items())
        write_file(self.marks, text.getvalue().encode())

    def read_marks(self, found: Trials) -> dict[int, bool | None]:
        """Return a person's marks by trial, None for no mark; UserError names the line that cannot be read."""
        marks: dict[int, bool | None] = {trial.number: None for trial in found.trials}
        try:
            lines = list(csv.reader(io.StringIO(read(self.marks, MAX_MARKS_BYTES).decode("utf-8-sig"))))
        except OSError:
            return marks
        except (ValueError, csv.Error) as error:
            raise UserError(f"{self.marks} cannot be read ({error}); expected a table of trial,success") from error
        for at, cells in enumerate(lines[1:], 2):
            words = [cell.strip().lower() for cell in cells]
            if not any(words):
                continue
            number, mark = (*words, "")[:2]
            if not number.isdecimal() or int(number) not in marks or mark not in ("", *YES, *NO):
                raise UserError(
                    f"{self.marks}, line {at}: {','.join(cells)!r:.60}, expected the number of a trial and yes or no"
                )
            marks[int(number)] = None if not mark else mark in YES
        return marks


def _trial(values: Mapping[str, Any]) -> Trial:
    """Return a trial from its JSON values."""
    success = values["success"]
    return Trial(
        int(values["number"]),
        int(values["weights"]),
        bool(values["judged"]),
        float(values["log_odds"]),
        bool(values["begun_solved"]),
        None if success is None else bool(success),
    )
