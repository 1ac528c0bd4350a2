"""`r3l status`: the progress and health of a run as JSON values or as a page."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from r3l.cli.status_page import WIDTH, render
from r3l.cli.status_view import RunView, read_view
from r3l.config.schema import MANY
from r3l.run import files
from r3l.run.directory import Run
from r3l.run.disk_space import RESERVE_BYTES, folder_bytes, forecast, quota_bytes, room_left
from r3l.run.experience import PHASES
from r3l.run.state import wall_s
from r3l.training.shared_status import PROCESSES, SLOTS, State

Values = dict[str, Any]
"""JSON values by name; None where a value is unknown."""
RATE_INTERVAL_S, WATCH_INTERVAL_S = 0.5, 1.0
"""Seconds between the two views that give a rate of updates, and between two pages with --watch."""
WATCHED_VIEWS = 10
"""Views over which --watch takes the rate of updates."""
EVENTS = 5
MIN_WIDTH = 40
WORDS = {State.PAUSED: "paused", State.RELAXED: "relaxed", State.STARTING: "starting", State.ABSENT: "starting"}
WAITS = (State.LEARNER_AWAY, State.DISK_FULL, State.CHECK_FAILED, State.STUCK)
"""Actor states that may need people to end them."""


def show(run: Run, *, watch: bool, as_json: bool) -> int:
    """Print the status of a run, every second until Ctrl-C with `watch`; return the exit code."""
    views: deque[RunView] = deque(maxlen=WATCHED_VIEWS)
    with suppress(KeyboardInterrupt):
        while True:
            views.append(read_view(run))
            found = describe(views[-1], views[0] if watch else None)
            page = json.dumps(found, indent=None if watch else 2) if as_json else render(found, _columns())
            if not watch:
                print(page)
                break
            _redraw(page, is_line=as_json)
            time.sleep(WATCH_INTERVAL_S)
    return 0


def _columns() -> int:
    """Return the width of the page in characters."""
    columns: int = shutil.get_terminal_size().columns
    return max(min(WIDTH, columns), MIN_WIDTH)


def _redraw(page: str, *, is_line: bool) -> None:
    if sys.stdout.isatty() and not is_line:
        page = "\n".join(page.split("\n")[: shutil.get_terminal_size().lines - 1])
        # Overwrite line by line from the top, then clear the rest of the screen: this avoids flicker.
        page = "\x1b[H" + page.replace("\n", "\x1b[K\n") + "\x1b[K\x1b[J"
    print(page, end="\n" if is_line else "\n\n", flush=True)


def collect(run: Run) -> Values:
    """Return the status of any run as JSON values; takes half a second longer for a run that is running."""
    return describe(read_view(run))


def describe(now: RunView, before: RunView | None = None) -> Values:
    """Return a view as JSON values, with rates since `before`; without `before` a second view is read for the rates."""
    config, steps = now.run.config, now.steps
    word, reason = _state(now)
    return {
        "run": str(now.run.folder),
        "task": config.task,
        "robot": config.robot,
        "time_epoch_s": now.time_s,
        "state": word,
        "reason": reason,
        "sentence": now.state.sentence,
        "phase": _phase(now),
        "steps": steps,
        "total_steps": config.steps if config.steps < MANY else None,
        "plan": now.state.plan,
        "steps_per_s": now.steps_per_s,
        "robot_hours": steps / now.task.rig.control_hz / 3600 if now.task and steps is not None else None,
        "wall_hours": _wall_hours(now),
        "ends_epoch_s": _end_epoch_s(now),
        "updates": _whole(now.shared.get("learner.updates")),
        "updates_per_s": _updates_per_s(now, before),
        "update_ratio": _update_ratio(now),
        "wanted_update_ratio": config.update_ratio,
        "rollbacks": _whole(now.shared.get("learner.rollbacks")),
        "success": _success(now),
        "coverage": now.newest("coverage")[1],
        "reward": _reward(now),
        "checks": {slot[6:]: _whole(now.shared.get(slot)) for slot in SLOTS if slot.startswith("check.")},
        "stuck_level": _whole(now.shared.get("actor.stuck_level")),
        "timing": _timing(now),
        "safety": _safety(now),
        "vitals": _vitals(now),
        "weights": _weights(now),
        "checkpoint_step": _checkpoint_step(now.run),
        "processes": _processes(now),
        "memory_forecast_bytes": forecast(config, now.task).memory_bytes if now.task else None,
        "disk": _disk(now),
        "events": [
            {key: str(event.get(key, "")) for key in ("time", "kind", "message")} for event in now.events[-EVENTS:]
        ],
    }


def _state(now: RunView) -> tuple[str, str | None]:
    """Return the run's state in a word, told apart by its actor's state while it runs, and the reason for it."""
    if not now.state.is_running:
        return str(now.state.word), now.state.reason
    if now.run.config.sync:
        return "running", None
    actor = _state_of(now, "actor")
    if actor in WORDS:
        return WORDS[actor], None
    reason = {State.ACTING: None, State.ENDED: "finishing"}.get(actor, _words(actor))
    return "waiting" if actor in WAITS else "running", reason


def _state_of(now: RunView, process: str) -> State:
    with suppress(ValueError):
        return State(int(now.live.get(f"{process}.state", State.ABSENT)))
    return State.ABSENT


def _words(state: State) -> str:
    return state.name.lower().replace("_", " ")


def _phase(now: RunView) -> str | None:
    return dict(enumerate(PHASES)).get(now.rows[0]["phase"]) if now.rows else None


def _wall_hours(now: RunView) -> float | None:
    """Return the hours for which the run ran, without the pauses between its starts."""
    written_s = [row["written_s"] for row in reversed(now.rows)]
    seconds = wall_s(now.events, written_s, now.time_s if now.state.is_running else None)
    return None if seconds is None else seconds / 3600


def _end_epoch_s(now: RunView) -> float | None:
    """Return when the run ends, by its deadline or by its steps, whichever comes first."""
    ends = [now.live["deadline_epoch_s"]] if now.live.get("deadline_epoch_s") else []
    if now.steps is not None and now.steps_per_s and now.run.config.steps < MANY:
        ends.append(now.time_s + max(now.run.config.steps - now.steps, 0) / now.steps_per_s)
    return min(ends, default=None)


def _updates_per_s(now: RunView, before: RunView | None) -> float | None:
    if not now.live:
        return None
    if before is None or before is now:
        time.sleep(RATE_INTERVAL_S)
        before, now = now, read_view(now.run)
    first, last = (view.live.get("learner.updates") for view in (before, now))
    if first is None or last is None or now.time_s <= before.time_s:
        return None
    return max(last - first, 0.0) / (now.time_s - before.time_s)


def _update_ratio(now: RunView) -> float | None:
    """Return the updates made per env step since exploration."""
    learnable = (now.steps or 0) - now.run.config.phases.exploration_steps
    updates = now.shared.get("learner.updates")
    return updates / learnable if updates and learnable > 0 else None


def _success(now: RunView) -> Values:
    found: Values = {}
    for name, (step, value) in {
        "judged": now.newest("health/judged_success"),
        "episodes": now.newest("judged/episode_success"),
        "evaluated": now.newest("success", now.evaluations),
    }.items():
        found |= {name: value, f"{name}_step": step}
    return found


def _reward(now: RunView) -> Values:
    """Return the newest check of the success classifier, and the reward events that are not over."""
    step, auc = now.newest("health/auc")
    held_out, elsewhere = (now.newest(f"health/{name}")[1] for name in ("held_out", "elsewhere"))
    last = {str(event.get("kind")): str(event.get("message")) for event in now.events}
    ill = [kind for kind, message in last.items() if kind.startswith("reward-") and not message.startswith("over")]
    return {
        "word": None if auc is None else "ill" if ill else _health(now, auc, held_out, elsewhere),
        "ill": [kind.removeprefix("reward-") for kind in ill],
        "step": step,
        "auc": auc,
        "held_out": held_out,
        "elsewhere": elsewhere,
    }


def _health(now: RunView, auc: float, held_out: float | None, elsewhere: float | None) -> str:
    """Return a word for a classifier without a reward event: one that is not yet well may still have time to learn."""
    health = now.run.config.health
    is_well = auc >= health.min_auc and (elsewhere or 0.0) <= health.max_elsewhere * (held_out or 0.0)
    return "well" if is_well else "not yet well"


def _timing(now: RunView) -> Values:
    """Return how many commands were on time; None for a robot without a clock of its own."""
    names = ("actor.commands", "actor.on_time", "actor.overruns", "actor.worst_late_s")
    commands, on_time, overruns, worst_late_s = (now.shared.get(name) for name in names)
    is_kept = bool(on_time or overruns)
    return {
        "commands": _whole(commands),
        "on_time_share": (on_time or 0.0) / commands if commands and is_kept else None,
        "overruns": _whole(overruns) if is_kept else None,
        "worst_late_s": worst_late_s if is_kept else None,
    }


def _safety(now: RunView) -> Values:
    names = ("position_limited", "speed_limited", "refused")
    return {name: _whole(now.shared.get(f"actor.{name}", now.newest(f"safety/{name}")[1])) for name in names}


def _vitals(now: RunView) -> Values | None:
    """Return the actuators' temperature, current and voltage; None if the robot does not measure them."""
    found = {name: now.live.get(f"actor.{name}", 0.0) for name in ("hottest_c", "current_a", "voltage_v")}
    return found if found["hottest_c"] else None


