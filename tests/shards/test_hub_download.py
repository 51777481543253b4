"""A download is whole or absent and goes on where it broke off, whatever the hub does."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.common.errors import InputError
from shards.hub import hugging_face, model_scope
from shards.hub.download import Progress, download, part_path
from shards.hub.remote import ConnectionFailed, RemoteFile, within
from tests.hub_server import COMMIT, Hub, hub  # noqa: F401

CONTENT = bytes(range(256)) * 1200
NAME = "corpus.json"

Find = Callable[[], RemoteFile]


def find_on_hugging_face() -> RemoteFile:
    return hugging_face.find_file("org/set", NAME, repository_type="dataset")


def find_on_model_scope() -> RemoteFile:
    return model_scope.find_files("org/set", r"corpus\.json", repository_type="dataset")[NAME]


both = pytest.mark.parametrize("find", [find_on_hugging_face, find_on_model_scope])


@pytest.fixture
def served(hub: Hub) -> Hub:  # noqa: F811
    hub.put("datasets/org/set", NAME, CONTENT)
    return hub


def fetch(find: Find, path: Path, progress: Progress | None = None) -> None:
    download(find(), path, progress=progress, pause=lambda _seconds: None)


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_file())


@both
def test_a_file_comes_whole(served: Hub, tmp_path: Path, find: Find) -> None:
    remote = find()
    assert remote.num_bytes == len(CONTENT)
    assert remote.digest is not None and remote.digest.value == hashlib.sha256(CONTENT).hexdigest()
    fetch(find, tmp_path / "new" / NAME)
    assert (tmp_path / "new" / NAME).read_bytes() == CONTENT
    assert left_in(tmp_path / "new") == [NAME]


@both
def test_a_connection_that_breaks_off_is_continued_where_it_broke(served: Hub, tmp_path: Path, find: Find) -> None:
    served.break_after = [98_304, 49_152, 0]
    fetch(find, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    begins = [request.partition("bytes=")[2] for request in served.requests]
    assert begins == ["", "98304-", "147456-", "147456-"]


@both
def test_what_an_earlier_attempt_left_is_continued(served: Hub, tmp_path: Path, find: Find) -> None:
    served.break_after = [98_304, *[0] * 20]
    with pytest.raises(InputError, match=r"broke off.*98\.30 kB of 307\.20 kB are kept; the same command goes on"):
        fetch(find, tmp_path / NAME)
    assert left_in(tmp_path) == [part_path(tmp_path / NAME, find()).name]
    served.break_after, served.requests = [], []
    fetch(find, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT and left_in(tmp_path) == [NAME]
    assert served.requests == [f"{NAME} bytes=98304-"]


@both
def test_a_part_of_another_version_is_not_continued(served: Hub, tmp_path: Path, find: Find) -> None:
    served.break_after = [98_304, *[0] * 20]
    with pytest.raises(InputError):
        fetch(find, tmp_path / NAME)
    served.break_after, other = [], CONTENT[::-1]
    served.put("datasets/org/set", NAME, other)
    fetch(find, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == other and left_in(tmp_path) == [NAME]


@both
def test_a_server_without_ranges_begins_again(served: Hub, tmp_path: Path, find: Find) -> None:
    served.knows_ranges, served.break_after = False, [98_304]
    fetch(find, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT


@both
@pytest.mark.parametrize("damage", ["first byte", "whole"])
def test_a_damaged_part_is_thrown_away_and_fetched_again(served: Hub, tmp_path: Path, find: Find, damage: str) -> None:
    size = len(CONTENT) if damage == "whole" else 1000
    part_path(tmp_path / NAME, find()).write_bytes(b"?" * size)
    fetch(find, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == CONTENT and left_in(tmp_path) == [NAME]


@both
def test_other_bytes_than_the_hub_lists_are_refused(served: Hub, tmp_path: Path, find: Find) -> None:
    served.sent = b"?" * len(CONTENT)
    with pytest.raises(InputError, match=r"aren't those that the hub lists \(sha256 [0-9a-f]{64}\)"):
        fetch(find, tmp_path / NAME)
    assert left_in(tmp_path) == []


@both
@pytest.mark.parametrize("sent", [b"<html>blocked</html>", CONTENT + b"more"])
def test_a_content_of_another_length_is_refused(served: Hub, tmp_path: Path, find: Find, sent: bytes) -> None:
    served.sent = sent
    with pytest.raises(InputError, match=f"lists 307,200 bytes, its server sends {len(sent):,}"):
        fetch(find, tmp_path / NAME)
    assert NAME not in left_in(tmp_path)


@both
def test_a_server_that_announces_more_than_it_sends_never_gives_a_file(served: Hub, tmp_path: Path, find: Find) -> None:
    served.sent, served.announced_bytes = CONTENT[:-5], len(CONTENT)
    with pytest.raises(InputError):
        fetch(find, tmp_path / NAME)
    assert NAME not in left_in(tmp_path)


@both
def test_a_hub_that_lists_another_length_is_not_believed(served: Hub, tmp_path: Path, find: Find) -> None:
    served.listed_bytes = len(CONTENT) - 7
    with pytest.raises(InputError, match="lists 307,193 bytes, its server sends 307,200"):
        fetch(find, tmp_path / NAME)
    assert NAME not in left_in(tmp_path)


@both
@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "no such"), (403, r"refused \(HTTP 403\)"), (401, "refused|no such"), (451, r"HTTP 451")],
)
def test_a_refusal_is_one_clear_error(served: Hub, tmp_path: Path, find: Find, status: int, words: str) -> None:
    remote = find()
    served.content_status = status
    with pytest.raises(InputError, match=words):
        download(remote, tmp_path / NAME, pause=lambda _seconds: None)
    served.status = status
    with pytest.raises(InputError, match=words):
        find()
    assert NAME not in left_in(tmp_path)


@both
def test_a_hub_in_trouble_is_tried_again_and_then_given_up(served: Hub, tmp_path: Path, find: Find) -> None:
    served.content_status = 503
    with pytest.raises(InputError, match=r"broke off \(HTTP 503\)"):
        fetch(find, tmp_path / NAME)
    assert len(served.requests) == 6


@both
def test_no_such_repository_and_no_such_file_are_told(served: Hub, find: Find) -> None:
    served.repositories = {"datasets/org/set": {"other": b""}}
    with pytest.raises((InputError, KeyError)):
        find()
    served.repositories = {}
    with pytest.raises(InputError, match="no such repository"):
        find()


@both
def test_a_page_of_a_proxy_is_not_taken_for_a_hub(served: Hub, find: Find) -> None:
    served.is_hub = False
    with pytest.raises(InputError, match="doesn't answer as"):
        find()


def test_a_hub_that_does_not_answer_is_given_up_in_time(served: Hub) -> None:
    served.seconds_before_answer = 30
    with pytest.raises(ConnectionFailed, match=r"no answer within 0\.2 s|timed out"):
        hugging_face.find_file("org/set", NAME, repository_type="dataset", seconds=0.2)
    with pytest.raises(ConnectionFailed, match=r"no answer within 0\.2 s"):
        model_scope.find_files("org/set", ".*", seconds=0.2)


def test_each_attempt_asks_for_the_same_commit_and_follows_redirects(served: Hub, tmp_path: Path) -> None:
    remote = find_on_hugging_face()
    with remote.open(3) as stream:
        assert stream.offset == 3 and b"".join(stream.chunks) == CONTENT[3:]
    assert served.revisions == ["main", COMMIT]
    served.redirects = False
    with remote.open(5) as stream:
        assert b"".join(stream.chunks) == CONTENT[5:]


def test_paths_that_lead_out_of_the_directory_match_no_pattern(served: Hub) -> None:
    served.listed_paths = ["../../corpus.json", "/etc/corpus.json", "a/../corpus.json", "corpus.json/../../x"]
    assert list(model_scope.find_files("org/set", r"corpus\.json", repository_type="dataset")) == [NAME]


def test_progress_is_told_and_ctrl_c_keeps_what_has_come(served: Hub, tmp_path: Path) -> None:
    class Interrupting(Progress):
        def advanced(self, num_bytes_done: int) -> None:
            if num_bytes_done > 100_000:
                raise KeyboardInterrupt

    remote = find_on_hugging_face()
    served.seconds_between_pieces = 0.0005
    with pytest.raises(KeyboardInterrupt, match=r"of 307\.20 kB are kept; the same command goes on"):
        download(remote, tmp_path / NAME, progress=Interrupting())
    assert part_path(tmp_path / NAME, remote).stat().st_size > 100_000
    seen: list[int] = []

    class Listening(Progress):
        def started(self, num_bytes: int | None, num_bytes_done: int) -> None:
            seen.extend((num_bytes or 0, num_bytes_done))

        def advanced(self, num_bytes_done: int) -> None:
            seen.append(num_bytes_done)

    download(remote, tmp_path / NAME, progress=Listening())
    assert seen[0] == len(CONTENT) and seen[1] > 100_000 and seen[-1] == len(CONTENT)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_two_processes_do_not_write_one_file(served: Hub, tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Waiting(Progress):
        def started(self, num_bytes: int | None, num_bytes_done: int) -> None:
            started.set()
            go_on.wait(10)

    first = threading.Thread(target=fetch, args=(find_on_hugging_face, tmp_path / NAME, Waiting()))
    first.start()
    assert started.wait(10)
    with pytest.raises(InputError, match="another process is fetching it"):
        fetch(find_on_hugging_face, tmp_path / NAME)
    go_on.set()
    first.join()
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_full_disk_is_one_line(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr("shards.hub.download.shutil.disk_usage", lambda _path: usage)
        with pytest.raises(InputError, match=r"are needed, 1\.00 kB are free; make room"):
            fetch(find_on_hugging_face, tmp_path / NAME)

    class Full(Progress):
        def advanced(self, num_bytes_done: int) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"\.part: No space left on device; make room, then the same command"):
        fetch(find_on_hugging_face, tmp_path / NAME, Full())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_one_line(served: Hub, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"closed.*Permission denied"):
        fetch(find_on_hugging_face, tmp_path / "closed" / NAME)


def test_a_file_in_the_place_of_a_directory_is_one_line(served: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: (File exists|Not a directory)"):
        fetch(find_on_hugging_face, tmp_path / "file" / NAME)


def test_within_gives_the_result_the_error_or_up() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    never = threading.Event()
    with pytest.raises(ConnectionFailed, match=r"no answer within 0\.05 s"):
        within(0.05, never.wait)
    never.set()
