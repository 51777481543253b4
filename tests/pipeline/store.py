"""A real S3 server on this machine: moto's, in a process of its own as workers need one, and a way to make it fail."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUCKET = "bucket"
URL = f"s3://{BUCKET}"
_SERVER = """
import sys, time, os
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
import logging
logging.getLogger("werkzeug").setLevel(logging.ERROR)
application = DomainDispatcherApplication(create_backend_app)
illness = sys.argv[1]

def ill(environ, start_response):
    # While the file is there: answers come late, and two of three are an error.
    if os.path.exists(illness):
        time.sleep(0.05)
        ill.count += 1
        if ill.count % 3:
            start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>ill</Message></Error>"]
    return application(environ, start_response)

ill.count = 0
server = make_server("127.0.0.1", 0, ill, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[Path]:
    """Start the server, with an empty bucket; the environment's variables name it. While the file that is yielded exists,
    the server is ill."""
    illness = directory / "ill"
    command = [sys.executable, "-c", _SERVER, str(illness)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{process.stdout.readline().strip()}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        s3 = file_system()
        s3.mkdir(BUCKET)
        yield illness
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def file_system() -> Any:
    """The server's files, as fsspec shows them, nothing remembered."""
    import fsspec

    from shards.common.urls import file_system

    fsspec.filesystem("s3").clear_instance_cache()
    system, _path = file_system(f"s3://{BUCKET}")
    system.invalidate_cache()
    return system


def stored_bytes(prefix: str) -> dict[str, bytes]:
    """Every file below `bucket/prefix` with its content."""
    system = file_system()
    paths = system.find(f"{BUCKET}/{prefix}/")
    return {path.removeprefix(f"{BUCKET}/{prefix}/"): system.cat_file(path) for path in paths}


def ill_for(illness: Path, seconds: float) -> threading.Thread:
    """Make the server ill now, and well again after `seconds`."""
    illness.touch()

    def recover() -> None:
        time.sleep(seconds)
        illness.unlink()

    thread = threading.Thread(target=recover)
    thread.start()
    return thread
