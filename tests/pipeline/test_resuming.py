"""What an earlier run has left is used where it is whole and of the same inputs; everything else is named or left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.dedup import read_hashes
from pipeline.outputs import local
from pipeline.outputs.local import LocalOutput
from pipeline.receipts import decode_receipt
from shards.common.errors import InputError
from shards.common.files import file_digest
from shards.common.urls import is_url, join, write_bytes
from shards.manifest import decode_manifest, encode_manifest
from tests.conftest import (
    SAMPLE,
    InlineEngine,
    change,
    directory_bytes,
    flip,
    sample_records,
    use_engine,
    write_corpus,
)
from tests.pipeline.building import Builder, Heard, killed_before_publishing

pytestmark = pytest.mark.usefixtures("inline_engine")
OPTIONS: dict[str, Any] = {"unit_bytes": 10_000, "dedup": "near", "on_bad_record": "skip"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> Path:
    """A corpus, its set `whole`, and `set.partial` of a build that was killed when all units were done."""
    directory, run = tmp_path_factory.mktemp("stopped"), Builder(tokenizer_dir)
    records = sample_records()
    near = {"text": max((record["text"] for record in records[:8]), key=len) + "。"}
    lines = [*records[:8], records[3], {"text": 5}, *records[8:20], near, *records[20:40]]
    corpus = write_corpus(directory / "corpus.jsonl", lines, "lines")
    with pytest.MonkeyPatch.context() as patch:
        use_engine(patch, InlineEngine())
        run(corpus, directory / "whole", **OPTIONS)
        with killed_before_publishing():
            run(corpus, directory / "set", **OPTIONS)
    return directory


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A copy of `prepared` in which a test may change what it likes."""

    directory: Path
    run: Builder

    @property
    def corpus(self) -> Path:
        return self.directory / "corpus.jsonl"

    @property
    def partial(self) -> Path:
        return self.directory / "set.partial"

    @property
    def num_units(self) -> int:
        return len(list(self.partial.glob("receipts/*.json")))

    def go_on(self, **options: Any) -> int:
        """Finish the build; the number of units that were done before."""
        return self.run(self.corpus, self.directory / "set", **OPTIONS | options).num_units_reused

    def is_right(self) -> bool:
        left, right = (directory_bytes(self.directory / name) for name in ("set", "whole"))
        del left[".sources.json"], right[".sources.json"]
        return left == right and not self.partial.exists()


@pytest.fixture
def stopped(prepared: Path, tmp_path: Path, run: Builder) -> Stopped:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    plan = tmp_path / "set.partial" / "plan.json"
    change(plan, lambda content: content.replace(str(prepared).encode(), str(tmp_path).encode()))
    os.utime(plan)  # after the copy of the corpus
    return Stopped(tmp_path, run)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "pattern",
    [
        *("set/train-*.bin", "set/train-*.idx", "set/val-*.bin", "receipts/*.json", "receipts/*.rejected"),
        *("dedup/*.hashes", "dedup/*.duplicates", "dedup/*.near-duplicates"),
    ],
)
def test_a_damaged_file_is_made_again(stopped: Stopped, pattern: str, damage: Callable[[Path], None]) -> None:
    num_units, path = stopped.num_units, min(stopped.partial.glob(pattern))
    damage(path)
    assert stopped.go_on() == num_units - (path.parent.name != "dedup")
    assert stopped.is_right() and num_units > 5


def test_each_byte_of_a_receipt_counts(stopped: Stopped) -> None:
    content = (stopped.partial / "receipts" / "00001.json").read_bytes()
    hashed = (stopped.partial / "dedup" / "00001.hashes").read_bytes()
    assert decode_receipt(content, 1) and decode_receipt(content, 2) is None and read_hashes(lambda _name: hashed, 1)
    for place in range(len(content)):
        assert decode_receipt(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :], 1) is None
    for place in range(len(hashed)):
        changed = hashed[:place] + bytes([hashed[place] ^ 1]) + hashed[place + 1 :]
        assert read_hashes(lambda _name, changed=changed: changed, 1) is None  # type: ignore[misc]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"settings": {}, "tokenizer": [], "sources": 5}'])
