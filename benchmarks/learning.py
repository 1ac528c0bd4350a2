"""Train variants over tasks and seeds, two processes at most, and record each run; finished records are kept.

A variant is `default`, `paper`, one of the variants of `r3l train --help`, or `stable-baselines3`: the peer's SAC on
the instrumented environment. An interrupted run is resumed, a recorded one is not repeated, and nothing is picked:
every seed of every variant is recorded.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import peer
from benchmarks.record import Name, Record, differences, load_records, record_run, settings, world
from r3l.cli.settings import TrainCommand, read_config, resolve
from r3l.config.convert import nearest, to_dict
from r3l.config.errors import UserError
from r3l.config.presets import PRESETS, VARIANTS
from r3l.models.torch_setup import tune_process
from r3l.run.directory import Run
from r3l.run.jsonl import read_jsonl
from r3l.run.progress import progress_bar
from r3l.task.registry import load_task, task_names

PLANNED = ("task", "steps", "seed")
"""Settings that options of their own say."""
RECORDS, RUNS = Path("benchmarks/learning"), Path("runs/benchmark")
POLL_S = 2.0


@dataclass(frozen=True)
class Plan:
    """What to run and where to keep it."""

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
        """Return where the record goes."""
        return self.records / f"{name}.json"

    def config(self, name: Name) -> dict[str, Any]:
        """Return every setting that a run of this name would have."""
        if name.variant == peer.VARIANT:
            return peer.settings(name.task, name.seed, self.steps)
        preset = name.variant if name.variant in PRESETS else "default"
        variant = () if name.variant in PRESETS else (name.variant,)
        command = TrainCommand(
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
        """Return the process that begins the run, or goes on with it."""
        folder = self.folder(name)
        if name.variant == peer.VARIANT:
            start = [sys.executable, "-m", "benchmarks.peer", name.task, "--steps", str(self.steps)]
            return [*start, "--seed", str(name.seed), "--folder", str(folder)]
        train = [sys.executable, "-m", "r3l", "train"]
        if (folder / "config.json").exists():
            return [*train, "--resume", str(folder)]
        train += [name.task, "--sync", "--steps", str(self.steps), "--seed", str(name.seed), "--device", "cpu"]
        train += ["--runs", str(self.runs), "--name", folder.name]
        if name.variant in PRESETS:
            train += ["--preset", name.variant]
        else:
            train += ["--variant", name.variant]
        return train + [part for item in self.overrides for part in ("--set", item)]


def plan(options: argparse.Namespace, command: str) -> Plan:
    """Check what was asked for; UserError says what is wrong."""
    tasks, variants = options.tasks.split(","), options.variants.split(",")
    known = [*PRESETS, *VARIANTS, peer.VARIANT]
    for what, names, among in (("task", tasks, task_names()), ("variant", variants, known)):
        for name in names:
            if name not in among:
                raise UserError(f"unknown {what} {name!r}; {nearest(name, among)}")
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds is {options.seeds!r}, expected numbers with commas, for example 0,1,2") from error
    if min(seeds) < 0:
        raise UserError(f"--seeds has {min(seeds)}, expected 0 or more")
    for what, values in (("tasks", tasks), ("variants", variants), ("seeds", seeds)):
        repeated = [str(value) for value in dict.fromkeys(values) if list(values).count(value) > 1]
        if repeated:
            raise UserError(f"--{what} repeats {', '.join(repeated)}; expected each of them once")
    if options.steps < 1 or not 1 <= options.processes <= 2:
        raise UserError("--steps and --processes are expected to be 1 or more, and --processes at most 2")
    for key in PLANNED:
        if any(item.split("=")[0] == key for item in options.set):
            raise UserError(f"--set {key} is what --{key if key == 'steps' else key + 's'} says; leave it out")
    if options.set and peer.VARIANT in variants:
        raise UserError(f"--set changes our settings alone; run {peer.VARIANT} without it")
    names = tuple(Name(task, variant, seed) for seed in seeds for task in tasks for variant in variants)
    return Plan(names, options.steps, tuple(options.set), options.records, options.runs, options.processes, command)


def refuse_other_settings(chosen: Plan) -> None:
    """Raise UserError where records or half-done runs were made with other settings: they are not to be averaged."""
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
            half_done = {**read_config(folder / "config.json"), "world": here["world"]}
            there = [*there, (folder / "config.json", half_done)]
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
    """Return how far a run is, as its metrics say."""
    lines = read_jsonl(folder / "metrics.jsonl") or read_jsonl(folder / "evaluations.jsonl")
    return max((line["step"] for line in lines), default=0)


def run_all(chosen: Plan) -> int:
    """Run what is not recorded yet; return how many runs failed."""
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
    """Start or resume one run, its output beside its folder."""
    with (chosen.runs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(chosen.arguments(name), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def finish(chosen: Plan, name: Name, code: int) -> bool:
    """Record a run that ended; return whether it ended well."""
    if code:
        tqdm.write(f"{name} failed with exit code {code}: see {chosen.runs / f'{name}.log'}")
        return False
    record = make_record(chosen, name)
    record.save(chosen.record(name))
    tqdm.write(f"{name}: {record.final():.2f}, {chosen.record(name)}")
    return True


def stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask runs to stop as Ctrl-C does, and wait for them; the peer goes on from its last evaluation."""
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 1 when a run failed, 2 for bad input, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="valve", help="with commas; r3l tasks lists them")
    parser.add_argument("--variants", default="default", help="with commas")
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--steps", type=int, default=30_000, help="env steps of each run (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of every run")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where records go (%(default)s)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where run directories go (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, 1 or 2 (%(default)s)")
    tune_process()  # records are made here, beside runs that keep both cores busy
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)

    def work() -> int:
        chosen = plan(options, " ".join(["scripts/benchmark", "learning", *given]))
        refuse_other_settings(chosen)
        for task in {name.task for name in chosen.names}:
            collect_goals(task)
        return 1 if run_all(chosen) else 0

    return going_on_later(work)


def going_on_later(work: Callable[[], int]) -> int:
    """Do work that the same command goes on with after SIGINT or SIGTERM; return the exit code."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work()
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark: stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def collect_goals(task: str) -> None:
    """Let the stand-in take goal images where there are none; every variant learns from the same ones."""
    if not (Path("goals") / load_task(task).name).exists():
        subprocess.run([sys.executable, "-m", "r3l", "goals", task], check=True)


if __name__ == "__main__":
    sys.exit(main())
