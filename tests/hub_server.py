"""A server on loopback that speaks as Hugging Face and ModelScope do, as well or as badly as it is told."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
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
    linked: dict[str, bytes] = dataclasses.field(default_factory=dict)  # what is elsewhere
    # Uploads
    token: str = ""  # who has another is turned away; with none, nobody may write
    may_write: bool = True
    branches: set[str] = dataclasses.field(default_factory=set)  # besides main; with none, every revision is main
    commits: dict[str, tuple[str, dict[str, bytes]]] = dataclasses.field(
        default_factory=dict
    )  # by number: title, files
    heads: dict[str, str] = dataclasses.field(default_factory=dict)  # by `REPOSITORY@BRANCH`
    objects: dict[str, bytes] = dataclasses.field(default_factory=dict)  # large files' contents by their SHA-256
    gitignore: tuple[str, ...] = ()  # names' ends, unless an upload brings rules of its own
    writes: list[str] = dataclasses.field(
        default_factory=list
    )  # `preupload`, `batch`, `object SHA256`, `verify`, `commit`
    failures: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # statuses for such requests, in turn
    loses_commit_answer: bool = False
    damages_objects: bool = False
    before_commit: Callable[[], None] = lambda: None
    object_waits: float = 0.0  # seconds

    @property
    def elsewhere(self) -> str:
        """The same server by the name of another host: what the clients call a content network."""
        return self.address.replace("127.0.0.1", "localhost")

    def put(self, repository: str, path: str, content: bytes) -> None:
        self.repositories.setdefault(repository, {})[path] = content

    def head(self, repository: str, revision: str = "main") -> str | None:
        """The commit that a branch or a commit's number means; None if there is none."""
        if revision in self.commits or revision == COMMIT:
            return revision
        if revision != "main" and self.branches and revision not in self.branches:
            return None
        return self.heads.get(f"{repository}@{revision if self.branches else 'main'}", COMMIT)

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        commit = self.head(repository, revision)
        return self.commits[commit][1] if commit in self.commits else self.repositories[repository]


