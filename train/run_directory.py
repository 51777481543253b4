"""A run's directory: what is in it, whether a command may use it, and its record. Imports no torch.

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
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import shards
from shards.common.errors import InputError
from shards.common.files import FileLock, write_atomically
from shards.common.text import printable
from train.checkpoints import DataPosition, newest_complete_checkpoint, read_position
from train.settings import Settings

RECORD_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples.jsonl"
MODEL_NAME = "model"
SWANLAB_NAME = "swanlab"
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "swanlab")
_GIT_SECONDS = 5
_ELSEWHERE = "choose another --output_dir (make: RUN=NAME)"
_ANOTHER = f"{_ELSEWHERE}, or delete it to train again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command does with its run directory."""

    checkpoint: Path | None = None  # continue from here; None: start at step 0
    position: DataPosition | None = None  # of that checkpoint
    notices: list[str] = dataclasses.field(default_factory=list)  # a line each, for the user
    micro_batch_blocks: int | None = None  # of the run until then, if it is continued


def plan_run(run: Path, resume: str | None, *, check_content: bool = True) -> Plan:
    """Decide between starting and continuing, from what is in `run`. Writes nothing.

    `resume` is None (continue an interrupted run, else start), "latest", or a checkpoint's path; without `check_content`
    its files are not read. Raises `InputError` if `run` must not be overwritten or can't be, or without the checkpoint.
    """
    parent = next((path for path in (run, *run.parents) if path.exists()), run)
    if parent.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{run}: can't write to {parent}: Permission denied; {_ELSEWHERE}")
    record = read_record(run)
    given = None if resume in (None, "latest") else Path(os.path.expanduser(resume)).resolve()
    is_new = given is not None and given.parent != run.resolve()
    if is_new or (resume is None and record.get("state") == "finished"):
        check_free(run, record)
    if given is not None:
        return Plan(checkpoint=given, position=read_position(given, check_content=check_content))
    newest, position, notices = newest_complete_checkpoint(run, check_content=check_content)
    if newest is not None and (record or resume):
        micro_batch = part_of(record, run, "training_arguments").get("per_device_train_batch_size")
        return Plan(checkpoint=newest, position=position, notices=notices, micro_batch_blocks=micro_batch)
    if resume == "latest":
        raise InputError(f"{run}: no complete checkpoint to continue from{''.join(f' ({line})' for line in notices)}")
    check_free(run, record)
    if notices:
        raise InputError(f"{run}: no complete checkpoint to continue from ({'; '.join(notices)}); {_ANOTHER}")
    again = f"{run}: was interrupted before its first checkpoint; starting again"
    return Plan(notices=[again] if record else [])


def check_free(run: Path, record: dict[str, Any]) -> None:
    """Raise `InputError` unless a run may begin in `run`, whose `run.json` is `record`."""
    ended = {"finished": "holds a finished run", "trained": "holds a trained model and no checkpoint to continue from"}
    if what := ended.get(str(record.get("state"))):
        raise InputError(f"{run}: {what}; {_ANOTHER}")
    if not record and run.exists():
        if not run.is_dir():
            raise InputError(f"{run}: expected a directory for the run, found a file")
        if foreign := sorted(path.name for path in run.iterdir() if not path.name.startswith(".")):
            raise InputError(f"{run}: holds something else ({printable(foreign[0])}, …), not a run; {_ELSEWHERE}")


def read_record(run: Path) -> dict[str, Any]:
    """The content of `run.json`; empty if there is none. Raises `InputError` if it can't be read."""
    path, remedy = run / RECORD_NAME, "the file is damaged: delete it, or use another run's directory"
    try:
        content = json.loads(path.read_bytes(), parse_constant=lambda _word: None)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: can't be read ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {type(content).__name__}; {remedy}")
    return content


def record_part(run: Path, *keys: str) -> dict[str, Any]:
    """The object at `keys` in `run.json`; empty if there is none. Raises `InputError` if something else is there."""
    return part_of(read_record(run), run, *keys)


def part_of(record: dict[str, Any], run: Path, *keys: str) -> dict[str, Any]:
    """As `record_part`, of the content of `run.json` that was read already."""
    for number, key in enumerate(keys, start=1):
        part = {} if record.get(key) is None else record[key]
        if not isinstance(part, dict):
            where = f"{run / RECORD_NAME}: {': '.join(keys[:number])}"
            raise InputError(f"{where}: expected an object, found {type(part).__name__}; the file is damaged")
        record = part
    return record


