"""The control socket of a run: people send a word to its supervisor and get a sentence back."""

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
MAX_REQUEST_BYTES = 4096
"""Max length of a request, including the end of its line."""
TIMEOUT_S = 2.0
"""Max time that either side waits for the other."""
MAX_CLIENTS = 8
"""Max clients that are served at the same time; more of them wait."""


class ControlServer:
    """Serves a run's control socket from a thread: one JSON line asks, one JSON line answers.

    The run's own user and root may ask. A client that is slow or sends garbage delays no other client.
    """

    def __init__(self, path: Path, handle: Callable[[str], str]) -> None:
        """Serve at `path`.

        `handle` takes one of WORDS, from one thread at a time, and returns the answer within TIMEOUT_S. A UserError
        that it raises is a refusal, sent to the client.
        """
        self._path, self._handle = path, handle
        self._handling = threading.Lock()
        self._free_places = threading.BoundedSemaphore(MAX_CLIENTS)
        self._socket: socket.socket | None = None
        self._is_closed = threading.Event()

    def __enter__(self) -> Self:
        """Start to serve, in place of a socket that a dead run left behind: the caller holds the run's lock."""
        self._path.unlink(missing_ok=True)
        self._socket = listen(self._path)
        threading.Thread(target=self._serve, args=(self._socket,), name="control", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._socket is not None
        self._is_closed.set()
        with suppress(OSError):  # the disk may be read-only by now
            self._path.unlink(missing_ok=True)
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing alone does not
        self._socket.close()

    def _serve(self, listening: socket.socket) -> None:
        while not self._is_closed.is_set():
            self._free_places.acquire()
            try:
                connection, _ = listening.accept()
            except OSError:
                self._free_places.release()
                self._is_closed.wait(0.1)  # perhaps no descriptor is free: other threads may close some
                continue
            threading.Thread(target=self._serve_one, args=(connection,), name="control client", daemon=True).start()

    def _serve_one(self, connection: socket.socket) -> None:
        # A client that went away, or never sends a whole line, is dropped.
        try:
            with connection, suppress(OSError):
                answer = self._answer(connection)
                connection.settimeout(TIMEOUT_S)
                connection.sendall(json.dumps(answer).encode() + b"\n")
        finally:
            self._free_places.release()

    def _answer(self, connection: socket.socket) -> dict[str, object]:
        line = _read_line(connection, MAX_REQUEST_BYTES)  # of any user: an unread rest would cut the answer off
        uid = peer_uid(connection)
        if uid not in (0, os.getuid()):
            return _refusal(f"user {uid} may not control this run; ask as the user whose run it is")
        try:
            word = json.loads(line if line.endswith(b"\n") else b"")["word"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _refusal(f"the request is no JSON line of up to {MAX_REQUEST_BYTES} bytes with a 'word'")
        if word not in WORDS:
            return _refusal(f"unknown word {str(word)[:40]!r}, expected one of {', '.join(WORDS)}")
        try:
            with self._handling:
                return {"ok": True, "message": self._handle(word)}
        except UserError as error:
            return _refusal(str(error))


def ask(folder: Path, word: str) -> str:
    """Send one of WORDS to the run's supervisor and return its answer.

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
        raise NoSupervisorError(_no_supervisor(folder)) from error
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
    """Return a socket that listens at `path`; at no moment may another user connect to it."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listening.fileno(), 0o600)  # the file that bind makes gets the mode of the socket
        with short_address(path) as address:
            listening.bind(address)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, from the kernel."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


@contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Yield a short name of `path`: an address holds 107 bytes, the path of a run may be longer."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _read_line(connection: socket.socket, limit: int) -> bytes:
    """Read to the end of a line or of the stream, at most `limit` bytes; raise TimeoutError after TIMEOUT_S."""
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


def _no_supervisor(folder: Path) -> str:
    if _is_sync(folder):
        return f"no supervisor listens in {folder}: a --sync run has none; stop it with Ctrl-C where it runs"
    return f"no run is going on in {folder}; go on with it: r3l train --resume {folder}"


def _is_sync(folder: Path) -> bool:
    try:
        return bool(files.read_json(folder / "config.json")["config"]["sync"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
