"""Check of a run directory: every file is read, and repaired where that loses nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from r3l.config.errors import UserError
from r3l.robot.base import CameraSpec
from r3l.run import weights
from r3l.run.checkpoint import LATEST, NAME, read_checkpoint
from r3l.run.directory import Run
from r3l.run.files import GIB, MIB, one_line, strangers, sync_folder, write_file
from r3l.run.goals import HELD_OUT, META, TRAIN, load_goals
from r3l.run.jsonl import MAX_BYTES, lines, parse
from r3l.run.lock import require_free
from r3l.run.repair.audit import (
    DamagedError,
    Extent,
    ForeignError,
    Layout,
    audit_database,
    audit_experience,
    require_size,
)
from r3l.run.repair.recover import recover, require_whole_log
from r3l.run.sqlite import SIBLINGS, sibling
from r3l.run.tensors import CheckpointError, load_tensors, require_finite
from r3l.task.registry import load_task

MAX_JSON_BYTES, MAX_TENSOR_BYTES = MIB, 4 * GIB
JSONL = ("metrics.jsonl", "evaluations.jsonl", "events.jsonl")
GOALS_PART = ".goals.part-*"
PART = re.compile(
    r"(config\.json|deadline\.json|board|world|latest|report\.html|film\.webp|experience\.(sqlite|copy|mending)"
    r"|(metrics|evaluations|events)\.jsonl|(judge|acting|step-[0-9]{8,18})\.safetensors)\.part"
)
"""Names of files that R3L is writing."""
EXCHANGE = "experience.mending"
"""Exists while a damaged store is exchanged for the recovered one; holds the new name of the damaged one."""

Kind = Literal["note", "mended", "broken"]


@dataclass(frozen=True)
class Problem:
    """A fault of one file."""

    path: str
    """Relative to the run directory."""
    kind: Kind
    """note: no repair is needed. mended: repaired, or repairable in a dry run. broken: R3L cannot repair it."""
    message: str


def check(folder: Path, *, is_dry: bool) -> int:
    """Check a run directory that no process uses, print the problems, and repair them unless `is_dry`.

    A dry run changes no file. A file that is replaced or put out of use is kept as NAME.damaged-TIME.

    Returns:
        0 where every file is well or repaired, 2 where a problem remains.

    Raises:
        UserError: `folder` is no folder, or a process uses the run.
    """
    problems, seen = inspect(folder, is_dry=is_dry)
    for problem in problems:
        word = {"note": "note", "mended": "to mend" if is_dry else "mended", "broken": "cannot be mended"}[problem.kind]
        print(f"{problem.path}: {word}: {problem.message}")
    counts = Counter(problem.kind for problem in problems)
    verdict = f"{counts['mended']} {'to mend' if is_dry else 'mended'}, {counts['broken']} not"
    verdict = verdict if counts["mended"] or counts["broken"] else "all is well"
    print(f"{folder}: {verdict}{seen and f' ({seen})'}")
    return 2 if counts["broken"] else 0


def inspect(folder: Path, *, is_dry: bool) -> tuple[list[Problem], str]:
    """Check and repair a run directory; return the problems, and the number of files of each sort in words."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run directory; see runs/ for runs")
    foreign = [Problem(str(path.relative_to(folder)), "broken", reason) for path, reason in strangers(folder)]
    if foreign:
        return foreign, ""
    try:
        require_size(folder / "config.json", MAX_JSON_BYTES)
        run = Run.open(folder)
    except (UserError, DamagedError, RecursionError) as error:
        return [Problem("config.json", "broken", one_line(error))], ""
    with ExitStack() as stack:
        if is_dry:
            require_free(run.folder)
        else:
            stack.enter_context(run.lock())
        inspection = Inspection(run, is_dry=is_dry)
        inspection.check_all()
    return inspection.problems, ", ".join(f"{count} {name}" for name, count in inspection.counts.items())


