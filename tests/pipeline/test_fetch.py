"""`pipeline fetch`: the published file, whole and checked, or one clear line; and data sets of the hub as pinned files."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.fetch import CORPORA, data_files, fetch
from shards.common.errors import InputError, TransientError
from shards.common.text import size_text
from shards.common.urls import read_bytes
from tests.hub_server import Hub, commit_name

CONTENT = json.dumps([{"id": str(number), "text": "维基" * 40} for number in range(1500)], ensure_ascii=False).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CORPUS = CORPORA["wikipedia-zh"]
NAME, NEAREST = CORPUS.file, CORPUS.nearest_name
PARTS = {f"train-{number:05}-of-00003.parquet": b"PAR1" + bytes([number]) * 5000 for number in range(3)}
CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def served(hub: Hub) -> Hub:
    hub.commit(f"datasets/{CORPUS.repository}", {NAME: CONTENT})
    nearest = {f"20231101.zh/{name}": content for name, content in PARTS.items()}
    others = {"20231101.zh/README.md": b"", "20231101.zh-min-nan/train-00000-of-00001.parquet": b""}
    hub.commit(f"datasets/{CORPUS.nearest_repository}", nearest | others)
    return hub


Command = Callable[..., tuple[str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command in an empty directory; what it prints, and its notices."""

    def run_there(*arguments: str) -> tuple[str, str]:
        monkeypatch.chdir(tmp_path)
        assert main(["fetch", "wikipedia-zh", *arguments]) == 0
        shown = capsys.readouterr()
        return shown.out, shown.err

    return run_there


def test_make_data_fetches_the_published_file_once(served: Hub, tmp_path: Path, run: Command) -> None:
    out, err = run()
    size = size_text(len(CONTENT))
    assert out == f"data/{NAME}: {size}, sha256 {SHA256}\nnext: make shards CORPUS=data/{NAME}\n"
    assert err == f"fetching {size}\n" and (tmp_path / "data" / NAME).read_bytes() == CONTENT
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [f".{NAME}.fetched.json", NAME]
    stamp = json.loads((tmp_path / "data" / f".{NAME}.fetched.json").read_bytes())
    assert stamp["address"] == f"hf://datasets/{CORPUS.repository}@{commit_name(1)}/{NAME}"
    served.status = 500  # it isn't even asked
    assert run() == (f"data/{NAME}: up to date, {size}, sha256 {SHA256}\n", "")


def test_ctrl_c_keeps_what_is_there_and_the_same_command_goes_on(served: Hub, tmp_path: Path, run: Command) -> None:
    part = tmp_path / "data" / f".{NAME}.{SHA256[:8]}.part"
    served.seconds_before_content = 30

    def interrupt() -> None:
        while not served.requests:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match="are kept; the same command goes on from there"):
        run()
    part.write_bytes(CONTENT[:100_000])
    served.seconds_before_content, served.requests = 0, []
    assert "100.00 kB of it are here already" in run()[1]
    assert served.requests == [f"{NAME} bytes=100000-"]
    assert (tmp_path / "data" / NAME).read_bytes() == CONTENT


