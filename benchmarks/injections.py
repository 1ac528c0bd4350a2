"""The faults of a night: functions that break a small run on the fault bench and note what follows.

Each function takes the folder of the run and an outcome to fill.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.disks import FailingDisk, small_disk
from benchmarks.night import HZ, PERIOD_S, QUICK, SMALL, Night
from benchmarks.outcome import (
    RECOVERY_TIMEOUT_S,
    Outcome,
    learning_night,
    note_torque,
    wait_for_end,
    wait_for_restart,
    wait_until_learning,
)
from r3l.config.schema import Check, PersistenceConfig
from r3l.run.checkpoint import load_checkpoint
from r3l.task.registry import load_task
from r3l.training.shared_status import State

SMALL_DISK_MIB = 400
SMALL_DISK_STEPS = 5000
"""Env steps that fit on a small disk."""
MAX_COMMANDS_AFTER_STOP = 2
MAX_STOP_S = 10.0
MAX_CHECKPOINT_LAG_STEPS = 20
DARK_LEVEL = 12.0
CHECK_OF = {"nan": "joint_impossible", "far": "joint_impossible", "still": "joint_frozen"}
"""The check that finds a fault of the bench, if it does not bear the fault's name."""


def ignore(text: str) -> None:
    """Take a message and do nothing."""


def signal_process(folder: Path, outcome: Outcome, *, name: str, number: int, limit_s: float) -> None:
    """Kill or stop the actor or the learner."""
    limits = replace(QUICK, actor_limit_s=limit_s, learner_limit_s=limit_s)
    with learning_night(folder, outcome, supervision=limits) as night:
        pid = night.pid(name)
        os.kill(pid, number)
        wait_for_restart(night, outcome, name, pid, 0.0 if number == signal.SIGKILL else limit_s)
        wait_until_learning(night, outcome)


def kill_supervisor(folder: Path, outcome: Outcome) -> None:
    """Kill the supervisor; actor and learner must end by themselves."""
    with learning_night(folder, outcome) as night:
        killed_s, actor = time.monotonic(), night.pid("actor")
        night.kill()
        while Path(f"/proc/{actor}").exists() and time.monotonic() - killed_s < RECOVERY_TIMEOUT_S:
            time.sleep(0.02)
        commands = [line["time_s"] for line in night.servos() if line["event"] == "torque-on"]
        lag_s = max([each - killed_s for each in commands if each > killed_s], default=0.0)
        outcome.note(f"relaxed after {lag_s:.2f} s", is_expected=not night.torque_is_on())
        night.start()
        wait_until_learning(night, outcome)


def kill_all_processes(folder: Path, outcome: Outcome) -> None:
    """Kill supervisor, actor and learner at the same moment."""
    with learning_night(folder, outcome) as night:
        pids = [night.pid(name) for name in ("actor", "learner")]
        night.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        night.start()
        wait_until_learning(night, outcome)


def kill_supervisor_of_hung_actor(folder: Path, outcome: Outcome) -> None:
    """Stop the actor, then kill the supervisor, so that the actor cannot end by itself."""
    with learning_night(folder, outcome) as night:
        actor = night.pid("actor")
        os.kill(actor, signal.SIGSTOP)
        night.kill()
        night.start()
        night.wait_for(lambda: not Path(f"/proc/{actor}").exists(), RECOVERY_TIMEOUT_S)
        outcome.note("the hung actor is gone")
        wait_until_learning(night, outcome)


def hold_learner(folder: Path, outcome: Outcome) -> None:
    """Stop the learner for longer than the robot may act on old weights."""
    limits = replace(QUICK, learner_away_s=2.0, learner_limit_s=600.0)
    with learning_night(folder, outcome, supervision=limits) as night:
        learner, steps = night.pid("learner"), night.status("actor.steps")
        os.kill(learner, signal.SIGSTOP)
        night.wait_for(lambda: night.state("actor") is State.LEARNER_AWAY, RECOVERY_TIMEOUT_S)
        more = night.status("actor.steps") - steps
        min_steps = 0.5 * limits.learner_away_s / PERIOD_S
        outcome.note(f"acts on for {more:.0f} steps", is_expected=more > min_steps)
        note_torque(night, outcome)
        os.kill(learner, signal.SIGCONT)
        wait_until_learning(night, outcome)


