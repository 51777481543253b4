"""A hub on loopback that both clients take for theirs: each change is a commit, and what goes wrong is told to it.

What it speaks of Hugging Face: repository, listing, file (by redirect, as large files come), creation, and commits of files
within the request. Of ModelScope: repository, listing, file.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Files = dict[str, bytes]


@dataclasses.dataclass
class Hub:
    """What is there, what was asked for, and what goes wrong."""

    address: str = ""
    commits: dict[str, list[Files]] = dataclasses.field(default_factory=dict)  # of `datasets/ORG/NAME`, oldest first
    requests: list[str] = dataclasses.field(default_factory=list)  # for contents: `path range`
    questions: list[str] = dataclasses.field(default_factory=list)  # all, as `METHOD path`
    status: int = 0  # instead of every answer
    seconds_before_answer: float = 0.0
    seconds_before_content: float = 0.0
    break_after: list[int] = dataclasses.field(default_factory=list)  # bytes, for one content after the other
    sent: bytes | None = None  # instead of a content
    is_hub: bool = True  # else a page of a proxy, as it were
    ignored: str = "no such suffix"  # what the repository's .gitignore has

    def put(self, repository: str, path: str, content: bytes) -> str:
        """Commit one file; the commit."""
        return self.commit(repository, {**self.files(repository), path: content})

    def commit(self, repository: str, files: Files) -> str:
        commits = self.commits.setdefault(repository, [])
        commits.append(files)
        return commit_name(len(commits))

    def files(self, repository: str, revision: str = "main") -> Files:
        commits = self.commits.get(repository, [{}])
        return commits[int(revision) - 1 if revision.isdigit() and len(revision) == 40 else -1]

    def head(self, repository: str, revision: str = "main") -> str:
        return revision if len(revision) == 40 else commit_name(len(self.commits[repository]))


def commit_name(number: int) -> str:
    return f"{number:040}"


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as Hugging Face lists it: as a large one."""
    sha256 = hashlib.sha256(content).hexdigest()
    large = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": path, "size": len(content), "oid": sha256[:40], "lfs": large}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_arguments: object) -> None: ...

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url, hub = urlsplit(self.path), self.hub
        hub.questions.append(f"{self.command} {url.path}")
        time.sleep(hub.seconds_before_answer)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        with contextlib.suppress(ConnectionError):
            if hub.status:
                self._send(hub.status, {})
            elif not hub.is_hub:
                self._send(200, b"<html>Log in to the network</html>")
            elif parts[:2] == ["api", "v1"]:
                self._model_scope(parts[2:], parse_qs(url.query))
            elif parts[0] == "api":
                self._hugging_face(parts[1:], body, parse_qs(url.query))
            else:
                self._hugging_face_file(url.path)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(
        self, status: int, content: object, headers: dict[str, str] | None = None, *, break_after: int | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:break_after])
        if break_after is not None:
            self.close_connection = True
            self.connection.close()

    def _hugging_face(self, parts: list[str], body: bytes, query: dict[str, list[str]]) -> None:
        hub = self.hub
        if parts == ["validate-yaml"]:
            return self._send(200, {"errors": [], "warnings": []})
        if parts == ["repos", "create"]:
            asked = json.loads(body)
            owner = f"{asked['organization']}/" if asked.get("organization") else ""
            repository = f"{asked['type']}s/{owner}{asked['name']}"
            status = 409 if repository in hub.commits else 200
            if status == 200:
                assert asked.get("visibility") == "private" or asked.get("private")
                hub.commit(repository, {".gitattributes": b""})
            return self._send(status, {"url": f"{hub.address}/{repository}", "id": repository.partition("/")[2]})
        repository, question, rest = "/".join(parts[:3]), "".join(parts[3:4]), parts[4:]
        if repository not in hub.commits:
            return self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        revision = rest[0] if rest else "main"
        if revision not in ("main", "v1") and len(revision) != 40:
            return self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
        files = hub.files(repository, revision)
        if question == "tree":
            prefix = "".join(f"{part}/" for part in rest[1:])
            found = [entry(path, content) for path, content in sorted(files.items()) if path.startswith(prefix)]
            if query.get("recursive", [""])[0].lower() != "true":
                names = {prefix + one["path"].removeprefix(prefix).partition("/")[0] for one in found}
                found = [one for one in found if one["path"] in names]
                found += [{"type": "directory", "path": path, "oid": "0"} for path in sorted(names - files.keys())]
            if not found and prefix:
                return self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
            return self._send(200, found)
        if question == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            answers = [{"path": p, "uploadMode": "regular", "shouldIgnore": p.endswith(hub.ignored)} for p in paths]
            return self._send(200, {"files": answers})
        if question == "commit":
            files = dict(files)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            commit = hub.commit(repository, files)
            return self._send(200, {"commitUrl": f"{hub.address}/{repository}/commit/{commit}", "commitOid": commit})
        return self._send(200, {"id": "/".join(parts[1:3]), "sha": hub.head(repository, revision)})

    def _hugging_face_file(self, path: str) -> None:
        repository, _, rest = path.strip("/").partition("/resolve/")
        repository = repository if repository.startswith("datasets/") else f"models/{repository}"
        revision, _, name = unquote(rest).partition("/")
        if repository not in self.hub.commits:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        commit = self.hub.head(repository, revision)
        content = self.hub.files(repository, revision).get(name)
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return self._send_content(name, content, headers)

    def _model_scope(self, parts: list[str], query: dict[str, list[str]]) -> None:
        repository, question = "/".join(parts[:3]), parts[3:]
        if repository not in self.hub.commits:
            return self._send(404, {"Code": 10010205001, "Message": "not found"})
        files = self.hub.files(repository)
        if question in (["repo", "files"], ["repo", "tree"]):
            root = query.get("Root", [""])[0].strip("/")
            entries = [
                {"Path": path, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
                for path, content in files.items()
                if path.startswith(root)
            ]
            return self._send(200, {"Code": 200, "Data": {"Files": entries}})
        if not question:
            return self._send(200, {"Code": 200, "Data": {"Name": parts[2]}})
        path = query["FilePath"][0]
        return self._send_content(path, files[path], {}) if path in files else self._send(404, {})

    def _send_content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        hub, wanted = self.hub, self.headers.get("Range", "")
        content, status = content if hub.sent is None else hub.sent, 200
        if self.command == "GET":
            hub.requests.append(f"{path} {wanted}".strip())
            time.sleep(hub.seconds_before_content)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(content)) if last else len(content)
            headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            content, status = content[start:stop], 206
        is_broken = self.command == "GET" and hub.break_after
        self._send(status, content, headers, break_after=hub.break_after.pop(0) if is_broken else None)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub for both clients, in this process and in those that it starts; caches in `tmp_path`."""
    from huggingface_hub import constants, hf_api

    with serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        template = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its servers can't be had on loopback
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(hf_api, "is_xet_available", lambda: False)
        for name, value in environment(served, tmp_path).items():
            monkeypatch.setenv(name, value)
        yield served


@pytest.fixture
def data_sets_of(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub for the package `datasets` too, which another test may have loaded."""
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.address)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    return hub


def environment(hub: Hub, caches: Path) -> dict[str, str]:
    """What tells the clients where the hub and their caches are."""
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_token",
        "HF_HOME": str(caches / "hf"),
        "MODELSCOPE_ENDPOINT": hub.address,
        "MODELSCOPE_CACHE": str(caches / "ms"),
        "MODELSCOPE_HOME": str(caches / "ms-home"),
        "NO_PROXY": "127.0.0.1,localhost",
    }
