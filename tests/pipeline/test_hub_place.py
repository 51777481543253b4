"""Sets built to `hf://`: the bytes of a build on a disk, by one commit or by none, to a hub on loopback.

Large files go by the LFS protocol here; Xet's servers can't be had on loopback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the package fsspec")

import shards
from pipeline import build as build_module
from pipeline.build import BuildResult, Reporter, build
from pipeline.carried_unit import with_drops
from pipeline.engine import Task, keep_receipt, run_task
from pipeline.hub_place import HubPlace
from pipeline.work import Job, Progress
from shards import tables
from shards.errors import InputError
from shards.pull import pull
from shards.storage import StorageError
from shards.verify import verify
from tests.conftest import REPOSITORY as PROJECT
from tests.conftest import SAMPLE, assert_one_error_line, directory_bytes, run_module, sample_records, write_corpus
from tests.hub_server import COMMIT, Hub, hub
from tests.pipeline.store import SETTINGS

__all__ = ["hub"]

REPOSITORY = "datasets/org/name"
URL = f"hf://{REPOSITORY}/sets/zh"
CARD = b"# A data set\n"


@pytest.fixture(autouse=True)
def repository(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A repository with a card and another folder, and a user who may write there."""
    from huggingface_hub import HfFileSystem

    hub.lists_files, hub.token = True, "hf_right"
    hub.put(REPOSITORY, "README.md", CARD)
    hub.put(REPOSITORY, "photos/1.jpg", b"mine")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    HfFileSystem.clear_instance_cache()
    yield
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Where sets lie until the hub has them."""
    return tmp_path / "cache" / "tokenize-once" / "uploads"


class Listener(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, line: str) -> None:
        self.lines.append(line)


def run(out: Path | str, tokenizer_dir: Path, *, source: Path = SAMPLE, **options: Any) -> BuildResult:
    options = {"settings": SETTINGS, "num_workers": 1, **options}
    return build([str(source)], out, tokenizer_name=str(tokenizer_dir), **options)


def command(tokenizer_dir: Path, *more: object, out: str = URL) -> list[object]:
    options = ["--tokenizer", tokenizer_dir, "--unit-bytes", "60000", "--block-tokens", "64", "--workers", "1", *more]
    return ["pipeline", "build", SAMPLE, "--out", out, *options]


def uploaded(hub: Hub, folder: str = "sets/zh", revision: str = "main") -> dict[str, bytes]:
    """The files below `folder`, as a reader sees them."""
    files = hub.files(REPOSITORY, revision)
    return {
        path.removeprefix(f"{folder}/"): content for path, content in files.items() if path.startswith(f"{folder}/")
    }


def kinds(hub: Hub) -> list[str]:
    return [line.split()[0] for line in hub.writes]


@pytest.mark.usefixtures("inline_engine")
def test_the_bytes_of_a_local_build_in_one_commit_that_pull_verify_and_train_read(
    hub: Hub, tmp_path: Path, tokenizer_dir: Path, uploads: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.json", [*sample_records(), {"text": 7}, *sample_records()[:30]])
    settings = dataclasses.replace(SETTINGS, on_bad_record="skip", dedup="exact")
    run(tmp_path / "set", tokenizer_dir, source=corpus, settings=settings)
    listener = Listener()
    result = run(URL, tokenizer_dir, source=corpus, settings=settings, reporter=listener)
    expected = directory_bytes(tmp_path / "set")
    assert "rejected.jsonl" in expected
    assert uploaded(hub) == expected and len(hub.commits) == 1
    assert hub.files(REPOSITORY)["README.md"] == CARD and hub.files(REPOSITORY)["photos/1.jpg"] == b"mine"
    assert kinds(hub).count("commit") == 1 and kinds(hub)[-1] == "commit"
    assert kinds(hub).count("object") == len({content for name, content in expected.items() if name[-4:] != "json"}) - 1
    assert result.path == URL and not result.up_to_date
    assert result.manifest.fingerprint == shards.open(tmp_path / "set").manifest.fingerprint
    assert [line.split()[0] for line in listener.lines] == ["building", "uploading", "commit"]
    assert str(uploads) in listener.lines[0]
    assert list(uploads.iterdir()) == []
    assert verify(pull(URL, tmp_path / "pulled")) == []
    pulled = directory_bytes(tmp_path / "pulled")
    assert {**pulled, ".sources.json": expected[".sources.json"]} == expected
    assert isinstance(shards.open_data(URL), shards.ShardSet)  # as train does


@pytest.mark.usefixtures("inline_engine")
def test_a_set_that_is_there_is_up_to_date_and_another_is_refused_unless_forced(
    hub: Hub, tmp_path: Path, tokenizer_dir: Path, uploads: Path
) -> None:
    run(URL, tokenizer_dir)
    before, num_writes = uploaded(hub), len(hub.writes)
    assert run(URL, tokenizer_dir).up_to_date
    other = dataclasses.replace(SETTINGS, seed=7, unit_bytes=200_000)
    with pytest.raises(InputError, match=r"a shard set from other inputs is there \(.*--seed was 2333, now 7"):
        run(URL, tokenizer_dir, settings=other)
    assert len(hub.writes) == num_writes and uploaded(hub) == before and list(uploads.iterdir()) == []
    run(URL, tokenizer_dir, settings=other, force=True)
    run(tmp_path / "set", tokenizer_dir, settings=other)
    assert uploaded(hub) == directory_bytes(tmp_path / "set")  # what the older set had more is gone, by the same commit
    assert before.keys() - uploaded(hub).keys() and len(hub.commits) == 2
    assert hub.files(REPOSITORY)["README.md"] == CARD


@pytest.mark.usefixtures("inline_engine")
def test_a_set_beside_a_card_in_the_root_leaves_the_card(hub: Hub, tokenizer_dir: Path) -> None:
    hub.repositories[REPOSITORY] = {"README.md": CARD, ".gitattributes": b"*.bin filter=lfs\n"}
    root = f"hf://{REPOSITORY}"
    run(root, tokenizer_dir)
    run(root, tokenizer_dir, settings=dataclasses.replace(SETTINGS, seed=7), force=True)
    files = hub.files(REPOSITORY)
    assert files["README.md"] == CARD and ".gitattributes" in files and "manifest.json" in files


@pytest.mark.usefixtures("inline_engine")
def test_a_branch_is_written_and_main_is_left(hub: Hub, tokenizer_dir: Path) -> None:
    hub.branches = {"v2"}
    run(f"hf://{REPOSITORY}@v2/sets/zh", tokenizer_dir)
    assert "manifest.json" in uploaded(hub, revision="v2") and not uploaded(hub)
    with pytest.raises(InputError, match="no branch 'v3' there; make it with `hf repos branch create org/name v3"):
        run(f"hf://{REPOSITORY}@v3/sets/zh", tokenizer_dir)


@pytest.mark.usefixtures("inline_engine")
def test_what_is_no_shard_set_is_left_alone(hub: Hub, tokenizer_dir: Path) -> None:
    for force in (False, True):
        for out in (f"hf://{REPOSITORY}/photos", f"hf://{REPOSITORY}"):
            with pytest.raises(InputError, match="exists and is no shard set"):
                run(out, tokenizer_dir, force=force)
    assert hub.writes == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("hf://buckets/org/name/set", "goes to a data set: expected hf://datasets/USER/NAME"),
        ("hf://org/name/set", "goes to a data set"),
        ("hf://datasets/org", "goes to a data set"),
        (f"hf://{REPOSITORY}/set@v2", "the branch is written behind the repository: expected hf://datasets/USER/NAME"),
        (f"hf://{REPOSITORY}/a/../b", "is no folder of a repository"),
        (f"hf://{REPOSITORY}@{COMMIT}/set", "a commit can't be changed; name a branch"),
        ("hf://datasets/org/other/set", "make it with `hf repos create org/other --repo-type dataset`"),
    ],
)
def test_a_place_that_can_not_be_is_one_line_before_the_work(
    hub: Hub, tokenizer_dir: Path, uploads: Path, out: str, message: str
) -> None:
    result = run_module(*command(tokenizer_dir, out=out))
    assert_one_error_line(result, message)
    assert result.stderr.count("\n") == 1
    assert hub.writes == [] and (not uploads.exists() or list(uploads.iterdir()) == [])


@pytest.mark.parametrize(
    ("token", "may_write", "status", "message"),
    [
        ("hf_wrong", True, 0, "the hub doesn't know this token (HTTP 401)"),
        ("hf_right", False, 0, "this token may not write there (HTTP 403)"),
        ("", True, 0, "no token to upload with; set HF_TOKEN, or log in with `hf auth login`"),
        ("hf_right", True, 500, "can't be reached (HTTP 500"),
    ],
)
def test_who_may_not_write_is_told_before_the_work(
    hub: Hub, tokenizer_dir: Path, uploads: Path, token: str, may_write: bool, status: int, message: str
) -> None:
    hub.may_write, hub.status = may_write, status
    result = run_module(*command(tokenizer_dir), env={"HF_TOKEN": token})
    assert_one_error_line(result, message)
    assert result.stderr.count("\n") == 1
    assert hub.writes == [] and list(uploads.glob("*")) == []


def test_offline_is_one_line(hub: Hub, tokenizer_dir: Path) -> None:
    result = run_module(*command(tokenizer_dir), env={"HF_HUB_OFFLINE": "1"})
    assert_one_error_line(result, "HF_HUB_OFFLINE=1 forbids to upload")


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
        StorageError, match=rf"upload failed \(HTTP {status}.*\); the set is kept in {uploads}/zh-.*, the"
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
    with pytest.raises(StorageError, match="the same command only uploads it"):
        run(URL, tokenizer_dir)
    assert "manifest.json" in uploaded(hub) and len(list(uploads.iterdir())) == 1
    assert run(URL, tokenizer_dir).up_to_date
    assert list(uploads.iterdir()) == [] and len(hub.commits) == 1


@pytest.mark.usefixtures("inline_engine")
def test_a_set_is_kept_while_the_hub_lists_other_bytes(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    hub.damages_objects = True
    with pytest.raises(StorageError, match=r"the hub lists sets/zh/\S+ not as it is here"):
        run(URL, tokenizer_dir)
    assert len(list(uploads.iterdir())) == 1


@pytest.mark.usefixtures("inline_engine")
def test_a_gitignore_of_the_repository_leaves_no_file_out(hub: Hub, tmp_path: Path, tokenizer_dir: Path) -> None:
    hub.gitignore = (".bin", ".json")
    run(URL, tokenizer_dir)
    run(tmp_path / "set", tokenizer_dir)
    assert uploaded(hub) == directory_bytes(tmp_path / "set")


@pytest.mark.usefixtures("inline_engine")
def test_what_others_commit_meanwhile_stays(hub: Hub, tokenizer_dir: Path) -> None:
    """Before the commit it is refused as stale; before that, another set stops it."""

    def commit_another() -> None:
        hub.before_commit = lambda: None
        hub.commits["f" * 40] = ("another", {**hub.files(REPOSITORY), "sets/zh/manifest.json": b"{}"})
        hub.heads[f"{REPOSITORY}@main"] = "f" * 40

    hub.before_commit = commit_another
    with pytest.raises(StorageError, match=r"something else was committed at the same time \(HTTP 412\)"):
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
    with pytest.raises(StorageError):
        run(URL, tokenizer_dir)
    other = dataclasses.replace(SETTINGS, seed=7)
    with pytest.raises(InputError, match=r"a set from other inputs waits to be uploaded \(--seed was 2333, now 7\)"):
        run(URL, tokenizer_dir, settings=other)
    with pytest.raises(StorageError):
        run(URL, tokenizer_dir, settings=other, force=True)
    damaged = next(next(uploads.iterdir()).glob("train-*.bin"))
    damaged.write_bytes(b"!" + damaged.read_bytes()[1:])
    listener = Listener()
    run(URL, tokenizer_dir, settings=other, reporter=listener)
    assert "was damaged since it was built, and is built anew" in listener.lines[0]
    run(tmp_path / "set", tokenizer_dir, settings=other)
    assert uploaded(hub) == directory_bytes(tmp_path / "set")


@pytest.mark.usefixtures("inline_engine")
def test_more_files_than_a_folder_takes_are_told_before_the_work(
    hub: Hub, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.hub_place._MAX_FILES", 20)
    with pytest.raises(
        InputError, match=r"units make up to \d+ files, a folder on Hugging Face takes 20; choose a larger"
    ):
        run(URL, tokenizer_dir)
    assert hub.writes == []


def test_units_of_nodes_without_this_disk_are_carried_here(
    hub: Hub, tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the engine `ray` does it; its own test has the cluster."""

    def run_elsewhere(job: Job, tasks: Sequence[Task], _number: int, progress: Progress) -> Iterator[tuple[int, None]]:
        job = dataclasses.replace(job, carried=True)
        theirs = dataclasses.replace(job, directory=tmp_path / "not" / "there")
        for task in tasks:
            keep_receipt(job, task, run_task(theirs, with_drops(job, task), progress))
            yield task.unit.number, None

    records = [*sample_records(), {"text": 7}, *sample_records()[:30]]
    corpus = write_corpus(tmp_path / "corpus.jsonl", records, "lines")  # no false starts
    settings = dataclasses.replace(SETTINGS, on_bad_record="skip", dedup="exact")
    run(tmp_path / "set", tokenizer_dir, source=corpus, settings=settings)
    monkeypatch.setattr(build_module, "run_tasks", run_elsewhere)
    run(URL, tokenizer_dir, source=corpus, settings=settings)
    assert uploaded(hub) == directory_bytes(tmp_path / "set")


