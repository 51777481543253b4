"""Training in processes of their own: signals end it cleanly, and several train as one does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.train.processes import command, in_two_processes
from tests.train.runs import WriteConfig, as_stopped_at, losses
from train.__main__ import main
from train.checkpoints import newest_complete_checkpoint
from train.run_directory import read_record


@pytest.mark.parametrize(("number", "status", "num_workers"), [(signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 2)])
def test_a_signal_ends_a_training_cleanly(
    write_config: WriteConfig, tmp_path: Path, number: int, status: int, num_workers: int
) -> None:
    """To the process group, as terminals and schedulers send it: the loader's workers get it too."""
    training = {"max_steps": 100_000, "save_steps": 5, "save_total_limit": 2, "dataloader_num_workers": num_workers}
    run, config = tmp_path / "run", write_config(training=training)
    with command(main, "--config", config, files=tmp_path / "train") as started:
        started.wait_until((run / "checkpoint-5" / "checkpoint.json").exists)
        os.killpg(started.pid, number)
        assert started.status() == status, started.errors
    checkpoint, _, _ = newest_complete_checkpoint(run)
    assert f"; the same command continues from {checkpoint}\n" in started.output
    assert started.errors.count("\n") == 1
    assert read_record(run)["state"] == "training"


# ---- two processes ----

# For two processes the batches of one process with 2 blocks and 2 accumulation steps.
SAME_BATCHES = ["--global_batch_blocks", "4"]


def assert_same_training(found: Path, expected: Path) -> None:
    assert [step for step, _, _ in losses(found)] == [step for step, _, _ in losses(expected)]
    assert [loss for _, loss, _ in losses(found)] == pytest.approx([loss for _, loss, _ in losses(expected)], rel=1e-5)
    held_out = [read_record(run)["results"]["eval_loss"] for run in (found, expected)]
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)


def train_with_output(arguments: list[str], output: Path) -> None:
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    main(arguments)


def test_two_processes_train_on_the_same_batches_as_one(
    write_config: WriteConfig, packed_sets: dict[str, Path], tmp_path: Path
) -> None:
    """From the start, and a run of either continued by the other. Padding makes their batches unequal."""
    one, two, by_two, output = (tmp_path / name for name in ("one", "two", "by-two", "output"))
    config = write_config(shards=str(packed_sets["best-fit"]), training={"max_steps": 4, "save_steps": 2})
    arguments = ["--config", str(config), *SAME_BATCHES, "--output_dir"]
    main([*arguments, str(one)])
    for run in (two, as_stopped_at(one, 2, by_two)):
        in_two_processes(train_with_output, [*arguments, str(run)], output)
    by_one = as_stopped_at(two, 2, tmp_path / "by-one")
    main([*arguments, str(by_one)])
    for found in (two, by_two, by_one):
        assert_same_training(found, one)
    assert output.read_text().count("step 1/4") == 1 and f"continuing from {by_two}/checkpoint-2" in output.read_text()


def start_torchrun(config: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """An agent of torchrun, as on one node."""
    words = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", *options]
    words += ["-m", "train", "--config", str(config), *SAME_BATCHES, "--output_dir", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_two_nodes_train_as_one_with_two_processes(write_config: WriteConfig, tmp_path: Path) -> None:
    """Started by torchrun, whose agents meet on this machine."""
    config = write_config()
    one = start_torchrun(config, tmp_path / "one", "--nproc-per-node=2", "--rdzv-endpoint=localhost:0")
    output, _ = one.communicate(timeout=600)
    assert one.returncode == 0, output
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        meeting = f"--rdzv-endpoint=localhost:{listener.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-id=t", meeting]
    nodes = [start_torchrun(config, tmp_path / "two", *options, f"--node-rank={rank}") for rank in range(2)]
    for node, (output, _) in [(node, node.communicate(timeout=600)) for node in nodes]:
        assert node.returncode == 0, output
    assert_same_training(tmp_path / "two", tmp_path / "one")
