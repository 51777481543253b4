"""The other packings, exact deduplication, and the check against the reference tokenizer."""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from shards.best_fit import BestFitPacker, best_fit_decreasing

import shards
from pipeline import dedup, work
from pipeline.build import build
from pipeline.progress import summary
from pipeline.settings import BuildSettings
from pipeline.tokenizers import FastEncoder, ReferenceEncoder, load_tokenizer_files
from shards.common.errors import InputError
from shards.verify import verify
from shards.vocabulary import Vocabulary
from shards.writer import ShardWriter
from tests.conftest import directory_bytes, sample_records, write_corpus

pytestmark = pytest.mark.usefixtures("inline_engine")
TEXTS = [record["text"] for record in sample_records()]


def build_set(directory: Path, tokenizer_dir: Path, texts: list[str], **options: Any) -> shards.ShardSet:
    directory.mkdir(exist_ok=True, parents=True)
    corpus = write_corpus(directory / "corpus.json", [{"text": text} for text in texts])
    check_every = options.pop("check_every", 1000)
    settings = BuildSettings(**{"block_tokens": 64, "unit_bytes": 30_000, "val_fraction": 0.0, **options})
    build(
        [str(corpus)],
        directory / "set",
        tokenizer_name=str(tokenizer_dir),
        settings=settings,
        num_workers=1,
        check_every=check_every,
    )
    assert verify(directory / "set") == []
    return shards.open(directory / "set")


def texts_of(shard_set: shards.ShardSet) -> list[str]:
    vocabulary = Vocabulary(shard_set.tokenizer_path)
    return [vocabulary.text(document) for document in shard_set["train"].documents()]


def reference_ids(tokenizer_dir: Path, texts: list[str]) -> list[list[int]]:
    ids, offsets = ReferenceEncoder((tokenizer_dir / "tokenizer.json").read_bytes()).encode(texts)
    return [ids[start:end].tolist() for start, end in itertools.pairwise(offsets.tolist())]


@given(lengths=st.lists(st.integers(1, 40), max_size=60))
def test_best_fit_fills_no_block_beyond_its_capacity(lengths: list[int]) -> None:
    blocks = best_fit_decreasing(lengths, 40)
    assert sorted(piece for block in blocks for piece in block) == list(range(len(lengths)))
    assert all(sum(lengths[piece] for piece in block) <= 40 for block in blocks)
    sums = sorted(sum(lengths[piece] for piece in block) for block in blocks)
    assert len(sums) < 2 or sums[0] + sums[1] > 40  # no two could be one


def fewest_blocks(lengths: list[int], capacity: int) -> int:
    """How many blocks are needed at least, by trying all subsets."""
    everything = (1 << len(lengths)) - 1
    sums = [
        sum(length for place, length in enumerate(lengths) if chosen >> place & 1) for chosen in range(everything + 1)
    ]
    needed = [0] * (everything + 1)
    for chosen in range(1, everything + 1):
        parts = [part for part in range(1, chosen + 1) if part & chosen == part and sums[part] <= capacity]
        needed[chosen] = 1 + min(needed[chosen ^ part] for part in parts)
    return needed[everything]


@given(lengths=st.lists(st.integers(1, 40), max_size=7))
@example(lengths=[16, 16, 16, 25, 25, 25, 25])
def test_best_fit_needs_few_blocks(lengths: list[int]) -> None:
    """At most 11/9 of the fewest, plus one (Johnson 1974)."""
    assert len(best_fit_decreasing(lengths, 40)) <= fewest_blocks(lengths, 40) * 11 / 9 + 1


def test_best_fit_cuts_no_document_that_fits_a_block(tmp_path: Path, tokenizer_dir: Path) -> None:
    shard_set = build_set(tmp_path, tokenizer_dir, TEXTS, packing="best-fit", block_tokens=256)
    assert texts_of(shard_set) == TEXTS
    ends = {
        (number * 256 + place) // 256
        for number, block in enumerate(shard_set["train"][:])
        for place in np.flatnonzero(block == shard_set.eos_id)
    }
    assert ends
    blocks = [block.tolist() for block in shard_set["train"][:]]
    for ids in reference_ids(tokenizer_dir, TEXTS):
        if len(ids) + 1 <= 256:
            whole = [*ids, shard_set.eos_id]
            assert any(whole[0] in block and _holds(block, whole) for block in blocks)


