"""The control socket: words reach the supervisor, sentences come back, and no client can hurt anyone."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest
from conftest import tiny

from r3l.config.errors import UserError
from r3l.run.directory import Run
from r3l.training import control_socket as control
from r3l.training.control_socket import MAX_CLIENTS, MAX_REQUEST_BYTES, TIMEOUT_S, WORDS, ControlServer, ask


class Heard:
    """Answers every word with a sentence and remembers it."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def __call__(self, word: str) -> str:
        self.words.append(word)
        return f"{word}: will be done"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", tiny())


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with control.short_address(path) as address, socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2 * TIMEOUT_S)
        connection.connect(address)
        yield connection


def exchange(path: Path, request: bytes) -> bytes:
    """Send a request and return all that comes back until the server closes."""
    answer = b""
    with connected(path) as connection, suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(request)
        while part := connection.recv(65536):
            answer += part
    return answer


def refusal(run: Run, word: str = "pause") -> str:
    with pytest.raises(UserError) as error:
        ask(run.folder, word)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_reaches_the_supervisor_and_its_sentence_comes_back(run: Run, word: str) -> None:
    heard = Heard()
    with ControlServer(run.control, heard):
        assert ask(run.folder, word) == f"{word}: will be done"
    assert heard.words == [word]


def test_request_and_answer_are_one_json_line_each(run: Run) -> None:
    with ControlServer(run.control, Heard()):
        answer = exchange(run.control, b'{"word": "relax"}\n')
    assert answer.endswith(b"\n")
    assert json.loads(answer) == {"ok": True, "message": "relax: will be done"}


def test_a_refusal_of_the_supervisor_is_the_users_error(run: Run) -> None:
    def handle(word: str) -> str:
        raise UserError("nothing is paused; see r3l status")

    with ControlServer(run.control, handle):
        assert refusal(run, "resume") == "nothing is paused; see r3l status"
        assert refusal(run, "resume") == "nothing is paused; see r3l status"


def test_an_unknown_word_is_refused_and_not_handled(run: Run) -> None:
    heard = Heard()
    with ControlServer(run.control, heard):
        assert refusal(run, "dance") == "unknown word 'dance', expected one of pause, resume, relax, stop"
    assert heard.words == []


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"pause\n",
        b"[]\n",
        b"1\n",
        b"{}\n",
        b'{"word": 3}\n',
        b'{"word": ["pause"]}\n',
        b'{"word": null}\n',
        b'{"word": "pause"',
        b'{"word": "pause"}',
        b'{"word": "pause"}'.ljust(MAX_REQUEST_BYTES) + b"\n",
        b"\xff\xfe\x00garbage\n",
        b"[" * (MAX_REQUEST_BYTES - 1) + b"\n",
        b'{"word": "pause"}\n{"word": "pause"}\n',
        b'{"word": "pause", "with": "' + b"x" * MAX_REQUEST_BYTES + b'"}\n',
        b" " * MAX_REQUEST_BYTES + b'{"word": "pause"}\n',
        b"x" * 1_000_000,
    ],
    ids=range(17),
)
def test_garbage_is_refused_and_hurts_nobody(run: Run, request_line: bytes) -> None:
    heard = Heard()
    with ControlServer(run.control, heard):
        with connected(run.control) as connection, suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request_line)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            assert json.loads(answer)["ok"] is False
        assert heard.words == []
        assert ask(run.folder, "pause") == "pause: will be done"


def test_the_longest_request_is_understood(run: Run) -> None:
    line = b'{"word": "stop"}'.ljust(MAX_REQUEST_BYTES - 1) + b"\n"
    with ControlServer(run.control, Heard()):
        assert json.loads(exchange(run.control, line))["ok"] is True


def test_a_request_in_pieces_is_understood(run: Run) -> None:
    with ControlServer(run.control, Heard()), connected(run.control) as connection:
        for letter in b'{"word": "stop"}\n':
            connection.sendall(bytes([letter]))
        assert json.loads(connection.recv(65536))["ok"] is True


def test_slow_clients_are_dropped_and_hold_nobody_up(run: Run) -> None:
    with ControlServer(run.control, Heard()), connected(run.control) as silent, connected(run.control) as slow:
        slow.sendall(b'{"word":')
        began = time.monotonic()
        assert ask(run.folder, "pause") == "pause: will be done"
        assert time.monotonic() - began < TIMEOUT_S / 2
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
        assert TIMEOUT_S / 2 < time.monotonic() - began < 4 * TIMEOUT_S


def test_a_client_that_drips_is_dropped_in_time_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT_S", 0.3)
    with ControlServer(run.control, Heard()), connected(run.control) as dripping:
        began = time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - began < 10:
                dripping.sendall(b" ")
                time.sleep(0.02)
        assert 0.2 < time.monotonic() - began < 9


def test_more_clients_than_are_served_at_once_wait_for_their_turn(run: Run) -> None:
    heard = Heard()
    with ControlServer(run.control, heard), ThreadPoolExecutor(3 * MAX_CLIENTS) as pool:
        answers = list(pool.map(lambda _: ask(run.folder, "pause"), range(3 * MAX_CLIENTS)))
    assert answers == ["pause: will be done"] * 3 * MAX_CLIENTS
    assert len(heard.words) == 3 * MAX_CLIENTS


