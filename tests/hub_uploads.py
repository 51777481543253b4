"""The part of the hub on loopback that takes uploads, as Hugging Face does: LFS for large files, then one commit."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_contents import HubHandler, entry, git_digest, is_large


class UploadHandler(HubHandler):
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
                return self.send(self.hub.status, b"{}")
            if not self.is_known():
                return None
            is_batch = parts[-1] == "batch"
            repository = "/".join(parts[:3]).removesuffix(".git") if is_batch else "/".join(parts[1:4])
            if repository not in self.hub.repositories:
                return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if parts[4:5] == ["paths-info"]:
                files = self.hub.files(repository, unquote(parts[5]))
                wanted = parse_qs(body.decode()).get("paths", [])
                return self.send(
                    200, json.dumps([entry(path, files[path]) for path in wanted if path in files]).encode()
                )
            if not self.hub.may_write:
                return self.send(403, b"{}", {"X-Error-Message": "you may only read"})
            kind = "batch" if is_batch else parts[4]
            revision = "main" if kind in ("batch", "verify") else unquote(parts[5])
            if self._fails(kind):
                return None
            if self.hub.head(repository, revision) is None:
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if kind == "commit":
                return self._commit(repository, revision, [json.loads(line) for line in body.splitlines()])
            question = json.loads(body)
            answer = {"preupload": self._preupload, "batch": self._batch, "verify": self._verify}[kind]
            return self.send(200, json.dumps(answer(repository, revision, question)).encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _fails(self, kind: str) -> bool:
        self.hub.writes.append(kind)
        status = next(iter(self.hub.failures.get(kind, [])), 0)
        if status:
            self.hub.failures[kind].pop(0)
            self.send(status, b'{"error": "as it was told"}')
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
            return self.send(400, b'{"error": "another SHA-256"}')
        self.hub.objects[digest] = body
        return self.send(200, b"")

    def _verify(self, _repository: str, _revision: str, question: dict[str, Any]) -> dict[str, Any]:
        assert len(self.hub.objects[question["oid"]]) == question["size"]
        return {}

    def _commit(self, repository: str, revision: str, lines: list[dict[str, Any]]) -> None:
        hub = self.hub
        hub.before_commit()
        header, *operations = [(line["key"], line["value"]) for line in lines]
        if header[1].get("parentCommit") not in (None, hub.head(repository, revision)):
            return self.send(412, b'{"error": "A commit has happened since."}')
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
        return self.send(200, json.dumps(answer).encode())
