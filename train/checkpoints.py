"""Checkpoints on disk: which are complete, what they belong to, how one appears as a whole.

A checkpoint is written under `RUN/.saving/`, gets a `checkpoint.json` with the size and BLAKE3 of each of its files and
the position in the data, is flushed to the disk, and is then renamed to `RUN/checkpoint-STEP`. So a directory of that
name is whole; one whose files have since been damaged or lost is recognised by them and passed over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from shards.common.errors import InputError, nearest_path
from shards.common.files import file_digest, flush_directory, write_atomically

RECORD_NAME = "checkpoint.json"
TRAINER_STATE_NAME = "trainer_state.json"
SAVING_DIRECTORY = ".saving"
_NAME = re.compile(r"checkpoint-([0-9]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPosition:
    """Where a run stands in its data. Two of them that agree in all but `step` are of one run."""

    step: int
    global_batch_blocks: int
    block_tokens: int
    seed: int
    fingerprint: str  # of the shard set, or of the mixture
    shuffle: str = "global"
    document_mask: bool = False


def seal_checkpoint(directory: Path, position: DataPosition) -> None:
    """Write `checkpoint.json` into a checkpoint whose other files are all there, and flush it to the disk."""
    sizes, digests = {}, {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != RECORD_NAME:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            name = path.relative_to(directory).as_posix()
            sizes[name], digests[name] = path.stat().st_size, file_digest(path, all_cores=True)
    record = {**dataclasses.asdict(position), "files": sizes, "blake3": digests}
    write_atomically(directory / RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())


def publish_checkpoint(directory: Path, final: Path) -> None:
    """Rename a sealed checkpoint to its final name, in place of an older one of the same step.

    Its files get the usual permissions: safetensors writes weights that nobody else may read.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
    if final.exists():
        shutil.rmtree(final)
    os.replace(directory, final)
    flush_directory(final.parent)


def read_position(checkpoint: Path, *, check_content: bool = True) -> DataPosition:
    """The position of a complete checkpoint. Raises `InputError` if it is not complete or damaged, saying why.

    Without `check_content` files of the right size are taken for right.
    """
    path = checkpoint / RECORD_NAME
    try:
        record = json.loads(path.read_bytes())
        sizes: dict[str, int] = record.pop("files")
        digests: dict[str, str] = record.pop("blake3", {})
        position = DataPosition(**record)
        for field in dataclasses.fields(DataPosition):
            if type(getattr(position, field.name)).__name__ != field.type:
                raise TypeError(f"{field.name}: expected {field.type}")
        if not isinstance(sizes, dict) or any(".." in Path(name).parts or Path(name).is_absolute() for name in sizes):
            raise ValueError("files: expected names of files within the checkpoint, and their sizes")
        if position.step < 0 or any(type(size) is not int or not 0 <= size < 2**63 for size in sizes.values()):
            raise ValueError("expected sizes of files and a step that are whole numbers")
        if not isinstance(digests, dict) or not digests.keys() <= sizes.keys():
            raise ValueError("blake3: expected digests of the files")
        if (checkpoint / TRAINER_STATE_NAME).is_file():
            state = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
            if state.get("global_step") != position.step:
                raise ValueError(f"{TRAINER_STATE_NAME}: is of another step")
    except FileNotFoundError:
        hint = nearest_path(checkpoint, Path.is_dir)
        unfinished = f"no {RECORD_NAME}, so it was not written to its end"
        what = unfinished if checkpoint.is_dir() else f"no such checkpoint{hint}"
        raise InputError(f"{checkpoint}: {what}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise InputError(f"{path}: can't be read ({error})") from None
    for name, expected in sizes.items():
        file = checkpoint / name
        found = file.stat().st_size if file.is_file() else None
        if found != expected:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise InputError(f"{file}: {state}, expected {expected:,} bytes; the checkpoint is damaged")
    for name, digest in digests.items() if check_content else ():
        if file_digest(checkpoint / name, all_cores=True) != digest:
            raise InputError(f"{checkpoint / name}: has other bytes than were written; the checkpoint is damaged")
    return position


def numbered_checkpoints(run: Path) -> list[Path]:
    """The directories `checkpoint-STEP` in `run`, by step, complete or not."""
    found = []
    if run.is_dir():
        for path in run.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def newest_complete_checkpoint(
    run: Path, *, check_content: bool = True
) -> tuple[Path | None, DataPosition | None, list[str]]:
    """The complete checkpoint of the highest step, its position, and a line about each newer one that is damaged."""
    faults: list[str] = []
    for path in reversed(numbered_checkpoints(run)):
        try:
            return path, read_position(path, check_content=check_content), faults
        except InputError as error:
            faults.append(str(error))
    return None, None, faults


def delete_old_checkpoints(run: Path, *, keep: int | None, best: str | None) -> None:
    """Delete all but the newest `keep` checkpoints (None or 0: keep all); never the newest one nor `best`."""
    if not keep or keep <= 0:
        return
    checkpoints = numbered_checkpoints(run)
    protected = {path for path in checkpoints if best is not None and path.name == Path(best).name}
    candidates = [path for path in checkpoints[:-1] if path not in protected]
    excess = len(checkpoints) - max(keep, len(protected | set(checkpoints[-1:])))
    for path in candidates[: max(0, excess)]:
        shutil.rmtree(path, ignore_errors=True)


def differences(checkpoint: DataPosition, now: DataPosition) -> list[str]:
    """What keeps a checkpoint from being continued, a phrase each; `step` aside."""
    names: dict[str, Any] = {
        "fingerprint": "shard set",
        "block_tokens": "tokens in a block",
        "seed": "seed",
        "shuffle": "shuffle",
        "document_mask": "document_mask",
        "global_batch_blocks": "blocks in a global batch",
    }
    phrases = []
    for field, name in names.items():
        before, after = getattr(checkpoint, field), getattr(now, field)
        if before != after:
            if field == "fingerprint":
                before, after = f"{before[:12]}…", f"{after[:12]}…"
            phrases.append(f"{name} {before} before, {after} now")
    return phrases
