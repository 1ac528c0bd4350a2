"""Train variants over tasks and seeds, at most two runs at a time, and record each run.

A variant is `default`, `paper`, one of the variants of `r3l train --help`, or `stable-baselines3`: the peer's SAC on
the instrumented environment. An interrupted run is resumed, and a recorded run is not repeated. Every seed of every
variant is recorded; no run is selected by its result.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import peer
from benchmarks.figures import exit_code, parse, plain_parser
from benchmarks.record import Name, Record, differences, load_records, record_run, settings, world
from benchmarks.running import collect_goals, start_logged, train_command
from r3l.cli.settings import TrainOptions, read_config, resolve
from r3l.config.convert import nearest, to_dict
from r3l.config.errors import UserError
from r3l.config.presets import PRESETS, VARIANTS
from r3l.models.torch_setup import tune_process
from r3l.run.directory import Run
from r3l.run.jsonl import read_jsonl
from r3l.run.progress import progress_bar
from r3l.task.registry import load_task, task_names

PLANNED = ("task", "steps", "seed")
"""Settings that have an option of their own."""
RECORDS, RUNS = Path("benchmarks/learning"), Path("runs/benchmark")
POLL_S = 2.0


@dataclass(frozen=True)
class Plan:
    """The runs to make, and the folders of runs and records."""

    names: tuple[Name, ...]
    steps: int
    overrides: tuple[str, ...]
    records: Path
    runs: Path
    processes: int
    command: str

    def folder(self, name: Name) -> Path:
        """Return the run directory."""
        return self.runs / str(name)

    def record(self, name: Name) -> Path:
        """Return the file of the record."""
        return self.records / f"{name}.json"

    def config(self, name: Name) -> dict[str, Any]:
        """Return all settings of a run of this name."""
        if name.variant == peer.VARIANT:
            return peer.settings(name.task, name.seed, self.steps)
        preset = name.variant if name.variant in PRESETS else "default"
        variant = () if name.variant in PRESETS else (name.variant,)
        command = TrainOptions(
            task=name.task,
            preset=preset,
            variant=variant,
            steps=self.steps,
            seed=name.seed,
            sync=True,
            set=self.overrides,
            device="cpu",
        )
        return to_dict(resolve(command))

    def arguments(self, name: Name) -> list[str]:
        """Return the command that starts the run, or resumes it."""
        folder = self.folder(name)
        if name.variant == peer.VARIANT:
            start = [sys.executable, "-m", "benchmarks.peer", name.task, "--steps", str(self.steps)]
            return [*start, "--seed", str(name.seed), "--folder", str(folder)]
        words = ["--sync", "--steps", str(self.steps), "--seed", str(name.seed)]
        words += ["--preset" if name.variant in PRESETS else "--variant", name.variant]
        words += [part for item in self.overrides for part in ("--set", item)]
        return train_command(folder, name.task, *words)


def plan(options: argparse.Namespace) -> Plan:
    """Check the options and return the plan; UserError for a bad option."""
    tasks, variants = options.tasks.split(","), options.variants.split(",")
    known = [*PRESETS, *VARIANTS, peer.VARIANT]
    for kind, names, known_names in (("task", tasks, task_names()), ("variant", variants, known)):
        for name in names:
            if name not in known_names:
                raise UserError(f"unknown {kind} {name!r}; {nearest(name, known_names)}")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds is {options.seeds!r}, expected numbers with commas, for example 0,1,2") from error
    if min(seeds) < 0:
        raise UserError(f"--seeds has {min(seeds)}, expected 0 or more")
    for option, values in (("tasks", tasks), ("variants", variants), ("seeds", seeds)):
        repeated = [str(value) for value in dict.fromkeys(values) if list(values).count(value) > 1]
        if repeated:
            raise UserError(f"--{option} repeats {', '.join(repeated)}; expected each of them once")
    if options.steps < 1 or not 1 <= options.processes <= 2:
        raise UserError("--steps and --processes are expected to be 1 or more, and --processes at most 2")
    for key in PLANNED:
        if any(item.split("=")[0] == key for item in options.set):
            raise UserError(f"--set {key} is what --{key if key == 'steps' else key + 's'} says; leave it out")
    if options.set and peer.VARIANT in variants:
        raise UserError(f"--set changes our settings alone; run {peer.VARIANT} without it")
    names = tuple(Name(task, variant, seed) for seed in seeds for task in tasks for variant in variants)
    return Plan(
        names,
        steps=options.steps,
        overrides=tuple(options.set),
        records=options.records,
        runs=options.runs,
        processes=options.processes,
        command=options.command,
    )


def refuse_other_settings(chosen: Plan) -> None:
    """Raise UserError if a record or an unfinished run has other settings: only equal runs may be averaged."""
    found: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = {}
    for record in load_records(chosen.records):
        path = chosen.record(record.name)
        if record.variant != peer.VARIANT and tuple(record.overrides) != chosen.overrides:
            raise UserError(
                f"{path} was made with --set {record.overrides or 'nothing'}, now {list(chosen.overrides) or 'nothing'}"
                "; name another --records folder: records of one folder are compared with each other"
            )
        found.setdefault((record.task, record.variant), []).append((path, settings(record)))
    for name in chosen.names:
        folder = chosen.folder(name)
        here = {**chosen.config(name), "world": world(load_task(name.task))}
        there = found.get((name.task, name.variant), [])
        if (folder / "config.json").exists():
            unfinished = {**read_config(folder / "config.json"), "world": here["world"]}
            there = [*there, (folder / "config.json", unfinished)]
        for path, config in there:
            found_differences = differences(config, here)
            if found_differences:
                raise UserError(
                    f"{path} was made with another configuration: {'; '.join(found_differences)}; move it away, or "
                    "name other --records and --runs folders"
                )


def make_record(chosen: Plan, name: Name) -> Record:
    """Return the record of a finished run."""
    if name.variant == peer.VARIANT:
        return peer.record_peer(chosen.folder(name), name, chosen.command)
    return record_run(Run.open(chosen.folder(name)), name, chosen.command, chosen.overrides)


def steps_of(folder: Path) -> int:
    """Return the last env step in the metrics of a run."""
    lines = read_jsonl(folder / "metrics.jsonl") or read_jsonl(folder / "evaluations.jsonl")
    return max((line["step"] for line in lines), default=0)


def run_all(chosen: Plan) -> int:
    """Train every run that has no record; return the number of failed runs."""
    chosen.runs.mkdir(parents=True, exist_ok=True)
    waiting = [name for name in chosen.names if not chosen.record(name).exists()]
    for name in chosen.names:
        if name not in waiting:
            print(f"{name}: recorded already")
    running: dict[Name, subprocess.Popen[bytes]] = {}
    failed = done = 0
    with progress_bar("benchmark", "step", len(waiting) * chosen.steps) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < chosen.processes:
                    name = waiting.pop(0)
                    running[name] = start(chosen, name)
                time.sleep(POLL_S)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    failed += not finish(chosen, name, running.pop(name).returncode)
                    done += 1
                bar.update(done * chosen.steps + sum(steps_of(chosen.folder(name)) for name in running) - bar.n)
        finally:  # Ctrl-C, or a record that cannot be made
            stop(list(running.values()))
    return failed


def start(chosen: Plan, name: Name) -> subprocess.Popen[bytes]:
    """Start or resume one run; its output goes to a log beside its folder."""
    return start_logged(chosen.arguments(name), chosen.runs / f"{name}.log")


def finish(chosen: Plan, name: Name, code: int) -> bool:
    """Record a run that ended; return whether it succeeded."""
    if code:
        tqdm.write(f"{name} failed with exit code {code}: see {chosen.runs / f'{name}.log'}")
        return False
    record = make_record(chosen, name)
    record.save(chosen.record(name))
    tqdm.write(f"{name}: {record.final():.2f}, {chosen.record(name)}")
    return True


def stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop runs as Ctrl-C does, and wait for their end; the peer resumes from its last evaluation."""
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if a run failed, 2 for bad input, 130 if interrupted."""
    parser = plain_parser("scripts/benchmark learning", __doc__)
    parser.add_argument("--tasks", default="valve", help="comma-separated; r3l tasks lists them (%(default)s)")
    parser.add_argument("--variants", default="default", help="comma-separated (%(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (%(default)s)")
    parser.add_argument("--steps", type=int, default=30_000, help="env steps per run (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of every run")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records (%(default)s)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the run directories (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, 1 or 2 (%(default)s)")
    tune_process()  # this process makes records while training runs keep both cores busy
    options = parse(parser, arguments)

    def work() -> int:
        chosen = plan(options)
        refuse_other_settings(chosen)
        for task in {name.task for name in chosen.names}:
            collect_goals(task)
        return 1 if run_all(chosen) else 0

    return exit_code(work, is_resumable=True)


if __name__ == "__main__":
    sys.exit(main())
