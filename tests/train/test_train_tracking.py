"""SwanLab can neither ask nor hang nor stop a training, whatever the network and the login are."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import swanlab
import yaml

from shards.common.errors import InputError
from tests.train.runs import Patch, WriteConfig, as_stopped_at, train_to_the_end
from train import tracking
from train.environment import check_tracking
from train.run_directory import read_lines, read_record
from train.settings import TrackingSettings
from train.tracking import Tracking, can_connect

CLOSED = "http://127.0.0.1:9"


def test_a_server_is_there_when_it_answers(monkeypatch: Patch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tracking, "ANSWER_SECONDS", 0.3)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as answering:  # 501, to everything
        threading.Thread(target=answering.serve_forever, args=(0.05,), daemon=True).start()
        assert can_connect(f"http://127.0.0.1:{answering.server_port}")
        answering.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not can_connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert not can_connect(CLOSED)
    assert not can_connect("no address")


REVOKED = "SwanLab online can't be used (no room for online): going on offline"
UNUSABLE = "SwanLab offline can't be used (no room for offline): this run is recorded in metrics.jsonl only"


@pytest.mark.parametrize(
    ("mode", "key", "reachable", "failing", "expected", "notices"),
    [
        ("auto", None, True, "", "offline", []),
        ("auto", "key", True, "", "online", []),
        ("auto", "key", False, "", "offline", ["http://server can't be reached: going on offline"]),
        ("online", None, True, "", "offline", ["not logged in"]),
        ("online", "key", True, "", "online", []),
        ("offline", "key", True, "", "offline", []),
        ("disabled", "key", True, "", None, []),
        ("auto", "key", True, "online", "offline", [REVOKED]),
        ("online", "key", True, "online offline", None, [REVOKED, UNUSABLE]),
        ("offline", "key", True, "offline", None, [UNUSABLE]),
    ],
)
def test_mode_follows_login_network_and_what_swanlab_can(
    tmp_path: Path, monkeypatch: Patch, mode: Any, key: Any, reachable: bool, failing: str, expected: Any, notices: Any
) -> None:
    started, added = list[str](), list[Any]()

    def start(self: Tracking, swanlab: Any, mode: str, trainer: Any, config: Any) -> Any:
        if mode in failing.split():
            raise RuntimeError(f"no room for {mode}\nsecond line")
        started.append(mode)
        return SimpleNamespace()

    monkeypatch.setattr(Tracking, "_start", start)
    monkeypatch.setattr(tracking, "api_key_and_host", lambda: (key, "http://server"))
    monkeypatch.setattr(tracking, "can_connect", lambda host: reachable)
    run = Tracking(TrackingSettings(mode=mode), tmp_path, "id")
    found = run.start(SimpleNamespace(add_callback=added.append), {})
    assert started == ([expected] if expected else []) and len(added) == (2 if expected else 0)
    assert len(found) == len(notices) and all(notice in line for notice, line in zip(notices, found, strict=True))
    if not expected:
        run.log_samples([], 1)
        run.finish(None)


def test_training_goes_on_without_swanlab(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    notices = Tracking(TrackingSettings(), tmp_path, "id").start(SimpleNamespace(), {})
    assert notices == ["SwanLab is not installed: this run is recorded in metrics.jsonl only"]
    check_tracking("auto")
    with pytest.raises(InputError, match="tracking: mode: offline: swanlab is not installed"):
        check_tracking("offline")


def test_key_is_found_without_a_question(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SWANLAB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    assert tracking.api_key_and_host()[0] is None
    monkeypatch.setenv("SWANLAB_API_KEY", "made-up")
    monkeypatch.setenv("SWANLAB_API_HOST", CLOSED)
    assert tracking.api_key_and_host() == ("made-up", CLOSED)


def test_offline_run_on_disk_has_curves_config_and_texts(trained: Path) -> None:
    """As SwanLab's own reader finds them, which `swanlab sync` sends."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (run,) = (trained / "swanlab").glob("run-*")
    (file,) = run.glob("*.swanlab")
    reader = DataStoreReader()
    reader.open(file)
    records = [Record.FromString(content) for content in reader]
    reader.close()
    (start,) = [record.start for record in records if record.HasField("start")]
    assert (start.project, start.name) == ("tests", "run")
    assert [record.finish.error for record in records if record.HasField("finish")] == [""]

    def curve(key: str) -> dict[int, float]:
        scalars = [record.scalar for record in records if record.HasField("scalar")]
        return {scalar.step: scalar.value.number for scalar in scalars if scalar.key == key}

    lines = read_lines(trained / "metrics.jsonl")
    for name in ("loss", "learning_rate", "tokens_per_second"):
        assert curve(f"train/{name}") == pytest.approx({line["step"]: line[name] for line in lines if "loss" in line})
    evaluated = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert curve("eval/loss") == pytest.approx(evaluated)
    texts = [
        (record.media.step, item.caption, (run / "media" / "text" / item.filename).read_text(encoding="utf-8"))
        for record in records
        if record.HasField("media") and record.media.key == "samples"
        for item in record.media.value.items
    ]
    samples = read_lines(trained / "samples.jsonl")
    assert texts == [(line["step"], line["prompt"], line["text"]) for line in samples]
    assert [step for step, _, _ in texts] == [10, 20, 30, 40, 44]
    config = yaml.safe_load((run / "files" / "config.yaml").read_text(encoding="utf-8"))
    assert config["learning_rate"]["value"] == 0.01
    assert config["hidden_size"]["value"] == 16
    assert config["shards"]["value"]["train_blocks"] == 22


def test_a_continued_run_is_the_same_run_of_swanlabs(
    whole_run: Path, write_config: WriteConfig, tmp_path: Path, monkeypatch: Patch
) -> None:
    run, init = as_stopped_at(whole_run, 10, tmp_path / "run"), mock.Mock(side_effect=RuntimeError("no SwanLab"))
    monkeypatch.setattr(swanlab, "init", init)
    train_to_the_end(write_config(tracking={"mode": "offline"}))
    expected = {"id": read_record(whole_run)["tracking_id"], "resume": "allow", "mode": "offline"}
    assert {key: init.call_args.kwargs[key] for key in expected} == expected
    assert read_record(run)["tracking_id"] == expected["id"]


def test_a_long_evaluation_is_not_silent(tmp_path: Path, monkeypatch: Patch) -> None:
    """SwanLab takes a run that logs nothing for longer than a minute as dead."""
    monkeypatch.setattr("train.tracking.time.monotonic", mock.Mock(side_effect=itertools.count(0, 10)))
    run = Tracking(TrackingSettings(), tmp_path, "id")
    run._swanlab = mock.Mock()
    for _ in range(20):
        run.on_prediction_step(None, SimpleNamespace(global_step=7), None)
    assert run._swanlab.log.call_count >= 3
    run._swanlab.log.assert_called_with({"eval/running": 1}, step=7)
