"""Sets built to `hf://` whose upload fails, is ended or comes too late: what is kept, and that nothing is half there."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("fsspec", reason="needs the package fsspec")

from pipeline import build as build_module
from pipeline.hub_place import HubPlace
from shards.common.errors import InputError, TransientError
from shards.verify import verify
from tests.conftest import assert_one_error_line, directory_bytes, run_module
from tests.hub_server import Hub, hub
from tests.pipeline.hub_builds import (
    REPOSITORY,
    URL,
    Listener,
    command,
    kinds,
    repository,
    run,
    start,
    uploaded,
    uploads,
    wait_until,
)
from tests.pipeline.store import SETTINGS

__all__ = ["hub", "repository", "uploads"]


@pytest.mark.usefixtures("inline_engine")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("kind", "status"), [("preupload", 400), ("batch", 400), ("object", 403), ("commit", 500)])
def test_after_an_upload_that_failed_the_same_command_only_uploads(
    hub: Hub, tmp_path: Path, tokenizer_dir: Path, uploads: Path, kind: str, status: int, force: bool
) -> None:
    if force:
        hub.put(REPOSITORY, "sets/zh/manifest.json", b"{}")
        hub.put(REPOSITORY, "sets/zh/train-77777.bin", b"an older set's")
    hub.failures[kind] = [status]
    with pytest.raises(
        TransientError, match=rf"upload failed \(HTTP {status}.*\); the set is kept in {uploads}/zh-.*, the"
    ):
        run(URL, tokenizer_dir, force=force)
    assert hub.commits == {} and len(list(uploads.iterdir())) == 1
    hub.writes.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build_module, "_do_units", None)  # it isn't built
        run(URL, tokenizer_dir, force=force)
    run(tmp_path / "set", tokenizer_dir)
    assert uploaded(hub) == directory_bytes(tmp_path / "set")
    assert len(hub.commits) == 1 and list(uploads.iterdir()) == []
    if kind == "commit":
        assert "object" not in kinds(hub)  # the contents were there


def test_a_failed_upload_is_one_line_and_its_set_is_kept(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    hub.failures["object"] = [403] * 20
    result = run_module(*command(tokenizer_dir, "--quiet"))
    assert_one_error_line(result, "the upload failed (HTTP 403", "the same command only uploads it")
    assert result.stderr.count("\n") == 1
    assert verify(next(uploads.iterdir())) == []


def test_without_servers_of_xet_it_is_one_line_too(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    result = run_module(*command(tokenizer_dir, "--quiet"), env={"HF_HUB_DISABLE_XET": "0"})
    assert_one_error_line(result, "the upload failed (", "the same command only uploads it")
    assert result.stderr.count("\n") == 1 and hub.commits == {}


@pytest.mark.usefixtures("inline_engine")
def test_a_commit_whose_answer_was_lost_is_found_the_next_time(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    hub.loses_commit_answer = True
    with pytest.raises(TransientError, match="the same command only uploads it"):
        run(URL, tokenizer_dir)
    assert "manifest.json" in uploaded(hub) and len(list(uploads.iterdir())) == 1
    assert run(URL, tokenizer_dir).up_to_date
    assert list(uploads.iterdir()) == [] and len(hub.commits) == 1


@pytest.mark.usefixtures("inline_engine")
def test_a_set_is_kept_while_the_hub_lists_other_bytes(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    hub.damages_objects = True
    with pytest.raises(TransientError, match=r"the hub lists sets/zh/\S+ not as it is here"):
        run(URL, tokenizer_dir)
    assert len(list(uploads.iterdir())) == 1


@pytest.mark.usefixtures("inline_engine")
def test_what_others_commit_meanwhile_stays(hub: Hub, tokenizer_dir: Path) -> None:
    """Before the commit it is refused as stale; before that, another set stops it."""

    def commit_another() -> None:
        hub.before_commit = lambda: None
        hub.commits["f" * 40] = ("another", {**hub.files(REPOSITORY), "sets/zh/manifest.json": b"{}"})
        hub.heads[f"{REPOSITORY}@main"] = "f" * 40

    hub.before_commit = commit_another
    with pytest.raises(TransientError, match=r"something else was committed at the same time \(HTTP 412\)"):
        run(URL, tokenizer_dir)
    assert uploaded(hub) == {"manifest.json": b"{}"}
    del hub.commits["f" * 40], hub.heads[f"{REPOSITORY}@main"]
    upload = HubPlace.upload

    def upload_late(place: HubPlace) -> None:
        commit_another()
        upload(place)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(HubPlace, "upload", upload_late)
        with pytest.raises(InputError, match="another set was put there meanwhile"):
            run(URL, tokenizer_dir)
    assert uploaded(hub) == {"manifest.json": b"{}"}


@pytest.mark.usefixtures("inline_engine")
def test_a_set_that_waits_is_checked_and_another_is_not_mixed_up_with_it(
    hub: Hub, tmp_path: Path, tokenizer_dir: Path, uploads: Path
) -> None:
    hub.failures["commit"] = [500, 500]
    with pytest.raises(TransientError):
        run(URL, tokenizer_dir)
    other = dataclasses.replace(SETTINGS, seed=7)
    with pytest.raises(InputError, match=r"a set from other inputs waits to be uploaded \(--seed was 2333, now 7\)"):
        run(URL, tokenizer_dir, settings=other)
    with pytest.raises(TransientError):
        run(URL, tokenizer_dir, settings=other, force=True)
    damaged = next(next(uploads.iterdir()).glob("train-*.bin"))
    damaged.write_bytes(b"!" + damaged.read_bytes()[1:])
    listener = Listener()
    run(URL, tokenizer_dir, settings=other, reporter=listener)
    assert "was damaged since it was built, and is built anew" in listener.lines[0]
    run(tmp_path / "set", tokenizer_dir, settings=other)
    assert uploaded(hub) == directory_bytes(tmp_path / "set")


def test_a_build_that_was_killed_goes_on_with_what_lies_there(
    hub: Hub, tmp_path: Path, tokenizer_dir: Path, uploads: Path
) -> None:
    process = start(tokenizer_dir, "--check-tokenizer", "all")
    wait_until(lambda: len(list(uploads.glob("zh-*.partial/receipts/*.json"))) >= 1, process)
    process.kill()
    process.communicate()
    assert hub.writes == []
    again = run_module(*command(tokenizer_dir, "--check-tokenizer", "all"))
    assert again.returncode == 0, again.stderr
    assert "from an earlier run" in again.stdout
    run(tmp_path / "set", tokenizer_dir)
    assert uploaded(hub) == directory_bytes(tmp_path / "set") and list(uploads.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_upload_at_once_and_keeps_the_set(
    hub: Hub, tokenizer_dir: Path, uploads: Path, number: signal.Signals, status: int
) -> None:
    hub.object_waits = 30
    process = start(tokenizer_dir)
    wait_until(lambda: "batch" in hub.writes, process)
    begin = time.monotonic()
    process.send_signal(number)
    _output, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert process.returncode == status
    assert "the same command only uploads it" in errors and "Traceback" not in errors
    assert [path.name[:3] for path in uploads.iterdir()] == ["zh-"] and hub.commits == {}
    hub.object_waits = 0
    again = run_module(*command(tokenizer_dir))
    assert again.returncode == 0 and "reading" not in again.stderr, again.stderr
    assert "manifest.json" in uploaded(hub)


def uploading_process(process: subprocess.Popen[str]) -> int:
    """The number of the process that uploads, 0 before it is there."""
    for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes():
                return int(number)
    return 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_the_process_that_uploads_leaves_ctrl_c_to_its_parent(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    """A terminal sends it to both, also while the one still loads modules."""
    process = start(tokenizer_dir)
    wait_until(lambda: uploading_process(process), process)
    number = uploading_process(process)
    assert number > 1
    for _ in range(20):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGINT)
        time.sleep(0.02)
    _output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors
    assert "manifest.json" in uploaded(hub)


def test_nothing_is_committed_for_a_build_that_was_killed(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    hub.object_waits = 2
    process = start(tokenizer_dir)
    wait_until(lambda: "batch" in hub.writes, process)
    process.kill()
    process.communicate()
    time.sleep(4)  # with the parent alive, the first five contents would be there, and more asked for
    assert "commit" not in kinds(hub) and kinds(hub).count("object") <= 5
    assert len(list(uploads.glob("zh-*/manifest.json"))) == 1
