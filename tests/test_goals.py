"""Goal images: what is refused and why, what is converted, and that a folder exists whole or not at all."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r3l.cli.goal_collection import collect_on_twin
from r3l.config.errors import UserError
from r3l.hardware.twin import from_task
from r3l.robot.base import CameraSpec
from r3l.run import goals
from r3l.run.goals import load_goals, read_folder, save_goals, split, variety_warnings
from r3l.tasks.valve import Valve

CAMERA = CameraSpec(width=24, height=16)
SHAPE = (16, 24)


def noise(count: int, seed: int = 0) -> goals.Images:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE, 3), np.uint8)


def fill(folder: Path, count: int = 3) -> None:
    for index, image in enumerate(noise(count)):
        Image.fromarray(image).save(folder / f"{index}.png")


def huge_png(path: Path, width: int, height: int) -> None:
    """Write a PNG whose header promises more than its body holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")):
        body += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(body)


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert "; " in message or ": " in message
    return message


def truncated(folder: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    image.save(folder / "bad.jpg")
    content = (folder / "bad.jpg").read_bytes()
    (folder / "bad.jpg").write_bytes(content[: len(content) // 2])


def truncated_png(folder: Path) -> None:
    fill(folder)
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").unlink()
    (folder / "bad.png").write_bytes(content[: len(content) // 2])


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside.png"
    Image.fromarray(noise(1)[0]).save(outside)
    (folder / "bad.png").symlink_to(outside)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda folder: (folder / "bad.png").write_text("not an image"), "unreadable"),
    "empty file": (lambda folder: (folder / "bad.bmp").write_bytes(b""), "unreadable"),
    "truncated jpeg": (truncated, "cut short"),
    "truncated png": (truncated_png, "expected a whole PNG"),
    "tiny": (lambda folder: Image.new("RGB", (15, 40)).save(folder / "bad.png"), "15x40 px"),
    "65 megapixels": (lambda folder: huge_png(folder / "bad.png", 65_000, 1000), "64 megapixels"),
    "bomb warning": (lambda folder: huge_png(folder / "bad.png", 10_000, 10_000), "64 megapixels"),
    "bomb error": (lambda folder: huge_png(folder / "bad.png", 100_000, 100_000), "64 megapixels"),
    "link out": (link_out, "link out of its folder"),
    "dangling link": (lambda folder: (folder / "bad.png").symlink_to(folder / "none.png"), "not a file"),
    "named pipe": (lambda folder: os.mkfifo(folder / "bad.png"), "not a file"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unusable_image_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    break_it, expected = BROKEN[kind]
    folder = tmp_path / "images"
    folder.mkdir()
    break_it(folder)
    with pytest.raises(UserError) as error:
        read_folder(folder, SHAPE, 1)
    message = one_line(error)
    assert "bad." in message
    assert expected in message


def test_a_line_break_in_a_name_stays_out_of_the_message(tmp_path: Path) -> None:
    (tmp_path / "a\nb.png").write_text("not an image")
    with pytest.raises(UserError) as error:
        read_folder(tmp_path, SHAPE, 1)
    one_line(error)


def test_a_missing_folder_a_file_an_empty_folder_and_too_few_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (tmp_path / "few").mkdir()
    fill(tmp_path / "few", 3)
    expected = {"none": "does not exist", "file": "not a folder", "empty": "no images", "few": "holds 3 goal images"}
    for name, reason in expected.items():
        with pytest.raises(UserError, match=reason) as error:
            read_folder(tmp_path / name, SHAPE, 4)
        assert name in one_line(error)


def test_images_come_in_the_order_of_their_names_and_unchanged_at_the_cameras_size(tmp_path: Path) -> None:
    images = noise(3)
    for name, image in zip(("c.PNG", "a.png", "b.bmp"), images, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "._a.png").write_text("what a Mac leaves behind")
    (tmp_path / "folder.png").mkdir()
    np.testing.assert_array_equal(read_folder(tmp_path, SHAPE, 3), images[[1, 2, 0]])


def test_a_larger_image_is_cropped_about_its_centre_and_averaged(tmp_path: Path) -> None:
    wide = np.zeros((32, 100, 3), np.uint8)
    wide[:, 26:74] = 200
    wide[::2, 26:74] = 100
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_folder(tmp_path, SHAPE, 1) == 150).all()


def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path) -> None:
    grey16 = np.full(SHAPE, 120 << 8, np.uint16)
    Image.fromarray(grey16).save(tmp_path / "0-grey16.png")
    Image.new("L", (24, 16), 120).save(tmp_path / "1-grey.png")
    Image.new("RGBA", (24, 16), (240, 240, 240, 128)).save(tmp_path / "2-half-transparent.png")
    palette = Image.new("P", (24, 16), 1)
    palette.putpalette([0, 0, 0, 120, 120, 120])
    palette.save(tmp_path / "3-palette.png")
    Image.new("CMYK", (24, 16), (135, 135, 135, 0)).save(tmp_path / "4-cmyk.jpg")
    images = read_folder(tmp_path, SHAPE, 5)
    assert images.shape == (5, *SHAPE, 3)
    np.testing.assert_allclose(images, 120, atol=2)


def test_a_phones_rotation_is_undone(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 48))
    image.paste((255, 255, 255), (0, 0, 32, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    read = read_folder(tmp_path, SHAPE, 1)[0]
    assert (read[:, :12] == 0).all()
    assert (read[:, 12:] == 255).all()


def test_a_saved_folder_loads_to_the_same_pixels_and_can_be_imported(tmp_path: Path) -> None:
    train, held_out = noise(6), noise(2, seed=1)
    folder = tmp_path / "deep" / "goals"
    save_goals(folder, train, held_out, task="valve", robot="twin", source=goals.TWIN_SOURCE)
    loaded = load_goals(folder, CAMERA, 8)
    np.testing.assert_array_equal(loaded.train, train)
    np.testing.assert_array_equal(loaded.held_out, held_out)
    assert json.loads((folder / "goals.json").read_text()) == {
        "version": 1, "task": "valve", "robot": "twin", "image": [16, 24], "train": 6, "held_out": 2,
        "source": "twin stand-in", "camera": {},
    }  # fmt: skip
    np.testing.assert_array_equal(read_folder(folder, SHAPE, 8), np.concatenate([train, held_out]))
    assert os.listdir(folder.parent) == ["goals"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_never_overwritten(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "goals"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.touch()
    else:
        target.symlink_to("none")
    with pytest.raises(UserError, match="never overwritten") as error:
        save_goals(target, noise(2), noise(2), task="valve", robot="twin", source="x")
    one_line(error)
    assert os.listdir(tmp_path) == ["goals"]
    assert not target.is_dir() or not os.listdir(target)


@pytest.mark.parametrize("crash", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_crash_midway_leaves_nothing(crash: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def failing(descriptor: int) -> None:
        if len(synced) == 3:
            raise crash
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    expected = UserError if isinstance(crash, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_goals(tmp_path / "goals", noise(6), noise(2), task="valve", robot="twin", source="x")
    assert os.listdir(tmp_path) == []


def saved(folder: Path) -> Path:
    save_goals(folder, noise(6), noise(2), task="valve", robot="twin", source="x")
    return folder


def change_meta(folder: Path, **values: object) -> None:
    meta = json.loads((folder / "goals.json").read_text())
    (folder / "goals.json").write_text(json.dumps(meta | values))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: change_meta(folder, version=2), "have format 2"),
        (lambda folder: change_meta(folder, image=[64, 64]), "64x64 px, expected the camera's 24x16 px"),
        (lambda folder: change_meta(folder, train=7), "0006.png"),
        (lambda folder: change_meta(folder, trian=7), "'goals.json.trian'; did you mean 'train'"),
        (lambda folder: (folder / "goals.json").unlink(), "no readable goals.json"),
        (lambda folder: (folder / "goals.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "goals.json").write_text("[]"), "damaged"),
        (lambda folder: (folder / "train" / "0001.png").write_bytes(b"x"), "0001.png"),
        (lambda folder: Image.new("RGB", (32, 32)).save(folder / "held-out" / "0001.png"), "32x32 px"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(damage: Callable[[Path], object], expected: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "goals")
    damage(folder)
    with pytest.raises(UserError) as error:
        load_goals(folder, CAMERA, 1)
    assert expected in one_line(error)


def test_loading_too_few_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 8 goal images, expected at least 20"):
        load_goals(saved(tmp_path / "goals"), CAMERA, 20)
    with pytest.raises(UserError, match="does not exist"):
        load_goals(tmp_path / "none", CAMERA, 20)


def test_a_split_keeps_every_image_once() -> None:
    images = noise(20)
    train, held_out = split(images, 0.2, np.random.default_rng(0))
    assert (len(train), len(held_out)) == (16, 4)
    assert {image.tobytes() for image in (*train, *held_out)} == {image.tobytes() for image in images}
    assert [len(part) for part in split(list(images[:4]), 0.0, np.random.default_rng(0))] == [2, 2]
    with pytest.raises(UserError, match="at least 4"):
        split(images[:3], 0.2, np.random.default_rng(0))


def test_warnings_count_identical_similar_and_empty_images() -> None:
    assert variety_warnings(noise(10)) == []
    identical = variety_warnings(np.concatenate([noise(6), noise(2)]))
    assert len(identical) == 1
    assert identical[0].startswith("2 of 8 goal images are identical")
    still = np.clip(noise(1).astype(int) + np.random.default_rng(1).integers(-1, 2, (9, *SHAPE, 3)), 0, 255)
    similar = variety_warnings(still.astype(np.uint8))
    assert len(similar) == 1
    assert similar[0].startswith("only 1 of 9")
    assert any("next to nothing" in line for line in variety_warnings(np.zeros((2, *SHAPE, 3), np.uint8)))


def test_the_twins_goal_images_show_the_goal_from_many_finger_poses() -> None:
    task, calls = Valve(), [0]

    def count() -> None:
        calls[0] += 1

    with from_task(task) as twin:
        images = np.stack(collect_on_twin(task, twin, 12, np.random.default_rng(0), count))
        again = np.stack(collect_on_twin(task, twin, 12, np.random.default_rng(0)))
        assert twin.truth()["error"] <= task.success_error
    assert images.shape == (12, 64, 64, 3)
    assert images.dtype == np.uint8
    assert calls == [12]
    np.testing.assert_array_equal(images, again)
    assert variety_warnings(images) == []