def test_a_damaged_plan_is_one_line_that_says_what_to_do(stopped: Stopped, content: bytes) -> None:
    (stopped.partial / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json is damaged.* begin anew with --force"):
        stopped.go_on()
    assert stopped.go_on(force=True) == 0
    assert stopped.is_right()


@pytest.mark.parametrize("suffix", [".json", ".hashes", ".bin"])
def test_a_file_that_can_t_be_read_is_not_gone(stopped: Stopped, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    before = directory_bytes(stopped.partial)

    def refused(original: Any) -> Any:
        def read(path: Path, *more: Any) -> Any:
            if path.suffix == suffix and path.name != "plan.json" and stopped.partial in path.parents:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return original(path, *more)

        return read

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(Path, "read_bytes", refused(Path.read_bytes))
        patch.setattr(local, "file_digest", refused(file_digest))
        stopped.go_on()
    assert directory_bytes(stopped.partial) == before


@pytest.mark.parametrize("is_older", [False, True])
def test_a_source_with_other_times_and_the_same_bytes_goes_on(stopped: Stopped, is_older: bool) -> None:
    num_units = stopped.num_units
    os.utime(stopped.corpus, (1, 1) if is_older else None)
    assert stopped.go_on() == num_units and stopped.is_right()


@pytest.mark.parametrize("keeps_times", [False, True])
def test_a_source_with_other_bytes_is_refused_and_force_begins_anew(stopped: Stopped, keeps_times: bool) -> None:
    (stopped.partial / "receipts" / "00002.json").unlink()
    times = stopped.corpus.stat()
    content = stopped.corpus.read_bytes().replace("的".encode(), "地".encode())
    stopped.corpus.write_bytes(content)
    if keeps_times:
        os.utime(stopped.corpus, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(InputError, match=r"other inputs \(.*corpus.jsonl has changed\).*begin anew with --force"):
            stopped.go_on()
    assert stopped.go_on(force=True) == 0
    stopped.run(stopped.corpus, stopped.directory / "other", **OPTIONS)
    left, right = (directory_bytes(stopped.directory / name) for name in ("set", "other"))
    assert left == right


def test_other_sources_are_named(stopped: Stopped) -> None:
    with pytest.raises(InputError, match="the list of sources differs"):
        stopped.run([stopped.corpus, SAMPLE], stopped.directory / "set", **OPTIONS)


def test_with_force_an_unfinished_build_of_the_same_inputs_goes_on(stopped: Stopped) -> None:
    """As Ctrl-C says: finished units are kept, and the same command continues."""
    num_units = stopped.num_units
    assert stopped.go_on(force=True) == num_units
    assert stopped.go_on(force=True) == 0  # a complete set is built anew
    assert stopped.is_right()


def test_a_setting_that_an_older_plan_or_manifest_lacks_had_its_default(stopped: Stopped) -> None:
    plan = stopped.partial / "plan.json"
    settings = json.loads(plan.read_bytes())
    del settings["settings"]["template"], settings["settings"]["special_tokens"]
    change(plan, lambda _content: json.dumps(settings).encode())
    assert stopped.go_on() > 0
    path = stopped.directory / "set" / "manifest.json"
    manifest = decode_manifest(path.read_bytes(), "")
    del manifest.settings["template"], manifest.settings["special_tokens"]
    path.write_bytes(encode_manifest(manifest.with_fingerprint()))
    assert stopped.run(stopped.corpus, path.parent, **OPTIONS).up_to_date
    with pytest.raises(InputError, match=r"special_tokens was text, now parse"):
        stopped.run(stopped.corpus, path.parent, **OPTIONS, special_tokens="parse")


def test_a_build_that_stopped_before_its_first_unit_begins_anew(tmp_path: Path, run: Builder) -> None:
    """After a wrong option the right one needs no --force, nor does a disk that was full at the plan."""
    partial = tmp_path / "set.partial"
    partial.mkdir()
    (partial / "plan.json.tmp").write_bytes(b"{")
    with pytest.raises(InputError, match="no field 'txet'"):
        run(SAMPLE, tmp_path / "set", text_field="txet")
    with pytest.raises(InputError, match="no text in 110 records"):
        run(SAMPLE, tmp_path / "set", min_chars=10**6)
    assert (partial / "plan.json").exists()
    run(SAMPLE, tmp_path / "set")


@pytest.mark.parametrize("name", ["notes.txt", "set/notes.txt", "receipts/notes.txt", "scratch/mine/notes.txt"])
@pytest.mark.parametrize("has_plan", [True, False])
def test_foreign_files_in_an_unfinished_build_stop_it_and_stay(stopped: Stopped, name: str, has_plan: bool) -> None:
    if not has_plan:
        (stopped.partial / "plan.json").unlink()
    path = stopped.partial / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("mine")
    before = directory_bytes(stopped.directory)
    for options in ({}, {"force": True}, {"force": True, "seed": 7}):
        named = name if has_plan else ""
        with pytest.raises(InputError, match=rf"{named}: not part of an unfinished build; move it elsewhere"):
            stopped.go_on(**options)
    assert directory_bytes(stopped.directory) == before


@pytest.mark.parametrize("name", ["notes.txt", "tokenizer/notes.txt", "mine/notes.txt", "train-77777.bin"])
def test_force_replaces_a_set_and_nothing_else(tmp_path: Path, run: Builder, name: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.json", sample_records()[:20])
    run(corpus, tmp_path / "set")
    path = tmp_path / "set" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = directory_bytes(tmp_path)
    named = name if "mine" not in name else "mine"
    with pytest.raises(InputError, match=rf"{named}: not part of the set that --force would replace; move it"):
        run(corpus, tmp_path / "set", seed=7, force=True)
    assert directory_bytes(tmp_path) == before
    (tmp_path / "link").symlink_to(tmp_path / "set")
    with pytest.raises(InputError, match="is a symbolic link, which --force doesn't replace"):
        run(corpus, tmp_path / "link", seed=7, force=True)


@pytest.mark.parametrize("content", [b"{", b'{"format_version": 2}'])
@pytest.mark.parametrize("out", ["{tmp_path}/set", "memory://bucket/{tmp_path.name}"])
@pytest.mark.usefixtures("inline_engine")
def test_force_replaces_a_set_with_a_bad_manifest(tmp_path: Path, run: Builder, out: str, content: bytes) -> None:
    """It is damaged, or of another version; which files are a set's own is then known by their names."""
    corpus, out = write_corpus(tmp_path / "corpus.json", sample_records()[:20]), out.format(tmp_path=tmp_path)
    fingerprint = run(corpus, out).manifest.fingerprint
    if is_url(out):
        write_bytes(join(out, "manifest.json"), content)
    else:
        Path(out, "manifest.json").write_bytes(content)
        Path(out, "photo.jpg").write_bytes(b"mine")
        with pytest.raises(InputError, match=r"photo\.jpg: not part of the set that --force would replace"):
            run(corpus, out, force=True)
        Path(out, "photo.jpg").unlink()
    with pytest.raises(InputError, match=r"manifest\.json: (not valid JSON|expected format version 1, found 2)"):
        run(corpus, out)
    assert run(corpus, out, force=True).manifest.fingerprint == fingerprint
    assert run(corpus, out).up_to_date


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_set_is_left(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/1.jpg").write_text("mine")
    Path("file").write_text("mine")
    Path("new.partial").write_text("mine")
    for outs, expected in (
        (("new",), "new.partial: expected a directory, or nothing there"),
        (("photos", "file"), "exists and is not a shard set; choose another --out, or move it"),
        (("/proc/nowhere/set", "file/set"), "can't write here"),
        ((".", "/", ".."), "expected the name of a directory to make"),
    ):
        for out in outs:
            with pytest.raises(InputError, match=expected):
                run(SAMPLE, out, force=force)
    assert list(directory_bytes(tmp_path)) == ["file", "new.partial", "photos/1.jpg"]


def test_of_two_builds_at_once_one_is_refused_naming_the_other(tmp_path: Path, run: Builder) -> None:
    line = rf"another build is writing here.*\(process {os.getpid()}\)"
    with LocalOutput(tmp_path / "set").lock(), pytest.raises(InputError, match=line):
        run(SAMPLE, tmp_path / "set")
    assert not (tmp_path / ".set.lock").exists()


def test_a_build_of_unchanged_inputs_does_nothing(tmp_path: Path, tokenizer_dir: Path, run: Builder) -> None:
    corpus = write_corpus(tmp_path / SAMPLE.name, sample_records()[:20])
    run(corpus, tmp_path / "set")
    before = directory_bytes(tmp_path / "set")
    other = tmp_path / "elsewhere" / SAMPLE.name
    other.parent.mkdir()
    other.write_bytes(corpus.read_bytes())
    for same in (corpus, other):
        assert run(same, tmp_path / "set").up_to_date
    other.write_bytes(corpus.read_bytes().replace("的".encode(), "地".encode()))
    with pytest.raises(InputError, match=r"other inputs is there \(the sources have changed\).*--force"):
        run(other, tmp_path / "set")
    with pytest.raises(InputError, match=r"\(seed was 2333, now 7\)"):
        run(corpus, tmp_path / "set", seed=7)
    shutil.copytree(tokenizer_dir, tmp_path / tokenizer_dir.name)
    change(tmp_path / tokenizer_dir.name / "tokenizer.json", lambda content: content.replace(b'"NFC"', b'"NFKC"'))
    with pytest.raises(InputError, match="the tokenizer was"):
        Builder(tmp_path / tokenizer_dir.name)(corpus, tmp_path / "set")
    other.write_bytes(other.read_bytes().replace(b'"text"', b'"txt"', 1))
    with pytest.raises(InputError, match="no field 'text'"):
        run(other, tmp_path / "set", force=True)
    assert directory_bytes(tmp_path / "set") == before  # an older set stays until the new one is whole
    other.write_bytes(corpus.read_bytes().replace("的".encode(), "地".encode()))
    run(other, tmp_path / "set", force=True)
    run(other, tmp_path / "anew")
    assert directory_bytes(tmp_path / "set") == directory_bytes(tmp_path / "anew")


@pytest.mark.parametrize("free", [10**9, 100_000, 100])
def test_too_little_room(tmp_path: Path, run: Builder, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """It is said, and only what can't fit is refused."""
    monkeypatch.setattr(LocalOutput, "free_bytes", lambda _self: free)
    heard = Heard()
    line = r"set: about .*B are needed, 100 B are free; make room"
    with pytest.raises(InputError, match=line) if free == 100 else contextlib.nullcontext():
        run(SAMPLE, tmp_path / "set", reporter=heard)
    assert ["finished units are kept" in line for line in heard.notices] == [True] * (free == 100_000)
