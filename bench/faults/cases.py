"""One trial of each kind of fault. Each ends in a phrase that says how it ended, or raises `Broken`."""

from __future__ import annotations

import os
import random
import signal
import time

from bench.faults.process import Command, Ended, Fault, count_calls, damage
from bench.faults.subjects import Subject

LOGS = ("metrics.jsonl", "samples.jsonl")  # for people: no digest is kept of them
RIGHT = "right"
ERRORS: dict[str, list[tuple[str, bool]]] = {  # what can go wrong with a call, and whether only once
    "open": [("EIO", False), ("EMFILE", True), ("ENOSPC", False), ("EINTR", True)],
    "read": [("EIO", False), ("EINTR", True)],
    "write": [("ENOSPC", False), ("EIO", True), ("EIO", False), ("EINTR", True)],
    "fsync": [("EIO", True), ("ENOSPC", False)],
    "truncate": [("ENOSPC", False)],
    "rename": [("EIO", True), ("EACCES", False), ("ENOSPC", True)],
    "link": [("EMLINK", True)],
    "mkdir": [("ENOSPC", False), ("EACCES", True)],
    "unlink": [("EIO", True), ("EACCES", False)],
    "mmap": [("ENOMEM", True), ("ENOMEM", False)],
}


class Broken(Exception):
    """The promise was broken: wrong bytes, a traceback, a hang, something left behind."""


def clear(ended: Ended) -> Ended:
    if not ended.is_clear:
        raise Broken(f"status {ended.status}: {ended.errors[-2000:]}")
    return ended


def finish(subject: Subject, before: Ended | None = None) -> str:
    """The same command again, undisturbed, must end in the right bytes, if need be after what its line says to do.

    Where the result is there, but the command `before` failed at what comes after it, it is repeated too."""
    phrase = RIGHT
    if before is not None and before.status and subject.is_done:
        again = clear(subject.start().end())
        if again.status not in (0, 2):
            raise Broken(f"status {again.status} with the result there: {again.errors[-2000:]}")
    if not subject.is_done:
        ended = clear(subject.start().end())
        if ended.status == 2:
            phrase = f"one line, then {RIGHT} after the repair"
            ended = clear(subject.start(None, *subject.repair()).end())
        if ended.status:
            raise Broken(f"status {ended.status} undisturbed: {ended.errors[-2000:]}")
    check(subject)
    subject.remove()
    return phrase


def check(subject: Subject) -> None:
    wrong = subject.wrong()
    if wrong:
        raise Broken(wrong)


def killed(subject: Subject, rng: random.Random, number: signal.Signals) -> str:
    """Killed at a random moment. The next trial goes on with what is left; a whole result is compared."""
    command = subject.start()
    if not command.wait(rng.uniform(0, 1.1 * subject.seconds)):
        command.signal(number, group=number == signal.SIGKILL)
    ended = command.end()
    if number != signal.SIGKILL:
        clear(ended)
    elif ended.status not in (0, 137):
        raise Broken(f"status {ended.status}: {ended.errors[-2000:]}")
    if not subject.is_done:
        return f"stopped, status {ended.status}"
    return finish(subject, ended)


def worker_killed(subject: Subject, rng: random.Random) -> str:
    """One worker is killed; the build goes on with another."""
    command = subject.start()
    deadline = time.monotonic() + rng.uniform(0.1, 0.8) * subject.seconds
    while time.monotonic() < deadline and not command.wait(0.005):
        pass
    for pid in rng.sample(command.children(), k=min(1, len(command.children()))):
        os.kill(pid, signal.SIGKILL)
    ended = clear(command.end())
    return finish(subject) if ended.status == 0 else f"one line, then {finish(subject)}"


def call_failed(subject: Subject, fault: Fault) -> str:
    """A system call fails. Then the same command, undisturbed."""
    ended = clear(subject.start(fault).end())
    if ended.status == 0 and not subject.is_done:
        raise Broken("status 0 and nothing there")
    return finish(subject) if ended.status == 0 else f"one line, then {finish(subject, ended)}"


def damaged(subject: Subject, rng: random.Random) -> str:
    """Stopped at a random moment, then a file of what is left is damaged."""
    command = subject.start()
    if not command.wait(rng.uniform(0.2, 0.95) * subject.seconds):
        command.signal(signal.SIGKILL, group=True)
    command.end()
    done = None if subject.is_done else damage(subject.out.parent, rng)
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
    second: Command = subject.start()
    statuses = [clear(command.end()).status for command in (first, second)]
    if 0 not in statuses or not set(statuses) <= {0, 2}:
        raise Broken(f"statuses {statuses}")
    return f"statuses {sorted(statuses)}, {finish(subject)}"


def calls_to_fail(subject: Subject, most: int) -> list[Fault]:
    """Each call that the command makes below its place, or `most` of each kind, spread evenly, with each error."""
    found = []
    for call, errors in ERRORS.items():
        subject.remove()
        number = count_calls(subject.main, subject.arguments(), subject.work, subject.out.parent, call)
        chosen = (
            sorted({1 + place * number // min(most, number) for place in range(min(most, number))}) if number else []
        )
        found += [Fault(call, subject.out.parent, nth, error, once) for error, once in errors for nth in chosen]
    subject.remove()
    return found
