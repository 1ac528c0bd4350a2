"""Make docs/results.md, its figures and the README's table from the records of the learning benchmark."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import exit_code, markdown_table, parse, plain_parser
from benchmarks.record import WINDOW_STEPS, Record, Values, load_records, refuse_mixture
from r3l.config.errors import UserError
from r3l.evaluation.report.visits import display
from r3l.evaluation.statistics import confusion
from r3l.run.files import write_file
from r3l.task.base import Task
from r3l.task.registry import load_task

PICTURE_S, RESET_S = 5.0, 10.0
"""Assumed time of a person per goal image, and per reset of the object."""
ORDER = (
    "default",
    "no-perturbation",
    "refreshed-encoder",
    "pixels",
    "paper",
    "diagnostic-true-reward",
    "diagnostic-true-state",
    "diagnostic-resets",
    "stable-baselines3",
)
MARKERS = ("<!-- results: made by scripts/benchmark results -->", "<!-- end of results -->")
SUCCESS = ("env steps", "deployed: success", "each seed", "continuing: success", "coverage")
HEALTH = ("held_out", "elsewhere", "auc", "average_precision", "rewarded", "judged_success")

INTRODUCTION = f"""# Results

Made by `scripts/benchmark results` from the records in `benchmarks/learning/`: resolved configuration, package
versions, metrics and every evaluation episode of every run. The tables show every record; docs/lab-notes.md names the
runs that were also used for tuning.

Deployed: success of the published policy from 24 start states, mean of the last three evaluations, ± the standard error
over seeds. Continuing: share of the run's own env steps at which the object was at the goal. Both follow EARL (Sharma
et al., ICLR 2022). Coverage: entropy of the object states visited during the run, 1 for uniform. Human minutes:
{PICTURE_S:.0f} s per goal image and {RESET_S:.0f} s per reset of the object; only `diagnostic-resets` and
`stable-baselines3` need resets. The diagnostic variants and `stable-baselines3` read the simulator's ground truth.

The judge's table counts episodes of the untrained, the half-trained and the final policy of each run. If a judge was
fitted again (`scripts/benchmark judge`), the record has an event; verdicts during training are of the judge before.
"""

Groups = dict[str, list[Record]]


def by_variant(records: Sequence[Record]) -> Groups:
    """Group the records of one task by variant, known variants first, and sort each group by seed."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.seed):
        groups[record.variant].append(record)
    return dict(sorted(groups.items(), key=lambda item: (ORDER.index(item[0]) if item[0] in ORDER else 99, item[0])))


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def plus_minus(values: Sequence[float]) -> str:
    """Return the mean ± the standard error as text."""
    error = standard_error(values)
    return f"{np.mean(values):.2f}" + ("" if error is None else f" ± {error:.2f}")


def human_minutes(record: Record) -> float:
    """Return a person's time for goal images and resets, minutes."""
    return (record.goal_images * PICTURE_S + record.resets * RESET_S) / 60


def last_steps(record: Record) -> int:
    """Return the env step of the last evaluation."""
    return int(record.evaluations[-1]["step"])


def success_cells(records: Sequence[Record]) -> list[str]:
    """Return the cells of one variant under the titles SUCCESS."""
    finals = [record.final() for record in records]
    return [
        f"{last_steps(records[0]):,}",
        plus_minus(finals),
        ", ".join(f"{final:.2f}" for final in finals),
        plus_minus([record.unattended.success for record in records]),
        plus_minus([record.unattended.coverage for record in records]),
    ]


def success_table(groups: Groups) -> list[str]:
    """Return the table of EARL's two metrics, coverage, robot time and human time."""
    rows = []
    for variant, records in groups.items():
        hours = np.mean([record.unattended.robot_s for record in records]) / 3600
        minutes = np.mean([human_minutes(record) for record in records])
        rows.append([variant, *success_cells(records), f"{hours:.2f}", f"{minutes:.0f}"])
    return markdown_table(["variant", *SUCCESS, "robot hours", "human minutes"], rows)


def last_errors(record: Record, part: str = "") -> Values:
    """Return the final errors, of the object or of a part, in the last three evaluations."""
    starts = last_starts(record)
    return np.array([start["truth"][part] if part else start["final_error"] for start in starts], np.float64)


def share_within(records: Sequence[Record], limit: float, part: str = "") -> str:
    """Return the share of the last episodes with an error within the limit: mean ± standard error over seeds."""
    return plus_minus([float((last_errors(record, part) <= limit).mean()) for record in records])


