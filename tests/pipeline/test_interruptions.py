"""Whatever happens to a build, the same command goes on, and the bytes are those of an uninterrupted one."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pipeline.place import Place

from pipeline import build as build_module
from pipeline import engine
from pipeline.build import build
from pipeline.settings import BuildSettings
from shards.common.errors import InputError
from shards.verify import verify
from shards.writer import ShardWriter
from tests.conftest import (
    REPOSITORY,
    SAMPLE,
    assert_one_error_line,
    directory_bytes,
    run_module,
    sample_records,
    write_corpus,
)

SETTINGS = BuildSettings(block_tokens=64, unit_bytes=20_000)


def build_command(corpus: Path, out: Path, tokenizer_dir: Path) -> list[str]:
    arguments = ["build", corpus, "--out", out, "--tokenizer", tokenizer_dir, "--unit-bytes", "60000"]
    return [sys.executable, "-m", "pipeline", *map(str, arguments), "--block-tokens", "64", "--workers", "2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [{"text": record["text"] + str(number)} for number in range(20) for record in sample_records()]
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.json", records)


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def num_receipts(out: Path) -> int:
    return len(list((out.with_name(out.name + ".partial") / "receipts").glob("*.json")))


def wait_for_receipts(out: Path, number: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while num_receipts(out) < number and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def kill_at_random(corpus: Path, tmp_path: Path, tokenizer_dir: Path, num_kills: int, seed: int) -> None:
    whole, out = tmp_path / "whole", tmp_path / "set"
    begin = time.monotonic()
    subprocess.run(build_command(corpus, whole, tokenizer_dir), check=True, capture_output=True, cwd=REPOSITORY)
    duration = time.monotonic() - begin
    rng = random.Random(seed)
    num_killed = 0
    while num_killed < num_kills:
        process = start(build_command(corpus, out, tokenizer_dir))
        time.sleep(rng.uniform(0, duration))
        process.kill()
        process.communicate()
        num_killed += 1
        if process.returncode == 0 or out.exists():
            assert directory_bytes(out) == directory_bytes(whole)
            shutil.rmtree(out)
    subprocess.run(build_command(corpus, out, tokenizer_dir), check=True, capture_output=True, cwd=REPOSITORY)
    assert directory_bytes(out) == directory_bytes(whole)
    assert verify(out) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]


def test_a_build_killed_at_random_goes_on_to_the_same_bytes(tmp_path: Path, tokenizer_dir: Path, corpus: Path) -> None:
    kill_at_random(corpus, tmp_path, tokenizer_dir, num_kills=4, seed=0)


@pytest.mark.slow
def test_a_build_killed_fifty_times_goes_on_to_the_same_bytes(
    tmp_path: Path, tokenizer_dir: Path, corpus: Path
) -> None:
    kill_at_random(corpus, tmp_path, tokenizer_dir, num_kills=50, seed=1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_build_at_once_and_keeps_finished_units(
    tmp_path: Path, tokenizer_dir: Path, corpus: Path, number: signal.Signals, status: int
) -> None:
    process = start(build_command(corpus, tmp_path / "set", tokenizer_dir))
    wait_for_receipts(tmp_path / "set", 2, process)
    begin = time.monotonic()
    process.send_signal(number)
    _output, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10  # two seconds on an idle machine
    assert process.returncode == status
    assert "units are kept; the same command goes on" in errors and "Traceback" not in errors
    kept = num_receipts(tmp_path / "set")
    assert kept >= 2 and not (tmp_path / "set.lock").exists()
    again = subprocess.run(build_command(corpus, tmp_path / "set", tokenizer_dir), capture_output=True, text=True)
    assert again.returncode == 0
    assert f"{kept} units from an earlier run" in again.stdout


def worker_processes(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def test_a_worker_that_is_killed_once_is_replaced(tmp_path: Path, tokenizer_dir: Path, corpus: Path) -> None:
    process = start(build_command(corpus, tmp_path / "set", tokenizer_dir))
    wait_for_receipts(tmp_path / "set", 1, process)
    workers = worker_processes(process.pid)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    _output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert verify(tmp_path / "set") == []


def test_a_unit_that_kills_its_workers_fails_the_build_by_name(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is forked, so it inherits what is put in the place of its work."""

    def die(job: Any, task: Any, progress: Any) -> None:
        if task.unit.number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        run_task(job, task, progress)

    run_task = engine.run_task
    monkeypatch.setattr(engine, "run_task", die)
    with pytest.raises(InputError, match=r"unit 3 .*died 2 times .exit code -9."):
        build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    assert num_receipts(tmp_path / "set") == 3


