"""The command lines as a user meets them: what a finished run leaves, generation, Ctrl-C, torchrun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.run_directory import read_lines, read_record

WriteConfig = Callable[..., Path]
CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]
EOS_ID, VOCAB_SIZE, PADDED_VOCAB_SIZE = 256, 257, 384


def test_finished_run_holds_everything(trained: Any) -> None:
    record = read_record(trained.run)
    assert record["state"] == "finished"
    assert record["settings"]["training"]["learning_rate"] == 0.01
    assert record["shards"]["train_blocks"] == 22
    assert record["sessions"][0]["command"][:3] == ["python", "-m", "train"]
    results = record["results"]
    assert (results["steps"], results["tokens"], results["epochs"]) == (44, 44 * 4 * 16, 8.0)
    assert results["last_train_loss"] < results["first_train_loss"] - 1
    assert sorted(path.name for path in trained.run.glob("checkpoint-*")) == ["checkpoint-42", "checkpoint-44"]
    for part in ("training loss", "validation loss", "model            ", "【ab】"):
        assert part in trained.output


def test_metrics_have_true_epochs_and_tokens(trained: Any) -> None:
    lines = read_lines(trained.run / "metrics.jsonl")
    train_lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train_lines] == list(range(1, 45))
    for line in train_lines:
        assert line["epoch"] == pytest.approx(line["step"] * 4 / 22)
        assert line["tokens"] == line["step"] * 64
        assert line["tokens_per_second"] > 0
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [10, 20, 30, 40, 44]
    assert evaluations[-1]["eval_perplexity"] == pytest.approx(2.718281828 ** evaluations[-1]["eval_loss"], rel=1e-6)


def test_saved_model_loads_without_this_project(trained: Any) -> None:
    directory = trained.run / "model"
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    config, generation = model.config, model.generation_config
    assert config.use_cache is True
    assert config.eos_token_id == generation.eos_token_id == generation.pad_token_id == EOS_ID
    assert config.pad_token_id is None
    assert config.vocab_size == PADDED_VOCAB_SIZE
    assert config.layer_types == ["full_attention"] * 2
    assert generation.suppress_tokens == list(range(VOCAB_SIZE, PADDED_VOCAB_SIZE))
    assert (generation.do_sample, generation.max_new_tokens) == (True, 5)
    assert tokenizer.decode(tokenizer("ab").input_ids) == "ab"
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "abc"  # what `transformers serve` asks for
    assert not list(directory.glob("*.bin"))


def test_samples_are_written(trained: Any) -> None:
    *during, line = read_lines(trained.run / "samples.jsonl")
    assert [written["step"] for written in during] == [10, 20, 30, 40]
    assert (line["step"], line["prompt"], line["temperature"]) == (44, "ab", 1.0)
    assert line["text"]


def test_generate_refuses_a_damaged_model(trained: Any, run_command_line: CommandLine, tmp_path: Path) -> None:
    for path in (trained.run / "model").iterdir():
        (tmp_path / path.name).write_bytes(
            path.read_bytes()[:100] if path.suffix == ".safetensors" else path.read_bytes()
        )
    finished = run_command_line("train.generate", str(tmp_path), "--prompt", "a", cwd=tmp_path)
    assert finished.returncode == 2
    assert "the model can't be loaded" in finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_training_cleanly(write_config: WriteConfig, tmp_path: Path, number: int, status: int) -> None:
    config = write_config(training={"max_steps": 100_000, "save_steps": 50, "save_total_limit": 2})
    command = [sys.executable, "-m", "train", "--config", str(config)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "checkpoint-50" / "checkpoint.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == status, errors
    assert "; the same command continues from" in output
    assert errors.count("\n") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "training"


def test_no_validation_blocks_is_no_fault(
    write_config: WriteConfig, tmp_path: Path, make_set: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from train.__main__ import main

    shard_set = make_set(tmp_path / "set", val_blocks=0)
    main(["--config", str(write_config()), "--shards", str(shard_set), "--eval_strategy", "steps", "--max_steps", "2"])
    output = capsys.readouterr().out
    assert "no validation blocks in the shard set: evaluation skipped" in output
    assert read_record(tmp_path / "run")["state"] == "finished"


@pytest.fixture
def torchrun(write_config: WriteConfig) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Train with two processes, 4 blocks a step: the batches of one process with 2 blocks and 2 accumulation steps."""
    config = write_config("two.yaml")
    content = yaml.safe_load(config.read_text())
    del content["training"]["gradient_accumulation_steps"]
    config.write_text(yaml.safe_dump({**content, "global_batch_blocks": 4}))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "train", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=90, check=False
        )

    return run


def train_losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]


def as_stopped_at(run: Path, step: int, stopped: Path) -> None:
    """A copy of the finished `run` as if it had been stopped when checkpoint `step` was the newest."""
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "model")
    for checkpoint in stopped.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    record = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps({**record, "state": "training"}))


def test_two_processes_train_on_the_same_batches_as_one(
    write_config: WriteConfig, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """From the start, and a run of either continued by the other, in the middle of each epoch."""
    from train.__main__ import main

    one, two = tmp_path / "one", tmp_path / "run"
    main(["--config", str(write_config()), "--output_dir", str(one)])
    finished = torchrun()
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("step  1/11") == 1
    expected = train_losses(one)
    assert train_losses(two) == pytest.approx(expected, rel=1e-5)
    held_out = [read_record(run)["results"]["eval_loss"] for run in (one, two)]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-5)
    for step in (4, 8):
        as_stopped_at(one, step, tmp_path / f"to-two-{step}")
        continued = torchrun("--output_dir", str(tmp_path / f"to-two-{step}"))
        assert continued.returncode == 0, continued.stderr
        assert f"continuing from {tmp_path}/to-two-{step}/checkpoint-{step}" in continued.stdout
        assert train_losses(tmp_path / f"to-two-{step}") == pytest.approx(expected, rel=1e-5)
        as_stopped_at(two, step, tmp_path / f"to-one-{step}")
        main(["--config", str(write_config()), "--output_dir", str(tmp_path / f"to-one-{step}")])
        assert train_losses(tmp_path / f"to-one-{step}") == pytest.approx(expected, rel=1e-5)
    refused = torchrun()
    assert refused.returncode != 0
    assert [line for line in refused.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {two}: holds a finished run; choose another --output_dir (make: RUN=NAME), or delete it to train again"
    ]


def test_two_processes_leave_out_the_padding_of_both(
    write_config: WriteConfig,
    packed_sets: dict[str, Path],
    tmp_path: Path,
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Their batches have unequal numbers of labels, and one mean is taken over all."""
    from train.__main__ import main

    one, two = tmp_path / "one", tmp_path / "run"
    changes = ("--shards", str(packed_sets["best-fit"]), "--max_steps", "4")
    main(["--config", str(write_config()), "--output_dir", str(one), *changes])
    finished = torchrun(*changes)
    assert finished.returncode == 0, finished.stderr
    assert train_losses(two) == pytest.approx(train_losses(one), rel=1e-5)
    held_out = [read_record(run)["results"]["eval_loss"] for run in (one, two)]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-5)