class Inspection:
    """One pass over all files of a run directory."""

    def __init__(self, run: Run, *, is_dry: bool) -> None:
        self._run, self._is_dry = run, is_dry
        self._stamp = time.strftime("%Y%m%dT%H%M%S")
        self._learned = 0
        """The newest row that a good checkpoint has learned from."""
        self._layout: Layout | None = None
        """None while the goal images do not tell the size of a row."""
        self.problems: list[Problem] = []
        self.counts: dict[str, int] = {}

    def check_all(self) -> None:
        """Check every file; a failure of one check is a problem of its file and ends no other check."""
        run = self._run
        checks: list[tuple[Path, Callable[[Path], None]]] = [
            (run.experience, self._check_exchange),
            (run.folder, self._check_parts),
            (run.folder, self._check_folders),
            (run.goals, self._check_goals),
            (run.checkpoints, self._check_checkpoints),
            (run.experience, self._check_experience),
            (run.weights, self._check_weights),
            (run.judge, self._check_judge),
            (run.truth, self._check_truth),
            *((run.folder / name, self._check_lines) for name in JSONL),
        ]
        for path, check_file in checks:
            try:
                check_file(path)
            except (OSError, ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError) as error:
                self._report(path, "broken", f"it cannot be looked at ({one_line(error)}); restore it from a copy")

    def _report(self, path: Path, kind: Kind, message: str) -> None:
        self.problems.append(Problem(str(path.relative_to(self._run.folder)), kind, message))

    def _aside(self, path: Path, prefix: str = "") -> str:
        """Return a name beside `path` that no file has."""
        stem = f"{prefix}{path.name}.damaged-{self._stamp}"
        names = (stem, *(f"{stem}.{number}" for number in range(1, 1000)))
        return next(name for name in names if not os.path.lexists(path.with_name(name)))

    def _put_aside(self, path: Path, aside: str) -> None:
        """Rename a file, and the files that SQLite keeps beside it, unless this is a dry run."""
        for suffix in SIBLINGS:
            if not self._is_dry and os.path.lexists(sibling(path, suffix)):
                sibling(path, suffix).rename(sibling(path.with_name(aside), suffix))

    def _retire(self, path: Path, reason: object, consequence: str = "", prefix: str = "") -> None:
        """Put a file out of use."""
        aside = self._aside(path, prefix)
        self._put_aside(path, aside)
        self._report(path, "mended", f"{reason}; out of use as {aside}{consequence}")

    def _check_exchange(self, path: Path) -> None:
        """Undo an exchange of the store that was cut off: the damaged store comes back, and is recovered again."""
        marker = path.with_name(EXCHANGE)
        if not marker.exists():
            return
        self._report(path, "mended", "a repair of it was cut off; it begins anew")
        aside = small_text(marker)
        if self._is_dry:
            return
        if aside.startswith(f"{path.name}.damaged-") and "/" not in aside and not path.exists():
            for suffix in SIBLINGS:
                old = sibling(path.with_name(aside), suffix)
                if old.exists():
                    old.rename(sibling(path, suffix))
        sync_folder(path.parent)
        marker.unlink()

    def _check_parts(self, folder: Path) -> None:
        """Remove files that were being written when their process died; files that R3L did not write stay."""
        run = self._run
        parts = chain(*(place.glob("*.part") for place in (folder, run.weights, run.checkpoints)))
        ours = (path for path in parts if path.is_file() and PART.fullmatch(path.name))
        for path in chain(ours, run.checkpoints.glob(".step-*.part"), folder.glob(GOALS_PART)):
            self._report(path, "mended", "left over from a write that was cut off; removed")
            if not self._is_dry:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_folders(self, folder: Path) -> None:
        """Put folders out of use that have the name of a file."""
        run = self._run
        stores = [sibling(path, suffix) for path in (run.experience, run.truth) for suffix in SIBLINGS]
        others = [folder / name for name in (*JSONL, "deadline.json", "board", "world", "report.html")]
        for path in (*stores, *others, run.checkpoints / LATEST, run.acting_weights, run.judge):
            if path.is_dir():
                aside = self._aside(path)
                self._report(path, "mended", f"it is a folder where a file belongs; out of use as {aside}")
                if not self._is_dry:
                    path.rename(path.with_name(aside))

    def _check_goals(self, folder: Path) -> None:
        """Check the goal images, which tell the size of a row of experience."""
        config = self._run.config
        old = folder.with_name("goals.old")
        if not folder.exists() and old.is_dir():
            self._report(folder, "mended", "an exchange of the goal images was cut off; the old ones are back")
            folder = old if self._is_dry else old.rename(folder)
        try:
            height, width = image_size(folder)
            # A task file is a program of the user, and is not run here. The image size is known without it.
            task = None if config.task.endswith(".py") else load_task(config.task)
            camera = task.rig.camera if task else CameraSpec(width, height)
            goals = load_goals(folder, camera, task.minimum_goals if task else 1)
        except (UserError, DamagedError, RecursionError) as error:
            self._report(self._run.goals, "broken", one_line(error))
            return
        self.counts["goal images"] = len(goals.train) + len(goals.held_out)
        joints = len(task.rig.joints) if task else None
        self._layout = Layout(camera.height * camera.width * 3, joints, has_diagnostic=config.reads_truth)

    def _check_checkpoints(self, folder: Path) -> None:
        good = list[str]()
        found = sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())
        for path in found:
            try:
                self._learned = max(self._learned, newest_row(path))
                good.append(path.name)
            except (CheckpointError, DamagedError) as error:
                self._retire(path, one_line(error), prefix=".")
        self.counts["checkpoints"] = len(good)
        if found and not good:
            self._report(folder, "note", "no good one is left: learning begins anew from the rows there are")
        if good and small_text(folder / LATEST) not in good:
            self._report(folder / LATEST, "mended", f"it names no good checkpoint; it names {good[-1]} now")
            if not self._is_dry:
                write_file(folder / LATEST, good[-1].encode())

    def _check_experience(self, path: Path) -> None:
        if self._layout is None:
            return
        try:
            extent = audit_experience(path, self._layout)
            require_whole_log(path)
        except ForeignError as error:
            self._report(path, "broken", f"{one_line(error)}; nothing of it is read")
        except DamagedError as error:
            self._recover(path, self._layout, one_line(error))
        else:
            if self._learned and not extent.rows:
                lost = f"checkpoints have learned from {self._learned}"
                self._report(path, "broken", f"there is no row in it, and {lost}; restore it from a copy")
            else:
                self._report_missing(path, extent)

    def _recover(self, path: Path, layout: Layout, damage: str) -> None:
        """Exchange a damaged store for a new one with all rows that are whole."""
        size = sum(each.stat().st_size for each in (sibling(path, suffix) for suffix in SIBLINGS) if each.exists())
        with tempfile.TemporaryDirectory() as scratch:
            fresh = (Path(scratch) if self._is_dry else path.parent) / f"{path.name}.part"
            if shutil.disk_usage(fresh.parent).free < 2 * size + 64 * MIB:  # a copy, and the new store
                need = f"saving its rows takes {2 * size / GIB:.2f} GiB in {fresh.parent}: free the disk"
                self._report(path, "broken", f"{damage}; {need}")
                return
            extent = recover(path, fresh, layout)
            if not extent.rows:
                fresh.unlink()
                advice = "no row of it can be read, so it is left alone: restore it from a copy"
                self._report(path, "broken", f"{damage}; {advice}")
                return
            aside = self._aside(path)
            if not self._is_dry:
                write_file(path.with_name(EXCHANGE), aside.encode())
                self._put_aside(path, aside)
                fresh.rename(path)
                sync_folder(path.parent)
                path.with_name(EXCHANGE).unlink()
        lost = max(extent.last, self._learned) - extent.rows
        saved = f"{extent.rows} rows saved, {lost} lost; the damaged one is {aside}"
        self._report(path, "mended", f"{damage}; {saved}")
        self._report_missing(path, extent)

    def _report_missing(self, path: Path, extent: Extent) -> None:
        self.counts["rows"] = extent.rows
        if extent.missing:
            missing = f"{extent.missing} of the rows up to {extent.last} are missing"
            self._report(path, "note", f"{missing}; nothing joins across")
        if self._learned > extent.last:
            learned = f"a checkpoint has learned up to {self._learned}"
            self._report(path, "note", f"it ends with row {extent.last}; {learned}")

    def _check_weights(self, folder: Path) -> None:
        count = 0
        for path in sorted(folder.glob("*.safetensors")):
            try:
                require_size(path, MAX_TENSOR_BYTES)
                require_finite(weights.read(path).tensors)
                count += 1
            except (CheckpointError, DamagedError) as error:
                is_acting = path == self._run.acting_weights
                after = "the learner publishes them anew" if is_acting else "they cannot be evaluated"
                self._retire(path, one_line(error), f": {after}")
        self.counts["published weights"] = count

    def _check_judge(self, path: Path) -> None:
        try:
            require_size(path, MAX_TENSOR_BYTES)
            if path.exists():
                require_finite(load_tensors(path)[0])
        except (OSError, ValueError, CheckpointError, DamagedError) as error:
            self._report(path, "broken", f"judge cannot be read ({one_line(error)}); move it away to go on without")

    def _check_truth(self, path: Path) -> None:
        try:
            audit_database(path)
        except DamagedError as error:
            self._retire(path, one_line(error), ": ground truth is recorded anew")

    def _check_lines(self, path: Path) -> None:
        """Check a file of JSON lines: readers leave out a line that was cut off, other content is taken out."""
        if not path.exists():
            return
        try:
            require_size(path, MAX_BYTES)
        except DamagedError as error:
            self._report(path, "broken", f"{one_line(error)}: move it away")
            return
        kinds = [line_kind(line) for line in lines(path)]
        counts = Counter(kinds)
        if counts["torn"]:
            self._report(
                path, "note", f"{counts['torn']} of its {len(kinds)} lines are cut off; readers leave them out"
            )
        if not counts["rubbish"]:
            return
        aside, part = self._aside(path), path.with_name(path.name + ".part")
        if not self._is_dry:
            with part.open("wb") as file:
                file.writelines(line for line, kind in zip(lines(path), kinds, strict=True) if kind == "whole")
            self._put_aside(path, aside)
            part.rename(path)
        rubbish = f"{counts['rubbish']} of its {len(kinds)} lines hold no record"
        self._report(path, "mended", f"{rubbish}; it goes on without them, {aside} has them")