def _holds(block: list[int], part: list[int]) -> bool:
    return any(block[start : start + len(part)] == part for start in range(len(block) - len(part) + 1))


def test_best_fit_fills_less_than_one_percent_of_a_wikipedia_like_corpus(tmp_path: Path) -> None:
    """On the lengths alone: log-normal, 430 characters on average, 0.79 tokens a character, 24,000 documents."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(np.log(430) - 1.35**2 / 2, 1.35, 24_000), 107_000) * 0.79
    with ShardWriter(tmp_path, "train", 0, block_tokens=512) as writer:
        packer = BestFitPacker(writer, eos_id=9)
        for length in lengths.astype(np.int64).tolist():
            packer.add(np.zeros(length + 1, dtype=np.uint32), np.array([length + 1]))
        shard = packer.finish().shard
    assert shard is not None
    room = shard.num_blocks * 512
    assert 0 < room - shard.num_tokens < room / 100


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_best_fit_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.text(max_size=80).map(lambda t: t.encode("utf-8", "replace").decode()), max_size=20))
    texts.append("至少一篇")
    options = {"block_tokens": data.draw(st.integers(2, 40)), "unit_bytes": data.draw(st.integers(10, 500))}
    shard_set = build_set(tmp_path_factory.mktemp("any"), tokenizer_dir, texts, packing="best-fit", **options)
    assert texts_of(shard_set) == [unicodedata.normalize("NFC", text) for text in texts if text]


def test_tutorial_keeps_exactly_what_the_original_script_keeps(tmp_path: Path, tokenizer_dir: Path) -> None:
    """The script cuts each text's ids into pieces of a block and keeps those that are full."""
    shard_set = build_set(tmp_path, tokenizer_dir, TEXTS, packing="tutorial")
    ids = reference_ids(tokenizer_dir, TEXTS)
    expected = [
        document[start : start + 64]
        for document in ids
        for start in range(0, len(document), 64)
        if start + 64 <= len(document)
    ]
    assert shard_set["train"][:].tolist() == expected
    split = shard_set.manifest.splits["train"]
    assert split.num_fill_tokens == 0
    assert split.num_tokens + split.num_dropped_tokens == sum(map(len, ids))
    assert not (shard_set["train"][:] == shard_set.eos_id).any()