def is_large(path: str) -> bool:
    """Whether the repository's .gitattributes have such a file put as a large one."""
    return path.endswith((".bin", ".idx"))


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, object]:
    """A file as Hugging Face lists it."""
    found: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": git_digest(content)}
    if is_large(path):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


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
        path = unquote(url.path).strip("/") if "/api/datasets/" not in url.path else url.path.strip("/")
        if hub.status:
            return self._send(hub.status, b"{}")
        if not hub.is_hub:
            return self._send(200, b"<html>Log in to the network</html>")
        if path.startswith("cdn/"):
            linked = path.removeprefix("cdn/")
            return self._send_content(hub.linked[linked], linked.partition("//")[2])
        if path.startswith("api/v1/"):
            return self._model_scope(path.removeprefix("api/v1/").split("/"), parse_qs(url.query))
        return self._hugging_face(path)

    def _hugging_face(self, path: str) -> None:
        if path.startswith("api/datasets/"):
            return self._file_system(path.removeprefix("api/").split("/"))
        if path.startswith("api/"):  # the client's own questions, such as api/agent-harnesses
            return self._send(404, b"{}")
        repository, _, rest = path.partition("/resolve/")
        if not repository.startswith("datasets/"):
            repository = f"models/{repository}"
        revision, _, file = rest.partition("/")
        self.hub.revisions.append(revision)
        if repository not in self.hub.repositories:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        content = self.hub.files(repository, unquote(revision)).get(file)
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
            self.hub.linked[f"{repository}//{file}"] = content
            headers["Location"] = f"{self.hub.elsewhere}/cdn/{repository}//{file}?Signature=1"
            return self._send(302, b"", headers)
        return self._send_content(content, file, headers)

    def _file_system(self, parts: list[str]) -> None:
        """What `HfFileSystem` and an upload ask of a repository: whether it is there, and what files are in it."""
        repository, question, below = "/".join(parts[:3]), parts[3:4], unquote("/".join(parts[5:]))
        if not self._is_known():
            return None
        if repository not in self.hub.repositories or not self.hub.lists_files:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if question in (["xet-write-token"], ["xet-read-token"]):
            return self._send(404, b"{}")
        if question == ["auth-check"]:
            return self._send(200 if self.hub.may_write else 403, b"{}")
        commit = self.hub.head(repository, unquote(parts[4]) if len(parts) > 4 else "main")
        if commit is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if question != ["tree"]:
            return self._send(200, json.dumps({"id": "/".join(parts[1:3]), "sha": commit}).encode())
        files = self.hub.files(repository, commit)
        prefix = f"{below}/" if below else ""
        found = {path: content for path, content in files.items() if path.startswith(prefix)}
        if not found:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        is_recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
        entries: list[dict[str, object]] = [
            entry(path, content)
            for path, content in sorted(found.items())
            if is_recursive or "/" not in path.removeprefix(prefix)
        ]
        for path in found if not is_recursive else ():
            name, inner, _ = path.removeprefix(prefix).partition("/")
            folder: dict[str, object] = {"type": "directory", "path": prefix + name, "oid": "0"}
            if inner and folder not in entries:
                entries.append(folder)
        return self._send(200, json.dumps(entries).encode())

    # ---- uploads ----

    def do_POST(self) -> None:
        self._write_answer()

    def do_PUT(self) -> None:
        self._write_answer()

    def _write_answer(self) -> None:
        with contextlib.suppress(ConnectionError):
            body = self._body()
            parts = urlsplit(self.path).path.strip("/").split("/")
            if parts[0] == "objects":  # elsewhere: what may be put there is in the address
                return self._put_object(parts[1], body)
            if self.hub.status:
                return self._send(self.hub.status, b"{}")
            if not self._is_known():
                return None
            is_batch = parts[-1] == "batch"
            repository = "/".join(parts[:3]).removesuffix(".git") if is_batch else "/".join(parts[1:4])
            if repository not in self.hub.repositories:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if parts[4:5] == ["paths-info"]:
                files = self.hub.files(repository, unquote(parts[5]))
                wanted = parse_qs(body.decode()).get("paths", [])
                return self._send(
                    200, json.dumps([entry(path, files[path]) for path in wanted if path in files]).encode()
                )
            if not self.hub.may_write:
                return self._send(403, b"{}", {"X-Error-Message": "you may only read"})
            kind = "batch" if is_batch else parts[4]
            revision = "main" if kind in ("batch", "verify") else unquote(parts[5])
            if self._fails(kind):
                return None
            if self.hub.head(repository, revision) is None:
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if kind == "commit":
                return self._commit(repository, revision, [json.loads(line) for line in body.splitlines()])
            question = json.loads(body)
            answer = {"preupload": self._preupload, "batch": self._batch, "verify": self._verify}[kind]
            return self._send(200, json.dumps(answer(repository, revision, question)).encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _is_known(self) -> bool:
        """Whether the token is right, where one is needed; if not, that is the answer."""
        given = self.headers.get("Authorization", "")
        if not self.hub.token or given == f"Bearer {self.hub.token}":
            return True
        self._send(401, b'{"error": "Invalid username or password."}')
        return False

    def _fails(self, kind: str) -> bool:
        self.hub.writes.append(kind)
        status = next(iter(self.hub.failures.get(kind, [])), 0)
        if status:
            self.hub.failures[kind].pop(0)
            self._send(status, b'{"error": "as it was told"}')
        return bool(status)

    def _preupload(self, repository: str, revision: str, question: dict[str, Any]) -> dict[str, Any]:
        files, rules = self.hub.files(repository, revision), () if "gitIgnore" in question else self.hub.gitignore
        answers = []
        for file in question["files"]:
            path, there = file["path"], files.get(file["path"])
            mode = "lfs" if is_large(path) else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": path.endswith(rules) if rules else False}
            if there is not None:
                answer["oid"] = hashlib.sha256(there).hexdigest() if is_large(path) else git_digest(there)
            answers.append(answer)
        return {"files": answers}

    def _batch(self, repository: str, _revision: str, question: dict[str, Any]) -> dict[str, Any]:
        objects = []
        for asked in question["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                verify = {"href": f"{self.hub.address}/api/{repository}/verify", "header": {}}
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.elsewhere}/objects/{asked['oid']}"},
                    "verify": verify,
                }
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _put_object(self, digest: str, body: bytes) -> None:
        time.sleep(self.hub.object_waits)
        if self._fails("object"):
            return None
        self.hub.writes[-1] = f"object {digest}"
        if hashlib.sha256(body).hexdigest() != digest:
            return self._send(400, b'{"error": "another SHA-256"}')
        self.hub.objects[digest] = body
        return self._send(200, b"")

    def _verify(self, _repository: str, _revision: str, question: dict[str, Any]) -> dict[str, Any]:
        assert len(self.hub.objects[question["oid"]]) == question["size"]
        return {}

    def _commit(self, repository: str, revision: str, lines: list[dict[str, Any]]) -> None:
        hub = self.hub
        hub.before_commit()
        header, *operations = [(line["key"], line["value"]) for line in lines]
        if header[1].get("parentCommit") not in (None, hub.head(repository, revision)):
            return self._send(412, b'{"error": "A commit has happened since."}')
        files = dict(hub.files(repository, revision))
        for kind, value in operations:
            if kind == "deletedFile":
                del files[value["path"]]
            elif kind == "file":
                assert not is_large(value["path"])
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert kind == "lfsFile" and is_large(value["path"])
                content = hub.objects[value["oid"]]
                files[value["path"]] = content[:-1] + b"!" if hub.damages_objects else content
        commit = hashlib.sha1(repr((revision, len(hub.commits))).encode()).hexdigest()
        hub.commits[commit] = (header[1]["summary"], files)
        hub.heads[f"{repository}@{revision if hub.branches else 'main'}"] = commit
        if hub.loses_commit_answer:
            self.close_connection = True
            self.connection.close()
            return None
        answer = {"commitUrl": f"{hub.address}/{repository}/commit/{commit}", "commitOid": commit}
        return self._send(200, json.dumps(answer).encode())

    # ---- ModelScope ----

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

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up, or a fault here that a test would otherwise show as a broken connection."""
        if not isinstance(sys.exception(), ConnectionError):
            traceback.print_exc()


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
