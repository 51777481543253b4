"""A run's directory: what is in it, whether a command may use it, and its record.

    RUN/
      run.json            settings, command, packages, shard set, state; rewritten as the run goes on
      metrics.jsonl       one line for each log and evaluation
      checkpoint-STEP/    complete checkpoints
      model/              the trained model with its tokenizer and a model card, README.md
      samples.jsonl       prompts and what the model wrote, at each evaluation and at the end
      swanlab/            SwanLab's files

The state in `run.json` is `training`, then `trained` (the model is saved), then `finished`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from shards.common.errors import InputError
from shards.common.files import write_atomically
from shards.common.text import printable
from train.checkpoints import DataPosition, newest_complete_checkpoint, read_position

RECORD_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
_SUMMARY_KEY = "train_runtime"  # in the line that the Trainer logs when all steps are done
SAMPLES_NAME = "samples.jsonl"
MODEL_NAME = "model"
SWANLAB_NAME = "swanlab"
_LOCK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command does with its run directory."""

    checkpoint: Path | None  # continue from here; None: start at step 0
    position: DataPosition | None  # of that checkpoint
    notices: list[str]  # a line each, for the user
    resume: str | None = None  # what was asked for: see `plan_run`


def plan_run(run: Path, resume: str | None, *, check_content: bool = True) -> Plan:
    """Decide between starting and continuing, from what is in `run`. Writes nothing.

    `resume` is None (continue an interrupted run, else start), "latest", or a checkpoint's path; without `check_content`
    its files are not read. Raises `InputError` if `run` holds something that must not be overwritten, or no such
    checkpoint, or can't be written to.
    """
    parent = next((path for path in (run, *run.parents) if path.exists()), run)
    if parent.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{run}: can't write to {parent}: Permission denied; choose another --output_dir (make: RUN=NAME)"
        )
    record = read_record(run)
    state = record.get("state")
    another = "choose another --output_dir (make: RUN=NAME), or delete it to train again"
    if resume is not None and resume != "latest":
        checkpoint = Path(resume).expanduser()
        given = read_position(checkpoint, check_content=check_content)
        return Plan(checkpoint=checkpoint, position=given, notices=[], resume=resume)
    if resume is None and state == "finished":
        raise InputError(f"{run}: holds a finished run; {another}")
    newest, position, notices = newest_complete_checkpoint(run, check_content=check_content)
    if newest is not None and (record or resume):
        return Plan(checkpoint=newest, position=position, notices=notices, resume=resume)
    if resume == "latest":
        raise InputError(f"{run}: no complete checkpoint to continue from{''.join(f' ({line})' for line in notices)}")
    if state == "trained":
        raise InputError(f"{run}: holds a trained model and no checkpoint to continue from; {another}")
    if not record and run.exists():
        if not run.is_dir():
            raise InputError(f"{run}: expected a directory for the run, found a file")
        if foreign := sorted(path.name for path in run.iterdir() if not path.name.startswith(".")):
            raise InputError(f"{run}: holds something else ({printable(foreign[0])}, …), not a run; {another}")
    if notices:
        raise InputError(f"{run}: no complete checkpoint to continue from ({'; '.join(notices)}); {another}")
    if state == "training":
        notices = [*notices, f"{run}: was interrupted before its first checkpoint; starting again"]
    return Plan(checkpoint=None, position=None, notices=notices)


def read_record(run: Path, *, remedy: str = "; delete it or choose another --output_dir") -> dict[str, Any]:
    """The content of `run.json`; empty if there is none. Raises `InputError`, with a `remedy`, if it can't be read."""
    path = run / RECORD_NAME
    try:
        content = json.loads(path.read_bytes(), parse_constant=lambda _word: None)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: can't be read ({error}){remedy}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {type(content).__name__}{remedy}")
    return content


def record_part(run: Path, *keys: str) -> dict[str, Any]:
    """The object at `keys` in `run.json`; empty if there is none. Raises `InputError` if something else is there."""
    part: Any = read_record(run)
    for number, key in enumerate(keys, start=1):
        part = part.get(key)
        if part is None:
            return {}
        if not isinstance(part, dict):
            where = f"{run / RECORD_NAME}: {': '.join(keys[:number])}"
            raise InputError(f"{where}: expected an object, found {type(part).__name__}; the file is damaged")
    return dict(part)


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Make `run` and hold it. Raises `InputError` if another process does. One with nothing in it goes at the end."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{run}: can't be made: a file is in the way") from None
    except FileNotFoundError:  # as in /proc
        raise InputError(f"{run}: can't be made there; choose another --output_dir (make: RUN=NAME)") from None
    path = run / ".lock"
    with open(path, "ab") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{run}: another process is training there; wait for it or choose another --output_dir"
                )
            time.sleep(0.05)
        try:
            yield
        finally:
            if list(run.iterdir()) == [path]:
                path.unlink()
                run.rmdir()


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(run: Path) -> bool:
    """Whether a process is training in `run`. For an instant this holds a lock too, which `lock_run` waits out."""
    try:
        with open(run / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records as JSON Lines."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(_json_lines(records))


def _json_lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; a damaged line is left out; none if there is no file."""
    return read_lines_and_damage(path)[0]


def read_lines_and_damage(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """As `read_lines`, and the numbers of damaged lines, from 1. The last line of a running run may be torn.

    Only a line feed ends a line: what a model wrote may hold other characters that `str.splitlines` cuts at.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    records, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip() and number < len(lines):
            damaged.append(number)
    return records, damaged


def rewind_metrics(run: Path, step: int, *, is_last: bool = False) -> list[str]:
    """Drop what `metrics.jsonl` and `samples.jsonl` say of steps after `step`: they are about to be trained again.

    Where a run ends, or was stopped, the Trainer sums up; after the last step (`is_last`) it is evaluated once more, and
    continues its prompts once more.
    Returns a notice for each file with damaged lines, which are gone for good.
    """
    notices = []
    for path, last in ((run / METRICS_NAME, step), (run / SAMPLES_NAME, step - 1 if is_last else step)):
        if not path.exists():
            continue
        records, damaged = read_lines_and_damage(path)
        if damaged:
            numbers = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
            notices.append(f"{path}: damaged, left out: line {numbers}")
        kept = [record for record in records if record.get("step", 0) <= last]
        summed = [number for number, record in enumerate(kept) if record.get("step") == step and _SUMMARY_KEY in record]
        for number in reversed(summed):
            del kept[number : None if is_last else number + 1]
        write_atomically(path, _json_lines(kept).encode())  # always: the last line may be torn
    return notices


def changed_settings(before: Any, after: Any, prefix: str = "") -> list[str]:
    """`["training.learning_rate 0.001 before, 0.0005 now", …]` for two nested mappings."""
    if isinstance(before, dict) and isinstance(after, dict):
        phrases = []
        for key in sorted({*before, *after}):
            phrases += changed_settings(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else str(key))
        return phrases
    return [] if before == after else [f"{prefix} {before!r} before, {after!r} now"]


def now() -> str:
    """The local time with its zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def process_rank() -> int:
    """This process's number among those of torchrun; 0 when there is one process."""
    return int(os.environ.get("RANK", "0"))