def small_text(path: Path) -> str:
    """Return the text of a small file; nothing where it cannot be read."""
    try:
        require_size(path, MAX_JSON_BYTES)
        return path.read_text().strip()
    except (OSError, ValueError, DamagedError):
        return ""


def image_size(goals: Path) -> tuple[int, int]:
    """Return height and width of goal images; DamagedError if the folder holds more or fewer than stated."""
    try:
        saved: dict[str, Any] = json.loads(small_text(goals / META))
        height, width = (int(side) for side in saved["image"])
        counts = {part: int(saved[name]) for part, name in ((TRAIN, "train"), (HELD_OUT, "held_out"))}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DamagedError(f"{META} is missing or damaged; restore it, or import its images anew") from error
    for part, count in counts.items():
        found = len(list((goals / part).glob("*.png")))
        if found != count:
            raise DamagedError(f"there are {found} images in {part}, {META} says {count}; restore them from a copy")
    return height, width


def newest_row(path: Path) -> int:
    """Return the newest row that a checkpoint has learned from; CheckpointError or DamagedError for a bad one."""
    for file in path.iterdir():
        require_size(file, MAX_TENSOR_BYTES if file.suffix == ".safetensors" else MAX_JSON_BYTES)
    tensors, meta = read_checkpoint(path)
    require_finite(tensors)
    try:
        sequence = int(meta["learner"]["sequence"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DamagedError("it does not say what it has learned from") from error
    if sequence < 0:
        raise DamagedError(f"it has learned from {sequence} rows")
    return sequence


def line_kind(line: bytes) -> Literal["whole", "torn", "rubbish"]:
    """Return whether a line holds a record or is blank, was cut off, or holds anything else."""
    try:
        parse(line)
    except json.JSONDecodeError:
        return "torn"
    except ValueError:
        return "rubbish"
    return "whole"
