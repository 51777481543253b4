"""Training on two nodes, by two agents of torchrun that meet on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WriteConfig = Callable[..., Path]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def agent(config: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """An agent of torchrun, as on one node."""
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", *options]
    command += ["-m", "train", "--config", str(config), "--output_dir", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_two_nodes_train_as_one_with_two_processes(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config("two.yaml")
    content = yaml.safe_load(config.read_text())
    del content["training"]["gradient_accumulation_steps"]
    config.write_text(yaml.safe_dump({**content, "global_batch_blocks": 4}))
    one = agent(config, tmp_path / "one", "--nproc-per-node", "2", "--rdzv-endpoint", "localhost:0")
    _output, errors = one.communicate(timeout=600)
    assert one.returncode == 0, errors
    meeting = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-endpoint",
        f"localhost:{free_port()}",
        "--rdzv-id",
        "t",
    ]
    nodes = [agent(config, tmp_path / "two", *meeting, "--node-rank", str(rank)) for rank in range(2)]
    outputs = [node.communicate(timeout=600) for node in nodes]
    for node, (_output, errors) in zip(nodes, outputs, strict=True):
        assert node.returncode == 0, errors
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert len(losses(tmp_path / "two")) > 5
