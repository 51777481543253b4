"""What a run saves and what it finds in its directory: whole or absent, never over what is another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from shards.common.errors import InputError
from train.__main__ import main, prepare
from train.checkpoints import numbered_checkpoints
from train.run_directory import append_lines, read_lines, rewind_metrics

WriteConfig = Callable[..., Path]


def train_to_the_end(config: Path, *arguments: str) -> None:
    main(["--config", str(config), *arguments])


def test_checkpoint_is_absent_when_saving_is_cut_short(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.trainer.seal_checkpoint", fail)
    with pytest.raises(KeyboardInterrupt):
        train_to_the_end(write_config())
    assert numbered_checkpoints(tmp_path / "run") == []


def test_a_run_that_was_killed_as_it_saved_the_last_checkpoint_keeps_no_more_than_it_was_told(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = write_config(training={"save_steps": 1, "max_steps": 4, "save_total_limit": 2}), tmp_path / "run"

    def stop(run: Path, **options: Any) -> None:
        if len(numbered_checkpoints(run)) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("train.trainer.delete_old_checkpoints", stop)
        train_to_the_end(config)
    train_to_the_end(config)
    assert [path.name for path in numbered_checkpoints(run)] == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data.pkl: file write failed"), True),
        (RuntimeError("basic_ios::clear: iostream error"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 124160 vs 124048"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
@pytest.mark.parametrize("where", ["_save_checkpoint", "save_model"])
def test_a_disk_that_takes_no_more_is_one_line(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, is_told: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(f"transformers.Trainer.{where}", fail)
    with pytest.raises(InputError if is_told else RuntimeError, match="can't be written" if is_told else "mat1"):
        train_to_the_end(write_config())


def test_lines_end_at_line_feeds_only_when_a_run_is_rewound(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    kept = {"step": 1, "text": "one\u2028two\x85three"}
    append_lines(path, [kept, {"step": 2, "text": "later"}])
    assert rewind_metrics(tmp_path, 1) == []
    assert read_lines(path) == [kept]


def test_foreign_directory_is_refused(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"run: holds something else \(thesis.txt, …\), not a run"):
        prepare(["--config", str(write_config())])


def test_file_in_the_way_is_refused(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match="run: expected a directory for the run, found a file"):
        prepare(["--config", str(write_config())])


def test_run_in_use_is_refused(write_config: WriteConfig, tmp_path: Path) -> None:
    from train.run_directory import lock_run

    with lock_run(tmp_path / "run"), pytest.raises(InputError, match="another process is training there"):
        train_to_the_end(write_config())