def new_record(
    settings: Settings, data: shards.Data, plan: Plan, command: Sequence[str], args: Any, data_changes: Sequence[str]
) -> dict[str, Any]:
    """The content of `run.json` for a command: what the run is set to, and on what it runs; `args` are its arguments.

    A run that was interrupted has a session for each time it was started, the last of them this command's.
    """
    before, changes = {}, list(data_changes)
    if plan.checkpoint:
        before, was = read_record(settings.output_dir), record_part(plan.checkpoint.parent, "settings")
        training = was.get("training")
        if isinstance(training, dict):
            is_now = {**settings.training, "shards": settings.shards, "seed": None}  # the seed is one of `data_changes`
            changes += changed_settings({**training, "shards": was.get("shards"), "seed": None}, is_now)
    sessions, tracking_id = before.get("sessions"), before.get("tracking_id")
    session = {
        "started_at": now(),
        "first_step": plan.position.step if plan.position else 0,
        "checkpoint": str(plan.checkpoint) if plan.checkpoint else None,
        "changes": changes,
        "command": list(command),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(name)},
        "git": git_state(Path(__file__)),
        "python": platform.python_version(),
        "device": device_name(args.device),
        "processes": args.world_size,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
    }
    return {
        "tracking_id": tracking_id if isinstance(tracking_id, str) else uuid.uuid4().hex,
        "settings": settings.as_record(),
        "training_arguments": {**args.to_dict(), "train_batch_size": args.train_batch_size},
        "shards": {
            "path": data.description,
            "fingerprint": data.fingerprint,
            "evaluated": sorted(
                part.fingerprint for part in shards.validation_sets(data, settings.eval_shards).values()
            ),
            "block_tokens": data.block_tokens,
            "vocab_size": data.vocab_size,
            "train_blocks": len(data["train"]),
            "val_blocks": len(data["val"]),
        },
        "sessions": [*(sessions if isinstance(sessions, list) else []), session],
    }


def write_record(run: Path, record: dict[str, Any], state: str) -> None:
    """Replace `run.json`."""
    record |= {"state": state, "written_at": now()}
    text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
    write_atomically(run / RECORD_NAME, (text + "\n").encode("utf-8", "backslashreplace"))


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def git_state(file: Path) -> dict[str, Any] | None:
    """The commit of the checkout that `file` is in, and whether its files differ from it (`dirty`).

    None where `file` is in no checkout, as when this package is installed, or git doesn't answer.
    """
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "timeout": _GIT_SECONDS, "capture_output": True}
    options["env"] = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    git = ["git", "-c", "core.fsmonitor=false", "--no-optional-locks", "-C", str(file.parent)]
    questions = (
        ["ls-files", "--error-unmatch", "--", file.name],
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # COMMIT or COMMIT-dirty
    )
    try:
        _, commit = (subprocess.run([*git, *question], check=True, **options).stdout.strip() for question in questions)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.removesuffix(b"-dirty").decode(), "dirty": commit.endswith(b"-dirty")}


def device_name(device: Any) -> str:
    """`"NVIDIA H100 80GB HBM3"`, or `"cpu, 2 threads"`."""
    import torch

    is_gpu = device.type == "cuda"
    return torch.cuda.get_device_name(device) if is_gpu else f"{device.type}, {torch.get_num_threads()} threads"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """
    >>> flatten({"model": {"hidden_size": 64}, "loss": "auto", "groups": {}})
    {'model.hidden_size': 64, 'loss': 'auto'}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def changed_settings(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """`["training.learning_rate 0.001 before, 0.0005 now", …]` for two nested mappings."""
    was, is_now = flatten(before, prefix), flatten(after, prefix)
    values = {name: (was.get(name), is_now.get(name)) for name in sorted({*was, *is_now})}
    words = {"fingerprint": "the shard set's fingerprint"}
    return [f"{words.get(name, name)} {old!r} before, {new!r} now" for name, (old, new) in values.items() if old != new]


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Make `run` and hold it. Raises `InputError` if another process does. One with nothing in it goes at the end."""
    try:
        with _lock_of(run):
            yield
    finally:
        with contextlib.suppress(OSError):
            run.rmdir()


def is_locked(run: Path) -> bool:
    """Whether a process is training in `run`."""
    return _lock_of(run).is_held()


def _lock_of(run: Path) -> FileLock:
    return FileLock(run / RECORD_NAME, "another process is training there; wait for it or choose another --output_dir")


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with null for what JSON has no number for."""
    found: dict[str, Any] = json.loads(json.dumps(values), parse_constant=lambda _word: None)
    return found


def json_lines(records: Iterable[dict[str, Any]]) -> bytes:
    lines = (json.dumps(finite(record), ensure_ascii=False) + "\n" for record in records)
    return "".join(lines).encode("utf-8", "backslashreplace")


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with open(path, "ab") as file:
        file.write(json_lines(records))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file that have a `step`, none if there is no file; damaged lines are left out.

    The last line of a running run may be torn. Only a line feed ends a line: what a model wrote may hold other characters
    that `str.splitlines` cuts at.
    """
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and isinstance(record.get("step"), int)]


def process_rank() -> int:
    """This process's number among those of torchrun; 0 when there is one process."""
    return int(os.environ.get("RANK", "0"))
