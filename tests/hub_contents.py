"""What the hub of `hub_server.py` holds, what goes wrong with it, what was asked of it, and how it answers."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

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


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_arguments: object) -> None: ...

    def is_known(self) -> bool:
        """Whether the token is right, where one is needed; if not, that is the answer."""
        given = self.headers.get("Authorization", "")
        if not self.hub.token or given == f"Bearer {self.hub.token}":
            return True
        self.send(401, b'{"error": "Invalid username or password."}')
        return False

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, breaks: bool = False) -> None:
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