@pytest.mark.parametrize(
    ("packing", "verb"), [("concat", "would drop"), ("best-fit", "would drop"), ("tutorial", "drops")]
)
def test_the_summary_tells_what_the_original_script_drops(
    tmp_path: Path, tokenizer_dir: Path, packing: Any, verb: str
) -> None:
    """EOS not counted, which it has none of: `report` tells the same number."""
    corpus = write_corpus(tmp_path / "corpus.json", sample_records())
    settings = BuildSettings(block_tokens=64, packing=packing)
    result = build([str(corpus)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1)
    lengths = [len(ids) for ids in reference_ids(tokenizer_dir, TEXTS)]
    lost = sum(length % 64 for length in lengths)
    assert f" {verb} {lost:,} tokens ({100 * lost / sum(lengths):.1f} %)" in summary(result)
    assert result.statistics.num_short_documents == sum(length < 64 for length in lengths)


def test_parsed_special_tokens_become_special_ids(tmp_path: Path, tokenizer_dir: Path) -> None:
    texts = ["甲<|endoftext|>乙", "丙"]
    shard_set = build_set(tmp_path, tokenizer_dir, texts, special_tokens="parse", block_tokens=4)
    eos = shard_set.eos_id
    documents = [document.tolist() for document in shard_set["train"].documents()]
    assert documents[0].count(eos) == 1 and documents[1].count(eos) == 0
    assert shard_set["train"].num_documents == 2


@pytest.mark.parametrize("documents_per_bucket", [1, 7, 1 << 22])
@pytest.mark.parametrize("unit_bytes", [500, 10**7])
def test_dedup_keeps_the_first_of_equal_texts(
    tmp_path: Path,
    tokenizer_dir: Path,
    unit_bytes: int,
    documents_per_bucket: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dedup, "DOCUMENTS_PER_BUCKET", documents_per_bucket)
    texts = [f"第{number * number % 37}篇" if number % 3 else "" for number in range(300)]
    shard_set = build_set(tmp_path, tokenizer_dir, texts, dedup="exact", unit_bytes=unit_bytes)
    expected = list(dict.fromkeys(text for text in texts if text))
    assert texts_of(shard_set) == expected
    manifest = shard_set.manifest
    assert manifest.num_duplicates == sum(1 for text in texts if text) - len(expected)
    assert manifest.num_records == len(texts)


def test_dedup_over_false_starts(tmp_path: Path, tokenizer_dir: Path) -> None:
    texts = ['0"}, {"text": "1"}, {"text": "2"}, {"' * 3 + f"第{n % 11}篇" for n in range(100)]
    shard_set = build_set(tmp_path, tokenizer_dir, texts, dedup="exact", unit_bytes=300)
    assert texts_of(shard_set) == list(dict.fromkeys(texts))


def test_dedup_gives_the_same_bytes_for_any_unit_of_work_order(tmp_path: Path, tokenizer_dir: Path) -> None:
    for name in ("a", "b"):
        build_set(tmp_path / name, tokenizer_dir, TEXTS * 2, dedup="exact")
    left, right = (directory_bytes(tmp_path / name / "set") for name in ("a", "b"))
    del left[".sources.json"], right[".sources.json"]
    assert left == right


@pytest.mark.parametrize(("check_every", "least"), [(1, len(TEXTS)), (1000, 100), (0, 0)])
def test_a_sample_is_checked_against_the_reference(
    tmp_path: Path, tokenizer_dir: Path, check_every: int, least: int
) -> None:
    corpus = write_corpus(tmp_path / "corpus.json", [{"text": text} for text in TEXTS])
    result = build(
        [str(corpus)],
        tmp_path / "set",
        tokenizer_name=str(tokenizer_dir),
        settings=BuildSettings(block_tokens=64, unit_bytes=30_000),
        num_workers=1,
        check_every=check_every,
    )
    assert least <= result.statistics.num_checked <= len(TEXTS)
    assert (result.statistics.num_checked == 0) == (check_every == 0)


def test_no_long_document_is_given_to_the_reference(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes some 200 bytes of memory a character: more than there is for a record of a gigabyte."""
    encode, longest = ReferenceEncoder.encode, 0

    def watched(encoder: ReferenceEncoder, texts: list[str]) -> Any:
        nonlocal longest
        longest = max([longest, *map(len, texts)])
        return encode(encoder, texts)

    monkeypatch.setattr(ReferenceEncoder, "encode", watched)
    monkeypatch.setattr(work, "_MAX_CHECKED_CHARS", 2000)
    corpus = write_corpus(tmp_path / "corpus.json", [{"text": "短文"}, {"text": "长" * 2001}, {"text": "文" * 2000}])
    out, settings = tmp_path / "set", BuildSettings(block_tokens=64)
    result = build([str(corpus)], out, tokenizer_name=str(tokenizer_dir), settings=settings, check_every=1)
    assert (result.statistics.num_checked, longest) == (2, 2000)


def test_one_wrong_id_stops_the_build(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = FastEncoder.encode_one_parsed

    def wrong(self: FastEncoder, text: str) -> Any:
        ids = right(self, text).copy()
        if "牛顿" in text:
            ids[5] = 7
        return ids

    monkeypatch.setattr(FastEncoder, "encode_one_parsed", wrong)
    with pytest.raises(InputError, match="differs from the reference tokenizer at token 5 of this text"):
        build_set(tmp_path, tokenizer_dir, ["牛顿是英国物理学家。"])


def test_joining_gives_what_each_text_has_alone(tokenizer_dir: Path) -> None:
    from pipeline.documents import DocumentEncoder

    texts = [*TEXTS, "a<b", "<", "<|", "x<|endoftext", " ", "\n", "e\u0301", "\u0301e"]
    for name in (str(tokenizer_dir), "qwen2"):
        files = load_tokenizer_files(name)
        fast = DocumentEncoder(FastEncoder(files.tokenizer_json), files.tokenizer_json, files.eos_id, closes=True)
        slow = DocumentEncoder(ReferenceEncoder(files.tokenizer_json), files.tokenizer_json, files.eos_id, closes=True)
        assert fast._joins and not slow._joins
        for batch in (texts, ["<|endoftext|>"], ["a", "b<|im_start|>c", "<|endoftext|>d"], ["a"]):
            left, right = fast.encode(batch), slow.encode(batch)
            assert left.ids.tolist() == right.ids.tolist()
            assert left.counts.tolist() == right.counts.tolist()
            assert [bytes(content) for content in left.contents] == [text.encode() for text in batch]
