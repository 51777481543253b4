"""The page of a report in a browser, where there is one: nothing is wider than its place, all is legible."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.shards.report_sets import page_of

FRAMES = """<!doctype html><meta charset="utf-8"><body>
<iframe src="/report.html" style="width:1200px;height:900px"></iframe>
<iframe src="/report.html" style="width:360px;height:800px"></iframe>
<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
    page.querySelectorAll("details").forEach((e) => { e.open = true; });
    const reach = root.clientWidth + 0.5;
    const wide = [...page.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > reach);
    return {
      width: view.innerWidth,
      overflow: root.scrollWidth - root.clientWidth,
      wide: wide.slice(0, 5).map((e) => e.tagName + "." + e.getAttribute("class")),
      dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
      paper: view.getComputedStyle(page.body).backgroundColor,
      ink: view.getComputedStyle(page.body).color,
      letters: Math.min(...[...page.querySelectorAll("svg text")].map((e) => e.getBoundingClientRect().height)),
    };
  });
  document.body.innerHTML = "<pre>" + JSON.stringify(seen) + "</pre>";
});
</script>
"""


def find_browser() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    found = sorted(Path.home().glob(".cache/ms-playwright/chromium*/chrome-linux*/*chrome*"))
    return next((str(path) for path in found if path.name in ("chrome", "headless_shell")), None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(mixed_set: Path, tmp_path: Path, scheme: str) -> None:
    """Without a complaint on the console, and nothing is wider than a desk's or a phone's screen."""
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium on this machine")
    (tmp_path / "report.html").write_text(page_of(mixed_set), encoding="utf-8")
    (tmp_path / "frames.html").write_text(FRAMES, encoding="utf-8")
    (tmp_path / "favicon.ico").write_bytes(b"")
    with serve(tmp_path) as address:
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        flags += "--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --dump-dom"
        result = subprocess.run(
            [
                browser,
                *flags.split(),
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
                f"{address}/frames.html",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert "CONSOLE" not in result.stderr, result.stderr
    seen = json.loads(result.stdout.partition("<pre>")[2].partition("</pre>")[0])
    assert [view["width"] for view in seen] == [1200, 360]
    for view in seen:
        assert (view["overflow"], view["wide"]) == (0, []), view
        assert view["dark"] == (scheme == "dark")
        assert (brightness(view["paper"]) < brightness(view["ink"])) == view["dark"]
        assert view["letters"] >= 9


def brightness(color: str) -> int:
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        pass


class serve:
    """A web server of `directory` on this machine alone, for as long as the block lasts."""

    def __init__(self, directory: Path) -> None:
        handler = functools.partial(_QuietHandler, directory=str(directory))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
