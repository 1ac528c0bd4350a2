"""The report of a run: one HTML page that holds everything it shows and works for a run at any stage."""

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
from r3l.evaluation.report import figures
from r3l.evaluation.report import html as page
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
    "commands": "all commands, homing included",
    "refused": "not finite, or of the wrong length: nothing was sent",
    "position_limited": "asked for more than the workspace limits",
    "speed_limited": "asked to move faster than the limit: the normal way to act, since actions are absolute targets",
}


def write_report(run: Run, path: Path) -> None:
    """Write the page, whole or not at all. What a run does not hold yet is said in its place."""
    facts = read_summary(run)
    body = [header(facts), *(_section(facts, *parts) for parts in SECTIONS)]
    made = time.strftime("%Y-%m-%d %H:%M")
    body.append(
        f"<footer>Written by r3l {page.escaped(__version__)} on {made} from {page.escaped(run.folder)}.</footer>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, page.document(f"{run.folder.name}: R3L report", "".join(body)).encode())


def _section(facts: RunSummary, anchor: str, title: str, lead: str, write: Callable[[RunSummary], str]) -> str:
    return page.section(anchor, title, lead, attempt(lambda: write(facts)))


def header(facts: RunSummary) -> str:
    """Say what the run is, how far it came and how well it does."""
    config, task = facts.config, facts.task
    state = facts.state
    kind = "good" if state.word in (Word.FINISHED, Word.ENDED) else "warn"
    parts = [f'<h1>{page.escaped(facts.run.folder.name)} <span class="badge {kind}">{state.word}</span></h1>']
    parts.append(page.paragraph(f"Task {task.name}: {task.description}. Robot: {config.robot}. Seed {config.seed}."))
    parts.append(page.paragraph(state.sentence + (" This page shows it as it is so far." if state.is_running else "")))
    readers = facts.truth_readers()
    if readers:
        items = "".join(f"<li>{page.escaped(reader)}</li>" for reader in readers)
        parts.append(
            '<div class="callout"><span class="badge alarm">diagnostic run: reads ground truth</span>'
            f"<p>It tells where a problem is; it is no evidence of learning from goal images.</p><ul>{items}</ul></div>"
        )
    parts.append(f'<div class="tiles">{"".join(_tiles(facts))}</div>')
    parts.append(attempt(lambda: _comparison(facts)))
    links = "".join(f'<a href="#{anchor}">{page.escaped(title)}</a>' for anchor, title, _, _ in SECTIONS)
    return f"<header>{''.join(parts)}<nav>{links}</nav></header>"


def _tiles(facts: RunSummary) -> list[str]:
    config, found = facts.config, facts.evaluations
    hertz = facts.task.rig.control_hz
    tiles = []
    if found:
        last = found[-3:]
        mean = float(np.mean([record["success"] for record in last]))
        count = f"mean of the last {len(last)} evaluations" if len(last) > 1 else "of the only evaluation"
        tiles.append(page.tile("Success", f"{mean:.0%}", count))
        first = f"step {found[0]['step']:,} → step {found[-1]['step']:,}"
        tiles.append(
            page.tile("First → last evaluation", f"{found[0]['success']:.0%} → {found[-1]['success']:.0%}", first)
        )
        errors = (facts.error(found[0]["median_final_error"]), facts.error(found[-1]["median_final_error"]))
        limit = f"success: {facts.error(facts.task.success_error)} or less"
        tiles.append(page.tile("Median final error", f"{errors[0]} → {errors[1]}", limit))
    else:
        tiles.append(page.tile("Success", "not known", "no evaluation yet"))
    tiles.append(
        page.tile("Env steps", f"{facts.steps:,}", facts.state.plan + (" planned" if config.steps < MANY else ""))
    )
    robot_time = duration(facts.steps / hertz)
    tiles.append(page.tile("Robot time", robot_time, f"at {hertz:g} Hz, homing between episodes excluded"))
    wall = facts.wall_s()
    if wall is not None:
        tiles.append(
            page.tile("Wall time", duration(wall), f"{facts.steps / max(wall, 1e-9):.1f} env steps per second")
        )
    return tiles


def _comparison(facts: RunSummary) -> str:
    """Return the newest evaluation: the policy beside the baselines, and the judge beside the truth."""
    found = facts.evaluation
    if found is None:
        return page.note(
            "The policy has not been compared with doing nothing and acting at random yet: "
            f"r3l evaluate {facts.run.folder}"
        )
    rows = []
    for name, label in BEHAVIOURS.items():
        if name in found:
            one = found[name]
            low, high = one["success_interval"]
            shown = page.bar(one["success"], low, high)
            interval = f"{low:.0%} to {high:.0%}"
            rows.append((label, f"{one['success']:.0%}", shown, interval, facts.error(one["median_final_error"])))
    head = ("", "success", "", "95% interval", "median final error")
    title = f"<h3>Evaluation of step {found['step']:,} from {found['policy']['episodes']} starts</h3>"
    return title + page.table(head, rows) + _judge_table(found["policy"])


def _judge_table(policy: Record) -> str:
    judge = policy.get("judge")
    if judge is None:
        return page.note("No judge took part in this evaluation.")
    right = judge["true_positive"] + judge["true_negative"]
    text = f"The judge, which sees only images, is right in {right} of {policy['episodes']} episodes."
    rows = (
        ("really a success", judge["true_positive"], judge["false_negative"]),
        ("really a failure", judge["false_positive"], judge["true_negative"]),
    )
    return page.paragraph(text) + page.table(("", "judged success", "judged failure"), rows)


def goals(facts: RunSummary) -> str:
    """Show the goal images."""
    found = load_goals(facts.run.goals, facts.task.rig.camera, facts.task.minimum_goals)
    count = len(found.train)
    chosen = np.linspace(0, count - 1, min(SHOWN_GOALS, count)).round().astype(int)
    parts = [page.frame([figures.png(found.train[index])], f"{index + 1}") for index in chosen]
    text = (
        f"{count} goal images for training ({len(chosen)} of them shown), {len(found.held_out)} held out for the judge."
    )
    return page.paragraph(text) + page.frames(parts)


def safety(facts: RunSummary) -> str:
    """List what safety limited, and what happened."""
    counts = facts.safety()
    total = max(counts.get("commands", 0), 1)
    rows = [(name, count, f"{count / total:.1%}", SAFETY.get(name, "")) for name, count in counts.items()]
    text = page.table(("counter", "count", "of commands", "meaning"), rows) if rows else page.note("No counters yet.")
    events = facts.events[-SHOWN_EVENTS:]
    left_out = len(facts.events) - len(events)
    listed = [(event["time"].replace("T", " "), event["kind"], event["message"]) for event in events]
    text += "<h3>Events</h3>"
    text += page.paragraph(f"{left_out} earlier events are left out; see events.jsonl.") if left_out else ""
    return text + (page.table(("time", "kind", "message"), listed) if listed else page.note("No events."))


def settings(facts: RunSummary) -> str:
    """List the whole configuration, one table per group, with what differs from the default marked."""
    default = to_dict(PRESETS["default"]())
    values = to_dict(facts.config)
    tables = [_settings_table("", values, default)]
    tables += [_settings_table(key, value, default[key]) for key, value in values.items() if isinstance(value, dict)]
    return f'<div class="settings">{"".join(tables)}</div>'


def _settings_table(name: str, values: Record, default: Record) -> str:
    rows = []
    for key, value in values.items():
        if not isinstance(value, dict):
            shown = page.escaped(value if isinstance(value, str) else json.dumps(value))
            changed = list(value) != list(default[key]) if isinstance(value, tuple) else value != default[key]
            rows.append(
                (
                    Markup(f"<code>{page.escaped(key)}</code>"),
                    Markup(f"<b class=changed>{shown}</b>" if changed else shown),
                )
            )
    return f"<div><h3>{page.escaped(name or 'run')}</h3>{page.table(('key', 'value'), rows)}</div>"


SECTIONS: tuple[tuple[str, str, str, Callable[[RunSummary], str]], ...] = (
    (
        "learning",
        "Learning curves",
        "Look for success that rises and stays up, and for a judge that agrees with it: on a real robot the judge is "
        "all there is.",
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
        "Camera above, reconstruction below. Look at the object: what is missing below, the policies and the "
        "classifier cannot see either.",
        encoder,
    ),
    (
        "reward",
        "The learned reward and the judge",
        "Both were learned from goal images alone. Look for values that are high inside the green band and low "
        "everywhere else; a second hill is a place that the robot is rewarded for by mistake.",
        reward,
    ),
    (
        "coverage",
        "Where the object has been",
        "Look for a task policy that gathers around the goal, and for a run that still sees every other place.",
        visits,
    ),
    (
        "goals",
        "Goal images",
        "All that the robot was told. Look for the object in its goal state in every picture, with the fingers in many "
        "different poses.",
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
        "Every setting that decided this run; what differs from the default preset is marked.",
        settings,
    ),
)
