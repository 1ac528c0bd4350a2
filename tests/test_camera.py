"""Cameras: the newest frame with its time, whatever the source does; undistorted, cropped and made small as said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.night import goal_images
from r3l.hardware.camera.camera import Camera
from r3l.hardware.camera.doctor import check_camera
from r3l.hardware.camera.optics import Optics
from r3l.hardware.camera.server import CameraServer
from r3l.hardware.camera.settings import CameraSettings, problems
from r3l.hardware.camera.stream import BEGIN, END, cut
from r3l.robot.base import CameraSpec, RobotError
from r3l.run.goals import Goals, read_goals, save_goals

SPEC = CameraSpec(32, 24)


class Clockwork:
    """A scene whose brightness counts its pictures, noise and all."""

    def __init__(self) -> None:
        self.number = 0
        self._rng = np.random.default_rng(0)

    def __call__(self) -> np.ndarray:
        self.number += 1
        level = 40 + self.number % 150
        return (level + self._rng.integers(0, 4, (60, 80, 3))).astype(np.uint8)


@pytest.fixture
def server() -> Iterator[CameraServer]:
    with CameraServer(Clockwork(), fps=50.0) as server:
        yield server


@pytest.fixture
def camera(server: CameraServer) -> Iterator[Camera]:
    with Camera(CameraSettings(server.address, max_age_s=0.3), SPEC) as camera:
        yield camera


def wait_for(is_true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_frames_are_new_numbered_and_of_the_robots_size(camera: Camera) -> None:
    first = camera.newest()
    assert first is not None
    wait_for(lambda: camera.newest().number >= first.number + 5)
    second = camera.newest()
    assert second.image.shape == (24, 32, 3)
    assert second.image.dtype == np.uint8
    assert first.time_s < second.time_s <= time.monotonic()
    assert not np.array_equal(first.image, second.image)
    assert camera.trouble() == ""


def test_nobody_who_looks_seldom_gets_an_old_frame(camera: Camera) -> None:
    """A capture that is read now and then hands out what was kept back meanwhile."""
    time.sleep(1.0)
    frame = camera.newest()
    assert time.monotonic() - frame.time_s < 0.3
    assert frame.number >= 10


def test_a_stream_that_stalls_is_told_and_taken_up_again(camera: Camera, server: CameraServer) -> None:
    server.faults.stalls = True
    wait_for(lambda: camera.trouble() != "")
    assert "s old (camera.max_age_s 0.3" in camera.trouble()
    wait_for(lambda: camera.losses >= 1)
    server.faults.stalls = False
    wait_for(lambda: camera.trouble() == "")


def test_a_server_that_goes_away_is_told_and_taken_up_again(camera: Camera, server: CameraServer) -> None:
    server.faults.refuses = True
    wait_for(lambda: camera.losses >= 2)
    wait_for(lambda: camera.trouble() != "")
    assert "503" in camera.trouble() or "Service" in camera.trouble()
    number = camera.newest().number
    server.faults.refuses = False
    wait_for(lambda: camera.trouble() == "")
    assert camera.newest().number > number


def test_torn_pictures_are_left_out(camera: Camera, server: CameraServer) -> None:
    server.faults.torn = 0.5
    seen: dict[int, np.ndarray] = {}
    while len(seen) < 40:
        frame = camera.newest()
        seen[frame.number] = frame.image
        time.sleep(0.005)
    assert all(np.ptp(image.mean(axis=(1, 2))) < 10 for image in seen.values()), "all are whole: their rows are alike"
    assert camera.torn > 0


def test_a_frozen_source_is_for_the_checks_to_see(camera: Camera, server: CameraServer) -> None:
    server.faults.freezes = True
    time.sleep(0.2)
    first = camera.newest()
    wait_for(lambda: camera.newest().number > first.number + 3)
    assert np.array_equal(first.image, camera.newest().image)
    assert camera.trouble() == ""


@pytest.mark.parametrize("kind", ["folder", "video"])
def test_recordings_are_played_again_and_again_at_their_rate(kind: str, tmp_path: Path) -> None:
    frames = [np.full((48, 64, 3), 60 + 40 * number, np.uint8) for number in range(3)]
    if kind == "folder":
        source = tmp_path / "pictures"
        source.mkdir()
        for number, frame in enumerate(frames):
            cv2.imwrite(str(source / f"{number}.png"), frame)
        (source / "notes.txt").write_text("no picture")
    else:
        source = tmp_path / "video.avi"
        writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 48))
        for frame in frames:
            writer.write(frame)
        writer.release()
    began_s = time.monotonic()
    seen: dict[int, float] = {}
    with Camera(CameraSettings(str(source), fps=20.0), SPEC) as camera:
        while len(seen) < 7:
            frame = camera.newest()
            seen[frame.number] = float(frame.image.mean())
            time.sleep(0.005)
        wait_for(lambda: camera.newest().number >= 7)
    assert time.monotonic() - began_s >= 6 / 20
    assert all(level == pytest.approx(60 + 40 * (number % 3), abs=4) for number, level in seen.items())
    assert camera.losses == 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/dev/v4l/by-id/none", "'/dev/v4l/by-id/none' is not there"),
        ("http://127.0.0.1:9/stream", "Connection refused"),
        ("{folder}", "there is no picture in it"),
        ("{file}", "it does not open"),
        ("/dev/null", "it does not open"),
    ],
)
def test_a_source_that_gives_nothing_is_one_line(
    source: str, expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "video.avi").write_bytes(b"no video")
    place = source.format(folder=tmp_path / "empty", file=tmp_path / "video.avi")
    camera = Camera(CameraSettings(place), SPEC)
    with pytest.raises(RobotError, match="gives no picture") as raised:
        camera.open(timeout_s=1.0)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    camera.close()


def test_a_crop_outside_the_frame_is_refused(server: CameraServer) -> None:
    camera = Camera(CameraSettings(server.address, crop=(50, 0, 60, 60)), SPEC)
    with pytest.raises(RobotError, match="is not inside a frame of 80x60 px"):
        camera.open(timeout_s=3.0)


def test_a_setting_that_is_not_held_is_refused(server: CameraServer) -> None:
    camera = Camera(CameraSettings(server.address, exposure=(120.0,)), SPEC)
    with pytest.raises(RobotError, match=r"camera.exposure is nan after it was set to 120; .* leave it out"):
        camera.open()
    camera.close()


def test_a_camera_can_be_opened_again(server: CameraServer) -> None:
    camera = Camera(CameraSettings(server.address), SPEC)
    for _ in range(2):
        with camera:
            assert camera.newest() is not None
            with pytest.raises(RobotError, match="already open"):
                camera.open()
    camera.close()


# The doctor


class Workspace:
    """What the bench's camera sees, in pictures of a camera's size."""

    def __init__(self) -> None:
        self.images = goal_images()[0]
        self.shift_px = self.number = 0
        self._rng = np.random.default_rng(0)

    def __call__(self) -> np.ndarray:
        self.number += 1
        image = np.roll(self.images[self.number % len(self.images)], self.shift_px, axis=1)
        noisy = image.astype(int) + self._rng.integers(-2, 3, image.shape)
        return np.kron(np.clip(noisy, 0, 255).astype(np.uint8), np.ones((4, 4, 1), np.uint8))


@pytest.fixture
def goals(tmp_path: Path) -> Goals:
    train, held_out = goal_images()
    save_goals(tmp_path / "goals", train, held_out, task="valve", robot="bench", source="test")
    return read_goals(tmp_path / "goals")


def failures(settings: CameraSettings, goals: Goals, control_hz: float = 10.0) -> list[str]:
    return [line.text for line in check_camera(settings, control_hz, goals) if line.level == "FAIL"]


def test_a_camera_that_sees_what_the_goal_images_show_is_well(goals: Goals) -> None:
    with CameraServer(Workspace(), fps=30.0) as server:
        assert failures(CameraSettings(server.address), goals) == []


@pytest.mark.slow
def test_a_camera_that_is_not_as_it_was_is_found(goals: Goals) -> None:
    workspace = Workspace()
    with CameraServer(workspace, fps=30.0) as server:
        settings = CameraSettings(server.address)
        workspace.shift_px = 6
        assert "fits better elsewhere" in failures(settings, goals)[0]
        workspace.shift_px = 0
        server.faults.dark = True
        assert "the picture is dark" in failures(settings, goals)[0]
        server.faults.dark = False
        server.faults.freezes = True
        assert "identical pictures; it is frozen" in failures(settings, goals)[0]
        server.faults.freezes = False
        workspace.images = np.minimum(workspace.images.astype(int) + 60, 255).astype(np.uint8)
        assert "the goal images have" in failures(settings, goals)[-1]
        assert "expected 150 or more for 100 Hz" in failures(settings, goals, 100.0)[0]
        server.faults.refuses = True
        assert "gives no picture" in failures(settings, goals)[0]


def test_no_camera_is_a_note(goals: Goals) -> None:
    assert [line.level for line in check_camera(CameraSettings(), 10.0, goals)] == ["note"]


# What is made of a frame


def test_the_middle_is_seen_where_no_crop_is_set() -> None:
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[:, 50:150] = (10, 20, 30)
    image = Optics(CameraSettings(), CameraSpec(10, 10)).see(frame)
    assert (image == (30, 20, 10)).all(), "the square in the middle, and RGB"


def test_a_crop_is_left_top_width_height() -> None:
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[20:40, 60:100] = 200
    image = Optics(CameraSettings(crop=(60, 20, 40, 20)), CameraSpec(8, 8)).see(frame)
    assert (image == 200).all()
    assert (Optics(CameraSettings(crop=(59, 20, 40, 20)), CameraSpec(8, 8)).see(frame) != 200).any()


def test_pixels_are_averaged_not_picked() -> None:
    frame = np.indices((64, 64)).sum(0) % 2 * 255
    image = Optics(CameraSettings(), CameraSpec(8, 8)).see(np.repeat(frame[:, :, None], 3, 2).astype(np.uint8))
    assert np.abs(image.astype(int) - 127).max() <= 1


def test_a_distorted_line_is_straight_again() -> None:
    """Points that OpenCV's own model bends are back on their line."""
    lens = (100.0, 100.0, 100.0, 100.0, -0.3, 0.05, 0.0, 0.0)
    matrix = np.array([[100.0, 0, 100], [0, 100, 100], [0, 0, 1]])
    line = np.stack([np.linspace(-0.8, 0.8, 400), np.full(400, 0.6), np.ones(400)], 1)
    bent = cv2.projectPoints(line, np.zeros(3), np.zeros(3), matrix, np.array(lens[4:]))[0].reshape(-1, 2)
    frame = np.zeros((200, 200, 3), np.uint8)
    for x, y in bent:
        cv2.circle(frame, (round(float(x)), round(float(y))), 1, (255, 255, 255), -1)
    seen = Optics(CameraSettings(lens=lens), CameraSpec(200, 200)).see(frame)
    rows = [float(np.average(np.arange(200), weights=column)) for column in seen[:, 40:160, 0].T + 1e-9]
    assert np.ptp(rows) < 1.5, "straight"
    raw = [float(np.average(np.arange(200), weights=column)) for column in frame[:, 40:160, 0].T + 1e-9]
    assert np.ptp(raw) > 5, "which it was not"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"width": 4}, "camera.width is 4"),
        ({"fps": float("nan")}, "camera.fps is nan"),
        ({"crop": (0, 0, 10)}, "camera.crop has 3 numbers"),
        ({"crop": (0, 0, 700, 100)}, "not inside a frame of 640x480 px"),
        ({"crop": (-1, 0, 100, 100)}, "not inside a frame"),
        ({"lens": (1.0, 2.0)}, "camera.lens has 2 numbers"),
        ({"lens": (0.0, 1.0, 1.0, 1.0)}, "expected more than 0"),
        ({"exposure": (1.0, 2.0)}, "camera.exposure"),
        ({"max_age_s": 0.0}, "camera.max_age_s is 0"),
    ],
)
def test_what_is_wrong_with_settings_is_named(change: dict[str, object], expected: str) -> None:
    assert next(problems(CameraSettings()), None) is None
    assert expected in next(problems(replace(CameraSettings(), **change)))


