"""A server on loopback that speaks as OSS does, as much of it as the package ossfs asks for. Written for these tests, from
Alibaba Cloud's description of the interface: it shows that our side works, not that OSS does."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import fsspec
import pytest

from shards.oss import register

BUCKET = "bucket"
URL = f"oss://{BUCKET}"
PAGE = 5  # names in a page of a listing: there are several pages


@dataclasses.dataclass
class Oss:
    """What is stored, and what goes wrong."""

    files: dict[str, tuple[bytes, float]] = dataclasses.field(default_factory=dict)  # content, time
    uploads: dict[str, dict[int, bytes]] = dataclasses.field(default_factory=dict)
    requests: list[str] = dataclasses.field(default_factory=list)
    refuses: bool = False  # every key
    num_ill: int = 0  # so many answers are 503


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    oss: Oss

    def log_message(self, *_arguments: object) -> None: ...

    def _handle(self) -> None:
        oss, url = self.oss, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        oss.requests.append(f"{self.command} {bucket}/{key} {url.query}")
        if oss.num_ill:
            oss.num_ill -= 1
            return self._error(503, "ServiceUnavailable")
        if oss.refuses or not self.headers.get("Authorization", "").startswith("OSS test:"):
            return self._error(403, "InvalidAccessKeyId")
        if bucket != BUCKET:
            return self._error(404, "NoSuchBucket")
        if self.command == "GET" and "bucketInfo" in query:
            return self._send(200, f"<BucketInfo><Bucket><Name>{BUCKET}</Name></Bucket></BucketInfo>".encode())
        if not key and self.command == "GET":
            return self._list(query)
        if not key and self.command == "POST" and "delete" in query:
            names = [element.text or "" for element in ElementTree.fromstring(body).iter("Key")]
            for name in names:
                oss.files.pop(name, None)
            deleted = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in names)
            return self._send(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        return self._object(key, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _object(self, key: str, query: dict[str, str], body: bytes) -> None:
        oss, upload = self.oss, query.get("uploadId", "")
        if self.command == "POST" and "uploads" in query:
            upload = f"upload{len(oss.uploads)}"
            oss.uploads[upload] = {}
            return self._send(200, f"<Result><Key>{key}</Key><UploadId>{upload}</UploadId></Result>".encode())
        if self.command == "PUT" and upload:
            oss.uploads[upload][int(query["partNumber"])] = body
            return self._send(200, b"", {"ETag": _etag(body)})
        if self.command == "POST" and upload:
            parts = oss.uploads.pop(upload)
            oss.files[key] = (b"".join(parts[number] for number in sorted(parts)), _now())
            return self._send(200, f"<Result><ETag>{_etag(body)}</ETag></Result>".encode())
        if self.command == "PUT":
            oss.files[key] = (body, _now())
            return self._send(200, b"", {"ETag": _etag(body)})
        if self.command == "GET" and upload:
            parts = oss.uploads[upload]
            listed = "".join(
                f"<Part><PartNumber>{number}</PartNumber><LastModified>{_iso(0)}</LastModified>"
                f"<ETag>{_etag(part)}</ETag><Size>{len(part)}</Size></Part>"
                for number, part in sorted(parts.items())
            )
            head = "<IsTruncated>false</IsTruncated><NextPartNumberMarker>0</NextPartNumberMarker>"
            return self._send(200, f"<Result>{head}{listed}</Result>".encode())
        if self.command == "DELETE":
            oss.files.pop(key, None)
            return self._send(204, b"")
        if key not in oss.files:
            return self._error(404, "NoSuchKey")
        content, modified = oss.files[key]
        headers = {"ETag": _etag(content), "Last-Modified": formatdate(modified, usegmt=True)}
        span = self.headers.get("Range", "").removeprefix("bytes=")
        if not span:
            return self._send(200, content, headers)
        begin, end = (int(place) if place else len(content) - 1 for place in span.split("-"))
        end = min(end, len(content) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        return self._send(206, content[begin : end + 1], headers)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter, marker = query.get("prefix", ""), query.get("delimiter", ""), query.get("marker", "")
        entries: dict[str, str] = {}
        for name, (content, modified) in sorted(self.oss.files.items()):
            if not name.startswith(prefix):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                entries[prefix + head + found] = (
                    f"<CommonPrefixes><Prefix>{escape(prefix + head + found)}</Prefix></CommonPrefixes>"
                )
            else:
                entries[name] = (
                    f"<Contents><Key>{escape(name)}</Key><LastModified>{_iso(modified)}</LastModified>"
                    f"<ETag>{_etag(content)}</ETag><Type>Normal</Type><Size>{len(content)}</Size>"
                    "<StorageClass>Standard</StorageClass></Contents>"
                )
        names = [name for name in sorted(entries) if name > marker]
        page = names[:PAGE]
        more = len(names) > PAGE
        next_marker = f"<NextMarker>{escape(page[-1])}</NextMarker>" if more else ""
        text = "".join(entries[name] for name in page)
        self._send(
            200,
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{next_marker}{text}</ListBucketResult>".encode(),
        )

    def _error(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>told to say so</Message></Error>".encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"x-oss-request-id": "0", **(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        with contextlib.suppress(ConnectionError):
            self.wfile.flush()


_clock = iter(range(1_700_000_000, 1_800_000_000))


def _now() -> float:
    """A time that no other file has: OSS tells whole seconds."""
    return float(next(_clock))


def _iso(seconds: float) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest().upper()}"'


@contextlib.contextmanager
def oss_server() -> Iterator[Oss]:
    """Start the server, with an empty bucket; the environment's variables name it."""
    oss = Oss()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"oss": oss}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSS_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        patch.setitem(fsspec.config.conf, "oss", {"key": "test", "secret": "test"})  # read when fsspec is loaded
        patch.setenv("FSSPEC_OSS_KEY", "test")
        patch.setenv("FSSPEC_OSS_SECRET", "test")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        register()
        fsspec.get_filesystem_class("oss").clear_instance_cache()  # they remember another server
        try:
            yield oss
        finally:
            server.shutdown()
            server.server_close()
