"""Comparing runs: what is read from whole, live, resumed and damaged runs, the table, and the page."""

from __future__ import annotations

import doctest
import fcntl
import functools
import http.server
import json
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import train.compare.plot
from train.compare.plot import plot_data, smoothed, thinned

import train.compare.runs
import train.compare.table
from shards.common.errors import InputError
from train.compare.__main__ import as_json, as_lines, main
from train.compare.page import PAGE_START, render
from train.compare.runs import Run, differences, find_runs, read_runs
from train.compare.table import comparability, remarks

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]
EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\x1b[31m\u202e'


def log(step: int, loss: float | None, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "tokens": step * 100, "tokens_per_second": 50.0, "seconds": step * 2.0, **more}


LOGS = [log(1, 8.0), log(2, 6.0), {"step": 2, "eval_loss": 6.5, "seconds": 4.0}, log(3, 5.0), log(4, 4.5)]
LOGS += [{"step": 4, "train_runtime": 9.0, "train_loss": 5.9}, {"step": 4, "eval_loss": 7.0, "seconds": 8.0}]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run's directory, written by hand."""

    def make(
        name: str = "a", logs: Any = LOGS, samples: Any = (), tokenizer: str | None = "one", **record: Any
    ) -> Path:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        base: dict[str, Any] = {
            "state": "finished",
            "settings": {"output_dir": name, "training": {"learning_rate": 0.01}, "tracking": {"name": name}},
            "training_arguments": {"max_steps": 4, "weight_decay": 0.0, "optim": "adamw_torch_fused"},
            "shards": {"fingerprint": "f" * 64, "vocab_size": 257},
            "results": {"steps": 4, "tokens": 400, "tokens_per_second": 55.0, "eval_loss": 7.0},
        }
        (run / "run.json").write_text(json.dumps({**base, **record}), encoding="utf-8")
        lines = logs if isinstance(logs, str) else "".join(json.dumps(entry) + "\n" for entry in logs)
        (run / "metrics.jsonl").write_text(lines, encoding="utf-8")
        (run / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
        if tokenizer is not None:
            (run / "model").mkdir()
            (run / "model" / "tokenizer.json").write_text(tokenizer)
        return run

    return make


def read(*paths: Path) -> list[Run]:
    return read_runs(find_runs(paths))


# ---- what is read ----


def test_a_real_run_is_read_whole(trained: Any) -> None:
    (run,) = read(trained.run)
    assert (run.state, run.steps, run.tokens, run.notices) == ("finished", 44, 44 * 64, [])
    assert [point.step for point in run.training] == list(range(1, 45))
    assert [point.step for point in run.validation] == [10, 20, 30, 40, 44]
    assert run.last_validation == run.validation[-1]
    seconds = [point.seconds or 0.0 for point in run.training]
    assert seconds[0] > 0 and seconds == sorted(seconds) and run.seconds == seconds[-1]
    by_step = {point.step: point.seconds for point in run.training}
    assert [point.seconds for point in run.validation] == [by_step[point.step] for point in run.validation]
    # What a step of 64 tokens took is what the logged rate says.
    logs = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    expected = sum(64 / entry["tokens_per_second"] for entry in logs if "loss" in entry)
    assert run.seconds == pytest.approx(expected)
    assert [point.tokens for point in run.validation] == [640, 1280, 1920, 2560, 2816]
    assert list(run.samples) == ["ab"]
    assert run.tokenizer_digest is not None and run.fingerprint is not None


def test_best_and_last_validation_loss(make_run: Callable[..., Path]) -> None:
    (run,) = read(make_run())
    assert run.best_validation is not None and run.last_validation is not None
    assert (run.best_validation.step, run.best_validation.loss) == (2, 6.5)
    assert (run.last_validation.step, run.last_validation.loss) == (4, 7.0)


def test_what_was_trained_again_replaces_what_was_logged_before(make_run: Callable[..., Path]) -> None:
    logs = [log(1, 8.0), log(2, 7.0), log(3, 6.0), {"step": 3, "eval_loss": 6.2}, log(2, 7.5), log(3, 6.5)]
    (run,) = read(make_run(logs=[*logs, {"step": 3, "eval_loss": 6.6}]))
    assert [(point.step, point.loss) for point in run.training] == [(1, 8.0), (2, 7.5), (3, 6.5)]
    assert [(point.step, point.loss) for point in run.validation] == [(3, 6.6)]


def test_losses_that_are_no_number_are_gaps(make_run: Callable[..., Path]) -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in [log(1, 8.0), log(2, None), log(3, math.nan)])
    (run,) = read(make_run(logs=text + '{"step": 4, "loss": 1e999}\n{"step": 5, "loss": "x"}\n'))
    assert [point.loss for point in run.training] == [8.0, None, None, None, None]
    assert "4 of 5 training losses are non-finite, first at step 2" in run.notices
    assert run.last_training_loss == 8.0
    json.loads(plot_data([run]), parse_constant=pytest.fail)
    as_lines([run])


def test_damaged_lines_are_counted_and_a_torn_last_one_is_not(make_run: Callable[..., Path]) -> None:
    deep = "[" * 100_000
    lines = [json.dumps(LOGS[0]), "{torn", deep, "7", "", json.dumps(LOGS[1]), '{"step": 3, "lo']
    (run,) = read(make_run(logs="\n".join(lines)))
    assert len(run.training) == 2
    assert "metrics.jsonl: 3 lines are damaged and left out, first line 2" in run.notices


@pytest.mark.parametrize("entry", [{"step": "x"}, {"step": -1}, {"step": True}, {"step": 1e400}, {"step": 10**400}, {}])
def test_logs_with_a_foolish_step_are_left_out(make_run: Callable[..., Path], entry: dict[str, Any]) -> None:
    (run,) = read(make_run(logs=[{"loss": 5.0, **entry}, log(1, 4.0)]))
    assert [point.loss for point in run.training] == [4.0]


def test_missing_files_and_sections_work(make_run: Callable[..., Path]) -> None:
    run = make_run(tokenizer=None)
    (run / "metrics.jsonl").unlink()
    (run / "samples.jsonl").unlink()
    (found,) = read(run)
    assert found.last_validation is not None and found.last_validation.loss == 7.0  # as `run.json` has it
    (run / "run.json").write_text('{"shards": 3, "sessions": "x", "settings": [], "state": null}')
    (found,) = read(run)
    assert found.notices == ["no training losses in metrics.jsonl", "no validation loss"]
    assert "unknown" in "\n".join(as_lines([found])) and render([found])


def test_a_run_that_goes_on_is_told_from_one_that_stopped(make_run: Callable[..., Path]) -> None:
    run = make_run(state="training", results=None, logs=LOGS[:2])
    assert read(run)[0].state == "training, stopped"
    with open(run / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (found,) = read(run)
    assert (found.state, found.steps, found.planned_steps) == ("training, running", 2, 4)
    assert "2 of 4" in "\n".join(as_lines([found]))


def test_directories_that_are_no_runs_are_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run("first")
    assert find_runs([tmp_path / "runs"]) == [run]
    with pytest.raises(InputError, match=r"no such run; did you mean '.*first'"):
        find_runs([tmp_path / "runs" / "frist"])
    with pytest.raises(InputError, match=r"found a file"):
        find_runs([run / "run.json"])
    with pytest.raises(InputError, match=r"holds no run\.json"):
        find_runs([run / "model"])
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: can't be read"):
        read(run)


def test_names_are_the_ends_that_tell_apart(make_run: Callable[..., Path]) -> None:
    paths = [make_run("x/last"), make_run("y/last"), make_run("z")]
    assert [run.name for run in read(*paths[:2])] == ["x/last", "y/last"]
    assert [run.name for run in read(paths[0], paths[2])] == ["last", "z"]


# ---- what differs, and what can be compared ----


def test_only_settings_that_differ(make_run: Callable[..., Path]) -> None:
    first = make_run("a", settings={"output_dir": "a", "training": {"learning_rate": 0.01, "weight_decay": 0.0}})
    training = {"learning_rate": 0.02, "optim": "muon"}
    second = make_run("b", settings={"output_dir": "b", "tracking": {"name": "b"}, "training": training})
    assert differences(read(first, second)) == {
        "training.learning_rate": [0.01, 0.02],
        "training.optim": ["adamw_torch_fused", "muon"],  # the default that transformers chose; weight_decay is equal
    }


def test_other_tokenizers_and_sets_are_said_to_be_not_comparable(make_run: Callable[..., Path]) -> None:
    same, other_set = make_run("a"), make_run("b", shards={"fingerprint": "0" * 64, "vocab_size": 257})
    other = make_run("c", tokenizer="two", shards={"fingerprint": "1" * 64, "vocab_size": 257})
    assert comparability(read(same)) == []
    assert "different shard sets: losses per token are of different texts" in comparability(read(same, other_set))[0]
    (line,) = comparability(read(same, other))
    assert "different tokenizers: losses and perplexities per token are not comparable" in line
    assert "train.evaluate" in line
    assert not any("lowest" in remark for remark in remarks(read(same, other)))
    for run in (same, other):
        record = json.loads((run / "run.json").read_text())
        record["results"]["eval_bits_per_byte"] = 2.25
        (run / "run.json").write_text(json.dumps(record))
    assert "compare bits per byte" in comparability(read(same, other))[0]
    assert re.search(r"bits per byte +2\.2500 +2\.2500", "\n".join(as_lines(read(same, other), 120)))
    assert as_json(read(same, other))["comparable"] is False


# ---- the terminal ----


def columns_of(text: str) -> int:
    """Without the code that is tested: Chinese characters have two columns."""
    return sum(2 if character >= "\u2e80" else 1 for character in text)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(make_run: Callable[..., Path], columns: int) -> None:
    settings = {"training": {"learning_rate": 1e-3}, "generation": {"prompts": ["人工智能" * 20]}}
    paths = [make_run(f"运行{number}" + "学习率" * 8 * (number % 2), settings=settings) for number in range(5)]
    paths.append(make_run("b" * 80))
    lines = as_lines(read(*paths), columns)
    assert max(map(columns_of, lines)) <= columns
    text = "\n".join(lines)
    for number in range(5):
        assert f"运行{number}" in text


def test_terminal_gets_no_escapes_from_a_run(make_run: Callable[..., Path]) -> None:
    run = make_run("a\x1b[31m", settings={"training": {"optim": "\x1b[2J\n"}}, state="\x1b]0;x\x07")
    text = "\n".join(as_lines(read(run, make_run("b"))))
    assert "\x1b" not in text and "\x07" not in text and "\\x1b[2J\\n" in text


def test_command_line(make_run: Callable[..., Path], run_command_line: CommandLine, tmp_path: Path) -> None:
    make_run("a", samples=[{"step": 4, "prompt": "p", "text": "\ud800"}])
    make_run("b", settings={"training": {"learning_rate": 0.02}})
    done = run_command_line("train.compare", "runs/a", "runs/b", "--out", "c.html", cwd=tmp_path, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert re.search(r"training\.learning_rate +0\.01 +0\.02", done.stdout)
    assert (tmp_path / "c.html").read_text().startswith(PAGE_START)
    again = run_command_line("train.compare", "runs", "--out", "c.html", "--json", cwd=tmp_path)
    content = json.loads(again.stdout)
    assert [run["name"] for run in content["runs"]] == ["a", "b"]
    assert content["differences"] == {"training.learning_rate": {"a": 0.01, "b": 0.02}}
    assert content["runs"][0]["best_validation"]["loss"] == 6.5


@pytest.mark.parametrize(("out", "message"), [("none/c.html", "no directory"), ("runs", "is a directory")])
def test_a_page_that_can_not_be_written(make_run: Callable[..., Path], tmp_path: Path, out: str, message: str) -> None:
    run = make_run()
    with pytest.raises(InputError, match=message):
        main([str(run), "--out", str(tmp_path / out)])
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match="exists and is no comparison"):
        main([str(run), "--out", str(tmp_path / "mine.html")])
    assert (tmp_path / "mine.html").read_text() == "mine"


# ---- the curves ----


def test_smoothing_keeps_ends_straight_lines_and_gaps() -> None:
    line = [float(value) for value in range(200)]
    assert smoothed(line) == pytest.approx(line)
    noisy: list[float | None] = [5.0 + (-1) ** place for place in range(200)]
    noisy[50] = None
    result = smoothed(noisy)
    assert result[50] is None and result[0] == noisy[0] and result[-1] == noisy[-1]
    assert all(abs(value - 5.0) < 0.5 for value in result[5:-5] if value is not None)


def test_thinning_keeps_spikes_gaps_and_ends() -> None:
    losses: list[float | None] = [5.0] * 100_000
    losses[777], losses[5_000], losses[60_001] = 9.0, None, 1.0
    places = thinned(losses, 1000)
    assert {0, 777, 5_000, 60_001, 99_999} <= set(places)
    assert len(places) <= 1100 and places == sorted(set(places))
    assert thinned([1.0, 2.0], 1000) == [0, 1]


def test_doctests() -> None:
    for module in (train.compare.plot, train.compare.runs, train.compare.table):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed


# ---- the page ----


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def evil_runs(make_run: Callable[..., Path]) -> list[Run]:
    """Every text that comes from outside tries to get out of its place."""
    samples = [{"step": 4, "prompt": EVIL, "text": f"{EVIL}\nsecond line"}, {"step": 3, "prompt": "old", "text": "old"}]
    settings = {"training": {EVIL: EVIL, "learning_rate": 0.01}}
    shards = {"fingerprint": EVIL, "vocab_size": 257}
    first = make_run("<b>bold&amp;", settings=settings, samples=samples, state=EVIL, shards=shards)
    return read(first, make_run("人工智能", settings={"training": {"learning_rate": 0.02}}, state="training"))


def test_everything_on_the_page_is_escaped(evil_runs: list[Run]) -> None:
    page = render(evil_runs).decode()
    elements = Elements(page)
    assert [tag for tag, _ in elements.found].count("script") == 2
    assert not {"img", "iframe", "object", "link", "base"} & {tag for tag, _ in elements.found}
    attributes = [(key, value) for _, found in elements.found for key, value in found.items()]
    assert not any(key.startswith("on") or key in ("src", "href") for key, _ in attributes)
    assert "\x1b" not in page and "\u202e" not in page
    assert "&lt;b&gt;bold&amp;amp;" in page and "second line" in page
    assert ">old<" not in page  # a sample of an earlier step


def test_the_page_loads_nothing_and_runs_one_script(evil_runs: list[Run]) -> None:
    import base64
    import hashlib

    page = render(evil_runs).decode()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


FRAMES = """<!doctype html><meta charset="utf-8"><body>
<iframe src="/c.html" style="width:1200px;height:900px"></iframe>
<iframe src="/c.html" style="width:400px;height:800px"></iframe>
<script>
addEventListener("load", () => setTimeout(() => {
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
    page.querySelectorAll("details").forEach((e) => { e.open = true; });
    const lines = () => [...page.querySelectorAll(".plot path")].map((e) => e.getAttribute("d"));
    const axis = () => page.querySelector(".plot svg > text:last-of-type").textContent;
    const results = { width: view.innerWidth, steps: lines(), axes: [axis()] };
    for (const value of ["tokens", "seconds"]) {
      page.querySelector(`input[value=${value}]`).click();
      results.axes.push(axis());
    }
    page.querySelector("input[value=log]").click();
    results.log = lines();
    const plot = page.getElementById("plot"), box = plot.getBoundingClientRect();
    const at = { clientX: box.left + box.width * 0.97, clientY: box.top + 20, bubbles: true };
    plot.dispatchEvent(new view.PointerEvent("pointermove", at));
    results.values = [...page.querySelectorAll(".runs output")].map((e) => e.textContent);
    page.querySelector(".runs button").click();
    results.hidden = lines().length;
    const reach = root.clientWidth + 0.5;
    results.wide = [...page.querySelectorAll("body *:not(.scroll *)")]
      .filter((e) => e.getBoundingClientRect().right > reach).map((e) => e.tagName + "." + e.getAttribute("class"));
    results.overflow = root.scrollWidth - root.clientWidth;
    results.dark = view.matchMedia("(prefers-color-scheme: dark)").matches;
    results.paper = view.getComputedStyle(page.body).backgroundColor;
    return results;
  });
  document.body.innerHTML = "<pre>" + JSON.stringify(seen) + "</pre>";
}, 300));
</script>
"""


def find_browser() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    return None


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(evil_runs: list[Run], tmp_path: Path, scheme: str) -> None:
    """The plot is drawn over each axis and scale, says its values, hides a run, and nothing is too wide."""
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium on this machine")
    site = tmp_path / "site"
    site.mkdir()
    (site / "c.html").write_bytes(render(evil_runs))
    (site / "frames.html").write_text(FRAMES, encoding="utf-8")
    (site / "favicon.ico").write_bytes(b"")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_QuietHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        flags += "--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr --dump-dom "
        flags += f"--virtual-time-budget=5000 --blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
        address = f"http://127.0.0.1:{server.server_address[1]}/frames.html"
        result = subprocess.run(
            [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", address],
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert "CONSOLE" not in result.stderr, result.stderr
    seen = json.loads(result.stdout.partition("<pre>")[2].partition("</pre>")[0])
    assert [view["width"] for view in seen] == [1200, 400]
    for view in seen:
        assert view["axes"] == ["steps", "tokens seen", "training time"]
        assert len(view["steps"]) == 6 and all(view["steps"])  # raw, smoothed and validation of two runs
        assert view["log"] != view["steps"] and "NaN" not in "".join(view["log"] + view["steps"])
        assert view["values"] == ["train 4.5000 · val 7.0000"] * 2
        assert view["hidden"] == 3
        assert (view["overflow"], view["wide"]) == (0, []), view
        assert view["dark"] == (scheme == "dark")
        assert (sum(map(int, re.findall(r"\d+", view["paper"]))) < 300) == view["dark"]
