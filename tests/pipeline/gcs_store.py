"""A Google Cloud Storage on this machine for the tests: the emulator, in a process of its own, and ways to make it ill."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

BUCKET = "bucket"
URL = f"gs://{BUCKET}"
_SERVER = """
import os, sys, time
from functools import partial
from http.server import ThreadingHTTPServer
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

directory = sys.argv[1]
statuses = {"ill": 503, "refuses": 401, "forbids": 403}

class Handler(RequestHandler):
    def parse_request(self):
        if not super().parse_request():
            return False
        for name, status in statuses.items():
            if os.path.exists(os.path.join(directory, name)):
                body = b'{"error": {"code": %d, "message": "the server is told to say so"}}' % status
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return False
        return True

storage = Storage(use_memory_fs=True)
buckets.create_bucket(sys.argv[2], storage)
server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def gcs_server(directory: Path) -> Iterator[Path]:
    """Start the server, with an empty bucket; the environment's variables name it.

    While `directory` has a file `ill`, `refuses` or `forbids`, all answers are the statuses 503, 401 or 403.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(directory), BUCKET],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{process.stdout.readline().strip()}")
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # read when fsspec is loaded
        patch.setenv("FSSPEC_GS_TOKEN", "anon")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        try:
            yield directory
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
