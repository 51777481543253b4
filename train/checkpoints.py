"""Checkpoints on disk: which are complete, what they belong to, how one replaces another.

Trainer writes into `RUN/checkpoint-STEP`. When every file is there `checkpoint.json` is written last: the seal, with the
size and BLAKE3 of each file and the position in the data. A directory without one was cut short: it is passed over, and
removed before the next is written. A sealed one whose files have since been damaged is recognized by them. A run that goes
back to an earlier checkpoint leaves its old course: the later ones are removed before it writes its first, which may have
the name of one of them. The one that it went back to is whole all the while.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Annotated

from shards.common.errors import InputError, nearest_path
from shards.common.files import file_digest, flush_directory, flush_file, write_atomically
from train.settings import build
from train.values import Allowed, convert

RECORD_NAME = "checkpoint.json"
Whole = Annotated[int, Allowed("0 or more", lambda value: value >= 0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPosition:
    """Where a run stands in its data. Two of them that agree in all but `step` are of one run."""

    step: Whole
    global_batch_blocks: Whole
    block_tokens: Whole
    seed: Whole
    fingerprint: str  # of the shard set, or of the mixture
    shuffle: str = "global"
    document_mask: bool = False


def seal_checkpoint(directory: Path, position: DataPosition) -> None:
    """Write `checkpoint.json` into a checkpoint whose other files are all there, and flush everything to the disk."""
    flush_files(directory)
    sizes, digests = {}, {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != RECORD_NAME:
            name = path.relative_to(directory).as_posix()
            sizes[name], digests[name] = path.stat().st_size, file_digest(path, all_cores=True)
    record = {**dataclasses.asdict(position), "files": sizes, "blake3": digests}
    write_atomically(directory / RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())
    flush_directory(directory.parent)


def flush_files(directory: Path) -> None:
    """Flush files to the disk, with the usual permissions: safetensors writes weights that nobody else may read."""
    umask = os.umask(0)
    os.umask(umask)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
            flush_file(path)


def is_sealed(directory: Path) -> bool:
    return (directory / RECORD_NAME).is_file()


def remove(directory: Path) -> None:
    """Delete a directory, its seal first: what a kill leaves of it is no checkpoint."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(directory / RECORD_NAME)
    shutil.rmtree(directory, ignore_errors=True)


def replace_directory(new: Path, final: Path) -> None:
    """Rename `new`, whose files are flushed, to `final`, in place of an older one."""
    remove(final)
    flush_directory(new)
    os.rename(new, final)
    flush_directory(final.parent)


def remove_abandoned(run: Path, step: int) -> None:
    """Before a run saves at `step`: remove checkpoints from there on, whose course it has left, and those cut short."""
    for path in numbered_checkpoints(run):
        if _step_of(path) >= step or not is_sealed(path):
            remove(path)


def remove_oldest(run: Path, num_kept: int | None, *, best: str | None) -> None:
    """Remove the oldest checkpoints until `num_kept` are left (None, 0: all are), but never the newest or the `best`."""
    *older, _newest = numbered_checkpoints(run)
    removable = [path for path in older if best is None or path.name != Path(best).name]  # the run may have been moved
    for path in removable[: max(0, len(older) + 1 - num_kept)] if num_kept else ():
        remove(path)


def read_position(checkpoint: Path, *, check_content: bool = True) -> DataPosition:
    """The position of a complete checkpoint; files are read if `check_content`. Raises `InputError`: what is damaged."""
    path = checkpoint / RECORD_NAME
    try:
        record = json.loads(path.read_bytes())
        sizes = convert(record.pop("files"), dict[str, Whole], "files")
        digests = convert(record.pop("blake3"), dict[str, str], "blake3")
        position = build(DataPosition, record, lambda *keys: ": ".join(keys) or "position")
        outside = [name for name in sizes if ".." in Path(name).parts or Path(name).is_absolute()]
        if outside or sizes.keys() != digests.keys():
            raise ValueError("files: expected names of files within the checkpoint, each with its digest")
    except FileNotFoundError:
        unsealed = f"no {RECORD_NAME}, so it was not written to its end"
        what = unsealed if checkpoint.is_dir() else f"no such checkpoint{nearest_path(checkpoint, Path.is_dir)}"
        raise InputError(f"{checkpoint}: {what}") from None
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise InputError(f"{path}: can't be read ({error})") from None
    for name, expected in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            raise InputError(f"{file}: is missing; the checkpoint is damaged")
        if (found := file.stat().st_size) != expected:
            raise InputError(f"{file}: has {found:,} bytes, expected {expected:,} bytes; the checkpoint is damaged")
        if check_content and file_digest(file, all_cores=True) != digests[name]:
            raise InputError(f"{file}: has other bytes than were written; the checkpoint is damaged")
    return position


def numbered_checkpoints(run: Path) -> list[Path]:
    """The directories `checkpoint-STEP` in `run`, by step, sealed or not. Others aren't ours."""
    found = (path for path in run.glob("checkpoint-*") if path.name[len("checkpoint-") :].isdecimal())
    return sorted(filter(Path.is_dir, found), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def newest_complete_checkpoint(
    run: Path, *, check_content: bool = True
) -> tuple[Path | None, DataPosition | None, list[str]]:
    """The complete checkpoint of the highest step, its position, and a line about each newer one that is damaged.

    Unsealed ones don't count.
    """
    faults: list[str] = []
    for path in filter(is_sealed, reversed(numbered_checkpoints(run))):
        try:
            return path, read_position(path, check_content=check_content), faults
        except InputError as error:
            faults.append(str(error))
    return None, None, faults