def test_nothing_reachable(served: Hub, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", CLOSED)
        with pytest.raises(TransientError, match=r"^[^\n]*can't be reached \(Connection refused\)[^\n]*$") as caught:
            run()
    for part in (
        "HF_ENDPOINT=https://hf-mirror.com",
        "fetch https://hf-mirror.com/datasets/fjcanyue/wikipedia-zh-cn by hand",
        "another file, the dump of 1 November 2023 (parquet), not that of 20 August 2024 (--from ms)",
    ):
        assert part in str(caught.value)
    monkeypatch.setattr("pipeline.fetch.ANSWER_SECONDS", 0.3)
    served.seconds_before_answer = 2
    for origin in ("hf", "ms", "auto"):
        with pytest.raises(TransientError, match="can't be reached"):
            fetch("wikipedia-zh", origin=origin, directory=tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def check_nearest(out: Path) -> None:
    assert {path.name: path.read_bytes() for path in out.iterdir()} == PARTS
    assert sorted(path.name for path in out.parent.iterdir()) == [f".{out.name}.fetched.json", out.name]


def test_another_file_is_named_so(served: Hub, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", CLOSED)
        out, err = run("--from", "auto")
    assert "ANOTHER file: the dump of 1 November 2023" in err
    assert out.splitlines()[1] == f"next: make shards CORPUS=data/{NEAREST}"
    check_nearest(tmp_path / "data" / NEAREST)
    del served.commits[f"datasets/{CORPUS.repository}"]
    for origin in ("hf", "auto"):  # it is reachable: `auto` doesn't swap
        with pytest.raises(InputError, match="no such repository"):
            fetch("wikipedia-zh", origin=origin, directory=tmp_path / "data")


def test_modelscopes_files_are_whole_or_absent(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, not_flushed: Any
) -> None:
    out = tmp_path / "data" / NEAREST
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 0)
    served.break_after = [10_000, 10_000, 0]  # the third file doesn't come
    with pytest.raises(InputError):
        fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data")
    assert not out.exists() and out.with_name(out.name + ".partial").is_dir()
    served.break_after, served.requests = [], []
    fetched = fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data")
    assert fetched.num_bytes == sum(map(len, PARTS.values())) and not fetched.was_there
    assert len(served.requests) == 1 and not_flushed(out) == []
    check_nearest(out)
    served.status = 500
    assert fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data").was_there
    served.status = 0
    (out / "train-00001-of-00003.parquet").write_bytes(b"changed")
    with pytest.raises(InputError, match="is there, and not from an earlier fetch"):
        fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data")
    fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data", force=True)
    check_nearest(out)


def test_a_file_put_there_by_hand_is_compared_and_never_replaced_unasked(served: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data" / NAME
    out.parent.mkdir()
    out.write_bytes(CONTENT)
    assert fetch("wikipedia-zh", directory=out.parent).was_there
    assert served.requests == []
    out.write_bytes(CONTENT[:-1] + b" ")
    with pytest.raises(InputError, match="is there, and isn't the hub's file"):
        fetch("wikipedia-zh", directory=out.parent)
    assert out.read_bytes() == CONTENT[:-1] + b" "
    fetch("wikipedia-zh", directory=out.parent, force=True)
    assert out.read_bytes() == CONTENT


def test_out_is_a_file_or_a_directory_that_is_there(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"no such corpus; did you mean 'wikipedia-zh'\?"):
        fetch("wikipedia-hz", directory=tmp_path)
    assert fetch("wikipedia-zh", tmp_path / "new" / "zh.json").path == tmp_path / "new" / "zh.json"
    assert fetch("wikipedia-zh", tmp_path / "new").path == tmp_path / "new" / NAME
    anothers = tmp_path / ".wiki.json.12345678.part"
    anothers.touch()
    fetch("wikipedia-zh", tmp_path / "w*.json")
    assert anothers.exists()
    monkeypatch.chdir(tmp_path)
    assert fetch("wikipedia-zh", Path()).path == Path(NAME)
    assert fetch("wikipedia-zh", tmp_path / "wiki", origin="ms").path == tmp_path / "wiki"
    assert fetch("wikipedia-zh", tmp_path / "wiki", origin="ms").was_there


# ---- data sets by their names ----


@pytest.fixture
def data_set(data_sets_of: Hub) -> Hub:
    card = b"""---
configs:
- config_name: zh
  data_files:
  - {split: train, path: zh/train-*.jsonl}
  - {split: test, path: zh/test.jsonl}
- config_name: en
  data_files: en/*.jsonl
---
"""
    files = {f"zh/train-{number}.jsonl": b'{"text": "%d"}\n' % number for number in range(3)}
    data_sets_of.commit("datasets/org/data", {"README.md": card, "zh/test.jsonl": b"{}", "en/a.jsonl": b"{}", **files})
    return data_sets_of


def test_a_data_set_means_files_at_one_commit(data_set: Hub) -> None:
    """A set built from `hf:NAME` that changed between two runs held old and new documents, and was called up to date."""
    at = f"hf://datasets/org/data@{commit_name(1)}"
    urls = data_files("hf:org/data/zh")
    assert urls == [f"{at}/zh/train-{number}.jsonl" for number in range(3)]
    assert data_files("hf:org/data/zh:test") == [f"{at}/zh/test.jsonl"]
    assert data_files("hf:org/data/en") == [f"{at}/en/a.jsonl"]
    data_set.put("datasets/org/data", "zh/train-0.jsonl", b"changed")
    assert read_bytes(urls[0]) == b'{"text": "0"}\n'
    assert data_files("hf:org/data/zh")[0] == f"hf://datasets/org/data@{commit_name(2)}/zh/train-0.jsonl"
    assert data_files(f"hf:org/data@{commit_name(1)}/zh") == urls


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:org", "expected hf:ORG/NAME"),
        ("hf:org/nothing", "no such repository there, or a private one"),
        ("hf:org/data/zh:tset", r"no split 'tset'; did you mean 'test'\?; there is train, test"),
        ("hf:org/data", "datasets can't say which files it means: .*Config name is missing"),
        ("hf:org/data/fr", "datasets can't say which files it means: .*fr"),
    ],
)
def test_a_data_set_that_can_t_be_named_is_one_line(data_set: Hub, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        data_files(name)
    assert "\n" not in str(raised.value)
