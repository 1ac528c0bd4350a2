"""Notification of systemd, against a socket of our own; and the unit that starts a run under systemd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from r3l.training.systemd import WATCHDOG_SHARE, Notifier

UNIT = Path(__file__).parents[1] / "scripts" / "r3l.service"


class Systemd:
    """What listens where a service notifies."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Return what came since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listening = Systemd(str(tmp_path / "notify"))
    yield listening
    listening.socket.close()


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(tmp_path / "notify")} | more


def test_it_says_that_it_is_ready_how_it_is_and_that_it_ends(tmp_path: Path, systemd: Systemd) -> None:
    notifier = Notifier(environ(tmp_path))
    notifier.ready("acting")
    notifier.status("step 100 of 1000,\npaused")
    notifier.stopping()
    assert systemd.heard() == ["READY=1\nSTATUS=acting", "STATUS=step 100 of 1000, paused", "STOPPING=1"]


def test_an_abstract_address_is_reached() -> None:
    name = f"r3l-test-{os.getpid()}"
    systemd = Systemd("\0" + name)
    Notifier({"NOTIFY_SOCKET": "@" + name}).status("here")
    assert systemd.heard() == ["STATUS=here"]
    systemd.socket.close()


def test_progress_is_told_at_a_fraction_of_the_watchdogs_interval(tmp_path: Path, systemd: Systemd) -> None:
    clock = Clock()
    notifier = Notifier(environ(tmp_path, WATCHDOG_USEC="20000000", WATCHDOG_PID=str(os.getpid())), clock)
    assert notifier.watchdog_s == 20.0
    for _ in range(200):
        notifier.progress()
        clock.now_s += 0.1
    heard = systemd.heard()
    assert set(heard) == {"WATCHDOG=1"}
    assert len(heard) == round(1 / WATCHDOG_SHARE)


def test_nothing_is_told_while_there_is_no_progress(tmp_path: Path, systemd: Systemd) -> None:
    clock = Clock()
    notifier = Notifier(environ(tmp_path, WATCHDOG_USEC="20000000"), clock)
    notifier.progress()
    clock.now_s += 3600.0
    assert systemd.heard() == ["WATCHDOG=1"]
    notifier.progress()
    assert systemd.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "often"},
        {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": ""},
    ],
)
def test_without_a_watchdog_of_its_own_progress_is_not_told(
    tmp_path: Path, systemd: Systemd, watchdog: dict[str, str]
) -> None:
    notifier = Notifier(environ(tmp_path, **watchdog))
    notifier.progress()
    assert notifier.watchdog_s is None
    assert systemd.heard() == []


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1234", "/nowhere/notify", "/" + "x" * 300, "@"])
def test_where_there_is_no_systemd_nothing_happens(address: str | None) -> None:
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    notifier.ready("acting")
    notifier.status("acting")
    notifier.progress()
    notifier.stopping()


def test_the_environment_of_this_process_is_the_default(
    tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    Notifier().status("here")
    assert systemd.heard() == ["STATUS=here"]


def test_a_socket_that_vanishes_or_is_never_read_holds_nobody_up(tmp_path: Path, systemd: Systemd) -> None:
    notifier = Notifier(environ(tmp_path))
    for _ in range(5000):
        notifier.status("a queue of datagrams is finite")
    assert systemd.heard()
    systemd.socket.close()
    notifier.status("nobody reads")
    (tmp_path / "notify").unlink()
    notifier.stopping()


def unit() -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def test_the_unit_is_watched_restarted_and_relaxes_the_robot() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert service["Restart"] == "on-failure"
    assert "2" in service["RestartPreventExitStatus"].split()
    assert service["KillMode"] == "mixed"
    assert service["ExecStart"].endswith("train --resume runs/%i")
    assert service["ExecStopPost"].endswith("bin/r3l relax --direct runs/%i")


def test_the_unit_names_no_machine() -> None:
    text = UNIT.read_text()
    assert "/home/" not in text
    assert "/root" not in text
    assert unit()["Service"]["WorkingDirectory"] == "%h/r3l"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("r3l", "python"):
        program = home / "r3l" / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    path = tmp_path / "r3l@.service"
    shutil.copy(UNIT, path)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(path)],
        env=os.environ | {"HOME": str(home), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
