"""`pipeline fetch`: the published file, whole and checked, or one clear line; never another file unasked."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.fetch import CORPORA, fetch
from pipeline.fetch_progress import progress_line
from shards.common.errors import InputError
from shards.common.text import size_text
from tests.conftest import REPOSITORY, assert_one_error_line, run_module
from tests.hub_server import Hub, environment, hub  # noqa: F401

CONTENT = json.dumps([{"id": str(number), "text": "维基" * 40} for number in range(1500)], ensure_ascii=False).encode()
SIZE = size_text(len(CONTENT))
CORPUS = CORPORA["wikipedia-zh"]
NAME = CORPUS.file
PARTS = {f"20231101.zh/train-{number:05}-of-00003.parquet": b"PAR1" + bytes([number]) * 5000 for number in range(3)}


@pytest.fixture
def served(hub: Hub) -> Hub:  # noqa: F811
    hub.put(f"datasets/{CORPUS.repository}", NAME, CONTENT)
    for path, content in {
        **PARTS,
        "20231101.zh/README.md": b"",
        "20231101.zh-min-nan/train-00000-of-00001.parquet": b"",
    }.items():
        hub.put(f"datasets/{CORPUS.nearest_repository}", path, content)
    return hub


def run(hub: Hub, directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    env = {**environment(hub, directory), **variables}
    return run_module("pipeline", "fetch", "wikipedia-zh", *arguments, cwd=directory, env=env)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_make_data_fetches_the_published_file_once(served: Hub, tmp_path: Path) -> None:
    first = run(served, tmp_path)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines() == [
        f"data/{NAME}: {SIZE}, sha256 {digest}",
        f"next: make shards CORPUS=data/{NAME}",
    ]
    assert (tmp_path / "data" / NAME).read_bytes() == CONTENT
    assert names_in(tmp_path / "data") == [f".{NAME}.fetched.json", NAME]
    served.status = 500  # it isn't even asked
    again = run(served, tmp_path)
    assert again.returncode == 0 and again.stdout == f"data/{NAME}: up to date, {SIZE}, sha256 {digest}\n"


def test_the_makefile_has_the_command() -> None:
    command = subprocess.run(
        ["make", "--dry-run", "data", "ARGS=--from ms"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    assert "-m pipeline fetch wikipedia-zh --from ms" in command


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(served: Hub, tmp_path: Path) -> None:
    served.seconds_between_pieces = 0.01
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "fetch", "wikipedia-zh"],
        cwd=tmp_path,
        env={**environment(served, tmp_path), "PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.glob("data/*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "interrupted: " in errors and "kB are kept; the same command goes on from there" in errors
    assert "Traceback" not in errors
    (part,) = (tmp_path / "data").iterdir()
    kept = part.stat().st_size
    served.seconds_between_pieces, served.requests = 0, []
    resumed = run(served, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert served.requests == [f"{NAME} bytes={kept}-"]
    assert "of it are here from an earlier run" in resumed.stderr
    assert (tmp_path / "data" / NAME).read_bytes() == CONTENT


def test_a_user_s_offline_mode_is_one_clear_line(served: Hub, tmp_path: Path) -> None:
    assert_one_error_line(run(served, tmp_path, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE=1 forbids to fetch it; unset it")
    assert not (tmp_path / "data").exists()


def test_nothing_reachable_is_one_line_that_says_what_to_do(served: Hub, tmp_path: Path) -> None:
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "MODELSCOPE_ENDPOINT": "http://127.0.0.1:9"}
    result = run(served, tmp_path, **closed)
    assert_one_error_line(
        result,
        "http://127.0.0.1:9 can't be reached (Connection refused)",
        "HF_ENDPOINT=https://hf-mirror.com make data",
        'make data ARGS="--from ms"',
        "https://huggingface.co/datasets/fjcanyue/wikipedia-zh-cn",
        "https://hf-mirror.com/datasets/fjcanyue/wikipedia-zh-cn",
        "https://modelscope.cn/datasets?name=wikipedia",
        f"put it to data/{NAME}",
    )


def test_no_answer_is_given_up(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fetch.ANSWER_SECONDS", 0.3)
    served.seconds_before_answer = 20
    for origin in ("hf", "ms", "auto"):
        with pytest.raises(InputError, match=r"can't be reached .*by hand from"):
            fetch("wikipedia-zh", origin=origin, directory=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_another_file_comes_only_when_asked_for_and_is_called_another(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del served.repositories[f"datasets/{CORPUS.repository}"]
    with pytest.raises(InputError, match="no such repository"):
        fetch("wikipedia-zh", directory=tmp_path / "data")
    with pytest.raises(InputError, match="no such repository"):  # it is reachable: `auto` doesn't swap
        fetch("wikipedia-zh", origin="auto", directory=tmp_path / "data")
    result = run(served, tmp_path, "--from", "auto", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert "ANOTHER file: the dump of 1 November 2023" in result.stderr
    assert result.stdout.splitlines()[1] == "next: make shards CORPUS=data/wikipedia-zh-20231101"
    check_nearest(tmp_path / "data" / "wikipedia-zh-20231101")


def check_nearest(out: Path) -> None:
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.rpartition("/")[2]: content for path, content in PARTS.items()
    }
    assert sorted(path.name for path in out.parent.iterdir()) == [f".{out.name}.fetched.json", out.name]


def test_the_files_from_modelscope_are_a_directory_that_is_whole_or_absent(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, monkeypatched = tmp_path / "data" / "wikipedia-zh-20231101", "shards.hub.download._PAUSES_SECONDS"
    monkeypatch.setattr(monkeypatched, (0.0,) * 3)
    served.break_after = [10_000, 10_000, *[0] * 9]  # the third file never comes
    with pytest.raises(InputError, match="broke off"):
        fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data")
    assert not out.exists() and out.with_name(out.name + ".partial").is_dir()
    served.break_after, served.requests = [], []
    fetched = fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data")
    assert fetched.num_bytes == sum(map(len, PARTS.values())) and not fetched.was_there
    assert len(served.requests) == 1
    check_nearest(out)
    served.status = 500
    assert fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data").was_there
    served.status = 0
    (out / "train-00001-of-00003.parquet").write_bytes(b"changed")
    with pytest.raises(InputError, match="is there, and"):
        fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data")
    fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data", force=True)
    check_nearest(out)


def test_paths_that_lead_out_of_the_directory_are_not_fetched(served: Hub, tmp_path: Path) -> None:
    name = "train-00000-of-00003.parquet"
    served.listed_paths = [f"20231101.zh/../../../{name}", f"/20231101.zh/{name}", f"20231101xzh/{name}"]
    fetch("wikipedia-zh", origin="ms", directory=tmp_path / "data")
    check_nearest(tmp_path / "data" / "wikipedia-zh-20231101")


def test_a_file_put_there_by_hand_is_compared_and_never_replaced_unasked(served: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data" / NAME
    out.parent.mkdir()
    out.write_bytes(CONTENT)
    assert fetch("wikipedia-zh", directory=out.parent).was_there
    assert served.requests == []
    out.write_bytes(CONTENT[:-1] + b" ")
    with pytest.raises(InputError, match="another file than the hub's is there"):
        fetch("wikipedia-zh", directory=out.parent)
    assert out.read_bytes() == CONTENT[:-1] + b" "
    fetch("wikipedia-zh", directory=out.parent, force=True)
    assert out.read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_taken_where_the_hub_can_t_be_asked(served: Hub, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / NAME).write_bytes(b"[]")
    result = run(served, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 0 and "not compared with the hub, which can't be reached" in result.stdout
    assert (tmp_path / "data" / NAME).read_bytes() == b"[]"


def test_out_is_a_file_or_a_directory_that_is_there(served: Hub, tmp_path: Path) -> None:
    assert fetch("wikipedia-zh", tmp_path / "new" / "zh.json").path == tmp_path / "new" / "zh.json"
    assert fetch("wikipedia-zh", tmp_path / "new").path == tmp_path / "new" / NAME
    assert fetch("wikipedia-zh", tmp_path / "wiki", origin="ms").path == tmp_path / "wiki"
    assert fetch("wikipedia-zh", tmp_path / "wiki", origin="ms").was_there


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["wikipedia-hz"], ["no such corpus; did you mean 'wikipedia-zh'?"]),
        (["wikipedia-zh", "--from", "auot"], ["--from: expected hf or ms or auto", "did you mean 'auto'?"]),
        (["wikipedia-zh", "--form", "ms"], ["did you mean '--from'?"]),
    ],
)
def test_mistyped_words_suggest_the_right_ones(arguments: list[str], parts: list[str]) -> None:
    assert_one_error_line(run_module("pipeline", "fetch", *arguments), *parts)


def test_progress_has_speed_and_time_left() -> None:
    assert progress_line(500_000_000, 2_000_000_000, 100_000_000, 10.0) == " 25 %  10.0 MB/s  3 min left".replace(
        "3", "2"
    )
    assert progress_line(500_000_000, 600_000_000, 100_000_000, 10.0) == " 83 %  10.0 MB/s  10 s left"
    assert progress_line(5_000_000, None, 1_000_000, 2.0) == "5.00 MB  0.5 MB/s"


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from pipeline.fetch_progress import DownloadProgress

    monkeypatch.setattr("pipeline.fetch_progress._SECONDS_BETWEEN_LINES", 0.0)
    fetch("wikipedia-zh", directory=tmp_path, progress=DownloadProgress())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"fetching {SIZE}" and lines[-1].startswith("100 %  ") and lines[-1].endswith("s left")


@pytest.mark.parametrize("origin", ["hf", "ms"])
def test_a_proxy_that_does_not_answer_is_named_in_time(origin: str, served: Hub, tmp_path: Path) -> None:
    proxy = {"HTTP_PROXY": "http://me:secret@127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    begin = time.monotonic()
    result = run(served, tmp_path, "--from", origin, **proxy)
    assert time.monotonic() - begin < 20  # ten, and the start of a program on a busy machine
    assert_one_error_line(result, "can't be reached", "HTTP_PROXY is set to http://127.0.0.1:9: does that proxy work?")
    assert "secret" not in result.stderr
    assert served.requests == []
