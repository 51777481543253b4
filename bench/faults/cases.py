"""One trial of each kind of fault. Each ends in a phrase that says how it ended, or raises `Broken`."""

from __future__ import annotations

import os
import random
import signal
import time

from bench.faults.process import Ended, Fault, count_calls, damage
from bench.faults.subjects import Subject

LOGS = ("metrics.jsonl", "samples.jsonl")  # for people: no digest is kept of them
RIGHT = "right"
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


def killed(subject: Subject, rng: random.Random, number: signal.Signals) -> str:
    """Killed at a random moment. The next trial goes on with what is left; a whole result is compared."""
    command = subject.start()
    if not command.wait(rng.uniform(0, 1.1 * subject.seconds)):
        command.signal(number)
    ended = command.end()
    if ended.status != 137 or number != signal.SIGKILL:
        clear(ended)
    return finish(subject, ended) if subject.is_done() else f"stopped, status {ended.status}"


def worker_killed(subject: Subject, rng: random.Random) -> str:
    """One worker is killed; the build goes on with another."""
    command = subject.start()
    command.wait(rng.uniform(0.1, 0.8) * subject.seconds)
    for pid in rng.sample(command.children(), k=min(1, len(command.children()))):
        os.kill(pid, signal.SIGKILL)
    ended = clear(command.end())
    return finish(subject) if ended.status == 0 else f"one line, then {finish(subject)}"


def call_failed(subject: Subject, _rng: random.Random, fault: Fault) -> str:
    """A system call fails. Then the same command, undisturbed."""
    ended = clear(subject.start(fault).end())
    if ended.status == 0 and not subject.is_done():
        raise Broken("status 0 and nothing there")
    return finish(subject) if ended.status == 0 else f"one line, then {finish(subject, ended)}"


def damaged(subject: Subject, rng: random.Random) -> str:
    """Stopped at a random moment, then a file of what is left is damaged."""
    command = subject.start()
    if not command.wait(rng.uniform(0.2, 0.95) * subject.seconds):
        command.signal(signal.SIGKILL)
    command.end()
    done = None if subject.is_done() else damage(subject.out.parent, rng)
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
    statuses = sorted(clear(command.end(), 0, 2).status for command in (first, second))
    if 0 not in statuses:
        raise Broken(f"statuses {statuses}")
    return f"statuses {statuses}, {finish(subject)}"


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