def threshold_table(groups: Groups, task: Task) -> list[str]:
    """Return the table of success at each of the task's thresholds."""
    scale, unit = display(task.error_unit)
    limits = sorted({task.success_error, *task.other_thresholds})
    rows = [[variant, *(share_within(records, limit) for limit in limits)] for variant, records in groups.items()]
    return markdown_table(["variant", *(f"within {limit * scale:.3g} {unit}" for limit in limits)], rows)


def part_table(groups: Groups, task: Task) -> list[str]:
    """Return the table of the share of episodes in which each part, such as a bead, ended within its limit."""
    rows = [
        [variant, *(share_within(records, limit, value) for _, value, limit in task.parts)]
        for variant, records in groups.items()
    ]
    return markdown_table(["variant", *(name for name, _, _ in task.parts)], rows)


def last_starts(record: Record) -> list[dict[str, Any]]:
    """Return the episodes of the last three evaluations."""
    return [start for entry in record.evaluations[-3:] for start in entry["starts"]]


def judge_table(groups: Groups) -> list[str]:
    """Return the table of the judge's balanced accuracy; no lines if no run was judged."""
    rows = []
    for variant, records in groups.items():
        pairs = [[(bool(s), bool(v)) for s, v in record.judged] for record in records if record.judged]
        if not pairs:
            continue
        together = [pair for found in pairs for pair in found]
        scores = [confusion(*map(list, zip(*found, strict=True)))["balanced_accuracy"] for found in [together, *pairs]]
        shown = ["–" if score is None else f"{score:.2f}" for score in scores]
        successes = sum(success for success, _ in together)
        rows.append([variant, shown[0], ", ".join(shown[1:]), str(len(together)), str(successes)])
    titles = ["variant", "judge: balanced accuracy", "each seed", "episodes", "of them successes"]
    return markdown_table(titles, rows) if rows else []