def _weights(now: RunView) -> Values:
    age_s = None
    with suppress(OSError):
        age_s = max(now.time_s - now.run.acting_weights.stat().st_mtime, 0.0)
    return {
        "acting_version": _whole(now.shared.get("actor.version")),
        "published_version": _whole(now.shared.get("learner.version")),
        "age_s": age_s,
    }


def _checkpoint_step(run: Run) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(files.read(run.checkpoints / "latest", files.MAX_LINE_BYTES).decode().split("-")[1].split(".")[0])
    return None


def _processes(now: RunView) -> Values:
    found: Values = {"supervisor": {"pid": now.state.pid, "rss_bytes": _rss_bytes(now.state.pid)}}
    for process in PROCESSES if now.live else ():
        pid = _whole(now.live.get(f"{process}.pid")) or None
        found[process] = {
            "pid": pid,
            "state": _words(_state_of(now, process)),
            "restarts": _whole(now.live.get(f"{process}.restarts")),
            "rss_bytes": _rss_bytes(pid),
        }
    if _state_of(now, "learner") == State.PRETRAINING:
        found["learner"]["state"] += f" {now.live.get('learner.pretrained_share', 0.0):.0%}"
    return found


def _rss_bytes(pid: int | None) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _disk(now: RunView) -> Values:
    quota = quota_bytes(now.run.config)
    found: Values = {"used_bytes": None, "left_bytes": None, "quota_bytes": quota or None, "hours_left": None}
    with suppress(OSError):
        left = room_left(now.run.folder, quota)
        found |= {"used_bytes": folder_bytes(now.run.folder), "left_bytes": left}
        if now.task is not None:
            needs = forecast(now.run.config, now.task, steps_per_s=now.steps_per_s)
            found["hours_left"] = needs.hours(left - RESERVE_BYTES)
    return found


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