def unplug_robot(folder: Path, outcome: Outcome) -> None:
    """Unplug the robot for good."""
    with learning_night(folder, outcome, supervision=replace(QUICK, max_restarts=2, backoff_s=0.05)) as night:
        night.inject("unplugged")
        code, _ = night.wait_for_end(2 * RECOVERY_TIMEOUT_S)
        outcome.note(f"{night.count('restart')} restarts, exit code {code}", is_expected=code == 3)
        outcome.note("event failed", is_expected=night.count("failed") == 1)


def hang_robot(folder: Path, outcome: Outcome) -> None:
    """Let a call of the robot never return."""
    with learning_night(folder, outcome) as night:
        pid = night.pid("actor")
        night.inject("hang")
        wait_for_restart(night, outcome, "actor", pid, QUICK.actor_limit_s)
        night.inject()
        wait_until_learning(night, outcome)


def stop_by_signal(folder: Path, outcome: Outcome, *, number: int) -> None:
    """Stop the run by a signal to the supervisor."""
    with learning_night(folder, outcome) as night:
        assert night.process is not None
        start_s = time.monotonic()
        night.process.send_signal(number)
        commands = night.commands_after_stop()
        outcome.note(f"{commands} commands more", is_expected=commands <= MAX_COMMANDS_AFTER_STOP)
        code, _ = night.wait_for_end(RECOVERY_TIMEOUT_S)
        spent_s = time.monotonic() - start_s
        note_torque(night, outcome)
        kept = load_checkpoint(night.run.checkpoints, lambda text: outcome.note(text, is_expected=False))
        lag = night.steps() - (kept[1]["learner"]["steps"] if kept else 0)
        outcome.note(f"checkpoint {lag} steps behind", is_expected=lag < MAX_CHECKPOINT_LAG_STEPS)
        outcome.note(f"exit code {code} after {spent_s:.1f} s", is_expected=code == 0 and spent_s < MAX_STOP_S)


def close_terminal(folder: Path, outcome: Outcome) -> None:
    """Send the supervisor the signal of a closed terminal."""
    with learning_night(folder, outcome) as night:
        assert night.process is not None
        night.process.send_signal(signal.SIGHUP)
        wait_until_learning(night, outcome)


def relax_resume_stop(folder: Path, outcome: Outcome) -> None:
    """Relax, resume and stop the run by commands."""
    with learning_night(folder, outcome) as night:
        night.command("relax")
        note_torque(night, outcome)
        night.command("resume")
        wait_until_learning(night, outcome)
        night.command("stop")
        wait_for_end(night, outcome, 0)


def start_second_run(folder: Path, outcome: Outcome) -> None:
    """Start a second run on the same directory."""
    with learning_night(folder, outcome) as night:
        assert night.process is not None
        refused = night.command("train", "--resume")
        is_named = f"process {night.process.pid}" in refused.stderr and refused.stderr.count("\n") == 1
        outcome.note(f"exit code {refused.returncode}, {'names the first' if is_named else refused.stderr}")
        outcome.is_as_expected &= refused.returncode == 2 and is_named
        wait_until_learning(night, outcome)


def reach_time_limit(folder: Path, outcome: Outcome) -> None:
    """Train until --hours is over."""
    with Night(folder) as night:
        night.start("--hours", str(20 / 3600))
        wait_for_end(night, outcome, 0, 3 * RECOVERY_TIMEOUT_S)
        has_report = night.run.report.exists()
        outcome.note("report" if has_report else "no report", is_expected=has_report)
        has_checkpoint = load_checkpoint(night.run.checkpoints, ignore) is not None
        outcome.note("checkpoint" if has_checkpoint else "no checkpoint", is_expected=has_checkpoint)


def wait_for_full_disk_and_free(night: Night, outcome: Outcome, ballast: Path) -> None:
    """Wait until the run pauses for lack of space, then remove the ballast."""
    night.wait_for(lambda: night.state("actor") is State.DISK_FULL, RECOVERY_TIMEOUT_S)
    note_torque(night, outcome)
    ballast.unlink()
    wait_until_learning(night, outcome)


def use_up_quota(folder: Path, outcome: Outcome) -> None:
    """Fill the run directory up to its quota."""
    with learning_night(folder, outcome, steps=SMALL_DISK_STEPS, quota_gib=0.5) as night:
        ballast = night.run.folder / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 29)
        wait_for_full_disk_and_free(night, outcome, ballast)


