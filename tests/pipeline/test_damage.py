"""Files of an unfinished build that are damaged between two runs: the set comes out right, or a line says what to do."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline.place import Place

from pipeline import build as build_module
from pipeline.build import BuildResult, build
from pipeline.settings import BuildSettings
from shards.common.errors import InputError
from shards.common.files import file_digest
from shards.verify import verify
from tests.conftest import SAMPLE, directory_bytes

pytestmark = pytest.mark.usefixtures("inline_engine")
SETTINGS = BuildSettings(block_tokens=64, unit_bytes=60_000, dedup="exact", on_bad_record="skip")

Run = Callable[..., BuildResult]


class Killed(BaseException):
    """Nothing cleans up after this."""


@pytest.fixture
def run(tmp_path: Path, tokenizer_dir: Path) -> Run:
    records = json.loads(SAMPLE.read_text(encoding="utf-8"))
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in [*records[:8], records[3], *records[8:]]]
    corpus.write_text("".join(f"{line}\n" for line in [*lines[:3], '{"text": 5}', *lines[3:]]), encoding="utf-8")

    def run_build(name: str, **options: Any) -> BuildResult:
        settings = options.pop("settings", SETTINGS)
        tokenizer = str(tokenizer_dir)
        return build(
            [str(corpus)], tmp_path / name, tokenizer_name=tokenizer, settings=settings, num_workers=1, **options
        )

    return run_build


@pytest.fixture
def stopped(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that was killed when all units were done; `whole` lies beside it."""

    def kill(*_arguments: object) -> None:
        raise Killed

    run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(build_module, "write_set", kill)
        with pytest.raises(Killed):
            run("set")
    (tmp_path / "set.lock").unlink(missing_ok=True)
    return tmp_path / "set.partial"


def flip(path: Path, place: int = -1) -> None:
    """Change one bit; size and time stay."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "pattern",
    [
        *("train-*.bin", "train-*.idx", "receipts/*.json", "receipts/*.rejected"),
        *("dedup/*.hashes", "dedup/*.json", "dedup/*.drops", "dedup/done"),
    ],
)
def test_a_damaged_file_is_made_again(
    run: Run, stopped: Path, tmp_path: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    found = sorted(stopped.glob(pattern))
    assert found
    damage(found[0])
    assert run("set").statistics.num_units_reused > 0
    assert directory_bytes(tmp_path / "set") == directory_bytes(tmp_path / "whole")


@pytest.mark.parametrize("name", [".json", ".hashes", ".bin"])
def test_a_file_that_the_system_refuses_to_read_is_not_taken_for_one_that_is_gone(
    run: Run, stopped: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = directory_bytes(stopped)

    def refuse(path: Path, *_arguments: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    def refuse_some(original: Any) -> Any:
        return lambda path, *more: (refuse if path.suffix == name and stopped in path.parents else original)(
            path, *more
        )

    monkeypatch.setattr(Path, "read_bytes", refuse_some(Path.read_bytes))
    for module in ("pipeline.receipts", "pipeline.dedup"):
        monkeypatch.setattr(f"{module}.file_digest", refuse_some(file_digest))
    with pytest.raises(OSError, match="Input/output error"):
        run("set")
    monkeypatch.undo()
    assert directory_bytes(stopped) == before


def test_each_digit_of_a_receipt_counts(run: Run, stopped: Path, tmp_path: Path) -> None:
    """A number that is another, in valid JSON: the unit is done again."""
    path = sorted(stopped.glob("receipts/*.json"))[1]
    content = path.read_bytes()
    place = content.index(b'"num_text_bytes": ') + len(b'"num_text_bytes": ')
    flip(path, place)
    assert json.loads(path.read_bytes()) != json.loads(content)
    run("set")
    assert directory_bytes(tmp_path / "set") == directory_bytes(tmp_path / "whole")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"settings": {}}'])
def test_a_damaged_plan_is_one_line_that_says_what_to_do(
    run: Run, stopped: Path, tmp_path: Path, content: bytes
) -> None:
    (stopped / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"set\.partial: .* begin anew with --force"):
        run("set")
    run("set", force=True)
    assert directory_bytes(tmp_path / "set") == directory_bytes(tmp_path / "whole")


def test_a_set_that_was_damaged_before_it_was_in_its_place_is_not_published(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("whole")
    rename = os.rename

    def kill(source: Path, _target: Path) -> None:
        if Path(source).name == "set.partial":
            raise Killed
        rename(source, _target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", kill)
        with pytest.raises(Killed):
            run("set")
    (tmp_path / "set.lock").unlink(missing_ok=True)
    flip(tmp_path / "set.partial" / "train-00001.bin")
    with pytest.raises(InputError, match=r"train-00001.* begin anew with --force"):
        run("set")
    assert not Place(tmp_path / "set").is_there
    run("set", force=True)
    assert directory_bytes(tmp_path / "set") == directory_bytes(tmp_path / "whole")


def test_what_is_kept_is_all_that_was_done(run: Run, stopped: Path) -> None:
    num_units = len(list(stopped.glob("receipts/*.json")))
    assert run("set").statistics.num_units_reused == num_units > 3


def test_a_killed_build_of_other_packing_is_kept_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SETTINGS, packing="best-fit")
    run("whole", settings=settings)
    with monkeypatch.context() as patched:
        patched.setattr(Place, "publish", lambda _self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run("set", settings=settings)
    (tmp_path / "set.lock").unlink(missing_ok=True)
    flip(next((tmp_path / "set.partial").glob("train-*.bin")))
    run("set", settings=settings)
    assert directory_bytes(tmp_path / "set") == directory_bytes(tmp_path / "whole")
    assert verify(tmp_path / "set") == []
