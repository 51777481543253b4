"""Faults by the hundred: the build and the trainer are killed, their system calls fail, their files are damaged.

    python -m bench.faults WORK [--only build,train] [--kills 200] [--calls 12] [--damages 60] [--twice 20]
    python -m bench.faults WORK --table

After each fault there must be either the right bytes or one clear line, and the same command, if need be after what that
line says, must end in the right bytes. What was tried is in WORK/trials.jsonl; a second run goes on behind it. The commands
are forks of a process that has imported what they need; the build is of 5 MB with 2 workers, the run of 24 steps. Needs a C
compiler.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.faults import cases
from bench.faults.process import begin_with_injector
from bench.faults.subjects import BuildSubject, Subject, TrainSubject
from train.environment import prepare_environment

Trial = Callable[[random.Random], str]


def without_chance(trial: Callable[[], str]) -> Trial:
    return lambda _rng: trial()


def trials(subject: Subject, options: argparse.Namespace) -> Iterator[tuple[str, Trial]]:
    """Each trial's kind, and what to do."""
    stops = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
    for number in range(options.kills):
        stop = stops[number % len(stops)]
        yield f"{subject.name}: {stop.name}", functools.partial(cases.killed, subject, number=stop)
    if isinstance(subject, BuildSubject):
        for _ in range(options.damages):
            yield f"{subject.name}: a worker killed", lambda rng: cases.worker_killed(subject, rng)
    for _ in range(options.damages):
        yield f"{subject.name}: a file damaged between two runs", lambda rng: cases.damaged(subject, rng)
    for _ in range(options.twice):
        yield f"{subject.name}: two at once", lambda rng: cases.at_once(subject, rng)
    if options.calls:
        for fault in cases.calls_to_fail(subject, options.calls):
            yield f"{subject.name}: {fault.name}", without_chance(functools.partial(cases.call_failed, subject, fault))


def run(options: argparse.Namespace) -> int:
    import train.run  # noqa: F401  so that no trial has to import torch
    from pipeline.__main__ import main as build_main
    from train.__main__ import main as train_main

    log = options.work / "trials.jsonl"
    done = (
        Counter(line["kind"] for line in map(json.loads, log.read_text().splitlines())) if log.exists() else Counter()
    )
    subjects: list[Subject] = [
        BuildSubject("build", build_main, options.work / "build"),
        TrainSubject("train", one_thread(train_main), options.work / "train"),
    ]
    num_broken = 0
    for subject in subjects:
        if subject.name not in options.only.split(","):
            continue
        subject.prepare()
        subject.remove()
        numbers: Counter[str] = Counter()
        for kind, trial in trials(subject, options):
            numbers[kind] += 1
            if numbers[kind] <= done[kind]:
                continue
            try:
                ended, broken = trial(random.Random(f"{kind} {numbers[kind]}")), None
            except (cases.Broken, TimeoutError) as error:
                ended, broken = "BROKEN", str(error)
                num_broken += 1
                subject.remove()
                print(f"{kind} {numbers[kind]}: {broken}", flush=True)
            with log.open("a") as lines:
                lines.write(
                    json.dumps({"kind": kind, "number": numbers[kind], "ended": ended, "broken": broken}) + "\n"
                )
    print_table(options.work)
    return 1 if num_broken else 0


def one_thread(main: Callable[[list[str]], int | None]) -> Callable[[list[str]], int | None]:
    def run_in_one_thread(argv: list[str]) -> int | None:
        import torch

        torch.set_num_threads(1)
        return main(argv)

    return run_in_one_thread


def print_table(work: Path) -> None:
    lines = [json.loads(line) for line in (work / "trials.jsonl").read_text().splitlines()]
    counts = Counter((line["kind"], line["ended"]) for line in lines)
    print("| fault | trials | how they ended |\n|---|---|---|")
    for kind in dict.fromkeys(line["kind"] for line in lines):
        ends = {ended: number for (other, ended), number in sorted(counts.items()) if other == kind}
        print(f"| {kind} | {sum(ends.values())} | {'; '.join(f'{number} {ended}' for ended, number in ends.items())} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="directory for all of it, 100 MB")
    parser.add_argument("--only", default="build,train", help="what to try (build,train)")
    parser.add_argument("--kills", type=int, default=200, help="how often each is stopped at a random moment (200)")
    parser.add_argument("--calls", type=int, default=12, help="of each system call, how many fail in turn (12)")
    parser.add_argument("--damages", type=int, default=60, help="damaged files; killed workers (60)")
    parser.add_argument("--twice", type=int, default=20, help="two at once (20)")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.table:
        print_table(options.work)
        return 0
    os.environ["COLUMNS"] = "100"
    prepare_environment()
    begin_with_injector(options.work)
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
