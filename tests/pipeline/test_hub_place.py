"""Sets built to `hf://`: the bytes of a build on a disk, by one commit or by none, to a hub on loopback.

Large files go by the LFS protocol here; Xet's servers can't be had on loopback.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("fsspec", reason="needs the package fsspec")

import shards
from pipeline import build as build_module
from pipeline.carried_unit import with_drops
from pipeline.engine import Task, keep_receipt, run_task
from pipeline.work import Job, Progress
from shards import tables
from shards.common.errors import InputError
from shards.pull import pull
from shards.verify import verify
from tests.conftest import REPOSITORY as PROJECT
from tests.conftest import assert_one_error_line, directory_bytes, run_module, sample_records, write_corpus
from tests.hub_server import COMMIT, Hub, hub
from tests.pipeline.hub_builds import (
    CARD,
    REPOSITORY,
    URL,
    Listener,
    command,
    kinds,
    repository,
    run,
    uploaded,
    uploads,
)
from tests.pipeline.store import SETTINGS

__all__ = ["hub", "repository", "uploads"]


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
def test_a_gitignore_of_the_repository_leaves_no_file_out(hub: Hub, tmp_path: Path, tokenizer_dir: Path) -> None:
    hub.gitignore = (".bin", ".json")
    run(URL, tokenizer_dir)
    run(tmp_path / "set", tokenizer_dir)
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
