"""Verify: look at every file of a run directory, and mend what can be mended without losing anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import Any, Literal

from r3l.config.errors import UserError
from r3l.models.judge import Judge
from r3l.robot.base import CameraSpec
from r3l.run import weights
from r3l.run.checkpoint import LATEST, NAME, read_checkpoint
from r3l.run.directory import Run
from r3l.run.files import one_line, strangers, sync_folder, write_file
from r3l.run.goals import HELD_OUT, META, TRAIN, load_goals
from r3l.run.jsonl import MAX_BYTES
from r3l.run.repair.audit import (
    SIBLINGS,
    DamagedError,
    ForeignError,
    audit_database,
    audit_experience,
    audit_whole,
    require_size,
)
from r3l.run.repair.recover import Extent, Layout, salvage
from r3l.run.tensors import CheckpointError, load_tensors, require_finite
from r3l.task.registry import load_task

MIB, GIB = 1 << 20, 1 << 30
MAX_JSON_BYTES, MAX_TENSOR_BYTES, MAX_LINE_BYTES = MIB, 4 * GIB, MIB
LINES = ("metrics.jsonl", "evaluations.jsonl", "events.jsonl")
GOALS_PART = ".goals.part-*"
LEFT_OVER = re.compile(
    r"(config\.json|deadline\.json|board|world|latest|report\.html|film\.webp|experience\.(sqlite|mending)"
    r"|(metrics|evaluations|events)\.jsonl|(judge|acting|step-[0-9]{8,18})\.safetensors)\.part"
)
EXCHANGE = "experience.mending"
"""There while a damaged store is exchanged; it names where the damaged one goes."""

Kind = Literal["note", "mended", "broken"]


@dataclass(frozen=True)
class Finding:
    """Something about one file that is not as it should be."""

    path: str
    """Below the run directory."""
    kind: Kind
    """note: nothing need be done. mended: it was, or in a dry run would be. broken: nothing here can mend it."""
    message: str


def check(folder: Path, *, is_dry: bool) -> int:
    """Verify a run directory that no process uses, print what was found, and mend it unless `is_dry`.

    Returns 0 where all is well or was mended, 2 where something is wrong that nothing here can mend. A dry run changes
    nothing at all. Whatever is replaced or taken out of use is kept beside, as NAME.damaged-TIME.

    Raises:
        UserError: it is no folder, or a process uses the run.
    """
    found, seen = inspect(folder, is_dry=is_dry)
    for finding in found:
        word = {"note": "note", "mended": "to mend" if is_dry else "mended", "broken": "cannot be mended"}[finding.kind]
        print(f"{finding.path}: {word}: {finding.message}")
    mended, broken = (sum(finding.kind == kind for finding in found) for kind in ("mended", "broken"))
    verdict = f"{mended} {'to mend' if is_dry else 'mended'}, {broken} not" if mended or broken else "all is well"
    print(f"{folder}: {verdict}{seen and f' ({seen})'}")
    return 2 if broken else 0


def inspect(folder: Path, *, is_dry: bool) -> tuple[list[Finding], str]:
    """Verify and mend a run directory; return what was found, and in words how much was looked at."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run directory; see runs/ for runs")
    found = list(find_strangers(folder))
    if found:
        return found, ""
    try:
        require_size(folder / "config.json", MAX_JSON_BYTES)
        run = Run.open(folder)
    except (UserError, DamagedError, RecursionError) as error:
        return [Finding("config.json", "broken", one_line(error))], ""
    with ExitStack() as stack:
        if is_dry:
            require_free(run)
        else:
            stack.enter_context(run.lock())
        inspection = Inspection(run, is_dry=is_dry)
        inspection.look()
    return inspection.found, inspection.seen


def require_free(run: Run) -> None:
    """Raise UserError where a process uses the run, without taking its lock."""
    holder = run.holder()
    if holder is not None:
        raise UserError(f"{run.folder} is in use by process {holder or 'unknown'}; stop it, or wait for it")


def find_strangers(folder: Path) -> Iterator[Finding]:
    """Yield what has no business in a run directory: links that lead out of it, pipes and devices."""
    for path, reason in strangers(folder):
        yield Finding(str(path.relative_to(folder)), "broken", reason)


