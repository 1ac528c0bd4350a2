"""Write the report of a run: its header and its sections, for a run at any stage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from r3l import __version__
from r3l.config.convert import to_dict
from r3l.config.presets import PRESETS
from r3l.config.schema import MANY
from r3l.evaluation.report import figures, html
from r3l.evaluation.report.curves import learning
from r3l.evaluation.report.html import Markup, attempt
from r3l.evaluation.report.sections import encoder, films, reward, visits
from r3l.evaluation.report.summary import Record, RunSummary, duration, read_summary
from r3l.run.directory import Run
from r3l.run.files import write_file
from r3l.run.goals import load_goals
from r3l.run.state import Word

SHOWN_GOALS, SHOWN_EVENTS = 24, 60
BEHAVIOURS = {
    "policy": "learned policy",
    "untrained": "the same policy, untrained",
    "do-nothing": "doing nothing",
    "random": "acting at random",
}
SAFETY = {
    "commands": "all commands, moves home included",
    "refused": "not finite or of the wrong length: not sent",
    "position_limited": "beyond the workspace limits",
    "speed_limited": "faster than the speed limit: normal, because actions are absolute targets",
}


def write_report(run: Run, path: Path) -> None:
    """Write the report, whole or not at all; a section without data says what is missing."""
    summary = read_summary(run)
    body = [header(summary), *(_section(summary, *parts) for parts in SECTIONS)]
    made = time.strftime("%Y-%m-%d %H:%M")
    source = html.escaped(f"Written by r3l {__version__} on {made} from {run.folder}.")
    body.append(f"<footer>{source}</footer>")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, html.document(f"{run.folder.name}: R3L report", "".join(body)).encode())


def _section(summary: RunSummary, anchor: str, title: str, lead: str, write: Callable[[RunSummary], str]) -> str:
    return html.section(anchor, title, lead, attempt(lambda: write(summary)))


def header(summary: RunSummary) -> str:
    """Say what the run is, how far it is and how well it does."""
    config, task = summary.config, summary.task
    state = summary.state
    kind = "good" if state.word in (Word.FINISHED, Word.ENDED) else "warn"
    parts = [f'<h1>{html.escaped(summary.run.folder.name)} <span class="badge {kind}">{state.word}</span></h1>']
    parts.append(html.paragraph(f"Task {task.name}: {task.description}. Robot: {config.robot}. Seed {config.seed}."))
    parts.append(html.paragraph(state.sentence + (" This page shows it as it is so far." if state.is_running else "")))
    readers = summary.truth_readers()
    if readers:
        items = "".join(f"<li>{html.escaped(reader)}</li>" for reader in readers)
        parts.append(
            '<div class="callout"><span class="badge alarm">diagnostic run: reads ground truth</span>'
            f"<p>It helps to find a fault. It is no evidence of learning from goal images.</p><ul>{items}</ul></div>"
        )
    parts.append(f'<div class="tiles">{"".join(_tiles(summary))}</div>')
    parts.append(attempt(lambda: _comparison(summary)))
    links = "".join(f'<a href="#{anchor}">{html.escaped(title)}</a>' for anchor, title, _, _ in SECTIONS)
    return f"<header>{''.join(parts)}<nav>{links}</nav></header>"


def _tiles(summary: RunSummary) -> list[str]:
    config, found = summary.config, summary.evaluations
    hertz = summary.task.rig.control_hz
    tiles = []
    if found:
        last = found[-3:]
        mean = float(np.mean([record["success"] for record in last]))
        count = f"mean of the last {len(last)} evaluations" if len(last) > 1 else "of the only evaluation"
        tiles.append(html.tile("Success", f"{mean:.0%}", count))
        ends = (found[0], found[-1])
        steps = " → ".join(f"step {record['step']:,}" for record in ends)
        successes = " → ".join(f"{record['success']:.0%}" for record in ends)
        errors = " → ".join(summary.error(record["median_final_error"]) for record in ends)
        limit = f"success: {summary.error(summary.task.success_error)} or less"
        tiles.append(html.tile("First → last evaluation", successes, steps))
        tiles.append(html.tile("Median final error", errors, limit))
    else:
        tiles.append(html.tile("Success", "unknown", "no evaluation yet"))
    tiles.append(
        html.tile("Env steps", f"{summary.steps:,}", summary.state.plan + (" planned" if config.steps < MANY else ""))
    )
    robot_time = duration(summary.steps / hertz)
    tiles.append(html.tile("Robot time", robot_time, f"at {hertz:g} Hz, without moves home between episodes"))
    seconds = summary.wall_s()
    if seconds is not None:
        rate = f"{summary.steps / max(seconds, 1e-9):.1f} env steps per second"
        tiles.append(html.tile("Wall time", duration(seconds), rate))
    return tiles


def _comparison(summary: RunSummary) -> str:
    """Return the newest evaluation as tables: policy and baselines, judge and ground truth."""
    found = summary.evaluation
    if found is None:
        return html.note(f"To compare the policy with its baselines: r3l evaluate {summary.run.folder}")
    rows = []
    for name, label in BEHAVIOURS.items():
        if name in found:
            one = found[name]
            low, high = one["success_interval"]
            shown = html.bar(one["success"], low, high)
            interval = f"{low:.0%} to {high:.0%}"
            rows.append((label, f"{one['success']:.0%}", shown, interval, summary.error(one["median_final_error"])))
    head = ("", "success", "", "95% interval", "median final error")
    title = f"<h3>Evaluation of step {found['step']:,} from {found['policy']['episodes']} starts</h3>"
    return title + html.table(head, rows) + _judge_table(found["policy"])


def _judge_table(policy: Record) -> str:
    judge = policy.get("judge")
    if judge is None:
        return html.note("This evaluation had no judge.")
    right = judge["true_positive"] + judge["true_negative"]
    text = f"The judge, which sees only images, is right in {right} of {policy['episodes']} episodes."
    rows = (
        ("really a success", judge["true_positive"], judge["false_negative"]),
        ("really a failure", judge["false_positive"], judge["true_negative"]),
    )
    return html.paragraph(text) + html.table(("", "judged success", "judged failure"), rows)


def goals(summary: RunSummary) -> str:
    """Show some of the goal images."""
    found = load_goals(summary.run.goals, summary.task.rig.camera, summary.task.minimum_goals)
    count = len(found.train)
    chosen = np.linspace(0, count - 1, min(SHOWN_GOALS, count)).round().astype(int)
    parts = [html.frame([figures.png(found.train[index])], f"{index + 1}") for index in chosen]
    shown = f"{count} goal images for training ({len(chosen)} of them shown)"
    return html.paragraph(f"{shown}, {len(found.held_out)} held out for the judge.") + html.frames(parts)


def safety(summary: RunSummary) -> str:
    """List the safety counters and the newest events."""
    counts = summary.safety()
    total = max(counts.get("commands", 0), 1)
    rows = [(name, count, f"{count / total:.1%}", SAFETY.get(name, "")) for name, count in counts.items()]
    text = html.table(("counter", "count", "of commands", "meaning"), rows) if rows else html.note("No counters yet.")
    events = summary.events[-SHOWN_EVENTS:]
    left_out = len(summary.events) - len(events)
    listed = [(event["time"].replace("T", " "), event["kind"], event["message"]) for event in events]
    text += "<h3>Events</h3>"
    text += html.paragraph(f"{left_out} earlier events are left out; see events.jsonl.") if left_out else ""
    return text + (html.table(("time", "kind", "message"), listed) if listed else html.note("No events."))


def settings(summary: RunSummary) -> str:
    """List the whole configuration, one table per group; values other than the default preset's are marked."""
    default = to_dict(PRESETS["default"]())
    values = to_dict(summary.config)
    tables = [_settings_table("", values, default)]
    tables += [_settings_table(key, value, default[key]) for key, value in values.items() if isinstance(value, dict)]
    return f'<div class="settings">{"".join(tables)}</div>'


