"""An MJPEG stream over HTTP: whole pictures only, and an end if the stream stalls."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator

import cv2
import numpy as np

from r3l.robot import Image, RobotError

READ_S = 1.0
"""Silence after which a stream counts as stalled."""
BEGIN, END = b"\xff\xd8", b"\xff\xd9"
"""First and last bytes of a JPEG picture."""
LENGTH = re.compile(rb"Content-Length:\s*(\d+)", re.IGNORECASE)
NEXT = re.compile(rb"\r\n--[^\r\n]+\r\n(?:[A-Za-z-]+:[^\r\n]*\r\n)+\r\n")
"""Start of the next part: a boundary and its headers."""
MAX_BYTES = 32 << 20
CHUNK = 1 << 16


class Stream:
    """The pictures of one address, in order of arrival."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.torn = 0
        """Pictures that were cut off or could not be read."""

    def frames(self) -> Iterator[Image]:
        """Yield pictures [H, W, 3] BGR until the stream ends or stalls.

        Raises:
            RobotError: there is no such stream.
            OSError: the stream breaks off.
        """
        try:
            with urllib.request.urlopen(self._address, timeout=READ_S) as answer:
                yield from self._pictures(answer)
        except (urllib.error.URLError, http.client.HTTPException, ValueError) as error:
            raise RobotError(f"the stream cannot be read: {getattr(error, 'reason', error)}") from error

    def _pictures(self, answer: http.client.HTTPResponse) -> Iterator[Image]:
        data = b""
        while chunk := answer.read1(CHUNK):
            data += chunk
            while (found := cut(data)) is not None:
                picture, data = found
                frame = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) if picture else None
                if frame is None:
                    self.torn += 1
                else:
                    yield np.asarray(frame, np.uint8)
            if len(data) > MAX_BYTES:
                raise RobotError(f"the stream has a picture of more than {MAX_BYTES} bytes; it is no MJPEG stream")


def cut(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the first picture in a stream's bytes and the bytes after it; None if the picture is incomplete.

    A cut-off picture is empty. A part's stated length counts if a picture ends there: pictures may contain others.
    """
    begin = data.find(BEGIN)
    if begin < 0:
        return None
    told = LENGTH.findall(data[:begin])
    if told and int(told[-1]) <= MAX_BYTES:
        end = begin + int(told[-1])
        if len(data) < end:
            part = NEXT.search(data, begin)
            return (b"", data[part.start() :]) if part else None
        return (data[begin:end], data[end:]) if data[end - 2 : end] == END else (b"", data[begin + 2 :])
    end, following = data.find(END, begin) + 2, data.find(BEGIN, begin + 2)
    if following >= 0 and (end < 2 or following < end):
        return b"", data[following:]
    return (data[begin:end], data[end:]) if end >= 2 else None
