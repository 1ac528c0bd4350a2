"""Measure how many commands are on time at the control rate, with a busy learner and without one.

The run is on the twin in real time. Its learner owes far more updates than it can make, so it is always busy. In every
second block SIGSTOP pauses the learner; short blocks let other load on the machine hit both arms. A command is on time
if it is written within 5 ms of its due time. The time that the host of a virtual machine stole is recorded too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.figures import exit_code, make_parser, markdown_table, parse, save_figures
from benchmarks.running import ENDLESS_STEPS, Running, prepare, stolen_s
from r3l.config.schema import MANY
from r3l.models.torch_setup import tune_process
from r3l.run.directory import Run
from r3l.run.progress import progress_bar
from r3l.training.shared_status import State

NAME = "control-loop"
SETTLE_S = 2.0
"""Seconds after a switch that are not counted."""
ARMS = ("without", "with")


@dataclass(frozen=True)
class Block:
    """The counts of one block."""

    arm: str
    seconds: float
    commands: int
    on_time: int
    overruns: int
    updates: int
    stolen_s: float

    @property
    def late_percent(self) -> float:
        """Commands that were not on time, percent."""
        return 100 * (1 - self.on_time / self.commands)


def with_busy_learner(run: Run) -> Run:
    """Return the run in real time, with a learner that never waits for steps and that the supervisor lets pause."""
    supervision = replace(
        run.config.supervision, lead_steps=MANY, learner_limit_s=1e6, learner_away_s=1e6, checkpoint_every_s=300.0
    )
    config = replace(run.config, real_time=True, steps=ENDLESS_STEPS, update_ratio=100.0, supervision=supervision)
    return run.changed(config)


def measure(run: Run, blocks: int, seconds: float) -> list[Block]:
    """Measure `blocks` blocks of each arm, the arms taking turns."""
    found = []
    with Running(with_busy_learner(run)) as running, progress_bar("control loop", "block", 2 * blocks) as bar:
        shared = running.shared
        running.wait_for(
            lambda: shared.state("learner") is State.LEARNING and shared.state("actor") is State.ACTING, 300
        )
        learner = running.pid("learner")
        for _ in range(blocks):
            for arm in ARMS:
                (running.pause if arm == "without" else running.resume)(learner)
                time.sleep(SETTLE_S)
                names = ("actor.commands", "actor.on_time", "actor.overruns", "learner.updates")
                before, stolen, began = [shared[name] for name in names], stolen_s(), time.monotonic()
                time.sleep(seconds)
                commands, on_time, overruns, updates = (
                    int(shared[name] - value) for name, value in zip(names, before, strict=True)
                )
                spent_s = time.monotonic() - began
                found.append(Block(arm, spent_s, commands, on_time, overruns, updates, stolen_s() - stolen))
                bar.update()
    return found


def summary(blocks: Sequence[Block]) -> dict[str, dict[str, float]]:
    """Return the figures of each arm."""
    found = {}
    for arm in ARMS:
        mine = [block for block in blocks if block.arm == arm]
        commands, seconds = sum(block.commands for block in mine), sum(block.seconds for block in mine)
        found[arm] = {
            "minutes": seconds / 60,
            "commands": commands,
            "on_time_percent": 100 * sum(block.on_time for block in mine) / commands,
            "overruns": sum(block.overruns for block in mine),
            "updates_per_s": sum(block.updates for block in mine) / seconds,
            "stolen_percent_of_a_core": 100 * sum(block.stolen_s for block in mine) / seconds,
        }
    return found


def describe(found: dict[str, dict[str, float]]) -> str:
    """Return the figures as a Markdown table and the difference between the arms."""
    formats = {
        "minutes": "{:.1f}",
        "commands": "{:.0f}",
        "on_time_percent": "{:.2f}%",
        "overruns": "{:.0f}",
        "updates_per_s": "{:.1f}",
        "stolen_percent_of_a_core": "{:.2f}%",
    }
    titles = ["learner", "minutes", "commands", "on time", "overruns", "updates/s", "stolen"]
    rows = [[arm, *(text.format(figures[key]) for key, text in formats.items())] for arm, figures in found.items()]
    difference = found["without"]["on_time_percent"] - found["with"]["on_time_percent"]
    end = f"{difference:+.2f} percentage points fewer on time with the learner busy"
    return "\n".join([*markdown_table(titles, rows), "", end])


def plot(blocks: Sequence[Block], path: Path) -> None:
    """Draw the late commands and the stolen time of each block."""
    figure, (late, stolen) = plt.subplots(2, 1, figsize=(8, 4.5), sharex=True, height_ratios=(2, 1))
    ends = np.cumsum([block.seconds for block in blocks]) / 60
    for arm, colour in zip(ARMS, ("tab:blue", "tab:orange"), strict=True):
        mine = [number for number, block in enumerate(blocks) if block.arm == arm]
        late.bar(ends[mine], [blocks[n].late_percent for n in mine], 0.8, color=colour, label=f"{arm} a busy learner")
        share = [100 * blocks[n].stolen_s / blocks[n].seconds for n in mine]
        stolen.bar(ends[mine], share, 0.8, color=colour)
    late.set(ylabel="commands later\nthan 5 ms, %")
    late.set_ylim(bottom=0, top=max(1.0, *(1.2 * block.late_percent for block in blocks)))
    late.legend()
    stolen.set(xlabel="minutes", ylabel="stolen,\n% of a core")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 2 for bad input."""
    parser = make_parser(NAME, __doc__, has_run=True)
    parser.add_argument("--blocks", type=int, default=10, help="blocks per arm (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds per block (%(default)s)")
    tune_process()
    options = parse(parser, arguments)

    def work() -> int:
        blocks = measure(prepare(options.run, "valve", learned_steps=300), options.blocks, options.seconds)
        found = summary(blocks)
        print(describe(found))
        save_figures(options, {"summary": found, "blocks": [asdict(block) for block in blocks]})
        plot(blocks, options.out.with_suffix(".png"))
        print(options.out.with_suffix(".png"))
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