def start(tokenizer_dir: Path, *more: object) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", *map(str, command(tokenizer_dir, *more))]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


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


@pytest.mark.usefixtures("inline_engine")
def test_a_large_set_has_its_tables(
    hub: Hub, tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_LISTED", 3)
    run(tmp_path / "set", tokenizer_dir)
    result = run(URL, tokenizer_dir)
    assert result.manifest.has_tables and len(result.manifest.shards) > 3
    assert uploaded(hub) == directory_bytes(tmp_path / "set")
    assert "shards.table" in uploaded(hub) and run(URL, tokenizer_dir).up_to_date


def test_a_cache_that_can_not_be_written_is_one_line(hub: Hub, tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "file").touch()
    result = run_module(*command(tokenizer_dir), env={"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert_one_error_line(result, "can't write here: Not a directory; choose another place (XDG_CACHE_HOME)")


def test_nothing_is_committed_for_a_build_that_was_killed(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    hub.object_waits = 2
    process = start(tokenizer_dir)
    wait_until(lambda: "batch" in hub.writes, process)
    process.kill()
    process.communicate()
    time.sleep(4)  # with the parent alive, the first five contents would be there, and more asked for
    assert "commit" not in kinds(hub) and kinds(hub).count("object") <= 5
    assert len(list(uploads.glob("zh-*/manifest.json"))) == 1


def test_what_a_person_sees(hub: Hub, tokenizer_dir: Path, uploads: Path) -> None:
    hub.failures["preupload"] = [503]  # which the client tries again
    result = run_module(*command(tokenizer_dir))
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["building", "reading", "uploading", "commit"]
    assert lines[0].startswith(f"building in {uploads}/zh-") and lines[0].endswith(f", then one commit to {URL}")
    assert lines[-2].startswith("uploading ") and lines[-1].startswith("commit ")
    assert f"shard set    {URL}" in result.stdout
    again = run_module(*command(tokenizer_dir, "--quiet"))
    assert again.returncode == 0 and again.stdout.startswith(f"{URL}: up to date (fingerprint ") and again.stderr == ""


def test_the_client_is_loaded_only_for_hf(tmp_path: Path, tokenizer_dir: Path) -> None:
    code = "import sys, pipeline.build, pipeline.__main__; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
