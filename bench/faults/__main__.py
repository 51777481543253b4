"""Faults by the hundred: the build and the trainer are killed, their system calls fail, their files are damaged.

    python -m bench.faults WORK [--only build,train] [--kills 200] [--calls 12] [--damages 60] [--twice 20]

After each fault there must be either the right bytes or one clear line, and the same command, if need be after what that
line says, must end in the right bytes. The commands are forks of a process that has imported what they need; the build is
of 5 MB with 2 workers, the run of 24 steps. Needs a C compiler. Prints what is broken, and at the end a Markdown table;
exit status 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.faults import cases
from bench.faults.process import begin_with_injector
from bench.faults.subjects import BuildSubject, Subject, TrainSubject
from bench.measure import print_head, print_row
from shards.common.command_line import Parser, run_command
from train.environment import prepare_environment

BROKEN = "BROKEN"
STOPS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
Trial = Callable[[Subject, random.Random], str]


def trials(subject: Subject, options: argparse.Namespace) -> Iterator[tuple[str, Trial]]:
    """Each trial's kind, and what to do."""
    for number in range(options.kills):
        stop = STOPS[number % len(STOPS)]
        yield stop.name, functools.partial(cases.killed, number=stop)
    if isinstance(subject, BuildSubject):
        yield from [("a worker killed", cases.worker_killed)] * options.damages
    yield from [("a file damaged between two runs", cases.damaged)] * options.damages
    yield from [("two at once", cases.at_once)] * options.twice
    for fault in cases.calls_to_fail(subject, options.calls) if options.calls else ():
        yield fault.name, functools.partial(cases.call_failed, fault=fault)


def try_all(subject: Subject, options: argparse.Namespace, ends: Counter[tuple[str, str]]) -> None:
    for number, (name, trial) in enumerate(trials(subject, options)):
        try:
            ended = trial(subject, random.Random(f"{name} {number}"))
        except (cases.Broken, TimeoutError) as error:
            subject.remove()
            print(f"{subject.name}: {name}: {error}", flush=True)
            ended = BROKEN
        ends[f"{subject.name}: {name}", ended] += 1


def train_in_one_thread(argv: list[str]) -> int | None:
    import torch

    from train.__main__ import main

    torch.set_num_threads(1)
    return main(argv)


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("work", type=Path, help="directory for all of it, 100 MB")
    parser.add_argument("--only", default="build,train", help="what to try (build,train)")
    parser.add_argument("--kills", type=int, default=200, help="how often each is stopped at a random moment (200)")
    parser.add_argument("--calls", type=int, default=12, help="of each system call, how many fail in turn (12)")
    parser.add_argument("--damages", type=int, default=60, help="damaged files; killed workers (60)")
    parser.add_argument("--twice", type=int, default=20, help="two at once (20)")
    options = parser.parse_args(argv)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["COLUMNS"] = "100"
    prepare_environment()
    begin_with_injector(work)
    import train.run  # noqa: F401  so that no trial has to import torch
    from pipeline.__main__ import main as build_main

    ends = Counter[tuple[str, str]]()
    if "build" in options.only:
        try_all(BuildSubject(build_main, work), options, ends)
    if "train" in options.only:
        try_all(TrainSubject(train_in_one_thread, work), options, ends)
    print_head("fault", "trials", "how they ended")
    for kind in dict.fromkeys(kind for kind, _ in ends):
        own = {ended: number for (other, ended), number in sorted(ends.items()) if other == kind}
        print_row(kind, sum(own.values()), "; ".join(f"{number} {ended}" for ended, number in own.items()))
    return int(any(ended == BROKEN for _, ended in ends))


if __name__ == "__main__":
    run_command(main)
