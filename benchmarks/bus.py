"""Measure a read of ten bytes from nine servos, 10,000 times: our bus, rustypot and the DYNAMIXEL SDK in turns.

The servos are emulated in a process of their own, on one pseudo-terminal for all. Then again with damaged packets,
our bus alone: how many readings are missing after all repetitions, whether any is wrong, the longest cycle.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import rustypot
from dynamixel_sdk import GroupSyncRead, PacketHandler, PortHandler

from benchmarks.figures import parser_of, save_figures
from r3l.hardware.dynamixel.bus import DEADLINE_S, Bus
from r3l.hardware.dynamixel.control_table import XL330_M288
from r3l.run.progress import progress_bar

NAME = "bus"
IDS = [10, 11, 12, 20, 21, 22, 30, 31, 32]
ADDRESS, SIZE = XL330_M288.block("present_current", "present_position")
AT_REST = bytes(6) + (2048).to_bytes(4, "little")
"""What an emulated servo says that does not move."""
BLOCK = 250
"""Cycles before the next one's turn."""


@contextmanager
def emulated(*options: str) -> Iterator[str]:
    """Give the port of nine emulated servos."""
    command = [
        sys.executable,
        "-m",
        "r3l.cli.main",
        "emulate",
        "--model",
        "XL330-M288",
        "--ids",
        *map(str, IDS),
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split(" on ")[1].split(";")[0]
        finally:
            process.terminate()


def timed(read: Callable[[], object], times: int) -> list[float]:
    """Return the seconds that each of some reads took."""
    spent_s = []
    for _ in range(times):
        began_s = time.perf_counter()
        read()
        spent_s.append(time.perf_counter() - began_s)
    return spent_s


def ours(port: str, times: int) -> list[float]:
    """Read as this project does."""
    with Bus(port) as bus:
        return timed(lambda: bus.sync_read(IDS, ADDRESS, SIZE), times)


def rustypots(port: str, times: int) -> list[float]:
    """Read as rustypot does."""
    client = rustypot.Xl330PyController(port, 1_000_000, DEADLINE_S)
    return timed(lambda: client.sync_read_raw_data(IDS, ADDRESS, SIZE), times)


def sdks(port: str, times: int) -> list[float]:
    """Read as the DYNAMIXEL SDK does."""
    opened = PortHandler(port)
    opened.openPort()
    opened.setBaudRate(1_000_000)
    group = GroupSyncRead(opened, PacketHandler(2.0), ADDRESS, SIZE)
    for servo in IDS:
        group.addParam(servo)
    try:
        return timed(group.txRxPacket, times)
    finally:
        opened.closePort()


def compare(cycles: int) -> dict[str, object]:
    """Return medians and 99th percentiles of all clients, in ms, and our median over rustypot's."""
    clients = {"ours": ours, "rustypot": rustypots, "dynamixel_sdk": sdks}
    spent: dict[str, list[float]] = {name: [] for name in clients}
    with emulated() as port, progress_bar("read", "cycle", cycles) as bar:
        for _ in range(cycles // BLOCK):
            for name, client in clients.items():
                spent[name] += client(port, BLOCK)
            bar.update(BLOCK)
    found: dict[str, object] = {
        name: {f"p{share}_ms": float(np.percentile(values, share)) * 1e3 for share in (50, 99, 100)}
        for name, values in spent.items()
    }
    medians = {name: float(np.median(values)) for name, values in spent.items()}
    return {"cycles": cycles} | found | {"median_over_rustypots": medians["ours"] / medians["rustypot"]}


def with_damage(cycles: int, share: float) -> dict[str, float]:
    """Return what our bus makes of damaged packets."""
    missing = wrong = 0
    spent_s = []
    with emulated("--corrupt", str(share)) as port, Bus(port) as bus, progress_bar("damaged", "cycle", cycles) as bar:
        for _ in range(cycles):
            began_s = time.perf_counter()
            found = bus.sync_read(IDS, ADDRESS, SIZE)
            spent_s.append(time.perf_counter() - began_s)
            missing += len(IDS) - len(found)
            wrong += sum(reply.data != AT_REST for reply in found.values())
            bar.update()
        counts = dict(bus.counts)
    return {
        "damaged_share": share,
        "cycles": cycles,
        "missing_share": missing / len(IDS) / cycles,
        "wrong_values": wrong,
        "median_ms": float(np.median(spent_s)) * 1e3,
        "longest_ms": max(spent_s) * 1e3,
        "deadline_ms": DEADLINE_S * 1e3,
        "over_deadline": sum(each > DEADLINE_S for each in spent_s),
    } | counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write figures."""
    parser = parser_of(NAME, __doc__)
    parser.add_argument("--cycles", type=int, default=10_000, help="(%(default)s)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    found = {"undamaged": compare(options.cycles), "damaged": with_damage(options.cycles, 0.05)}
    print(json.dumps(found, indent=1))
    save_figures(options.out, NAME, given, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