class Inspection:
    """One look at everything in a run directory."""

    def __init__(self, run: Run, *, is_dry: bool) -> None:
        self._run, self._is_dry = run, is_dry
        self._stamp = time.strftime("%Y%m%dT%H%M%S")
        self._counts: dict[str, int] = {}
        self._learned = 0
        """The newest row that a good checkpoint has learned from."""
        self.found: list[Finding] = []

    @property
    def seen(self) -> str:
        """Return how much was looked at, in words."""
        return ", ".join(f"{count} {name}" for name, count in self._counts.items())

    def look(self) -> None:
        """Look at every file, whatever is wrong with the others."""
        run, layouts = self._run, list[Layout | None]()
        self._guarded(run.experience, self._look_at_exchange)
        self._guarded(run.folder, self._look_at_leftovers)
        self._guarded(run.folder, self._look_at_folders)
        self._guarded(run.goals, lambda: layouts.append(self._look_at_goals()))
        self._guarded(run.checkpoints, self._look_at_checkpoints)
        for layout in layouts:
            if layout is not None:
                self._guarded(run.experience, lambda known=layout: self._look_at_experience(known))  # type: ignore[misc]
        self._guarded(run.weights, self._look_at_weights)
        self._guarded(run.judge, self._look_at_judge)
        self._guarded(run.truth, self._look_at_truth)
        for path in (run.folder / name for name in LINES):
            self._guarded(path, lambda known=path: self._look_at_lines(known))  # type: ignore[misc]

    def _guarded(self, path: Path, look: Callable[[], object]) -> None:
        """Look at something; what no look foresaw is something wrong with it."""
        try:
            look()
        except (OSError, ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError) as error:
            self._say(path, "broken", f"it cannot be looked at ({one_line(error)}); restore it from a copy")

    def _say(self, path: Path, kind: Kind, message: str) -> None:
        self.found.append(Finding(str(path.relative_to(self._run.folder)), kind, message))

    def _set_aside(self, path: Path, *, prefix: str = "") -> str:
        """Rename a file, and what SQLite keeps beside it; return its new name. A dry run says it alone."""
        name = free_aside(path, f"{prefix}{path.name}.damaged-{self._stamp}")
        for sibling in SIBLINGS:
            old = path.with_name(path.name + sibling)
            if not self._is_dry and os.path.lexists(old):
                old.rename(path.with_name(name + sibling))
        return name

    def _look_at_exchange(self) -> None:
        """Undo an exchange of the store that was cut off: what was damaged comes back, and is salvaged again."""
        marker, path = self._run.folder / EXCHANGE, self._run.experience
        aside = small_text(marker)
        if not marker.exists():
            return
        self._say(path, "mended", "a repair of it was cut off; it begins anew")
        if self._is_dry:
            return
        if aside.startswith(f"{path.name}.damaged-") and "/" not in aside and not path.exists():
            for sibling in SIBLINGS:
                old = path.with_name(aside + sibling)
                if old.exists():
                    old.rename(path.with_name(path.name + sibling))
        sync_folder(path.parent)
        marker.unlink()

    def _look_at_folders(self) -> None:
        """Take folders out of use that stand where a file belongs."""
        run = self._run
        stores = [path.with_name(path.name + each) for path in (run.experience, run.truth) for each in SIBLINGS]
        others = [run.folder / name for name in (*LINES, "deadline.json", "board", "world", "report.html")]
        for path in (*stores, *others, run.checkpoints / LATEST, run.acting_weights, run.judge):
            if path.is_dir():
                aside = free_aside(path, f"{path.name}.damaged-{self._stamp}")
                self._say(path, "mended", f"it is a folder where a file belongs; out of use as {aside}")
                if not self._is_dry:
                    path.rename(path.with_name(aside))

    def _look_at_leftovers(self) -> None:
        run = self._run
        parts = (place.glob("*.part") for place in (run.folder, run.weights, run.checkpoints))
        hidden = run.checkpoints.glob(".step-*.part")
        for path in chain((path for path in chain(*parts) if is_left_over(path)), hidden, run.folder.glob(GOALS_PART)):
            self._say(path, "mended", "left over from a write that was cut off; removed")
            if not self._is_dry:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _look_at_goals(self) -> Layout | None:
        """Look at the goal images; return what a row of experience looks like, None where that cannot be told."""
        run, folder = self._run, self._run.goals
        old = run.folder / "goals.old"
        if not folder.exists() and old.is_dir():
            self._say(folder, "mended", "an exchange of the goal images was cut off; the old ones are back")
            folder = old if self._is_dry else old.rename(folder)
        try:
            height, width = image_size(folder)
            # A task of one's own is a file that would be run; sizes can be had without.
            task = None if run.config.task.endswith(".py") else load_task(run.config.task)
            camera = task.rig.camera if task else CameraSpec(width, height)
            goals = load_goals(folder, camera, task.minimum_goals if task else 1)
        except (UserError, DamagedError, RecursionError) as error:
            self._say(run.goals, "broken", one_line(error))
            return None
        self._counts["goal images"] = len(goals.train) + len(goals.held_out)
        joints = len(task.rig.joints) if task else None
        return Layout(camera.height * camera.width * 3, joints, has_diagnostic=run.config.reads_truth)

    def _look_at_checkpoints(self) -> None:
        run, good = self._run, list[str]()
        found = sorted(path for path in run.checkpoints.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir())
        for path in found:
            try:
                self._learned = max(self._learned, learned_from(path))
                good.append(path.name)
            except (CheckpointError, DamagedError) as error:
                aside = self._set_aside(path, prefix=".")
                self._say(path, "mended", f"{one_line(error)}; out of use as {aside}")
        self._counts["checkpoints"] = len(good)
        if found and not good:
            self._say(run.checkpoints, "note", "no good one is left: learning begins anew from the rows there are")
        latest = run.checkpoints / LATEST
        if good and small_text(latest) not in good:
            self._say(latest, "mended", f"it names no good checkpoint; it names {good[-1]} now")
            if not self._is_dry:
                write_file(latest, good[-1].encode())

    def _look_at_experience(self, layout: Layout) -> None:
        path = self._run.experience
        try:
            extent = audit_experience(path, layout)
        except ForeignError as error:
            self._say(path, "broken", f"{one_line(error)}; nothing of it is read")
            return
        except DamagedError as error:
            self._salvage(path, layout, one_line(error))
            return
        self._counts["rows"] = extent.rows
        if not extent.rows and self._learned:
            lost = f"checkpoints have learned from {self._learned}"
            self._say(path, "broken", f"there is no row in it, and {lost}; restore it from a copy")
            return
        self._tell_missing(path, extent)

    def _tell_missing(self, path: Path, extent: Extent) -> None:
        if extent.missing:
            self._say(
                path, "note", f"{extent.missing} of the rows up to {extent.last} are missing; nothing joins across"
            )
        if self._learned > extent.last:
            self._say(path, "note", f"it ends with row {extent.last}; a checkpoint has learned up to {self._learned}")

    def _salvage(self, path: Path, layout: Layout, damage: str) -> None:
        """Put a new store of all rows that are still whole in the place of a damaged one."""
        size = sum(file.stat().st_size for file in siblings(path))
        if shutil.disk_usage(path.parent).free < size + 64 * MIB:
            self._say(path, "broken", f"{damage}; saving its rows takes {size / GIB:.2f} GiB: free the disk")
            return
        fresh = path.with_name(path.name + ".part")
        saved = audit_whole(path, layout) if self._is_dry else salvage(path, fresh, layout)
        if not saved.rows:
            fresh.unlink(missing_ok=True)
            self._say(
                path, "broken", f"{damage}; no row of it can be read, so it is left alone: restore it from a copy"
            )
            return
        if not self._is_dry:
            write_file(path.with_name(EXCHANGE), free_aside(path, f"{path.name}.damaged-{self._stamp}").encode())
        aside = self._set_aside(path)
        if not self._is_dry:
            fresh.rename(path)
            sync_folder(path.parent)
            path.with_name(EXCHANGE).unlink()
        self._counts["rows"] = saved.rows
        lost = max(saved.last, self._learned) - saved.rows
        self._say(path, "mended", f"{damage}; {saved.rows} rows saved, {lost} lost; the damaged one is {aside}")
        self._tell_missing(path, saved)

    def _look_at_weights(self) -> None:
        run, count = self._run, 0
        for path in sorted(run.weights.glob("*.safetensors")):
            is_acting = path == run.acting_weights
            try:
                require_size(path, MAX_TENSOR_BYTES)
                require_finite(weights.read(path).tensors if is_acting else load_tensors(path)[0])
                count += 1
            except (CheckpointError, DamagedError, OSError, ValueError) as error:
                aside = self._set_aside(path)
                after = "the learner publishes them anew" if is_acting else "they cannot be evaluated"
                self._say(path, "mended", f"{one_line(error)}; out of use as {aside}: {after}")
        self._counts["published weights"] = count

    def _look_at_judge(self) -> None:
        path = self._run.judge
        try:
            require_size(path, MAX_TENSOR_BYTES)
            if path.exists():
                require_finite(dict(Judge.load(path).body.state_dict()))
        except (CheckpointError, DamagedError) as error:
            self._say(path, "broken", f"{one_line(error)}; or move it away to go on without")

    def _look_at_truth(self) -> None:
        path = self._run.truth
        try:
            audit_database(path)
        except DamagedError as error:
            aside = self._set_aside(path)
            self._say(path, "mended", f"{one_line(error)}; out of use as {aside}: ground truth is recorded anew")

    def _look_at_lines(self, path: Path) -> None:
        """Look at a file of JSON lines: readers pass over a line that is cut off, but stumble over other rubbish."""
        if not path.exists():
            return
        try:
            require_size(path, MAX_BYTES)
        except DamagedError as error:
            self._say(path, "broken", f"{one_line(error)}: move it away")
            return
        kinds = [kind_of(line) for line in lines(path)]
        if "torn" in kinds:
            self._say(
                path, "note", f"{kinds.count('torn')} of its {len(kinds)} lines are cut off; readers leave them out"
            )
        if "rubbish" not in kinds:
            return
        kept = [kind == "whole" for kind in kinds]
        if not self._is_dry:
            with path.with_name(path.name + ".part").open("wb") as file:
                file.writelines(compress(lines(path), kept))
        aside = self._set_aside(path)
        if not self._is_dry:
            path.with_name(path.name + ".part").rename(path)
        rubbish = f"{kinds.count('rubbish')} of its {len(kinds)} lines hold no record"
        self._say(path, "mended", f"{rubbish}; it goes on without them, {aside} has them")