def fill_disk(folder: Path, outcome: Outcome) -> None:
    """Fill the file system of the run directory."""
    changes: dict[str, Any] = {"steps": SMALL_DISK_STEPS, "bench": folder / "bench"}
    with small_disk(folder, SMALL_DISK_MIB) as disk, learning_night(disk, outcome, **changes) as night:
        ballast = disk / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                pass
        wait_for_full_disk_and_free(night, outcome, ballast)


def break_disk(folder: Path, outcome: Outcome) -> None:
    """Turn the file system of the run directory read-only, repair it, and start the run again."""
    changes: dict[str, Any] = {"steps": SMALL_DISK_STEPS, "bench": folder / "bench", "max_lost": round(HZ)}
    with closing(FailingDisk(folder)) as disk, learning_night(disk.folder, outcome, **changes) as night:
        disk.break_down()
        night.wait_for(lambda: night.state("actor") is State.DISK_FULL, RECOVERY_TIMEOUT_S)
        note_torque(night, outcome)
        assert night.process is not None
        night.process.send_signal(signal.SIGTERM)
        code, output = night.wait_for_end(RECOVERY_TIMEOUT_S)
        outcome.note(f"exit code {code} when stopped{f': {output[-200:]}' if code else ''}", is_expected=code == 0)
        disk.repair()
        night.start()
        wait_until_learning(night, outcome)


def truncate(path: Path) -> None:
    """Cut a file to half its size."""
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def damage_checkpoint(folder: Path, outcome: Outcome, *, damage: Callable[[Path], None]) -> None:
    """Damage the newest checkpoint of a stopped run, and start the run again."""
    with learning_night(folder, outcome) as night:
        night.wait_for(lambda: len(list(night.run.checkpoints.glob("step-*"))) > 1, RECOVERY_TIMEOUT_S)
        night.command("stop")
        night.wait_for_end()
        newest = max(night.run.checkpoints.glob("step-*"))
        damage(newest / "tensors.safetensors")
        night.start()
        night.wait_for(lambda: night.count("checkpoint") > 0, RECOVERY_TIMEOUT_S)
        outcome.note("event: the one before is used")
        wait_until_learning(night, outcome)


def damage_published_weights(folder: Path, outcome: Outcome) -> None:
    """Damage the weights that the learner publishes for the actor."""
    with learning_night(folder, outcome, supervision=replace(QUICK, learner_limit_s=600.0)) as night:
        os.kill(night.pid("learner"), signal.SIGSTOP)
        time.sleep(1.0)  # the actor loads the weights published so far
        version, steps = night.status("actor.version"), night.status("actor.steps")
        damaged = night.run.acting_weights.with_name("damaged")
        shutil.copy(night.run.acting_weights, damaged)
        flip_bit(damaged)
        damaged.rename(night.run.acting_weights)
        night.wait_for(lambda: night.count("weights") > 0, RECOVERY_TIMEOUT_S)
        night.wait_for(lambda: night.status("actor.steps") > steps + 20, RECOVERY_TIMEOUT_S)
        is_same = night.status("actor.version") == version
        outcome.note("event; acts on" if is_same else "damaged weights act", is_expected=is_same)
        os.kill(night.pid("learner"), signal.SIGCONT)
        wait_until_learning(night, outcome)


def spoil_observations(folder: Path, outcome: Outcome, *, fault: str, pauses: bool) -> None:
    """Inject a fault of camera or joints into the observations for a few seconds."""
    check = CHECK_OF.get(fault, fault)
    with learning_night(folder, outcome) as night:
        start = night.steps()
        night.inject(fault)
        night.wait_for(lambda: night.count(f"check-{check}") > 0, RECOVERY_TIMEOUT_S)
        if pauses:
            night.wait_for(lambda: night.state("actor") is State.CHECK_FAILED, RECOVERY_TIMEOUT_S)
            note_torque(night, outcome)
        time.sleep(1.0)
        before, failed = night.steps(), night.status(f"check.{check}")
        time.sleep(1.0)
        bad = night.steps() - before
        text = f"{before - start} steps stored until it was noticed, {bad} afterwards; {failed:.0f} failed"
        outcome.note(text, is_expected=bad == 0 or fault == "late")
        night.inject()
        wait_until_learning(night, outcome)
        night.wait_for(lambda: night.count(f"check-{check}") > 1, RECOVERY_TIMEOUT_S)


