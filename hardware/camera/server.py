"""An emulated camera: a picture source as an MJPEG stream over HTTP, with faults on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import cv2
import numpy as np

from r3l.robot import Image

BOUNDARY = "picture"
JPEG = (cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
"""JPEG quality. A real camera's picture, and its compression, is averaged down; these pictures have the final size."""
POLL_S = 0.01


@dataclass
class CameraFaults:
    """Faults of the served camera."""

    torn: float = 0.0
    """Share of pictures that are cut off."""
    stalls: bool = False
    """Keep connections open and send nothing."""
    refuses: bool = False
    """Refuse new connections and end open ones."""
    freezes: bool = False
    """Send the same picture repeatedly."""
    dark: bool = False


class CameraServer:
    """Serves the pictures of `look`, [H, W, 3] RGB. Use as a context manager, or call `start` and `close`."""

    def __init__(self, look: Callable[[], Image], fps: float = 30.0, *, port: int = 0, seed: int = 0) -> None:
        self.faults = CameraFaults()
        self.served = 0
        """Pictures sent so far."""
        self._look, self._fps, self._rng = look, fps, np.random.default_rng(seed)
        self._last: Image | None = None
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._serve(self)

            def log_message(self, format: str, *values: object) -> None:
                """Suppress the server's log lines."""

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        serve = self._http.serve_forever
        self._thread = threading.Thread(target=serve, args=(POLL_S,), name="camera server", daemon=True)

    @property
    def address(self) -> str:
        """The address of the stream."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/stream.mjpg"

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def close(self) -> None:
        """End all connections; safe to call twice."""
        self._is_over.set()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        if self.faults.refuses:
            handler.send_error(503)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        handler.end_headers()
        due_s = time.monotonic()
        try:
            while not self._is_over.is_set() and not self.faults.refuses:
                if self.faults.stalls:
                    time.sleep(POLL_S)
                    continue
                handler.wfile.write(self._part())
                self.served += 1
                due_s = max(due_s + 1 / self._fps, time.monotonic())
                time.sleep(max(due_s - time.monotonic(), 0.0))
        except OSError:
            return  # no client is left

    def _part(self) -> bytes:
        """Return the next picture as a part of the stream."""
        with self._lock:
            if self._last is None or not self.faults.freezes:
                self._last = self._look()
            image = self._last // 32 if self.faults.dark else self._last
            is_torn = self._rng.random() < self.faults.torn
        _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], JPEG)
        picture = encoded.tobytes()
        head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
        return head + (picture[: len(picture) // 2] if is_torn else picture) + b"\r\n"