def free_aside(path: Path, stem: str) -> str:
    """Return a name beside `path` that begins with `stem`, and that nothing has."""
    names = (stem, *(f"{stem}.{number}" for number in range(1, 1000)))
    return next(name for name in names if not os.path.lexists(path.with_name(name)))


def is_left_over(path: Path) -> bool:
    """Return whether this is a write of ours that was cut off: what anybody else put there is left alone."""
    return path.is_file() and LEFT_OVER.fullmatch(path.name) is not None


def siblings(path: Path) -> list[Path]:
    """Return the files of a database that are there."""
    return [each for each in (path.with_name(path.name + sibling) for sibling in SIBLINGS) if each.exists()]


def small_text(path: Path) -> str:
    """Return what a small file says; nothing where it cannot be read."""
    try:
        require_size(path, MAX_JSON_BYTES)
        return path.read_text().strip()
    except (OSError, ValueError, DamagedError):
        return ""


def image_size(goals: Path) -> tuple[int, int]:
    """Return height and width of goal images, having held what goals.json says against the files there are.

    Raises:
        DamagedError: it promises others.
    """
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


def learned_from(path: Path) -> int:
    """Return the newest row that a checkpoint has learned from; CheckpointError or DamagedError where it is no good."""
    for file in path.iterdir():
        require_size(file, MAX_TENSOR_BYTES if file.suffix == ".safetensors" else MAX_JSON_BYTES)
    tensors, meta = read_checkpoint(path)
    require_finite(tensors)
    try:
        learned = int(meta["learner"]["sequence"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DamagedError("it does not say what it has learned from") from error
    if learned < 0:
        raise DamagedError(f"it has learned from {learned} rows")
    return learned


def lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, those that are longer than any record in pieces."""
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            yield line


def kind_of(line: bytes) -> Literal["whole", "torn", "rubbish"]:
    """Return whether a line holds a record, was cut off, or holds anything else."""
    try:
        text = line.decode()
        return "whole" if not text.strip() or isinstance(json.loads(text), dict) else "rubbish"
    except json.JSONDecodeError:
        return "torn"
    except (ValueError, RecursionError):
        return "rubbish"