def darken_with_warning(folder: Path, outcome: Outcome) -> None:
    """Turn off the light of a run that only warns of it."""
    checks = replace(SMALL.checks, dark=Check(DARK_LEVEL, "warn"))
    with learning_night(folder, outcome, checks=checks) as night:
        night.inject("dark")
        night.wait_for(lambda: night.count("check-dark") > 0, RECOVERY_TIMEOUT_S)
        outcome.note("event")
        wait_until_learning(night, outcome)


def darken_with_stop(folder: Path, outcome: Outcome) -> None:
    """Turn off the light of a run that stops in the dark."""
    checks = replace(SMALL.checks, dark=Check(DARK_LEVEL, "stop"))
    with learning_night(folder, outcome, checks=checks) as night:
        night.inject("dark")
        wait_for_end(night, outcome, 3)


def jam_object(folder: Path, outcome: Outcome) -> None:
    """Jam the object, and free it when the run pauses."""
    with learning_night(folder, outcome, persistence=PersistenceConfig(600, 100)) as night:
        night.inject("stuck")
        night.wait_for(lambda: night.state("actor") is State.STUCK, 2 * RECOVERY_TIMEOUT_S)
        levels = [message.split("answer ")[1][0] for kind, message in night.events() if "answer " in message]
        outcome.note(f"answers {', '.join(levels)}", is_expected=levels == ["1", "2", "3"])
        note_torque(night, outcome)
        night.inject()
        night.command("resume")
        wait_until_learning(night, outcome)


def wait_for_divergence_end(night: Night, outcome: Outcome) -> None:
    """Wait until the run ends after its last rollback."""
    code, _ = night.wait_for_end(3 * RECOVERY_TIMEOUT_S)
    rollbacks = sum(kind == "numerics" and "back to the checkpoint" in message for kind, message in night.events())
    outcome.note(f"{rollbacks} times back", is_expected=rollbacks == 3)
    outcome.note(f"exit code {code}", is_expected=code == 3)
    note_torque(night, outcome)


def explode_critics(folder: Path, outcome: Outcome) -> None:
    """Train with a learning rate at which the critics diverge."""
    numerics = replace(SMALL.numerics, check_every=5, max_value=0.1)
    with Night(folder, sac=replace(SMALL.sac, learning_rate=1.0), numerics=numerics) as night:
        night.start()
        wait_for_divergence_end(night, outcome)


def store_nan_action(folder: Path, outcome: Outcome) -> None:
    """Pause the run and store a step with a NaN action."""
    with learning_night(folder, outcome, numerics=replace(SMALL.numerics, check_every=1)) as night:
        paused = night.command("pause")
        outcome.note("paused", is_expected=paused.returncode == 0)
        night.wait_for(lambda: night.state("actor") is State.PAUSED and night.status("actor.unwritten") == 0)
        append_nan_action(night.run.experience)
        night.command("resume")
        wait_for_divergence_end(night, outcome)


def append_nan_action(store: Path) -> None:
    """Append a step with a NaN action to an experience store; r3l itself never stores one."""
    copied = "phase, image, proprioception, ?, applied, diagnostic, time_s, written_s"
    query = f"INSERT INTO observation SELECT NULL, segment, step + 1, {copied} FROM observation ORDER BY sequence DESC"
    action = np.full(len(load_task("valve").rig.joints), np.nan, np.float32)
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute(f"{query} LIMIT 1", (action.tobytes(),))


def continue_with_more_goals(folder: Path, outcome: Outcome) -> None:
    """Finish a run, then continue it with more steps and twice the goal images."""
    with Night(folder, steps=200) as night:
        night.start()
        wait_for_end(night, outcome, 0, 3 * RECOVERY_TIMEOUT_S)
        first = load_checkpoint(night.run.checkpoints, ignore)
        more = folder / "more"
        shutil.copytree(night.run.goals, more)
        night.start("--steps", "320", "--goals", str(more))
        wait_for_end(night, outcome, 0, 3 * RECOVERY_TIMEOUT_S)
        second = load_checkpoint(night.run.checkpoints, ignore)
        assert first is not None
        assert second is not None
        updates = [kept[1]["learner"]["updates"] for kept in (first, second)]
        goals = [len(kept[0]["goal_latents"]) for kept in (first, second)]
        outcome.note(f"updates {updates[0]} then {updates[1]}", is_expected=updates == [140, 260])
        outcome.note(f"goal images {goals[0]} then {goals[1]}", is_expected=goals[1] == 2 * goals[0])
