"""Faults by the hundred: builds and runs are killed, their system calls fail, their files are damaged, their server fails.

    python -m bench.faults WORK [--only build,store,ray,train] [--kills 200] [--calls 12] [--damages 60] [--twice 20]

After each fault there must be either the right bytes or one clear line, and the same command, if need be after what that
line says, must end in the right bytes. The commands are forks of a process that has imported what they need; the build is
of 2 MB with 2 workers (build: in a directory; store: in an object store; ray: by that engine), the run of 24 steps. Needs
a C compiler. Prints what is broken, and at the end a Markdown table; exit status 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.faults.process import Ended, Fault, begin_with_injector, count_calls
from bench.faults.store import ENVIRONMENT, StoreSubject
from bench.faults.subjects import BuildSubject, RaySubject, Subject, TrainSubject
from bench.measure import print_head, print_row
from shards.common.command_line import Parser, run_command
from train.environment import prepare_environment

BROKEN, RIGHT = "BROKEN", "right"
SUBJECTS = {kind.name: kind for kind in (BuildSubject, StoreSubject, RaySubject, TrainSubject)}
STOPS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
Trial = Callable[[Any, random.Random], str]
SERVERS = ((0.05, 0.0), (0.3, 0.0), (1.0, 0.0), (0.0, 0.3), (0.1, 0.5))  # the share of requests that fail, mean seconds
LOGS = ("metrics.jsonl", "samples.jsonl")  # for people: no digest is kept of them
ERRORS = {  # what can go wrong with a call; "!": only once
    "open": "EIO EMFILE! ENOSPC EINTR!",
    "read": "EIO EINTR!",
    "write": "ENOSPC EIO! EIO EINTR!",
    "fsync": "EIO! ENOSPC",
    "truncate": "ENOSPC",
    "rename": "EIO! EACCES ENOSPC!",
    "link": "EMLINK!",
    "mkdir": "ENOSPC EACCES!",
    "unlink": "EIO! EACCES",
    "mmap": "ENOMEM! ENOMEM",
}


class Broken(Exception):
    """The promise was broken: wrong bytes, a traceback, a hang, something left behind."""


def clear(ended: Ended, *statuses: int) -> Ended:
    """Raises `Broken` if it ended in any other way than in a clear line, or in none of the statuses, if any are named."""
    if not ended.is_clear or (statuses and ended.status not in statuses):
        raise Broken(f"status {ended.status}: {ended.errors[-2000:]}")
    return ended


def finish(subject: Subject, before: Ended | None = None) -> str:
    """The same command again, undisturbed, must end in the right bytes, if need be after what its line says to do.

    Where the result is there, but the command `before` failed at what comes after it, it is repeated too."""
    phrase = RIGHT
    if before is not None and before.status and subject.is_done():
        clear(subject.start().end(), 0, 2)
    if not subject.is_done() and clear(subject.start().end(), 0, 2).status == 2:
        phrase = f"one line, then {RIGHT} after the repair"
        clear(subject.start(None, *subject.repair()).end(), 0)
    if wrong := subject.wrong():
        raise Broken(wrong)
    subject.remove()
    return phrase


def finish_after(subject: Subject, ended: Ended) -> str:
    return finish(subject) if ended.status == 0 else f"one line, then {finish(subject, ended)}"


def killed(subject: Subject, rng: random.Random, number: signal.Signals) -> str:
    """Killed at a random moment. The next trial goes on with what is left; a whole result is compared."""
    command = subject.start()
    if not command.wait(rng.uniform(0, 1.1 * subject.seconds)):
        command.signal(number)
    ended = command.end()
    if ended.status != 137 or number != signal.SIGKILL:
        clear(ended, 0, 2, 128 + number)
    return finish(subject, ended) if subject.is_done() else f"stopped, status {ended.status}"


def worker_killed(subject: BuildSubject, rng: random.Random) -> str:
    """One worker is killed; the build goes on with another."""
    command = subject.start()
    command.wait(rng.uniform(0.1, 0.8) * subject.seconds)
    if workers := subject.workers(command):
        os.kill(rng.choice(workers), signal.SIGKILL)
    return finish_after(subject, clear(command.end()))


def call_failed(subject: Subject, _rng: random.Random, fault: Fault) -> str:
    """A system call fails. Then the same command, undisturbed."""
    ended = clear(subject.start(fault).end())
    if ended.status == 0 and not subject.is_done():
        raise Broken("status 0 and nothing there")
    return finish_after(subject, ended)


def damaged(subject: Subject, rng: random.Random) -> str:
    """Stopped at a random moment, then a file of what is left is damaged."""
    command = subject.start()
    if not command.wait(rng.uniform(0.2, 0.95) * subject.seconds):
        command.signal(signal.SIGKILL)
    command.end()
    done = None if subject.is_done() else subject.damage(rng)
    if done is None:
        subject.remove()
        return "nothing to damage yet, or done before"
    try:
        return finish(subject)
    except Broken as error:
        if done.split()[0].endswith(LOGS) and str(error).startswith("other lines"):
            subject.remove()
            return f"{RIGHT}, but for what the damage took from a log"
        raise Broken(f"{done}: {error}") from None


def at_once(subject: Subject, rng: random.Random) -> str:
    """Two commands with the same place."""
    first = subject.start()
    time.sleep(rng.uniform(0, subject.seconds))
    second = subject.start()
    both = sorted(clear(command.end(), 0, 2) for command in (first, second))
    statuses = [ended.status for ended in both]
    if 0 not in statuses:
        raise Broken(f"statuses {statuses}")
    return f"statuses {statuses}, {finish(subject, both[-1])}"


def server_died(subject: StoreSubject, rng: random.Random) -> str:
    """The object store's server dies, and comes back a little later."""
    command = subject.start()
    command.wait(rng.uniform(0.2, 0.9) * subject.seconds)
    subject.stop_serving()
    time.sleep(rng.uniform(0, 15))
    subject.serve()
    return finish_after(subject, clear(command.end(), 0, 2))


