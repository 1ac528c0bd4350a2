"""A camera that a thread reads continuously: the newest frame with its time; a lost source is opened again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from r3l.robot import CameraSpec, Image, RobotError

from .optics import Optics
from .settings import LOCKED, CameraSettings
from .stream import Stream

OPEN_S = 6.0
"""Max time until the first frame."""
REOPEN_S, MAX_REOPEN_S = 0.2, 5.0
"""Pause before a lost source is opened again, doubled each time up to the max."""
CLOSE_S = 2.0
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
CONTROLS = {
    "exposure": (cv2.CAP_PROP_EXPOSURE, cv2.CAP_PROP_AUTO_EXPOSURE, 1.0),
    "gain": (cv2.CAP_PROP_GAIN, None, 0.0),
    "white_balance_k": (cv2.CAP_PROP_WB_TEMPERATURE, cv2.CAP_PROP_AUTO_WB, 0.0),
    "focus": (cv2.CAP_PROP_FOCUS, cv2.CAP_PROP_AUTOFOCUS, 0.0),
}
"""Lockable settings: OpenCV's property, the property of its automatic, the automatic's value for off (V4L2)."""


@dataclass(frozen=True)
class Frame:
    """A frame of the camera."""

    image: Image
    """[H, W, 3] uint8 RGB, in the robot's size."""
    time_s: float
    """Monotonic time at which the frame arrived, s."""
    number: int
    """Frames since the camera was opened, over losses."""


class Camera:
    """A thread that reads a source and keeps the newest frame. Use as a context manager, or call `open` and `close`."""

    def __init__(self, settings: CameraSettings, spec: CameraSpec) -> None:
        self.settings = settings
        self.found: dict[str, float] = {}
        """Settings that the source reports, by name, read back after each opening."""
        self.losses = 0
        """Times that the source was lost."""
        self._optics, self._stream = Optics(settings, spec), Stream(settings.source)
        self._newest: Frame | None = None
        self._why, self._is_hopeless = "no frame yet", False
        self._condition = threading.Condition()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, timeout_s: float = OPEN_S) -> None:
        """Start to read and wait for the first frame.

        Raises:
            RobotError: no frame arrives in time, or a setting is not held; one line with the next step.
        """
        if self._thread is not None:
            raise RobotError("the camera is already open; close it first")
        self._is_over.clear()
        self._newest, self._is_hopeless = None, False
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()
        with self._condition:
            self._condition.wait_for(lambda: self._newest is not None or self._is_hopeless, timeout_s)
        if self._newest is None:
            self.close()
            raise RobotError(f"camera {self.settings.source!r} gives no picture ({self._why}); {advice(self.settings)}")
        problem = next(self.unheld(), None)
        if problem is not None:
            self.close()
            raise RobotError(problem)

    def close(self) -> None:
        """Stop reading; safe to call twice."""
        thread, self._thread = self._thread, None
        self._is_over.set()
        if thread is not None:
            thread.join(CLOSE_S)  # a driver that hangs is abandoned

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def torn(self) -> int:
        """Pictures of the stream that were cut off and therefore left out."""
        return self._stream.torn

    def newest(self) -> Frame | None:
        """Return the newest frame of any age; None before the first one."""
        return self._newest

    def trouble(self) -> str:
        """Return one line that says why no frame is new enough; empty if one is."""
        frame = self._newest
        age_s = float("inf") if frame is None else time.monotonic() - frame.time_s
        if age_s <= self.settings.max_age_s:
            return ""
        limit = f"camera.max_age_s {self.settings.max_age_s:g}"
        why = self._why or "the source is silent"
        return f"the camera's newest frame is {age_s:.1f} s old ({limit}; {why}); it is opened again and again"

    def unheld(self) -> Iterator[str]:
        """Yield the requested settings that the source does not have."""
        for name in LOCKED:
            wanted = getattr(self.settings, name)
            if wanted and self.found.get(name) != wanted[0]:
                has = self.found.get(name, float("nan"))
                set_to = f"after it was set to {wanted[0]:g}"
                yield f"camera.{name} is {has:g} {set_to}; the camera does not hold it: leave it out"

    # The thread

    def _read(self) -> None:
        pause_s, number = REOPEN_S, 0
        while not self._is_over.is_set():
            frames = self._frames()
            try:
                for raw in frames:
                    frame = Frame(self._seen(raw), time.monotonic(), number)
                    number, pause_s = number + 1, REOPEN_S
                    with self._condition:
                        self._newest, self._why = frame, ""
                        self._condition.notify_all()
                    if self._is_over.is_set():
                        return
                self._why = "it was lost"
            except (cv2.error, RobotError, OSError) as error:
                with self._condition:
                    self._why = " ".join(str(error).split())
                    self._condition.notify_all()
            finally:
                frames.close()
            self.losses += number > 0
            self._is_over.wait(pause_s)
            pause_s = min(2 * pause_s, MAX_REOPEN_S)

    def _seen(self, raw: Image) -> Image:
        try:
            return self._optics.see(raw)
        except RobotError:  # the next frame will not fit either
            self._is_hopeless = True
            raise

    def _frames(self) -> Any:
        """Yield frames [H, W, 3] BGR until the source is lost."""
        source = self.settings.source
        if source.startswith(("http://", "https://")):
            return self._stream.frames()
        path = Path(source)
        if path.is_dir():
            return self._repeated(lambda: images(path))
        if path.is_char_device():
            return self._captured(source, cv2.CAP_V4L2)
        if path.is_file():
            return self._repeated(lambda: self._captured(source, cv2.CAP_FFMPEG))
        return self._absent(f"{source!r} is not there")

    def _absent(self, why: str) -> Iterator[Image]:
        raise RobotError(why)
        yield

    def _captured(self, source: str, backend: int) -> Iterator[Image]:
        capture = cv2.VideoCapture(source, backend)
        try:
            if not capture.isOpened():
                raise RobotError("it does not open")
            if backend == cv2.CAP_V4L2:
                self._set_up(capture)
            while True:
                is_there, frame = capture.read()
                if not is_there:
                    return
                yield np.asarray(frame, np.uint8)
        finally:
            capture.release()

    def _set_up(self, capture: Any) -> None:
        """Request size and rate, lock the settings, and read all of them back."""
        settings = self.settings
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height)
        capture.set(cv2.CAP_PROP_FPS, settings.fps)
        for name, (value, automatic, off) in CONTROLS.items():
            wanted = getattr(settings, name)
            if wanted:
                if automatic is not None:
                    capture.set(automatic, off)
                capture.set(value, wanted[0])
            self.found[name] = capture.get(value)

    def _repeated(self, begin: Callable[[], Iterator[Image]]) -> Iterator[Image]:
        """Yield a recording's frames at its rate, in a loop."""
        due_s = time.monotonic()
        while True:
            is_empty = True
            for frame in begin():
                is_empty = False
                yield frame
                due_s = max(due_s + 1 / self.settings.fps, time.monotonic())
                self._is_over.wait(max(due_s - time.monotonic(), 0.0))
            if is_empty:
                raise RobotError("there is no picture in it")


def images(folder: Path) -> Iterator[Image]:
    """Yield a folder's pictures in the order of their names, BGR."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is not None:
                yield np.asarray(image, np.uint8)


def advice(settings: CameraSettings) -> str:
    """Return the next step for a source that gives no frame."""
    if settings.source.startswith("http"):
        return "open the address in a browser"
    found = sorted(str(each) for each in Path("/dev/v4l/by-id").glob("*"))
    return f"there are {', '.join(found)}" if found else "no camera is plugged in"
