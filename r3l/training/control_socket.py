"""The control socket: how people tell a running run what they want, and hear in a sentence what comes of it."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from r3l.config.errors import UserError
from r3l.run import files


class NoSupervisorError(UserError):
    """No supervisor listens at a run's control socket."""


WORDS = ("pause", "resume", "relax", "stop")
REQUEST_BYTES = 4096
"""Longest request, its line's end included."""
TIMEOUT_S = 2.0
"""What either side waits for the other."""
CLIENTS = 8
"""Clients that are served at once; more wait until one is done."""


class ControlServer:
    """Serves a run's control socket from a thread: one JSON line asks, one JSON line answers.

    Only the run's own user and root are heard. A client that is slow, or sends garbage, hurts nobody but itself.
    """

    def __init__(self, path: Path, handle: Callable[[str], str]) -> None:
        """Serve at `path`. `handle` gets one of WORDS, from one thread at a time, within TIMEOUT_S returns a sentence.

        A UserError that it raises is the answer too, as a refusal.
        """
        self._path, self._handle = path, handle
        self._one_at_a_time = threading.Lock()
        self._places = threading.BoundedSemaphore(CLIENTS)
        self._socket: socket.socket | None = None
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        """Begin to serve; a socket that a dead run left behind gives way, so the caller holds the run's lock."""
        self._path.unlink(missing_ok=True)
        self._socket = listen(self._path)
        threading.Thread(target=self._serve, args=(self._socket,), name="control", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._socket is not None
        self._is_over.set()
        with suppress(OSError):  # the disk may be read-only by now
            self._path.unlink(missing_ok=True)
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing alone does not
        self._socket.close()

    def _serve(self, listening: socket.socket) -> None:
        while not self._is_over.is_set():
            self._places.acquire()
            try:
                connection, _ = listening.accept()
            except OSError:
                self._places.release()
                self._is_over.wait(0.1)  # or out of descriptors: others may give some back
                continue
            threading.Thread(target=self._serve_one, args=(connection,), name="control client", daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        # A client that went away, or never says a whole line, is dropped.
        try:
            with connection, suppress(OSError):
                answer = self._answer(connection)
                connection.settimeout(TIMEOUT_S)
                connection.sendall(json.dumps(answer).encode() + b"\n")
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket) -> dict[str, object]:
        line = _read_line(connection, REQUEST_BYTES)  # also of a stranger: what is left unread would cut the answer off
        uid = peer_uid(connection)
        if uid not in (0, os.getuid()):
            return _refusal(f"user {uid} may not control this run; ask as the user whose run it is")
        try:
            word = json.loads(line if line.endswith(b"\n") else b"")["word"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _refusal(f"the request is no JSON line of up to {REQUEST_BYTES} bytes with a 'word'")
        if word not in WORDS:
            return _refusal(f"unknown word {str(word)[:40]!r}, expected one of {', '.join(WORDS)}")
        try:
            with self._one_at_a_time:
                return {"ok": True, "message": self._handle(word)}
        except UserError as error:
            return _refusal(str(error))


def ask(folder: Path, word: str) -> str:
    """Tell the run's supervisor one of WORDS and return its sentence.

    Raises:
        NoSupervisorError: no supervisor listens there.
        UserError: the supervisor refuses, or it does not answer in time.
    """
    try:
        with short_address(folder / "control") as address, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(address)
            connection.sendall(json.dumps({"word": word}).encode() + b"\n")
            answer = json.loads(_read_line(connection, 1 << 16))
            is_done, message = bool(answer["ok"]), " ".join(str(answer["message"]).split())
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise NoSupervisorError(_nobody(folder)) from error
    except PermissionError as error:
        raise UserError(f"{folder} is another user's run; say {word} as that user") from error
    except TimeoutError as error:
        raise UserError(
            f"the supervisor of {folder} did not answer within {TIMEOUT_S:g} s; see r3l status {folder}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the supervisor of {folder} ended before it answered; see r3l status {folder}") from error
    if not is_done:
        raise UserError(message)
    return message


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, which only its user may connect to from its first moment on."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listening.fileno(), 0o600)  # Linux gives the file the socket's own mode when it makes it
        with short_address(path) as address:
            listening.bind(address)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, as the kernel knows it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Yield a short name of `path`: an address holds 107 bytes, a run may live deeper than that."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _read_line(connection: socket.socket, limit: int) -> bytes:
    """Return what comes up to a line's end, an end of the stream or `limit` bytes; TimeoutError after TIMEOUT_S."""
    deadline_s = time.monotonic() + TIMEOUT_S
    line = b""
    while b"\n" not in line and len(line) < limit:
        connection.settimeout(max(deadline_s - time.monotonic(), 1e-3))
        part = connection.recv(limit - len(line))
        if not part:
            break
        line += part
    return line


def _refusal(message: str) -> dict[str, object]:
    return {"ok": False, "message": message}


def _nobody(folder: Path) -> str:
    if _is_sync(folder):
        return f"no supervisor listens in {folder}: a --sync run has none; stop it with Ctrl-C where it runs"
    return f"no run is going on in {folder}; go on with it: r3l train --resume {folder}"


def _is_sync(folder: Path) -> bool:
    try:
        return bool(files.read_json(folder / "config.json")["config"]["sync"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
