"""Image files of any origin: checked, opened, and scaled to the camera's image size."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from r3l.config.errors import UserError
from r3l.robot.base import Image as Frame
from r3l.robot.rig import MAX_PIXELS, SMALLEST_SIDE
from r3l.run.files import is_inside, remove

FORMATS = ("PNG", "JPEG", "BMP")
"""Formats that are decoded, whatever the file's name."""
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""Errors that Pillow's decoders raise for damaged files."""
MAX_BYTES = 4 * MAX_PIXELS


def quoted(path: Path) -> str:
    """Return a path in quotes, on one line."""
    return repr(str(path))


def open_image(path: Path, folder: Path, shape: tuple[int, int] | None = None) -> Image.Image:
    """Return an image, decoded and within the size limits, or of `shape` (H, W); UserError says what is wrong."""
    if not is_inside(folder, path):
        raise UserError(f"goal image {quoted(path)} is a link out of its folder; expected a file: copy the image there")
    if not path.is_file():
        raise UserError(
            f"goal image {quoted(path)} is not a file; expected a PNG, JPEG or BMP image: restore or remove it"
        )
    if path.stat().st_size > MAX_BYTES:
        raise _too_large(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
            with image:
                _require_size(path, image.size)
                _require_shape(path, image, shape)
                image.load()
                upright = ImageOps.exif_transpose(image)
                _require_shape(path, upright, shape)
                return upright
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(path) from error
    except UNREADABLE as error:
        reason = "damaged or cut short" if isinstance(error, OSError) and "truncated" in str(error) else "unreadable"
        raise UserError(
            f"goal image {quoted(path)} is {reason}; expected a whole PNG, JPEG or BMP image: replace or remove it"
        ) from error


def _require_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(path)
    if min(size) < SMALLEST_SIDE:
        raise UserError(
            f"goal image {quoted(path)} is {width}x{height} px, expected at least {SMALLEST_SIDE} px a side; "
            "replace or remove it"
        )


def _require_shape(path: Path, image: Image.Image, shape: tuple[int, int] | None) -> None:
    """Raise UserError where an image is not of `shape` (H, W)."""
    if shape and (image.height, image.width) != shape:
        raise UserError(
            f"goal image {quoted(path)} is {image.width}x{image.height} px, expected {shape[1]}x{shape[0]} px; "
            "restore it from a copy or take the goal images again"
        )


def _too_large(path: Path) -> UserError:
    return UserError(
        f"goal image {quoted(path)} is larger than {MAX_PIXELS // 1_000_000} megapixels, expected a camera image; "
        "shrink or remove it"
    )


def rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: 16-bit grey is scaled, and black shows behind transparent pixels."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, image_shape: tuple[int, int]) -> Frame:
    """Crop about the centre to the aspect of (H, W) and average to that size: uint8 [H, W, 3]."""
    height, width = image_shape
    scale = min(image.width / width, image.height / height)
    crop_width, crop_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (image.width - crop_width) // 2, (image.height - crop_height) // 2
    cropped = image.crop((left, top, left + crop_width, top + crop_height))
    return np.array(rgb(cropped).resize((width, height), Image.Resampling.BOX), np.uint8)


BACKGROUND = (30, 30, 30)


def contact_sheet(
    images: list[Frame] | NDArray[np.uint8], path: Path, columns: int = 8, side: int = 96, *, is_numbered: bool = False
) -> None:
    """Write images in rows into one picture, with or without their numbers."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, max(rows, 1) * side), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for at, image in enumerate(images):
        left, top = at % columns * side + 2, at // columns * side + 2
        tile = Image.fromarray(image).resize((side - 4, side - 4), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        if is_numbered:
            draw.rectangle((left, top, left + 26, top + 14), fill=BACKGROUND)
            draw.text((left + 4, top + 2), str(at + 1), fill=(255, 255, 255))
    remove(path)
    sheet.save(path)