def test_a_full_disk_is_one_line_and_keeps_finished_units(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ShardWriter.write

    def fail_in_unit_five(self: ShardWriter, tokens: Any) -> None:
        if self._name == "train-00005":
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        write(self, tokens)

    monkeypatch.setattr(ShardWriter, "write", fail_in_unit_five)
    with pytest.raises(InputError, match="No space left on device; make room, then the same command goes on"):
        build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    assert num_receipts(tmp_path / "set") == 5
    assert not list((tmp_path / "set.partial").glob("*.tmp"))
    monkeypatch.setattr(ShardWriter, "write", write)
    result = build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)
    assert result.statistics.num_units_reused == 5
    assert verify(tmp_path / "set") == []


def test_a_build_that_stopped_before_its_first_unit_begins_anew(tmp_path: Path, tokenizer_dir: Path) -> None:
    """After a wrong --text-field the right one needs no --force, nor does a disk that was full at the plan."""

    def attempt(**settings: Any) -> None:
        build(
            [str(SAMPLE)],
            tmp_path / "set",
            tokenizer_name=str(tokenizer_dir),
            settings=dataclasses.replace(SETTINGS, **settings),
            num_workers=1,
        )

    partial = tmp_path / "set.partial"
    (partial / "receipts").mkdir(parents=True)
    (partial / "plan.json.tmp").write_bytes(b"{")
    with pytest.raises(InputError, match="no field 'txet'"):
        attempt(text_field="txet")
    assert (partial / "plan.json").exists()
    (partial / "receipts" / "00000.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="unfinished build with other inputs"):
        attempt()
    (partial / "receipts" / "00000.json").unlink()
    attempt()
    assert verify(tmp_path / "set") == []


def test_too_little_room_is_seen_before_the_work(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_ESTIMATED_GROWTH", 1e15)
    with pytest.raises(InputError, match=r"about \d+\.\d\d [kMGT]B are needed, .*B are free; make room"):
        build([str(SAMPLE)], tmp_path / "set", tokenizer_name=str(tokenizer_dir), settings=SETTINGS, num_workers=1)


def test_a_second_build_to_the_same_place_is_refused_naming_the_first(
    tmp_path: Path, tokenizer_dir: Path, corpus: Path
) -> None:
    process = start(build_command(corpus, tmp_path / "set", tokenizer_dir))
    wait_for_receipts(tmp_path / "set", 1, process)
    second = subprocess.run(build_command(corpus, tmp_path / "set", tokenizer_dir), capture_output=True, text=True)
    process.kill()
    process.communicate()
    assert second.returncode == 2
    assert f"another build (process {process.pid}) is writing here" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_source_that_changes_between_two_runs_is_refused(tmp_path: Path, tokenizer_dir: Path, corpus: Path) -> None:
    own = tmp_path / "corpus.json"
    shutil.copy(corpus, own)
    process = start(build_command(own, tmp_path / "set", tokenizer_dir))
    wait_for_receipts(tmp_path / "set", 2, process)
    process.kill()
    process.communicate()
    os.utime(own, ns=(1, 1))
    again = subprocess.run(build_command(own, tmp_path / "set", tokenizer_dir), capture_output=True, text=True)
    assert again.returncode == 2 and "corpus.json has changed" in again.stderr and "--force" in again.stderr
    forced = subprocess.run(
        [*build_command(own, tmp_path / "set", tokenizer_dir), "--force"], capture_output=True, text=True
    )
    assert forced.returncode == 0, forced.stderr
    assert verify(tmp_path / "set") == []


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_source_of_the_same_size_and_time_is_read_again(
    tmp_path: Path, tokenizer_dir: Path, corpus: Path, is_changed: bool
) -> None:
    """A copy in the source's place is taken if it has the same bytes."""
    own, other = tmp_path / "corpus.json", tmp_path / "other.json"
    shutil.copy2(corpus, own)
    process = start(build_command(own, tmp_path / "set", tokenizer_dir))
    wait_for_receipts(tmp_path / "set", 4, process)
    process.kill()
    process.communicate()
    content = own.read_bytes()
    other.write_bytes(content.replace("的".encode(), "地".encode()) if is_changed else content)
    shutil.copystat(own, other)
    os.replace(other, own)
    again = run_module(*build_command(own, tmp_path / "set", tokenizer_dir)[2:])
    if is_changed:
        assert_one_error_line(again, "corpus.json has changed", "--force")
    else:
        assert again.returncode == 0, again.stderr
        assert "earlier run" in again.stdout
        assert verify(tmp_path / "set") == []


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("is_replacing", [False, True])
@pytest.mark.parametrize("step", ["rmtree", "unlink", "rename"])
def test_a_build_killed_while_it_publishes_is_published_by_the_next_run(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str, is_replacing: bool
) -> None:
    """Stopped before each call of `step` in turn: the first, the second, … until a run comes through."""

    class Killed(BaseException):
        """Nothing cleans up after this."""

    def run(out: Path, **options: Any) -> Any:
        settings = dataclasses.replace(SETTINGS, dedup="exact", unit_bytes=200_000)
        return build([str(SAMPLE)], out, tokenizer_name=str(tokenizer_dir), settings=settings, num_workers=1, **options)

    run(tmp_path / "whole")
    whole = directory_bytes(tmp_path / "whole")
    module = shutil if step == "rmtree" else os
    original = getattr(module, step)
    for number in range(100):
        out = tmp_path / f"set{number}"
        if is_replacing:
            run(out)
        calls: list[Path] = []

        def stop(*arguments: Any, limit: int = number, calls: list[Path] = calls, **options: Any) -> Any:
            calls.append(Path(arguments[0]))
            if len(calls) > limit:
                raise Killed
            return original(*arguments, **options)

        with monkeypatch.context() as patched:
            publish = Place.publish

            def publish_stopped(self: Place, publish: Any = publish, patched: Any = patched, stop: Any = stop) -> None:
                patched.setattr(module, step, stop)
                publish(self)

            patched.setattr(Place, "publish", publish_stopped)
            try:
                run(out, force=is_replacing)
                killed = False
            except Killed:
                killed = True
        out.with_name(out.name + ".lock").unlink(missing_ok=True)
        run(out, force=is_replacing)
        assert directory_bytes(out) == whole
        assert verify(out) == []
        assert [path.name for path in tmp_path.iterdir() if out.name in path.name] == [out.name]
        if not killed:
            assert number > 0
            return
        shutil.rmtree(out)
    raise AssertionError("no run came through")


@pytest.mark.usefixtures("inline_engine")
def test_nothing_of_dedup_is_left_in_a_set_whose_build_was_killed_behind_the_manifest(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing cleans up after this."""

    write_set = vars(build_module)["write_set"]

    def killed_behind(*arguments: Any) -> None:
        write_set(*arguments)
        raise Killed

    settings = dataclasses.replace(SETTINGS, dedup="exact")
    arguments: dict[str, Any] = {"tokenizer_name": str(tokenizer_dir), "settings": settings, "num_workers": 1}
    monkeypatch.setattr(build_module, "write_set", killed_behind)
    with pytest.raises(Killed):
        build([str(SAMPLE)], tmp_path / "set", **arguments)
    monkeypatch.setattr(build_module, "write_set", write_set)
    build([str(SAMPLE)], tmp_path / "set", **arguments)
    assert verify(tmp_path / "set") == []


def test_quiet_says_nothing(tmp_path: Path, tokenizer_dir: Path) -> None:
    result = run_module("pipeline", "build", SAMPLE, "--out", tmp_path / "set", "--tokenizer", tokenizer_dir, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
