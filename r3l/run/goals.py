"""Goal images: images of success, in one folder."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from r3l.config.convert import from_dict
from r3l.config.errors import UserError
from r3l.robot.base import CameraSettings, CameraSpec
from r3l.robot.base import Image as Frame
from r3l.robot.rig import MAX_PIXELS
from r3l.run.files import is_inside, read, read_json, remove, write_file
from r3l.run.images import MAX_BYTES, fit, open_image, quoted, rgb

FORMAT_VERSION = 1
META, TRAIN, HELD_OUT = "goals.json", "train", "held-out"
TWIN_SOURCE = "twin stand-in"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
THUMBNAIL_SIDE, NEAR_LEVELS, FLAT_LEVELS = 16, 1.0, 3.0
"""Thumbnails are near-duplicates if their mean difference is below NEAR_LEVELS grey levels, and flat if their standard
deviation is below FLAT_LEVELS."""
MAX_IMAGES = 100_000

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class GoalsMeta:
    """The contents of goals.json."""

    version: int
    task: str
    robot: str
    image: tuple[int, ...]
    """H and W in pixels."""
    train: int
    """Number of training images."""
    held_out: int
    """Number of images held out for calibration."""
    source: str
    """TWIN_SOURCE, or the name of the folder from which the images were imported."""
    camera: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """`Robot.camera_settings` of the robot that took the images; empty if unknown."""


@dataclass(frozen=True)
class Goals:
    """Goal images: `train` [G, H, W, 3] and `held_out` [N, H, W, 3], uint8."""

    train: Images
    held_out: Images
    meta: GoalsMeta


def read_folder(folder: Path, image_shape: tuple[int, int], minimum: int) -> Images:
    """Read a folder of images of any origin, cropped about the centre and averaged to (H, W): uint8 [N, H, W, 3].

    A folder that `save_goals` wrote gives its training images, then its held-out ones.

    Raises:
        UserError: the folder or an image cannot be used, or there are fewer than `minimum`.
    """
    paths = _image_paths(folder)
    if not paths:
        raise UserError(f"{quoted(folder)} holds no images; expected {', '.join(SUFFIXES)} files: put them there")
    _require(len(paths), minimum, folder)
    return np.stack([fit(open_image(path, folder), image_shape) for path in paths])


def split(images: Sequence[Frame] | Images, held_out_share: float, rng: np.random.Generator) -> tuple[Images, Images]:
    """Return shuffled training and held-out images, at least 2 of each.

    Raises:
        UserError: there are fewer than 4 images.
    """
    if len(images) < 4:
        raise UserError(f"{len(images)} goal images cannot be split; expected at least 4: take more")
    count = int(np.clip(round(held_out_share * len(images)), 2, len(images) - 2))
    order = rng.permutation(len(images))
    stacked = np.stack(list(images))
    return stacked[order[count:]], stacked[order[:count]]


def save_goals(
    folder: Path,
    train: Images,
    held_out: Images,
    *,
    task: str,
    robot: str,
    source: str,
    camera: CameraSettings | None = None,
) -> None:
    """Write a folder of goal images, whole or not at all.

    Raises:
        UserError: the folder exists (it is never overwritten) or cannot be written.
    """
    height, width = train.shape[1:3]
    meta = GoalsMeta(FORMAT_VERSION, task, robot, (height, width), len(train), len(held_out), source, camera or {})
    images = zip(_names(meta), (*train, *held_out), strict=True)
    _write_folder(folder, meta, ((name, _png(image)) for name, image in images))


def copy_goals(source: Path, folder: Path) -> None:
    """Copy the goal images, and no other file, of a folder that `save_goals` wrote; UserError where that fails."""
    meta = _read_meta(source)
    _write_folder(folder, meta, ((name, _read_image(source, name)) for name in _names(meta)))


def _names(meta: GoalsMeta) -> Iterator[str]:
    """Yield the paths of the images, relative to the folder."""
    for part, count in ((TRAIN, meta.train), (HELD_OUT, meta.held_out)):
        yield from (f"{part}/{index:04d}.png" for index in range(count))


def _read_image(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if not is_inside(folder, path):
            raise ValueError("it is a link out of its folder")
        return read(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"goal image {quoted(path)} cannot be read ({error}); restore it from a copy") from error


def _write_folder(folder: Path, meta: GoalsMeta, images: Iterable[tuple[str, bytes]]) -> None:
    if os.path.lexists(folder):
        raise UserError(f"{quoted(folder)} exists and is never overwritten; choose another folder or move it away")
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    try:
        remove(part)
        for place in (TRAIN, HELD_OUT):
            (part / place).mkdir(parents=True)
        for name, content in images:
            write_file(part / name, content)
        write_file(part / META, json.dumps(asdict(meta), indent=2).encode())
        part.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write goal images to {quoted(folder)} ({error.strerror or error}); "
            "choose another folder or free some space"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load_goals(folder: Path, camera: CameraSpec | None, minimum: int) -> Goals:
    """Read a folder that `save_goals` wrote.

    Args:
        folder: the folder.
        camera: the camera whose image size the images must have; None for any size.
        minimum: min number of images, held-out ones included.

    Raises:
        UserError: the folder is missing, damaged, from a newer R3L, of another size, or holds too few images.
    """
    _require_folder(folder)
    meta = _read_meta(folder)
    height, width = meta.image
    if camera and (camera.height, camera.width) != (height, width):
        raise UserError(
            f"goal images in {quoted(folder)} are {width}x{height} px, expected the camera's "
            f"{camera.width}x{camera.height} px; take them again, or import the originals anew"
        )
    _require(meta.train + meta.held_out, minimum, folder)
    # The count in goals.json is believed only when every image has been opened.
    frames = [np.asarray(rgb(open_image(folder / name, folder, (height, width)))) for name in _names(meta)]
    images = np.stack(frames) if frames else np.zeros((0, height, width, 3), np.uint8)
    return Goals(images[: meta.train], images[meta.train :], meta)


def read_goals(folder: Path) -> Goals:
    """Read a folder that `save_goals` wrote, of any size; raises what `load_goals` does."""
    return load_goals(folder, None, 0)


def camera_problem(meta: GoalsMeta, camera: CameraSettings) -> str:
    """Return in one line how a camera's settings differ from those that took the goal images; "" if they do not.

    Goal images of an unknown camera fit every camera.
    """
    for name in sorted(meta.camera.keys() & camera.keys()):
        if tuple(meta.camera[name]) != tuple(camera[name]):
            then, now = list(meta.camera[name]), list(camera[name])
            return (
                f"goal images were taken with camera.{name} {then}, the rig has {now}, and a classifier tells cameras "
                "apart; set it as it was, or take goal images anew"
            )
    return ""


def joined(first: Goals, second: Goals) -> Goals:
    """Return the images of both; held-out images stay held out."""
    train = np.concatenate([first.train, second.train])
    held_out = np.concatenate([first.held_out, second.held_out])
    meta = replace(first.meta, train=len(train), held_out=len(held_out))
    return Goals(train, held_out, meta)


def variety_warnings(images: Images) -> list[str]:
    """Return a line for each lack of variety in goal images [N, H, W, 3]."""
    count, found = len(images), []
    identical = count - len({image.tobytes() for image in images})
    if identical:
        found.append(f"{identical} of {count} goal images are identical to another one; move the fingers in between")
    thumbnails = np.stack([thumbnail(image) for image in images])
    flat = int((thumbnails.std(axis=1) < FLAT_LEVELS).sum())
    if flat:
        found.append(f"{flat} of {count} goal images show next to nothing; look at the lens cap and the light")
    distinct = _count_distinct(thumbnails)
    if distinct < count / 2:
        found.append(
            f"only {distinct} of {count} goal images differ clearly from each other; vary finger poses and light"
        )
    return found


def thumbnail(image: Frame) -> NDArray[np.float32]:
    """Return an image as a small grid of its colours, [T]: near-duplicates hardly differ in it."""
    small = Image.fromarray(image).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1)


def _count_distinct(thumbnails: NDArray[np.float32]) -> int:
    """Count thumbnails [N, T], without those that are near-duplicates of one counted before."""
    kept = np.empty_like(thumbnails)
    count = 0
    for thumbnail in thumbnails:
        if not (np.abs(kept[:count] - thumbnail).mean(axis=1) < NEAR_LEVELS).any():
            kept[count] = thumbnail
            count += 1
    return count


def _require(count: int, minimum: int, folder: Path) -> None:
    if count < minimum:
        raise UserError(f"{quoted(folder)} holds {count} goal images, expected at least {minimum}; take more")


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise UserError(f"folder {quoted(folder)} does not exist; expected a folder of images: check the path")
    if not folder.is_dir():
        raise UserError(f"{quoted(folder)} is not a folder; expected a folder of images: pass the one it is in")


def _image_paths(folder: Path) -> list[Path]:
    _require_folder(folder)
    parts = (TRAIN, HELD_OUT) if (folder / META).exists() else (".",)
    try:
        found = [path for part in parts for path in sorted((folder / part).iterdir())]
    except OSError as error:
        raise UserError(f"folder {quoted(folder)} cannot be read ({error.strerror}); check its rights") from error
    return [
        path
        for path in found
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    ]


def _png(image: Frame) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def _read_meta(folder: Path) -> GoalsMeta:
    """Return the content of goals.json; UserError if it is damaged or states an impossible size or count."""
    path = folder / META
    try:
        if not is_inside(folder, path):
            raise ValueError("it is a link out of its folder")
        values: Any = read_json(path)
        version = values["version"]
    except OSError as error:
        raise UserError(
            f"{quoted(folder)} has no readable {META}; expected a folder of goal images that r3l wrote: import plain "
            "images first"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{META} in {quoted(folder)} is damaged ({error}); restore it, or import its images") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"goal images in {quoted(folder)} have format {version!r:.40}, expected {FORMAT_VERSION}; "
            "use the r3l they are from"
        )
    meta = from_dict(GoalsMeta, values, f"{META}.")
    if (
        len(meta.image) != 2
        or min(meta.image) < 1
        or math.prod(meta.image) > MAX_PIXELS
        or not all(0 <= count <= MAX_IMAGES for count in (meta.train, meta.held_out))
    ):
        raise UserError(
            f"{META} in {quoted(folder)} is damaged; expected height and width, and up to {MAX_IMAGES} images: "
            "restore it, or import its images"
        )
    return meta