# The stream's bytes

PICTURE = BEGIN + b"\xe0 some bytes " + END


@pytest.mark.parametrize("told", [True, False])
def test_pictures_are_cut_out_of_a_stream_in_any_pieces(told: bool) -> None:
    pictures = [BEGIN + bytes([number]) * number + END for number in range(1, 9)]
    stream = b""
    for picture in pictures:
        length = f"Content-Length: {len(picture)}\r\n".encode() if told else b""
        stream += b"\r\n--x\r\nContent-Type: image/jpeg\r\n" + length + b"\r\n" + picture
    for size in (1, 3, 7, 1000):
        data, found = b"", []
        for at in range(0, len(stream), size):
            data += stream[at : at + size]
            while (next_one := cut(data)) is not None:
                found.append(next_one[0])
                data = next_one[1]
        assert found == pictures


def test_a_smaller_picture_inside_of_one_is_no_end() -> None:
    picture = BEGIN + b"\xe1" + BEGIN + b"\xdb small" + END + b" large" + END
    stream = f"Content-Length: {len(picture)}\r\n\r\n".encode() + picture + b"\r\n--x"
    assert cut(stream) == (picture, b"\r\n--x")


@given(
    st.binary(max_size=200) | st.lists(st.sampled_from([BEGIN, END, b"Content-Length: 9\r\n\r\n", b"x"])).map(b"".join)
)
def test_any_bytes_are_cut_without_an_error_and_without_end(data: bytes) -> None:
    steps = 0
    while (found := cut(data)) is not None:
        picture, left = found
        assert not picture or (picture.startswith(BEGIN) and picture.endswith(END))
        assert len(left) < len(data)
        data, steps = left, steps + 1
    assert steps <= 200