def test_two_clients_at_once_are_handled_one_after_the_other(run: Run) -> None:
    inside, most = 0, 0

    def handle(word: str) -> str:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.1)
        inside -= 1
        return word

    with ControlServer(run.control, handle), ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda word: ask(run.folder, word), ("pause", "stop"))) == ["pause", "stop"]
    assert most == 1


def test_a_client_that_leaves_before_the_answer_hurts_nobody(run: Run) -> None:
    def handle(word: str) -> str:
        time.sleep(0.1)
        return word

    with ControlServer(run.control, handle):
        with connected(run.control) as connection:
            connection.sendall(b'{"word": "pause"}\n')
        assert ask(run.folder, "stop") == "stop"


def test_only_its_user_may_open_the_socket_from_its_first_moment(run: Run) -> None:
    modes: set[int] = set()

    def look(frame: FrameType, event: str, argument: object) -> None:
        # Called after every single call that Python makes, binding the socket among them.
        with suppress(FileNotFoundError):
            modes.add(stat.S_IMODE(os.lstat(run.control).st_mode))

    mask = os.umask(0)
    try:
        sys.setprofile(look)
        with ControlServer(run.control, Heard()):
            pass
    finally:
        sys.setprofile(None)
        os.umask(mask)
    assert modes == {0o600}


def test_other_users_are_not_heard(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    with ControlServer(run.control, heard):
        monkeypatch.setattr(control, "peer_uid", lambda connection: os.getuid() + 1)
        assert f"user {os.getuid() + 1} may not control this run" in refusal(run)
        monkeypatch.setattr(control, "peer_uid", lambda connection: 0)
        assert ask(run.folder, "pause") == "pause: will be done"
    assert heard.words == ["pause"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_the_kernel_says_who_asks(run: Run) -> None:
    heard = Heard()
    code = (
        "import os, socket; c = socket.socket(socket.AF_UNIX)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "c.connect('control'); c.sendall(b'{\"word\": \"stop\"}\\n'); print(c.recv(4096).decode())"
    )
    with ControlServer(run.control, heard):
        client = [sys.executable, "-c", code]
        denied = subprocess.run(client, cwd=run.folder, capture_output=True, text=True)
        assert "PermissionError" in denied.stderr
        run.control.chmod(0o666)
        refused = subprocess.run(client, cwd=run.folder, capture_output=True, text=True, check=True)
        assert "user 65534 may not control this run" in refused.stdout
    assert heard.words == []


def test_a_run_deep_in_the_file_system_is_reached(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["a-folder-with-a-rather-long-name"] * 8)
    run = Run.create(folder / "run", tiny())
    assert len(str(run.control)) > 250
    with ControlServer(run.control, Heard()):
        assert ask(run.folder, "pause") == "pause: will be done"
    assert not run.control.exists()


def test_a_run_below_the_working_directory_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run.create(Path("runs/valve-1"), tiny())
    with ControlServer(run.control, Heard()):
        assert ask(run.folder, "pause") == "pause: will be done"


def test_where_nobody_listens_the_user_learns_how_to_go_on(run: Run) -> None:
    assert refusal(run) == f"no run is going on in {run.folder}; go on with it: r3l train --resume {run.folder}"


def test_a_sync_run_says_that_it_has_no_supervisor(tmp_path: Path) -> None:
    assert "a --sync run has none" in refusal(Run.create(tmp_path / "run", tiny(sync=True)))


def test_a_socket_that_a_dead_run_left_behind_is_no_run_and_gives_way(run: Run) -> None:
    control.listen(run.control).close()
    assert run.control.is_socket()
    assert "no run is going on" in refusal(run)
    with ControlServer(run.control, Heard()):
        assert ask(run.folder, "stop") == "stop: will be done"


def test_the_socket_is_gone_when_the_run_has_ended(run: Run) -> None:
    with ControlServer(run.control, Heard()):
        pass
    assert not run.control.exists()
    assert "no run is going on" in refusal(run)
    with ControlServer(run.control, Heard()):
        assert ask(run.folder, "stop") == "stop: will be done"


def test_the_servers_thread_ends_with_it(run: Run) -> None:
    before = set(threading.enumerate())  # threads of earlier tests may still be ending
    with ControlServer(run.control, Heard()):
        ours = set(threading.enumerate()) - before
        assert ours
    for thread in ours:
        thread.join(5)
    assert not any(thread.is_alive() for thread in ours)


def test_a_supervisor_that_does_not_answer_is_not_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "TIMEOUT_S", 0.2)
    with control.listen(run.control):
        began = time.monotonic()
        assert "did not answer within 0.2 s; see r3l status" in refusal(run)
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b"[]\n", b'{"ok": true}\n'])
def test_an_answer_that_makes_no_sense_is_said_in_one_line(run: Run, answer: bytes) -> None:
    with control.listen(run.control) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert "ended before it answered" in refusal(run)
        thread.join()