def draw_curves(axes: Axes, groups: Groups) -> None:
    """Draw success over env steps: thin lines for seeds, thick lines for means."""
    for index, (variant, records) in enumerate(groups.items()):
        curves = [record.curve() for record in records]
        for steps, success in curves:
            axes.plot(steps, success, color=f"C{index}", alpha=0.3, linewidth=0.8)
        shortest = min(len(steps) for steps, _ in curves)
        mean = np.mean([success[:shortest] for _, success in curves], axis=0)
        label = f"{variant} ({len(records)} seed{'s' * (len(records) > 1)})"
        axes.plot(curves[0][0][:shortest], mean, color=f"C{index}", linewidth=2, label=label)
    axes.set(xlabel="env steps", ylabel="success, 24 starts", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_thresholds(axes: Axes, groups: Groups, task: Task) -> None:
    """Draw success against the threshold on the final error."""
    scale, unit = display(task.error_unit)
    limits: Values = np.linspace(0, 3 * task.success_error, 121)
    for index, (variant, records) in enumerate(groups.items()):
        errors = np.concatenate([last_errors(record) for record in records])
        shares = [(errors <= limit).mean() for limit in limits]
        axes.plot(limits * scale, shares, color=f"C{index}", label=variant)
    axes.axvline(task.success_error * scale, color="0.5", linestyle="--", linewidth=1)
    axes.set(xlabel=f"threshold on the final error ({unit})", ylabel="share of episodes", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def draw_health(figure: Figure, records: Sequence[Record]) -> None:
    """Draw the health of the reward over time: one panel per measure, one line per seed."""
    panels = figure.subplots(2, 3, sharex=True).reshape(-1)
    for axes, name in zip(panels, HEALTH, strict=True):
        for record in records:
            lines = [line for line in record.metrics if f"health/{name}" in line]
            axes.plot(
                [line["step"] for line in lines],
                [line[f"health/{name}"] for line in lines],
                linewidth=1,
                label=f"seed {record.seed}",
            )
        axes.set(title=name.replace("_", " "), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7)


def draw_coverage(axes: Axes, groups: Groups) -> None:
    """Draw the coverage of object states per window of env steps."""
    for index, (variant, records) in enumerate(groups.items()):
        windows = [record.unattended.coverage_by_window for record in records if record.unattended.coverage_by_window]
        if windows:
            shortest = min(map(len, windows))
            mean = np.mean([found[:shortest] for found in windows], axis=0)
            axes.plot(WINDOW_STEPS * np.arange(1, shortest + 1), mean, color=f"C{index}", label=variant)
    axes.set(xlabel="env steps", ylabel="coverage of object states", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)


def draw(task: Task, groups: Groups, figures: Path) -> dict[str, str]:
    """Write the figures of a task; return their file names."""
    curves = Figure(figsize=(10, 4), layout="constrained")
    left, right = curves.subplots(1, 2, width_ratios=(3, 2))
    draw_curves(left, groups)
    draw_coverage(right, groups)
    thresholds = Figure(figsize=(6, 3.6), layout="constrained")
    draw_thresholds(thresholds.subplots(), groups, task)
    made = {"curves": curves, "thresholds": thresholds}
    if "default" in groups and any("health/auc" in line for line in groups["default"][0].metrics):
        made["health"] = Figure(figsize=(10, 5), layout="constrained")
        draw_health(made["health"], groups["default"])
    names = {kind: f"{task.name}-{kind}.png" for kind in made}
    for kind, figure in made.items():
        figure.savefig(figures / names[kind], dpi=110)
    return names


def section(task: Task, groups: Groups, figures: Path) -> list[str]:
    """Return the lines of a task's section."""
    names = draw(task, groups, figures)
    scale, unit = display(task.error_unit)
    limit = f"{task.success_error * scale:.3g} {unit}"
    lines = [f"## {task.name}", "", f"Goal: {task.description}. Success: a final error of at most {limit}.", ""]
    lines += [*success_table(groups), "", *show(figures, names["curves"], "Success over env steps, and coverage")]
    lines += [*threshold_table(groups, task), "", *show(figures, names["thresholds"], "Success over the threshold")]
    if task.parts:
        lines += ["Share of episodes that ended with:", "", *part_table(groups, task), ""]
    verdicts = judge_table(groups)
    if verdicts:
        lines += [*verdicts, ""]
    if "health" in names:
        lines += show(figures, names["health"], "Health of the learned reward, default")
    return lines


def show(figures: Path, name: str, title: str) -> list[str]:
    """Return the lines that include a figure in a page of docs/."""
    return [f"![{title}](../{figures.as_posix()}/{name})", ""]


def by_task(records: Sequence[Record]) -> dict[str, Groups]:
    """Group records by task, with the valve first, and by variant."""
    names = sorted({record.task for record in records}, key=lambda name: (name != "valve", name))
    return {name: by_variant([record for record in records if record.task == name]) for name in names}


def page(records: Sequence[Record], figures: Path) -> str:
    """Return the text of docs/results.md."""
    commands = sorted({record.command for record in records})
    versions = sorted({f"{name} {value}" for record in records for name, value in record.versions.items()})
    lines = [INTRODUCTION]
    for name, groups in by_task(records).items():
        lines += section(load_task(name), groups, figures)
    lines += ["## How to make them again", "", "```", *commands, "scripts/benchmark results", "```", ""]
    lines += [f"Versions: {', '.join(versions)}.", ""]
    return "\n".join(lines)


def summary(records: Sequence[Record]) -> str:
    """Return the table of the README."""
    rows = [
        [task, variant, *success_cells(found)]
        for task, groups in by_task(records).items()
        for variant, found in groups.items()
    ]
    return "\n".join(markdown_table(["task", "variant", *SUCCESS], rows))


def replace_section(text: str, new: str) -> str:
    """Return the README with a new table between its markers; UserError if it has no single pair of markers."""
    begin, end = MARKERS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"README.md has no single pair of markers {begin} … {end}; put them where the table goes")
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{new}\n{end}", text, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write page, figures and table; return 2 for bad input."""
    parser = plain_parser("scripts/benchmark results", __doc__)
    for option, default, text in (
        ("--records", "benchmarks/learning", "folder of the records"),
        ("--figures", "benchmarks/figures", "folder of the figures"),
        ("--page", "docs/results.md", "page to write"),
        ("--readme", "README.md", "README to write the table to"),
    ):
        parser.add_argument(option, type=Path, default=Path(default), help=f"{text} (%(default)s)")
    options = parse(parser, arguments)

    def work() -> int:
        records = load_records(options.records)
        if not records:
            raise UserError(f"{options.records} holds no records; make some: scripts/benchmark learning")
        refuse_mixture(records)
        options.figures.mkdir(parents=True, exist_ok=True)
        readme = replace_section(options.readme.read_text(), summary(records))
        write_file(options.page, page(records, options.figures).encode())
        write_file(options.readme, readme.encode())
        print(f"{options.page}, {options.figures}/ and the table in {options.readme}: {len(records)} records")
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