def served_badly(subject: StoreSubject, _rng: random.Random, share: float, seconds: float) -> str:
    """The server fails in such a share of all requests, and takes so long on average; then it works again."""
    subject.serve(share, seconds)
    ended = clear(subject.start().end(), 0, 2)
    subject.serve()
    return finish_after(subject, ended)


def calls_to_fail(subject: Subject, most: int) -> list[Fault]:
    """Each call that the command makes below its place, or `most` of each kind, spread evenly, with each error."""
    found, below = [], subject.out.parent
    for call, errors in ERRORS.items():
        subject.remove()
        number = count_calls(subject.main, subject.arguments(), subject.work, Fault(call, below, 0))
        chosen = sorted({1 + place * number // most for place in range(most)} if number else ())
        for error in errors.split():
            found += [Fault(call, below, nth, error.rstrip("!"), error.endswith("!")) for nth in chosen]
    subject.remove()
    return found


def trials(subject: Subject, options: argparse.Namespace) -> Iterator[tuple[str, Trial]]:
    """Each trial's kind, and what to do."""
    for number in range(options.kills):
        stop = STOPS[number % len(STOPS)]
        yield stop.name, functools.partial(killed, number=stop)
    if isinstance(subject, BuildSubject):
        yield from [("a worker killed", worker_killed)] * options.damages
    if isinstance(subject, StoreSubject):
        yield from [("the server dies, and comes back", server_died)] * options.damages
        for share, seconds in SERVERS:
            served = functools.partial(served_badly, share=share, seconds=seconds)
            yield from [(f"{share:.0%} of requests fail, {seconds:g} s each", served)] * options.twice
    yield from [("a file damaged between two runs", damaged)] * options.damages
    yield from [("two at once", at_once)] * options.twice
    for fault in calls_to_fail(subject, options.calls) if options.calls and subject.calls_can_fail else ():
        yield fault.name, functools.partial(call_failed, fault=fault)


def try_all(subject: Subject, options: argparse.Namespace, ends: Counter[tuple[str, str]]) -> None:
    for number, (name, trial) in enumerate(trials(subject, options)):
        try:
            ended = trial(subject, random.Random(f"{options.seed} {name} {number}"))
        except (Broken, TimeoutError) as error:
            subject.remove()
            print(f"{subject.name}: {name}: {error}", flush=True)
            ended = BROKEN
        ends[f"{subject.name}: {name}", ended] += 1


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("work", type=Path, help="directory for all of it, 100 MB")
    parser.add_argument("--only", default=",".join(SUBJECTS), help=f"what to try ({','.join(SUBJECTS)})")
    parser.add_argument("--kills", type=int, default=200, help="how often each is stopped at a random moment (200)")
    parser.add_argument("--calls", type=int, default=12, help="of each system call, how many fail in turn (12)")
    parser.add_argument("--damages", type=int, default=60, help="damaged files; killed workers (60)")
    parser.add_argument("--twice", type=int, default=20, help="two at once (20)")
    parser.add_argument("--seed", type=int, default=0, help="other moments, other damage (0)")
    options = parser.parse_args(argv)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= ENVIRONMENT | {"COLUMNS": "100"}
    prepare_environment()
    begin_with_injector(work)
    import train.run  # noqa: F401  so that no trial has to import torch

    ends = Counter[tuple[str, str]]()
    try:
        for name in options.only.split(","):
            try_all(SUBJECTS[name](work), options, ends)
    finally:  # also of what was tried until Ctrl-C
        print_head("fault", "trials", "how they ended")
        for kind in dict.fromkeys(kind for kind, _ in ends):
            own = {ended: number for (other, ended), number in sorted(ends.items()) if other == kind}
            print_row(kind, sum(own.values()), "; ".join(f"{number} {ended}" for ended, number in own.items()))
    return int(any(ended == BROKEN for _, ended in ends))


if __name__ == "__main__":
    run_command(main)
