"""A server on loopback that speaks as Hugging Face and ModelScope do, as well or as badly as it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass
class Hub:
    """What is served, what goes wrong, and what was asked for."""

    address: str = ""
    # By `datasets/ORG/NAME` or `models/ORG/NAME`, the content by path.
    repositories: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    requests: list[str] = dataclasses.field(default_factory=list)  # for contents: `path range`
    revisions: list[str] = dataclasses.field(default_factory=list)  # asked for on Hugging Face
    # Faults
    break_after: list[int] = dataclasses.field(
        default_factory=list
    )  # bytes, for one request for content after the other
    status: int = 0  # instead of every answer
    content_status: int = 0  # instead of every content
    seconds_before_answer: float = 0.0
    seconds_between_pieces: float = 0.0
    sent: bytes | None = None  # instead of the content
    listed_bytes: int | None = None  # instead of the content's length, in what the hub lists
    announced_bytes: int | None = None  # instead of the content's length, in the header of the content
    knows_ranges: bool = True
    is_hub: bool = True  # else a page of a proxy, as it were
    redirects: bool = True  # contents come from elsewhere, as those of large files do
    lists_files: bool = False  # to `HfFileSystem`
    listed_paths: list[str] = dataclasses.field(default_factory=list)  # more paths in listings

    @property
    def elsewhere(self) -> str:
        """The same server by the name of another host: what the clients call a content network."""
        return self.address.replace("127.0.0.1", "localhost")

    def put(self, repository: str, path: str, content: bytes) -> None:
        self.repositories.setdefault(repository, {})[path] = content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._answer()

    def _answer(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        time.sleep(hub.seconds_before_answer)
        path = unquote(url.path).strip("/")
        if hub.status:
            return self._send(hub.status, b"{}")
        if not hub.is_hub:
            return self._send(200, b"<html>Log in to the network</html>")
        if path.startswith("cdn/"):
            repository, _, file = path.removeprefix("cdn/").partition("//")
            return self._send_content(hub.repositories[repository][file], file)
        if path.startswith("api/v1/"):
            return self._model_scope(path.removeprefix("api/v1/").split("/"), parse_qs(url.query))
        return self._hugging_face(path)

    def _hugging_face(self, path: str) -> None:
        if path.startswith("api/datasets/"):
            return self._file_system(path.removeprefix("api/").split("/"))
        repository, _, rest = path.partition("/resolve/")
        if not repository.startswith("datasets/"):
            repository = f"models/{repository}"
        revision, _, file = rest.partition("/")
        self.hub.revisions.append(revision)
        if repository not in self.hub.repositories:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        content = self.hub.repositories[repository].get(file)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        listed = len(content) if self.hub.listed_bytes is None else self.hub.listed_bytes
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(listed),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "ETag": '"other"',
        }
        if self.hub.redirects:
            headers["Location"] = f"{self.hub.elsewhere}/cdn/{repository}//{file}?Signature=1"
            return self._send(302, b"", headers)
        return self._send_content(content, file, headers)

    def _file_system(self, parts: list[str]) -> None:
        """What `HfFileSystem` asks of a repository: whether it is there, and what files are in it."""
        repository, question, below = "/".join(parts[:3]), parts[3:4], "/".join(parts[5:])
        files = self.hub.repositories.get(repository) if self.hub.lists_files else None
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if question != ["tree"]:
            return self._send(200, json.dumps({"id": "/".join(parts[1:3]), "sha": COMMIT}).encode())
        prefix = f"{below}/" if below else ""
        found = {path: content for path, content in files.items() if path.startswith(prefix)}
        if not found:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        is_recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
        entries: list[dict[str, object]] = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in sorted(found.items())
            if is_recursive or "/" not in path.removeprefix(prefix)
        ]
        for path in found if not is_recursive else ():
            name, inner, _ = path.removeprefix(prefix).partition("/")
            entry: dict[str, object] = {"type": "directory", "path": prefix + name, "oid": "0"}
            if inner and entry not in entries:
                entries.append(entry)
        return self._send(200, json.dumps(entries).encode())

    def _model_scope(self, parts: list[str], query: dict[str, list[str]]) -> None:
        repository = "/".join(parts[:3])
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._send(404, json.dumps({"Code": 10010205001, "Message": "not found"}).encode())
        if parts[3:] in (["repo", "files"], ["repo", "tree"]):
            root = query.get("Root", [""])[0].strip("/")
            entries = [
                {
                    "Path": path,
                    "Type": "blob",
                    "Size": len(content) if self.hub.listed_bytes is None else self.hub.listed_bytes,
                    "Sha256": hashlib.sha256(content).hexdigest(),
                }
                for path, content in files.items()
                if path.startswith(root)
            ]
            entries += [{"Path": path, "Type": "blob", "Size": 1, "Sha256": "0" * 64} for path in self.hub.listed_paths]
            return self._send(200, json.dumps({"Code": 200, "Data": {"Files": entries}}).encode())
        path = query["FilePath"][0]
        if path not in files:
            return self._send(404, b"{}")
        return self._send_content(files[path], path)

    def _send_content(self, content: bytes, path: str, headers: dict[str, str] | None = None) -> None:
        hub = self.hub
        if self.command == "GET":
            hub.requests.append(f"{path} {self.headers.get('Range', '')}".strip())
        if hub.content_status:
            return self._send(hub.content_status, b"")
        content = content if hub.sent is None else hub.sent
        begin, end = 0, len(content)
        status, headers = 200, dict(headers or {})
        wanted = self.headers.get("Range", "")
        if wanted and hub.knows_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, len(content)) if last else len(content)
            if begin >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return self._send(status, content[begin:end], headers, breaks=True)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, breaks: bool = False) -> None:
        hub = self.hub
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        announced = hub.announced_bytes if breaks and hub.announced_bytes is not None else len(body)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.command == "HEAD":
            return
        if breaks and hub.break_after:
            self._write(body[: hub.break_after.pop(0)])
            self.close_connection = True
            self.connection.close()
            return
        self._write(body)
        self.close_connection = announced != len(body)

    def _write(self, body: bytes) -> None:
        pause = self.hub.seconds_between_pieces
        step = 1 << 12 if pause else len(body) or 1
        for begin in range(0, len(body), step):
            self.wfile.write(body[begin : begin + step])
            self.wfile.flush()
            time.sleep(pause)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None: ...  # a client that hung up


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that both clients take for theirs, in this process and in those that it starts; caches in `tmp_path`."""
    from huggingface_hub import constants

    with serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        for name, value in environment(served, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield served


def environment(hub: Hub, caches: Path) -> dict[str, str]:
    """What tells the clients where the hub and their caches are."""
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(caches / "hf"),
        "MODELSCOPE_ENDPOINT": hub.address,
        "MODELSCOPE_CACHE": str(caches / "ms"),
        "MODELSCOPE_HOME": str(caches / "ms-home"),
    }
