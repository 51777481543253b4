"""What every page must hold to: nothing on it acts, and in a browser it is legible on a desk and on a phone."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


class PageParser(HTMLParser):
    """Elements, attributes and text of a page; fails where an element isn't closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags = Counter[str]()
        self.attributes: list[tuple[str, str, str]] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    @property
    def text(self) -> str:
        """With white space as a browser shows it."""
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self._words.append(data)


def assert_harmless(page: str) -> PageParser:
    """Nothing is loaded, nothing runs, nothing moves the cursor or turns the writing direction."""
    parser = PageParser(page)
    allowed = """html head meta title style body header footer main nav section article figure figcaption h1 h2 h3 h4 p ul
        li a dl div dt dd table thead tbody tr th td details summary span strong b code svg g rect line circle path text
        form fieldset legend label input"""
    assert set(parser.tags) <= set(allowed.split())
    assert parser.tags["style"] == 1
    for tag, name, value in parser.attributes:
        assert not name.startswith("on") and name not in ("src", "srcset", "action", "style", "xlink:href"), (tag, name)
        assert name != "href" or (tag == "a" and value.startswith("#"))
        assert "javascript:" not in value and "url(" not in value
    assert all(character.isprintable() or character == "\n" for character in page)
    policies = [value for tag, name, value in parser.attributes if (tag, name) == ("meta", "content")]
    assert any(value.startswith("default-src 'none'; style-src 'unsafe-inline'; base-uri") for value in policies)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style and "//" not in style
    ids = [value for _tag, name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _tag, name, value in parser.attributes if name == "href"} <= set(ids)
    return parser


_FRAMES = """<!doctype html><meta charset="utf-8"><body>
<iframe srcdoc="PAGE" style="width:1200px;height:900px;color-scheme:light"></iframe>
<iframe srcdoc="PAGE" style="width:360px;height:800px;color-scheme:light"></iframe>
<iframe srcdoc="PAGE" style="width:1200px;height:900px;color-scheme:dark"></iframe>
<iframe srcdoc="PAGE" style="width:360px;height:800px;color-scheme:dark"></iframe>
<script>
addEventListener("load", () => {
  const brightness = (color) => color.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
    page.querySelectorAll("details").forEach((e) => { e.open = true; });
    const drawn = [...page.querySelectorAll("body *:not(.scroll *)")].filter((e) => e.getBoundingClientRect().width);
    const style = view.getComputedStyle(page.body);
    return {
      width: view.innerWidth,
      overflow: root.scrollWidth - root.clientWidth,
      too_wide: drawn.filter((e) => e.getBoundingClientRect().right > root.clientWidth + 0.5).map((e) => e.outerHTML),
      letters: Math.min(...drawn.filter((e) => e.tagName === "text").map((e) => e.getBoundingClientRect().height)),
      is_dark: brightness(style.backgroundColor) < brightness(style.color),
      result: ((page) => { SCRIPT })(page),
    };
  });
  document.body.innerHTML = "<pre></pre>";
  document.body.firstChild.textContent = JSON.stringify(seen);
});
</script>
"""
_FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --dump-dom
"""


def look_at(page: bytes, directory: Path, script: str = "return null") -> list[Any]:
    """Check both widths in both color schemes; what `script` returns of the page in each.

    All is legible, nothing is wider than the screen, and the console says nothing.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    frames = _FRAMES.replace("SCRIPT", script).replace("PAGE", html.escape(page.decode()))
    (directory / "frames.html").write_text(frames, encoding="utf-8")
    own = [f"--user-data-dir={directory / 'profile'}", (directory / "frames.html").as_uri()]
    command = [browser, *_FLAGS.split(), *own]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(html.unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0]))
    assert [(view["width"], view["is_dark"]) for view in seen] == [
        (1200, False),
        (360, False),
        (1200, True),
        (360, True),
    ]
    for view in seen:
        assert (view["overflow"], view["too_wide"]) == (0, []), view
        assert view["letters"] >= 9
    return [view["result"] for view in seen]
