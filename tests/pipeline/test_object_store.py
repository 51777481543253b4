"""Sets in an object store: the bytes of those on a disk, whatever happens, and no file goes that isn't the build's own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.outputs.object_store import ObjectStoreOutput
from shards.common.errors import InputError, TransientError
from shards.common.urls import file_system, listing, read_bytes, write_bytes
from shards.manifest import Manifest
from shards.share.pull import pull
from shards.verify import verify
from tests.conftest import SAMPLE, InlineEngine, directory_bytes, sample_records, use_engine, write_corpus
from tests.pipeline.building import Builder, killed_before_publishing, stored

OPTIONS: dict[str, Any] = {"unit_bytes": 15_000, "dedup": "near", "on_bad_record": "skip"}
SET = "memory://bucket/set"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    inner = [{"text": f"内{number}"} for number in range(1500)]  # units in which no record begins
    records = [*sample_records()[:20], {"refs": inner, "text": "长"}, {"text": 5}, *sample_records()[:9]]
    records.append({"text": sample_records()[9]["text"] + "完"})
    return write_corpus(tmp_path / "corpus.json", records)


@pytest.fixture
def whole(tmp_path: Path, run: Builder, corpus: Path, inline_engine: None) -> dict[str, bytes]:
    run(corpus, tmp_path / "whole", **OPTIONS)
    return directory_bytes(tmp_path / "whole")


def test_only_units_of_the_same_files_count(memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes]) -> None:
    with killed_before_publishing():
        run(corpus, SET, **OPTIONS)
    receipts = sorted(name for name in stored(f"{SET}.partial/receipts") if name.endswith(".json"))
    shards = sorted(name for name in stored(SET) if name.endswith(".bin"))
    content = memory.cat_file(f"/bucket/set/{shards[0]}")
    memory.pipe_file(f"/bucket/set/{shards[0]}", bytes([content[0] ^ 1]) + content[1:])  # same size
    memory.rm_file(f"/bucket/set/{shards[1]}")
    receipt = memory.cat_file(f"/bucket/set.partial/receipts/{receipts[-1]}")
    memory.pipe_file(
        f"/bucket/set.partial/receipts/{receipts[-1]}", receipt.replace(b'"num_checked": 0', b'"num_checked": 1')
    )
    with pytest.raises(InputError, match="seed was 2333, now 7"):
        run(corpus, SET, **OPTIONS, seed=7)
    assert run(corpus, SET, **OPTIONS).num_units_reused == len(receipts) - 3 > 0
    assert stored(SET) == whole and stored(f"{SET}.partial") == {}


@pytest.mark.parametrize("state", ["nothing", "a set", "an unfinished build"])
def test_force_removes_only_its_own(
    memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes], state: str
) -> None:
    """What a manifest or receipt names."""
    with killed_before_publishing() if state == "an unfinished build" else contextlib.nullcontext():
        if state != "nothing":
            run(corpus, SET, **OPTIONS, seed=7)
    names = ("set/mine.txt", "set/train-77777.bin", "set/below/mine.txt", "set2/manifest.json")
    foreign = {name: name.encode() for name in names}
    for name, content in foreign.items():
        memory.pipe_file(f"/bucket/{name}", content)
    if state == "nothing":
        for force in (False, True):
            with pytest.raises(InputError, match="files are there that are not a shard set; choose another --out"):
                run(corpus, SET, **OPTIONS, force=force)
    else:
        run(corpus, SET, **OPTIONS, force=True)
        whole |= {name.removeprefix("set/"): content for name, content in foreign.items() if name.startswith("set/")}
        assert stored(SET) == whole and stored(f"{SET}.partial") == {}
    assert {name: memory.cat_file(f"/bucket/{name}") for name in foreign} == foreign
    memory.pipe_file("/bucket/other.partial/mine.txt", b"1")
    with pytest.raises(InputError, match=r"other\.partial/mine\.txt: not of an unfinished build"):
        run(corpus, "memory://bucket/other", **OPTIONS, force=True)


@pytest.mark.usefixtures("inline_engine")
def test_the_later_of_two_is_refused(memory: Any, corpus: Path, run: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    create_plan = ObjectStoreOutput._create_plan

    def create_second(self: ObjectStoreOutput, own: bytes) -> None:
        memory.pipe_file("/bucket/set.partial/plan.json", own.replace(b"2333", b"7"))
        create_plan(self, own)

    monkeypatch.setattr(ObjectStoreOutput, "_create_plan", create_second)
    with pytest.raises(InputError, match="another build with other inputs began at the same time"):
        run(corpus, SET, **OPTIONS)
    assert stored(SET) == {}


@pytest.mark.usefixtures("inline_engine")
def test_a_set_that_another_build_has_finished_meanwhile_stays(
    memory: Any, corpus: Path, run: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    existing = ObjectStoreOutput.existing

    def existing_then_finished(self: ObjectStoreOutput, *, force: bool = False) -> Manifest | None:
        found = existing(self, force=force)
        monkeypatch.setattr(ObjectStoreOutput, "existing", existing)
        run(corpus, SET, **OPTIONS, seed=7)
        return found

    monkeypatch.setattr(ObjectStoreOutput, "existing", existing_then_finished)
    with pytest.raises(InputError, match="another build has finished here meanwhile; repeat the command"):
        run(corpus, SET, **OPTIONS)
    assert run(corpus, SET, **OPTIONS, seed=7).up_to_date and stored(f"{SET}.partial") == {}


@pytest.mark.parametrize("kind", ["receipts", "dedup"])
def test_what_a_build_adds_after_another_has_published_goes(
    memory: Any, corpus: Path, run: Builder, whole: dict[str, bytes], kind: str
) -> None:
    with killed_before_publishing():
        run(corpus, SET, **OPTIONS)
    state = {name: content for name, content in stored(f"{SET}.partial").items() if name.startswith(kind)}
    run(corpus, SET, **OPTIONS)
    for name, content in state.items():
        memory.pipe_file(f"/bucket/set.partial/{name}", content)
    assert run(corpus, SET, **OPTIONS).up_to_date
    assert stored(SET) == whole and stored(f"{SET}.partial") == {}


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("set/train-00000.bin", "was changed while the set was built"),
        ("set.partial/plan.json", "was removed by another build"),
    ],
)
def test_a_set_whose_files_or_plan_changed_is_not_published(
    memory: Any, corpus: Path, run: Builder, monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    publish = ObjectStoreOutput.publish

    def publish_without(self: ObjectStoreOutput, directory: Path) -> None:
        memory.rm_file(f"/bucket/{name}")
        publish(self, directory)

    monkeypatch.setattr(ObjectStoreOutput, "publish", publish_without)
    with pytest.raises(InputError, match=line) as caught:
        run(corpus, SET, **OPTIONS)
    assert isinstance(caught.value, TransientError) == name.endswith(".bin") and "manifest.json" not in stored(SET)


@pytest.mark.usefixtures("running")
def test_sources_and_a_set_on_a_server_give_the_bytes_of_a_disk(tmp_path: Path, run: Builder, corpus: Path) -> None:
    """By a worker process."""
    options = OPTIONS | {"unit_bytes": 60_000}
    with pytest.MonkeyPatch.context() as patch:
        use_engine(patch, InlineEngine())
        run(corpus, tmp_path / "set", **options)
    write_bytes("s3://bucket-s3/corpus/corpus.json", corpus.read_bytes())
    run("s3://bucket-s3/corpus", "s3://bucket-s3/set", **options)
    expected, found = directory_bytes(tmp_path / "set"), stored("s3://bucket-s3/set")
    assert {name for name in expected if expected[name] != found.get(name)} == {".sources.json", "manifest.json"}
    assert found.keys() == expected.keys() and stored("s3://bucket-s3/set.partial") == {}
    assert verify(pull("s3://bucket-s3/set", tmp_path / "pulled")) == []
    assert run("s3://bucket-s3/corpus", "s3://bucket-s3/set", **options).up_to_date


@pytest.mark.usefixtures("running")
def test_what_another_process_puts_is_seen_after_a_listing() -> None:
    """Otherwise a build that continues misses the duplicates and rejected records that its workers find."""
    url = "s3://bucket-s3/seen.partial"
    write_bytes(f"{url}/receipts/00000.json", b"1")
    assert len(listing(url)) == 1
    other = type(file_system(url)[0])(skip_instance_cache=True)
    for content in (b"2", b"another"):
        other.pipe_file("bucket-s3/seen.partial/receipts/00001.json", content)
        assert read_bytes(f"{url}/receipts/00001.json") == content
        assert len(listing(url)) == 2


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("content", [None, b"another build's\n"])
@pytest.mark.parametrize("suffix", [".hashes", ".rejected"])
def test_state_that_goes_or_changes_while_a_set_is_built_is_missed(
    memory: Any, corpus: Path, run: Builder, monkeypatch: pytest.MonkeyPatch, suffix: str, content: bytes | None
) -> None:
    read = ObjectStoreOutput.read
    monkeypatch.setattr(
        ObjectStoreOutput, "read", lambda self, name: content if name.endswith(suffix) else read(self, name)
    )
    with pytest.raises(TransientError, match=rf"{suffix}.*; repeat the command"):
        run(corpus, SET, **OPTIONS)


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("url", ["nothing://here/set", "s3://no-such-bucket-here/set"])
def test_an_object_store_that_is_not_there_is_one_line(run: Builder, url: str) -> None:
    with pytest.raises(InputError, match=r"here/set"):
        run(SAMPLE, url)
