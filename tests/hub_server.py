"""A server on loopback that speaks as Hugging Face and ModelScope do, as well or as badly as it is told.

Downloads are here, uploads in `hub_uploads.py`, what it holds in `hub_contents.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.hub_contents import COMMIT, Hub, entry
from tests.hub_uploads import UploadHandler

__all__ = ["COMMIT", "Hub", "environment", "hub", "serve"]


class _Handler(UploadHandler):
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
            return self.send(hub.status, b"{}")
        if not hub.is_hub:
            return self.send(200, b"<html>Log in to the network</html>")
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
            return self.send(404, b"{}")
        repository, _, rest = path.partition("/resolve/")
        if not repository.startswith("datasets/"):
            repository = f"models/{repository}"
        revision, _, file = rest.partition("/")
        self.hub.revisions.append(revision)
        if repository not in self.hub.repositories:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        content = self.hub.files(repository, unquote(revision)).get(file)
        if content is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
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
            return self.send(302, b"", headers)
        return self._send_content(content, file, headers)

    def _file_system(self, parts: list[str]) -> None:
        """What `HfFileSystem` and an upload ask of a repository: whether it is there, and what files are in it."""
        repository, question, below = "/".join(parts[:3]), parts[3:4], unquote("/".join(parts[5:]))
        if not self.is_known():
            return None
        if repository not in self.hub.repositories or not self.hub.lists_files:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if question in (["xet-write-token"], ["xet-read-token"]):
            return self.send(404, b"{}")
        if question == ["auth-check"]:
            return self.send(200 if self.hub.may_write else 403, b"{}")
        commit = self.hub.head(repository, unquote(parts[4]) if len(parts) > 4 else "main")
        if commit is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if question != ["tree"]:
            return self.send(200, json.dumps({"id": "/".join(parts[1:3]), "sha": commit}).encode())
        files = self.hub.files(repository, commit)
        prefix = f"{below}/" if below else ""
        found = {path: content for path, content in files.items() if path.startswith(prefix)}
        if not found:
            return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
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
        return self.send(200, json.dumps(entries).encode())

    def _model_scope(self, parts: list[str], query: dict[str, list[str]]) -> None:
        repository = "/".join(parts[:3])
        files = self.hub.repositories.get(repository)
        if files is None:
            return self.send(404, json.dumps({"Code": 10010205001, "Message": "not found"}).encode())
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
            return self.send(200, json.dumps({"Code": 200, "Data": {"Files": entries}}).encode())
        path = query["FilePath"][0]
        if path not in files:
            return self.send(404, b"{}")
        return self._send_content(files[path], path)

    def _send_content(self, content: bytes, path: str, headers: dict[str, str] | None = None) -> None:
        hub = self.hub
        if self.command == "GET":
            hub.requests.append(f"{path} {self.headers.get('Range', '')}".strip())
        if hub.content_status:
            return self.send(hub.content_status, b"")
        content = content if hub.sent is None else hub.sent
        begin, end = 0, len(content)
        status, headers = 200, dict(headers or {})
        wanted = self.headers.get("Range", "")
        if wanted and hub.knows_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1, len(content)) if last else len(content)
            if begin >= len(content):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return self.send(status, content[begin:end], headers, breaks=True)


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