def _settings_table(name: str, values: Record, default: Record) -> str:
    rows = []
    for key, value in values.items():
        if not isinstance(value, dict):
            shown = html.escaped(value if isinstance(value, str) else json.dumps(value))
            changed = list(value) != list(default[key]) if isinstance(value, tuple) else value != default[key]
            marked = f"<b class=changed>{shown}</b>" if changed else shown
            rows.append((Markup(f"<code>{html.escaped(key)}</code>"), Markup(marked)))
    return f"<div><h3>{html.escaped(name or 'run')}</h3>{html.table(('key', 'value'), rows)}</div>"


SECTIONS: tuple[tuple[str, str, str, Callable[[RunSummary], str]], ...] = (
    (
        "learning",
        "Learning curves",
        "Look for success that rises and stays up, and for a judge that agrees with it. On a real robot, the judge is "
        "the only measure of success.",
        learning,
    ),
    (
        "films",
        "Episodes",
        "Each strip is one evaluation episode of the learned policy, from left to right. Look for the fingers moving "
        "the object on purpose until it looks like the goal image, and then leaving it there.",
        films,
    ),
    (
        "encoder",
        "What the encoder keeps",
        "Above: the camera image. Below: its reconstruction. Look at the object: policies and classifier cannot see "
        "what is missing below.",
        encoder,
    ),
    (
        "reward",
        "The learned reward and the judge",
        "Both learn from goal images alone. Look for values that are high inside the green band and low everywhere "
        "else. A second hill is a place that is rewarded by mistake.",
        reward,
    ),
    (
        "coverage",
        "Where the object has been",
        "Look for a task policy that gathers around the goal, and for a run that still visits every other place.",
        visits,
    ),
    (
        "goals",
        "Goal images",
        "The robot knows the task from these images alone. Look for the object in its goal state in every image, with "
        "the fingers in many different poses.",
        goals,
    ),
    (
        "safety",
        "Safety and events",
        "Look for refused commands (there should be none) and for restarts that you did not ask for.",
        safety,
    ),
    (
        "settings",
        "Configuration",
        "Every setting of this run. Values that differ from the default preset are marked.",
        settings,
    ),
)
"""Anchor, title, what to look for, and the function that writes the section."""
