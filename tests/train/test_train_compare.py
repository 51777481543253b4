"""Comparing runs: what is read from whole, live, resumed and damaged runs, the table, and the page."""

from __future__ import annotations

import fcntl
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.common.errors import InputError
from shards.common.text import printable
from tests.pages import assert_harmless, look_at
from train.compare.__main__ import as_json, main
from train.compare.page import loss_charts, render, thinned
from train.compare.runs import Run, comparability, differences, find_runs, read_runs
from train.compare.table import as_lines, remarks
from train.evaluate import best_evaluation

MakeRun = Callable[..., Path]
EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\x1b[31m\u202e'


def log(step: int, loss: float | None, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "tokens": step * 100, "tokens_per_second": 50.0, "seconds": step * 2.0, **more}


LOGS = [log(1, 8.0), log(2, 6.0), {"step": 2, "eval_loss": 6.5, "tokens": 200, "seconds": 4.0}]
LOGS += [
    log(3, 5.0),
    log(4, 4.5),
    {"step": 4, "train_loss": 5.9},
    {"step": 4, "eval_loss": 7.0, "tokens": 400, "seconds": 8.0},
]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run's directory, written by hand."""

    def make(name: str = "a", logs: Any = LOGS, samples: Any = (), tokenizer: str = "one", **record: Any) -> Path:
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
        if tokenizer:
            (run / "model").mkdir()
            (run / "model" / "tokenizer.json").write_text(tokenizer)
        return run

    return make


def read(*paths: Path) -> list[Run]:
    return read_runs(find_runs(paths))


# ---- what is read ----


def test_a_real_run_is_read_whole(trained: Path) -> None:
    (run,) = read(trained)
    found = run.summary
    assert (found["state"], found["steps"], found["tokens"]) == ("finished", 44, 44 * 64)
    assert [point["step"] for point in run.training] == list(range(1, 45))
    assert [point["step"] for point in run.validation] == [10, 20, 30, 40, 44]
    seconds = [point["seconds"] for point in run.training]
    assert seconds[0] > 0 and seconds == sorted(seconds) and found["seconds"] == seconds[-1]
    expected_seconds = [seconds[point["step"] - 1] for point in run.validation]
    assert [point["seconds"] for point in run.validation] == pytest.approx(expected_seconds, abs=0.1)
    # What a step of 64 tokens took is what the logged rate says.
    logs = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    expected = sum(64 / entry["tokens_per_second"] for entry in logs if "loss" in entry)
    assert found["seconds"] == pytest.approx(expected, rel=0.05)
    assert [point["tokens"] for point in run.validation] == [640, 1280, 1920, 2560, 2816]
    assert list(run.samples) == ["ab"]
    assert found["tokenizer_digest"] is not None and found["fingerprint"] is not None


def test_best_and_last_validation_loss(make_run: MakeRun) -> None:
    found = read(make_run())[0].summary
    expected = {"best_validation_loss": 6.5, "best_validation_step": 2, "last_validation_loss": 7.0}
    assert found.items() >= expected.items()
    part, whole = {"eval_loss": 1.0, "eval_samples": 3}, {"eval_loss": 2.0, "eval_samples": 5}
    assert best_evaluation([part, whole, part]) == whole, "losses of other texts"


def test_non_finite_losses_are_gaps_and_damaged_lines_left_out(make_run: MakeRun) -> None:
    lines = [json.dumps(entry) for entry in (log(1, 8.0), log(2, None), log(3, None))]
    lines += ["{torn", "7", "", '{"loss": 1}', '{"step": []}', '{"step": null, "loss": null}', '{"step": 4, "lo']
    lines += [f'{{"step": {number}}}' for number in ('3, "seconds": 1e999', '3, "seconds": 1' + 400 * "0")]
    odd = [{"step": "4", "prompt": "a", "text": ""}, {"step": 4, "prompt": [], "text": 1}]
    (run,) = read(make_run(logs="\n".join(lines), samples=[{"step": 4}, *odd]))
    assert [point["loss"] for point in run.training] == [8.0, None, None]
    assert remarks([run]) == ["a: 2 of 3 training losses are non-finite, first at step 2"]
    assert run.summary["last_training_loss"] == 8.0
    assert "nan" not in render([run]).decode()
    as_lines([run])


def test_missing_and_odd_parts_work(make_run: MakeRun) -> None:
    run = make_run(tokenizer="")
    (run / "metrics.jsonl").unlink()
    (run / "samples.jsonl").unlink()
    odd = {"sessions": {"a": 1}, "results": {"steps": "4"}, "training_arguments": {"max_steps": [4]}}
    for record in ({"state": "training"}, {"state": "training", **odd}):
        (run / "run.json").write_text(json.dumps(record))
        (found,) = read(run)
        assert "training, stopped" in "\n".join(as_lines([found])) and render([found])


def test_a_run_that_goes_on_is_told_from_one_that_stopped(make_run: MakeRun) -> None:
    run = make_run(state="training", results=None, logs=LOGS[:2])
    with open(run / ".run.json.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (found,) = read(run)
    assert found.summary.items() >= {"state": "training, running", "steps": 2, "planned_steps": 4}.items()


def test_directories_that_are_no_runs_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
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


def test_names_are_the_ends_that_tell_apart(make_run: MakeRun) -> None:
    paths = [make_run("x/last"), make_run("y/last"), make_run("z")]
    assert [run.name for run in read(*paths[:2])] == ["x/last", "y/last"]
    assert [run.name for run in read(paths[0], paths[2])] == ["last", "z"]


# ---- what differs, and what can be compared ----


def test_only_settings_that_differ(make_run: MakeRun) -> None:
    first = make_run("a", settings={"output_dir": "a", "training": {"learning_rate": 0.01, "weight_decay": 0.0}})
    training = {"learning_rate": 0.02, "optim": "muon"}
    second = make_run("b", settings={"output_dir": "b", "tracking": {"name": "b"}, "training": training})
    assert differences(read(first, second)) == {
        "training.learning_rate": [0.01, 0.02],
        "training.optim": ["adamw_torch_fused", "muon"],  # the default that transformers chose; weight_decay is equal
    }


def test_other_tokenizers_and_sets_are_said_to_be_not_comparable(make_run: MakeRun) -> None:
    same, other_set = make_run("a"), make_run("b", shards={"fingerprint": "0" * 64, "vocab_size": 257})
    alike = [make_run(name, shards={"fingerprint": name, "evaluated": ["f" * 64]}) for name in ("d", "e")]
    assert comparability(read(*alike)) == [], "other mixtures, evaluated on the same blocks"
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


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(make_run: MakeRun, columns: int) -> None:
    settings = {"training": {"learning_rate": 1e-3}, "generation": {"prompts": ["人工智能" * 20]}}
    paths = [make_run(f"运行{number}" + "学习率" * 8 * (number % 2), settings=settings) for number in range(5)]
    paths.append(make_run("b" * 80))
    lines = as_lines(read(*paths), columns)
    assert max(map(columns_of, lines)) <= columns
    text = "\n".join(lines)
    for number in range(5):
        assert f"运行{number}" in text


def test_terminal_gets_no_escapes_from_a_run(make_run: MakeRun) -> None:
    run = make_run("a\x1b[31m", settings={"training": {"optim": "\x1b[2J\n"}}, state="\x1b]0;x\x07")
    text = "\n".join(as_lines(read(run, make_run("b"))))
    assert "\x1b" not in text and "\x07" not in text and "\\x1b[2J\\n" in text


def test_command_line(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    make_run("a", samples=[{"step": 4, "prompt": "p", "text": "\ud800"}])
    make_run("b", settings={"training": {"learning_rate": 0.02}})
    main(["runs/a", "runs/b", "--out", "c.html"])
    assert re.search(r"training\.learning_rate +0\.01 +0\.02", capsys.readouterr().out)
    assert Path("c.html").read_text().startswith('<!doctype html>\n<html lang="en" data-made-by="train.compare">')
    main(["runs", "--out", "c.html", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in content["runs"]] == ["a", "b"]
    assert content["differences"] == {"training.learning_rate": {"a": 0.01, "b": 0.02}}
    assert content["runs"][0]["best_validation_loss"] == 6.5


@pytest.mark.parametrize(
    ("out", "message"),
    [("none/c.html", "no directory"), ("runs", "is a directory"), ("mine.html", "exists and is no comparison")],
)
def test_a_page_that_can_not_be_written(make_run: MakeRun, tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match=message):
        main([str(make_run()), "--out", str(tmp_path / out)])
    assert (tmp_path / "mine.html").read_text() == "mine"


# ---- the curves ----


def test_a_thinned_curve_keeps_spikes_gaps_and_the_trend() -> None:
    curve: list[tuple[float, float | None]] = [(step, 5.0 + (-1) ** step) for step in range(100_000)]
    curve[777], curve[5_000], curve[60_001] = (777, 9.0), (5_000, None), (60_001, 1.0)
    raw, means = thinned(curve)
    assert {(777, 9.0), (5_000, None), (60_001, 1.0)} <= set(raw) and raw == sorted(raw, key=lambda point: point[0])
    assert len(raw) <= 200 and len(means) == 100
    assert all(loss is not None and abs(loss - 5) < 0.01 for _, loss in means)
    assert thinned([]) == ([], [])


# ---- the page ----


@pytest.fixture
def evil_runs(make_run: MakeRun) -> list[Run]:
    """Every text that comes from outside tries to get out of its place."""
    samples = [{"step": 4, "prompt": EVIL, "text": f"{EVIL}\nsecond line"}, {"step": 3, "prompt": "old", "text": "old"}]
    settings = {"training": {EVIL: EVIL, "learning_rate": 0.01}}
    shards = {"fingerprint": EVIL, "vocab_size": 257}
    first = make_run("<b>bold&amp;", settings=settings, samples=samples, state=EVIL, shards=shards)
    return read(first, make_run("人工智能", settings={"training": {"learning_rate": 0.02}}, state="training"))


def test_everything_on_the_page_is_escaped(evil_runs: list[Run]) -> None:
    page = render(evil_runs).decode()
    parser = assert_harmless(page)
    assert parser.text.count(printable(EVIL)) == 6  # state, prompt (twice), sample, name and value of a setting
    assert "&lt;b&gt;bold&amp;amp;" in page and "\nsecond line" in page
    assert ">old<" not in page  # a sample of an earlier step
    assert "0.01 0.02" in parser.text and "best validation loss 6.5000 6.5000" in parser.text


def test_curves_over_steps_tokens_and_time(evil_runs: list[Run]) -> None:
    charts = {(axis, scale): chart for axis, scale, chart in loss_charts(evil_runs)}
    assert list(charts) == list(itertools.product(("steps", "tokens", "time"), ("linear", "log")))
    raw, training, validation = charts["tokens", "log"].lines[:3]
    assert raw.points == training.points == [(100, 8.0), (200, 6.0), (300, 5.0), (400, 4.5)]
    assert validation.points == [(200, 6.5), (400, 7.0)]
    assert charts["time", "linear"].x.high == 8
    tooltip = charts["steps", "linear"].bars[-1].tooltip
    assert tooltip.splitlines()[1:] == [f"{run.name}: training 4.5000, validation 7.0000" for run in evil_runs]


def test_pages_without_curves(make_run: MakeRun) -> None:
    assert "No run has a loss yet." in assert_harmless(render(read(make_run(logs=[], results=None))).decode()).text
    untimed = [{"step": step, "loss": float(5 - step)} for step in range(1, 7)]  # also below 0
    charts = list(loss_charts(read(make_run("b", logs=untimed, results=None, training_arguments={}))))
    assert [(axis, scale) for axis, scale, _ in charts] == [("steps", "linear"), ("steps", "log")]


def test_the_page_in_a_browser(evil_runs: list[Run], tmp_path: Path) -> None:
    """The controls choose the chart that is drawn and the lines in it, without a script on the page."""
    script = """
        const click = (id) => page.querySelector(id).click();
        const visible = (selector) => [...page.querySelectorAll(selector)].filter((e) => e.getBoundingClientRect().width);
        const drawn = () => visible(".charts path").length;
        const axis = () => visible(".charts > *").map((e) => e.className);
        const seen = [axis(), drawn()];
        click("[value=time]"); click("[value=log]"); seen.push(axis());
        click("#show-raw"); seen.push(drawn());
        click("#show-1"); seen.push(drawn());
        return seen;
    """
    expected = [["steps linear"], 6, ["time log"], 4, 2]
    assert look_at(render(evil_runs), tmp_path, script) == [expected] * 4
