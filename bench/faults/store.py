"""A build in an object store on this machine: moto keeps the objects; a proxy refuses requests, loses answers, takes
its time, and dies."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import random
import signal
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.faults.process import Command, Main
from bench.faults.subjects import BuildSubject, contents

FAULTS = ("refused", "done, but refused", "no answer", "done, but no answer", "half an answer")
PR_SET_PDEATHSIG = 1  # by which the servers end with this program
# The client gives up sooner than by our own settings, so that more of the faults comes through to the build.
CLIENT = {"retries": {"mode": "standard", "max_attempts": 2}, "connect_timeout": 5, "read_timeout": 5}
# Set before fsspec is imported, which reads its part then.
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
ENVIRONMENT |= {"NO_PROXY": "127.0.0.1", "FSSPEC_S3": json.dumps({"config_kwargs": CLIENT})}


class StoreSubject(BuildSubject):
    """The directory of `out` is a copy of the bucket, made when it is looked at."""

    name, url, unit_bytes, calls_can_fail = "store", "s3://bucket/out", 400_000, False

    def __init__(self, work: Path) -> None:
        import boto3
        import s3fs  # noqa: F401  so that no trial has to

        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            self._port, self._moto_port = one.getsockname()[1], other.getsockname()[1]
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self._port}"
        self._server: Command | None = None
        start_server(serve_moto, self._moto_port, work=work)
        self._client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self._moto_port}")
        self._client.create_bucket(Bucket="bucket")
        super().__init__(work)

    def serve(self, share: float = 0, seconds: float = 0) -> None:
        """Have a new proxy, which fails in such a share of requests, and takes so long on average."""
        self.stop_serving()
        self._server = start_server(serve_badly, self._port, self._moto_port, share, seconds, work=self.work)

    def stop_serving(self) -> None:
        if self._server:
            self._server.signal(signal.SIGKILL)
            self._server.end()
        self._server = None

    def _names(self) -> list[str]:
        return [entry["Key"] for entry in self._client.list_objects_v2(Bucket="bucket").get("Contents", [])]

    def remove(self) -> None:
        super().remove()
        for name in self._names():
            self._client.delete_object(Bucket="bucket", Key=name)
        self.serve()

    def is_done(self) -> bool:
        super().remove()
        for name in self._names():
            path = self.out.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._client.get_object(Bucket="bucket", Key=name)["Body"].read())
        return (self.out / "manifest.json").exists()

    def wrong(self) -> str | None:
        self.is_done()
        return super().wrong()

    def damage(self, rng: random.Random) -> str | None:
        done, there = super().damage(rng), contents(self.out.parent)
        self.remove()
        for name, content in there.items():
            self._client.put_object(Bucket="bucket", Key=name, Body=content)
        return done

    def repair(self) -> tuple[str, ...]:
        if not (self.out.with_name("out.partial") / "plan.json").exists():
            self.remove()
        return ("--force",)


def start_server(main: Main, port: int, *more: float, work: Path) -> Command:
    command = Command(main, [str(number) for number in (port, *more)], work)
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.05)
    return command


def serve_moto(arguments: list[str]) -> None:
    import moto.server

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    moto.server.main(["--port", arguments[0]])


def serve_badly(arguments: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Proxy.moto_port, Proxy.share, Proxy.seconds = int(arguments[1]), float(arguments[2]), float(arguments[3])
    ThreadingHTTPServer(("127.0.0.1", int(arguments[0])), Proxy).serve_forever()


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to moto."""

    protocol_version = "HTTP/1.1"
    moto_port, share, seconds = 0, 0.0, 0.0

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(random.expovariate(1 / self.seconds) if self.seconds else 0)
        fault = random.choice(FAULTS) if random.random() < self.share else ""
        if fault not in ("refused", "no answer"):
            moto = http.client.HTTPConnection("127.0.0.1", self.moto_port)
            moto.request(self.command, self.path, body, dict(self.headers))
            answer = moto.getresponse()
            status, headers, content = answer.status, dict(answer.headers), answer.read()
            moto.close()
        if fault.endswith("refused"):
            status, content = random.choice([(500, b"<Error/>"), (503, b"<Error><Code>SlowDown</Code></Error>")])
            headers = {"Content-Length": str(len(content))}
        self.close_connection |= fault.endswith("answer")
        if not fault.endswith("no answer"):
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            content = content[: len(content) // 2] if fault == "half an answer" else content
            self.wfile.write(b"" if self.command == "HEAD" else content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer
