"""Time a read of ten bytes from nine servos, 10,000 times: r3l's bus, rustypot and the DYNAMIXEL SDK take turns.

A separate process emulates the servos on one pseudo-terminal. A second measurement damages packets and uses r3l's bus
alone: the share of readings missing after all repetitions, the number of wrong values, and the longest cycle.
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

from benchmarks.figures import exit_code, make_parser, parse, save_figures
from benchmarks.running import R3L
from r3l.hardware.dynamixel.bus import DEADLINE_S, Bus
from r3l.hardware.dynamixel.control_table import XL330_M288
from r3l.run.progress import progress_bar

NAME = "bus"
IDS = [10, 11, 12, 20, 21, 22, 30, 31, 32]
ADDRESS, SIZE = XL330_M288.block("present_current", "present_position")
AT_REST = bytes(6) + (2048).to_bytes(4, "little")
"""Reply of an emulated servo that does not move: zeros, then position 2048."""
DAMAGED_SHARE = 0.05
"""Share of packets that the second measurement damages."""
BLOCK_CYCLES = 250
"""Cycles per turn of a client."""


@contextmanager
def emulated(*options: str) -> Iterator[str]:
    """Start nine emulated servos and yield their port."""
    command = [*R3L, "emulate", "--model", "XL330-M288", "--ids", *map(str, IDS), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split(" on ")[1].split(";")[0]
        finally:
            process.terminate()


def timed(read: Callable[[], object], times: int) -> list[float]:
    """Return the seconds of each of `times` reads."""
    spent_s = []
    for _ in range(times):
        began_s = time.perf_counter()
        read()
        spent_s.append(time.perf_counter() - began_s)
    return spent_s


def read_with_r3l(port: str, times: int) -> list[float]:
    """Time reads with r3l's bus."""
    with Bus(port) as bus:
        return timed(lambda: bus.sync_read(IDS, ADDRESS, SIZE), times)


def read_with_rustypot(port: str, times: int) -> list[float]:
    """Time reads with rustypot."""
    client = rustypot.Xl330PyController(port, 1_000_000, DEADLINE_S)
    return timed(lambda: client.sync_read_raw_data(IDS, ADDRESS, SIZE), times)


def read_with_sdk(port: str, times: int) -> list[float]:
    """Time reads with the DYNAMIXEL SDK."""
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
    """Return median, 99th percentile and maximum per client, ms, and the ratio of r3l's median to rustypot's."""
    clients = {"ours": read_with_r3l, "rustypot": read_with_rustypot, "dynamixel_sdk": read_with_sdk}
    spent: dict[str, list[float]] = {name: [] for name in clients}
    with emulated() as port, progress_bar("read", "cycle", cycles) as bar:
        block = min(BLOCK_CYCLES, cycles)
        for _ in range(cycles // block):
            for name, client in clients.items():
                spent[name] += client(port, block)
            bar.update(block)
    found: dict[str, object] = {
        name: {f"p{share}_ms": float(np.percentile(values, share)) * 1e3 for share in (50, 99, 100)}
        for name, values in spent.items()
    }
    medians = {name: float(np.median(values)) for name, values in spent.items()}
    return {"cycles": cycles} | found | {"median_over_rustypots": medians["ours"] / medians["rustypot"]}


def read_damaged(cycles: int, share: float) -> dict[str, float]:
    """Return the missing readings, wrong values and cycle times of r3l's bus when packets are damaged."""
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
    """Run the benchmark."""
    parser = make_parser(NAME, __doc__)
    help_text = f"read cycles per client, in blocks of {BLOCK_CYCLES} (%(default)s)"
    parser.add_argument("--cycles", type=int, default=10_000, help=help_text)
    options = parse(parser, arguments)

    def work() -> int:
        found = {"undamaged": compare(options.cycles), "damaged": read_damaged(options.cycles, DAMAGED_SHARE)}
        print(json.dumps(found, indent=1))
        save_figures(options, found)
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
