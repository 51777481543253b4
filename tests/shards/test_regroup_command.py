"""The commands merge, split and subset: what they refuse, and that an interruption leaves nothing behind."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from shards.merge import merge
from shards.new_set import new_directory
from shards.regroup import split, subset
from shards.regroup_command import add_parsers, parse_fraction

from shards.common.command_line import Parser
from shards.common.errors import InputError
from shards.manifest import read_manifest
from shards.verify import verify
from tests.conftest import REPOSITORY, directory_bytes
from tests.shards.regroup_sets import build_packings, names_in


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, tokenizer_dir: Path) -> dict[str, Path]:
    return build_packings(tmp_path_factory.mktemp("sets"), tokenizer_dir)


REFUSED: list[tuple[str, str]] = [
    ("subset SET --out OUT --documents 0", "--documents: expected at least 1 and at most"),
    ("subset SET --out OUT --documents 99999", "what train of .* has; found 99999"),
    ("subset SET --out OUT --tokens 999999999", "--tokens: expected at least 1"),
    ("subset SET --out OUT --fraction 1.5", "--fraction: expected more than 0 and at most 1"),
    ("subset SET --out OUT --fraction 0", "--fraction: expected more than 0"),
    ("subset SET --out OUT --fraction 1e999999999", "--fraction: expected a number such as 0.5 or 1/3"),
    ("subset SET --out OUT --fraction 1/0", "--fraction: expected a number"),
    ("subset SET --out OUT --fraction 0.5 --seed -1", r"--seed: expected 0 to 2\*\*64 - 1, found -1"),
    ("subset SET --out OUT --fraction 0.5 --tokens 5", "not allowed with"),
    ("subset SET --out OUT", "one of the arguments"),
    ("subset SET --out SET/within --fraction 0.5", "lies within the shard set"),
    ("merge SET --out SET/within", "lies within the shard set"),
    ("split SET --out OUT --parts 0", "--parts: expected at least 1"),
    ("split SET --out OUT --parts 400", r"OUT-\d+: would be empty"),
    ("split SET --out OUT --parts 501", "--parts: expected at most 500, found 501"),
    ("split SET --out OUT --fractions 0.5,0.4", "1 together, found 1/2, 2/5"),
    ("split SET --out OUT --fractions 1,0", "shares above 0"),
    ("split SET --out OUT --fractions 0.5,", "--fractions: expected a number"),
    ("split SET --out / --parts 2", "--out: expected the beginning of a name"),
    ("merge SET --out SET", "exists already"),
    ("subset SET --out SET --fraction 0.5", "exists already"),
]


def run_command(line: str, own_set: Path, out: Path) -> int:
    parser = Parser(prog="python -m shards")
    add_parsers(parser.add_subparsers(dest="command", required=True))
    words = [word.replace("SET", str(own_set)).replace("OUT", str(out)) for word in line.split()]
    options: argparse.Namespace = parser.parse_args(words)
    status: int = options.run(options)
    return status


@pytest.mark.parametrize(("line", "expected"), REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, sets: dict[str, Path], line: str, expected: str
) -> None:
    before = directory_bytes(sets["concat"])
    with pytest.raises(InputError, match=expected) as caught:
        run_command(line, sets["concat"], tmp_path / "OUT")
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []
    assert directory_bytes(sets["concat"]) == before


def test_a_part_that_is_there_already_is_left_alone(tmp_path: Path, sets: dict[str, Path]) -> None:
    (tmp_path / "OUT-1").mkdir()
    with pytest.raises(InputError, match="OUT-1: exists already"):
        run_command("split SET --out OUT --parts 3", sets["concat"], tmp_path / "OUT")
    assert names_in(tmp_path) == ["OUT-1"]


def test_the_command_lines(tmp_path: Path, sets: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "OUT"
    assert run_command("merge SET SET --out OUT --link", sets["concat"], out) == 0
    assert run_command("split SET --parts 3 --out OUT", sets["concat"], out) == 0
    assert run_command("split SET --fractions 0.5,1/4,0.25 --seed 9 --out OUT-f", sets["concat"], out) == 0
    assert run_command("subset SET --tokens 1000 --out OUT-s", sets["concat"], out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert names_in(tmp_path) == ["OUT", *(f"OUT-{n}" for n in range(3)), *(f"OUT-f-{n}" for n in range(3)), "OUT-s"]
    assert len(lines) == 8 and all(verify(path) == [] for path in tmp_path.iterdir())
    num_documents = sum(split.num_documents for split in read_manifest(sets["concat"]).splits.values())
    assert lines[0].startswith(f"{out}: {2 * num_documents:,} documents, ")
    assert lines[0].endswith(", from 2 sets")
    assert lines[1].startswith(f"{out}-0: ")


def test_progress_goes_up_to_the_whole(tmp_path: Path, sets: dict[str, Path]) -> None:
    done: list[int] = []
    merge([sets["concat"]], tmp_path / "merged", progress=done.append)
    files = [path for path in sets["concat"].iterdir() if path.suffix in (".bin", ".idx")]
    assert sum(done) == sum(path.stat().st_size for path in files)
    packed: list[int] = []
    manifest = subset(sets["concat"], tmp_path / "subset", num_documents=30, progress=packed.append)
    assert sum(packed) == manifest.num_records


@pytest.mark.parametrize("text", ["0.1", "1/3", ".5", "1", "0.30"])
def test_fractions_are_exact(text: str) -> None:
    assert parse_fraction("--fraction", text) == Fraction(text)


def test_two_at_once_to_one_place(tmp_path: Path, sets: dict[str, Path]) -> None:
    with new_directory(tmp_path / "OUT-1"):
        for line in ("merge SET --out OUT-1", "split SET --parts 2 --out OUT", "subset SET --fraction 1 --out OUT-1"):
            with pytest.raises(InputError, match="OUT-1: another process is writing it"):
                run_command(line, sets["concat"], tmp_path / "OUT")
        assert names_in(tmp_path) == ["OUT-1.partial"]
    assert names_in(tmp_path) == ["OUT-1"]


def test_many_threads_to_one_place_give_one_set(tmp_path: Path, sets: dict[str, Path]) -> None:
    results: list[str] = []

    def attempt() -> None:
        try:
            merge([sets["concat"]], tmp_path / "OUT")
            results.append("done")
        except InputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("done") == 1
    assert all("another process" in result or "exists already" in result for result in results if result != "done")
    assert verify(tmp_path / "OUT") == []
    assert names_in(tmp_path) == ["OUT"]


@pytest.mark.parametrize("stop_at", [0, 3, 10])
@pytest.mark.parametrize("command", ["merge", "split"])
def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, sets: dict[str, Path], command: str, stop_at: int
) -> None:
    calls: list[int] = []

    def progress(number: int) -> None:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(number)

    with pytest.raises(KeyboardInterrupt):
        if command == "merge":
            merge([sets["concat"]] * 2, tmp_path / "OUT", progress=progress)
        else:
            split(sets["concat"], [tmp_path / "OUT-0", tmp_path / "OUT-1"], [Fraction(1, 2)] * 2, progress=progress)
    assert names_in(tmp_path) == []


def test_ctrl_c_while_the_parts_get_their_names_waits_for_all_of_them(
    tmp_path: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = os.rename

    def interrupted(source: Path, target: Path) -> None:
        right(source, target)
        if Path(target).name == "OUT-1":
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("shards.new_set.os.rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        split(sets["concat"], [tmp_path / f"OUT-{n}" for n in range(3)], [Fraction(1, 3)] * 3)
    assert names_in(tmp_path) == ["OUT-0", "OUT-1", "OUT-2"]
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_from_outside_leaves_nothing_behind(tmp_path: Path, sets: dict[str, Path]) -> None:
    code = (
        "import time; from pathlib import Path; from shards import merge\n"
        "from shards.common.command_line import run_command\n"
        "def main(arguments):\n"
        "    def progress(number): print('going', flush=True); time.sleep(0.05)\n"
        "    merge.merge([Path(arguments[0])] * 50, Path(arguments[1]), progress=progress)\n"
        "run_command(main)\n"
    )
    command = [sys.executable, "-c", code, str(sets["concat"]), str(tmp_path / "OUT")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        time.sleep(0.1)
        assert (tmp_path / "OUT.partial").exists()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert names_in(tmp_path) == []
