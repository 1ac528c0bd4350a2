"""The page of `r3l status`: the status of a run as plain text of at most 80 columns."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from r3l.run.disk_space import GIB, MIB
from r3l.run.state import Word

WIDTH, LABEL = 80, 11
MIN_FOLDER = 20
"""Characters that stay of a long path, however long the state is."""
UNKNOWN = "-"
ENDED = set(Word) - {Word.RUNNING, Word.NOT_STARTED}
"""States whose sentence says what happened and how to go on."""


def render(found: Mapping[str, Any], width: int = WIDTH) -> str:
    """Return the page for the values of `r3l.cli.status.collect`, at most `width` columns wide."""
    lines = [_head(found, width)]
    for name, text in _lines(found):
        wrapper = textwrap.TextWrapper(width, f"{name:<{LABEL}}", " " * LABEL, break_on_hyphens=False)
        lines += wrapper.wrap(plain(text))
    lines += [_event(event) for event in found["events"]]
    return "\n".join(line[: width - 1] + "…" if len(line) > width else line for line in lines)


def plain(text: str) -> str:
    """Return text on one line, with a question mark for each control character."""
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))


def _head(found: Mapping[str, Any], width: int) -> str:
    state = plain(found["state"] + (f": {found['reason']}" if found["reason"] else ""))
    folder, room = plain(found["run"]), max(width - len(state) - 3, MIN_FOLDER)
    return f"{folder if len(folder) <= room else '…' + folder[1 - room :]}  {state}"


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if found["state"] in ENDED:
        yield "state", found["sentence"]
    yield "task", f"{found['task']} on {found['robot']}, phase {found['phase'] or UNKNOWN}"
    yield "env steps", f"{_count(found['steps'])} {found['plan']}, {_figure(found['steps_per_s'], '.1f')}/s"
    yield "time", _time(found)
    ratio = f"{_figure(found['update_ratio'], '.2f')} of {found['wanted_update_ratio']:g} per env step"
    rate = f"{_figure(found['updates_per_s'], '.1f')}/s"
    back = f", went back {_count(found['rollbacks'])} times" if found["rollbacks"] else ""
    yield "updates", f"{_count(found['updates'])}, {rate}, {ratio}{back}"
    weights = found["weights"]
    versions = f"version {_count(weights['acting_version'])} acts, {_count(weights['published_version'])} published"
    yield "weights", f"{versions} {_age(weights['age_s'])} ago; checkpoint at {_count(found['checkpoint_step'])}"
    yield from _success(found["success"])
    yield "coverage", _figure(found["coverage"], ".2f")
    yield "reward", _reward(found["reward"])
    stuck = f"; the object is stuck (level {_count(found['stuck_level'])})" if found["stuck_level"] else ""
    yield "checks", _checks(found["checks"]) + stuck
    yield "timing", _timing(found["timing"])
    counts = (f"{_count(value)} {name.replace('_', ' ')}" for name, value in found["safety"].items())
    yield "safety", ", ".join(counts)
    if found["vitals"]:
        vitals = found["vitals"]
        at_most = f"{_figure(vitals['hottest_c'], '.0f')} °C and {_figure(vitals['current_a'], '.2f')} A at most"
        yield "servos", f"{at_most}, {_figure(vitals['voltage_v'], '.1f')} V at least"
    yield from _processes(found)
    yield "disk", _disk(found["disk"])


def _time(found: Mapping[str, Any]) -> str:
    robot, wall = (_figure(found[f"{kind}_hours"], ".2f") for kind in ("robot", "wall"))
    return f"{robot} h of env steps, {wall} h by the clock, ends {_clock(found['ends_epoch_s'])}"


def _success(success: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    judged, episodes = (_figure(success[name], ".2f") for name in ("judged", "episodes"))
    yield "judged", f"{judged} of new frames, {episodes} of episodes"
    yield "evaluated", f"{_figure(success['evaluated'], '.2f')} at {_count(success['evaluated_step'])}"


def _reward(reward: Mapping[str, Any]) -> str:
    word = reward["word"] or UNKNOWN
    ill = f" ({', '.join(reward['ill'])})" if reward["ill"] else ""
    scores = f"goals {_figure(reward['held_out'], '.2f')}, elsewhere {_figure(reward['elsewhere'], '.2f')}"
    return f"{word}{ill}: ROC-AUC {_figure(reward['auc'], '.2f')}, {scores}, at {_count(reward['step'])}"


def _checks(checks: Mapping[str, Any]) -> str:
    if all(count is None for count in checks.values()):
        return UNKNOWN
    failed = ", ".join(f"{_count(count)} {name.replace('_', ' ')}" for name, count in checks.items() if count)
    return failed or "none failed"


def _timing(timing: Mapping[str, Any]) -> str:
    share, late = timing["on_time_share"], timing["worst_late_s"]
    on_time = f"{_figure(None if share is None else 100 * share, '.1f')}% of {_count(timing['commands'])} on time"
    worst = _figure(None if late is None else 1000 * late, ".0f")
    return f"{on_time}, {_count(timing['overruns'])} overruns, worst {worst} ms late"


def _processes(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    processes = found["processes"]
    for name, process in processes.items() if processes["supervisor"]["pid"] else ():
        text = f"process {process['pid'] or UNKNOWN}, {_size(process['rss_bytes'])}"
        if "state" in process:
            text = f"{process['state']}, {_count(process['restarts'])} restarts, {text}"
        yield name if len(processes) > 1 else "run by", text
    used = [process["rss_bytes"] for process in processes.values() if process["rss_bytes"] is not None]
    full = f"{_size(found['memory_forecast_bytes'])} with a full replay"
    yield "memory", f"{_size(sum(used) if used else None)}, {full}"


def _disk(disk: Mapping[str, Any]) -> str:
    quota = f" of {_size(disk['quota_bytes'])}" if disk["quota_bytes"] else ""
    lasts = f"enough for {_figure(disk['hours_left'], '.1f')} h"
    return f"{_size(disk['used_bytes'])} taken, {_size(disk['left_bytes'])} left{quota}, {lasts}"


def _event(event: Mapping[str, str]) -> str:
    day, _, clock = event["time"].partition("T")
    return f"{plain(day[5:])} {plain(clock[:5])} {plain(event['kind']):<11} {plain(event['message'])}"


def _figure(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)


def _count(value: float | None) -> str:
    return _figure(value, ",.0f")


def _size(count: float | None) -> str:
    if count is None:
        return UNKNOWN
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def _clock(epoch_s: float | None) -> str:
    with suppress(OverflowError, ValueError, OSError):
        return UNKNOWN if epoch_s is None else time.strftime("%a %H:%M", time.localtime(epoch_s))
    return UNKNOWN
