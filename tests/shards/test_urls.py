"""Files at URLs: S3 and OSS against moto's server on loopback, and each kind of error as the right class."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.common.errors import InputError, TransientError
from shards.common.server_errors import server_errors
from shards.common.urls import file_system, join, listing, read_bytes, remove, version, write_bytes
from tests.object_stores import Server


@pytest.mark.parametrize("protocol", ["s3", "oss"])
def test_a_file_is_put_found_changed_and_removed(server: Server, protocol: str) -> None:
    url = f"{protocol}://bucket-{protocol}/put"
    for name in ("a", "b/c"):
        write_bytes(join(url, name), name.encode())
    found = listing(url)
    assert {name: entry["size"] for name, entry in found.items()} == {"a": 1, "b/c": 3}
    assert read_bytes(join(url, "b/c")) == b"b/c"
    write_bytes(join(url, "a"), b"A")
    assert version(listing(url)["a"]) != version(found["a"])
    assert version(listing(url)["b/c"]) == version(found["b/c"])
    system, path = file_system(url)
    assert [system.unstrip_protocol(name) for name in system.find(path)] == [join(url, "a"), join(url, "b/c")]
    remove(*[join(url, name) for name in ("a", "b/c", "never")])
    assert listing(url) == {} and read_bytes(join(url, "a")) is None


def test_oss_is_asked_as_it_wants_to_be(server: Server) -> None:
    """By the bucket's own host, without the checksums that it refuses, without deleting many files at once."""
    write_bytes("oss://bucket-oss/file", b"content")
    system, _ = file_system("oss://bucket-oss/large")
    system.pipe_file("bucket-oss/large", bytes(6 << 20), chunksize=5 << 20)  # in two parts
    assert read_bytes("oss://bucket-oss/file") == b"content"
    assert system.info("bucket-oss/large")["size"] == 6 << 20
    remove("oss://bucket-oss/file", "oss://bucket-oss/large")
    assert {request["HTTP_HOST"] for request in server.requests} == {f"bucket-oss.localhost:{server.port}"}
    for request in server.requests:
        assert not [name for name in request if "CHECKSUM" in name or "TRAILER" in name]
        assert "aws-chunked" not in request.get("HTTP_CONTENT_ENCODING", "")
        assert "delete" not in request["QUERY_STRING"]


def test_oss_has_its_region_and_its_server_from_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ("https://oss-cn-hangzhou.aliyuncs.com", "https://s3.oss-cn-hangzhou-internal.aliyuncs.com"):
        monkeypatch.setenv("OSS_ENDPOINT", endpoint)
        system, path = file_system("oss://bucket/set")
        assert system.endpoint_url == endpoint and path == "bucket/set"
        assert system.client_kwargs == {"region_name": "cn-hangzhou"}
    monkeypatch.delenv("OSS_ENDPOINT")
    with pytest.raises(InputError, match="oss://bucket/set: no server is named; set OSS_ENDPOINT"):
        read_bytes("oss://bucket/set")


def test_each_error_is_of_its_kind(server: Server) -> None:
    url = "s3://bucket-s3/kinds"
    with pytest.raises(InputError, match=r"no such bucket .*; make it, or choose another output"):
        write_bytes("s3://nowhere/file", b"")
    assert listing("s3://nowhere/set") == {} and read_bytes("s3://nowhere/file") is None
    for ask in (listing, read_bytes):
        server.statuses[:] = [403] * 99
        with pytest.raises(InputError, match="; check the credentials in the environment") as refused:
            ask(join(url, "file"))
        assert not isinstance(refused.value, TransientError)
        server.statuses[:] = [503] * 99
        with pytest.raises(TransientError, match="the same command goes on when the server answers"):
            ask(join(url, "file"))
        server.statuses.clear()
    server.statuses[:] = [503]
    write_bytes(join(url, "file"), b"tried again")
    assert read_bytes(join(url, "file")) == b"tried again"


def test_a_server_that_hangs_up_is_asked_for_minutes_not_for_hours(server: Server) -> None:
    server.statuses += [0] * 99
    with pytest.raises(TransientError, match="the same command goes on when the server answers"):
        read_bytes("s3://bucket-s3/file")
    assert len(server.requests) <= 12  # s3fs repeats what its client has already repeated


def test_what_a_client_refuses_without_asking_is_not_tried_again() -> None:
    with pytest.raises(InputError, match="no bucket's name") as refused, server_errors("s3://a b/file"):
        raise ValueError("no bucket's name")
    assert not isinstance(refused.value, TransientError)


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(TypeError), server_errors("s3://bucket/file"):
        raise TypeError("an argument too many")


def test_a_package_that_is_missing_and_what_is_no_url_are_one_line() -> None:
    for url, line in (
        ("bucket/name", "expected a URL such as s3://bucket/name"),
        ("az://box/file", "az://box/file: needs the package adlfs: pip install adlfs"),
    ):
        with pytest.raises(InputError, match=line):
            file_system(url)


def test_a_directory_is_made_for_a_file_at_a_path_as_url(tmp_path: Path) -> None:
    write_bytes(f"file://{tmp_path}/set/tokenizer/config.json", b"{}")
    assert (tmp_path / "set/tokenizer/config.json").read_bytes() == b"{}"
