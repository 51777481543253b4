"""Moto's server on this machine as S3 and as OSS: what was asked of it, and how it fails."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shards.common import urls
from shards.common.urls import file_system


@dataclasses.dataclass
class Server:
    """The server that runs."""

    port: int = 0
    requests: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    statuses: list[int] = dataclasses.field(default_factory=list)  # instead of the next answers; 0: hang up


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """The server, which both protocols find by the environment, and which any `BUCKET.localhost` means."""
    pytest.importorskip("s3fs", reason="needs the packages of requirements-dev.lock")
    pytest.importorskip("moto.server", reason="needs the packages of requirements-dev.lock")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from s3fs import S3FileSystem
    from werkzeug.serving import make_server

    application, server = DomainDispatcherApplication(create_backend_app), Server()

    def recorded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        server.requests.append(environ)
        if server.statuses:
            if not (status := server.statuses.pop(0)):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                return []
            start_response(f"{status} No", [("Content-Type", "application/xml")])
            code = {403: "AccessDenied", 503: "ServiceUnavailable"}[status]
            body = f"<Error><Code>{code}</Code><Message>not now</Message></Error>".encode()
            return [body] * (environ["REQUEST_METHOD"] != "HEAD")
        return application(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    http = make_server("127.0.0.1", 0, recorded, threaded=True)
    server.port = http.server_port
    threading.Thread(target=http.serve_forever, daemon=True).start()
    find = socket.getaddrinfo

    def find_here(host: Any, *arguments: Any, **options: Any) -> Any:
        is_ours = isinstance(host, str) and host.endswith("localhost")
        return find("127.0.0.1" if is_ours else host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", find_here)
        patch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_context: 0)
        for client in (urls._S3_CLIENT, urls._OSS_CLIENT):
            patch.setitem(client, "retries", {"mode": "standard", "max_attempts": 2})
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "OSS_ENDPOINT": f"http://localhost:{server.port}",
            "OSS_ACCESS_KEY_ID": "test",
            "OSS_ACCESS_KEY_SECRET": "test",
            "NO_PROXY": "127.0.0.1,localhost",
        }.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        for protocol in ("s3", "oss"):
            with contextlib.suppress(FileExistsError):  # moto keeps what another module of tests put there
                file_system(f"{protocol}://bucket-{protocol}")[0].mkdir(f"bucket-{protocol}")
        yield server
    http.shutdown()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The server in good health, nothing asked of it."""
    running.requests.clear()
    yield running
    running.statuses.clear()
