"""The record of a run, kept in `run.json`: what it was set to, on what it ran, what came of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

import shards
from shards.common.errors import InputError
from shards.common.files import write_atomically
from train import run_directory
from train.evaluation import bits_per_byte
from train.log_lines import finite
from train.run_directory import Plan
from train.settings import Settings
from train.trainer import BlockTrainer

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "swanlab")
GIT_SECONDS = 5


class Record:
    """The content of `run.json`, which is rewritten when the run's state changes. For the first process only.

    A run that was interrupted has a session for each time it was started.
    """

    def __init__(
        self,
        settings: Settings,
        data: shards.Data,
        plan: Plan,
        command: Sequence[str],
        args: TrainingArguments,
        *,
        data_changes: Sequence[str] = (),
    ) -> None:
        self._run, self._data, self._started = settings.output_dir, data, time.monotonic()
        before = run_directory.read_record(self._run) if plan.checkpoint else {}
        sessions = before.get("sessions") or []
        if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
            path = self._run / run_directory.RECORD_NAME
            raise InputError(f"{path}: sessions: expected a list of objects; choose another --output_dir")
        origin = plan.checkpoint.parent if plan.checkpoint else None
        training_before = (origin and run_directory.record_part(origin, "settings", "training")) or settings.training
        changes = run_directory.changed_settings(
            {**training_before, "seed": None}, {**settings.training, "seed": None}
        )  # the seed's change is one of the data's
        self.changes = [*data_changes, *changes]
        tracking_id = before.get("tracking_id")
        self.session: dict[str, Any] = {
            "started_at": run_directory.now(),
            "first_step": plan.position.step if plan.position else 0,
            "checkpoint": str(plan.checkpoint) if plan.checkpoint else None,
            "changes": self.changes,
            "command": list(command),
            "packages": package_versions(),
            "git": git_state(Path(__file__)),
            "python": platform.python_version(),
            "device": device_name(args),
            "processes": args.world_size,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        }
        self.content: dict[str, Any] = {
            "state": "training",
            "tracking_id": tracking_id if isinstance(tracking_id, str) else uuid.uuid4().hex,
            "settings": settings.as_record(),
            "training_arguments": {**args.to_dict(), "train_batch_size": args.train_batch_size},
            "shards": {
                "path": data.description,
                "fingerprint": data.fingerprint,
                "block_tokens": data.block_tokens,
                "vocab_size": data.vocab_size,
                "train_blocks": len(data["train"]),
                "val_blocks": len(data["val"]),
            },
            "sessions": [*sessions, self.session],
        }

    def write(self, state: str) -> None:
        """Replace `run.json`."""
        self.content["state"] = state
        self.content["written_at"] = run_directory.now()
        text = json.dumps(self.content, indent=2, ensure_ascii=False, default=str)
        write_atomically(self._run / run_directory.RECORD_NAME, (text + "\n").encode())

    def add_results(self, trainer: BlockTrainer, metrics: dict[str, float]) -> dict[str, Any]:
        """Put what came out of the run into the record, and return it."""
        steps, position = trainer.state.global_step, trainer.position
        logs = run_directory.read_lines(self._run / run_directory.METRICS_NAME)
        losses = [log["loss"] for log in logs if log.get("loss") is not None]
        rates = sorted(log["tokens_per_second"] for log in logs if log.get("tokens_per_second"))
        self.session["seconds"] = time.monotonic() - self._started
        self.content["results"] = finite(
            {
                "steps": steps,
                "epochs": trainer.true_epoch(steps),
                "tokens": steps * position.global_batch_blocks * position.block_tokens,
                "tokens_per_second": rates[len(rates) // 2] if rates else None,
                "first_train_loss": losses[0] if losses else None,
                "last_train_loss": losses[-1] if losses else None,
                "eval_loss": metrics.get("eval_loss"),
                "eval_perplexity": metrics.get("eval_perplexity"),
                "eval_bits_per_byte": bits_per_byte(self._data, metrics.get("eval_loss")),
            }
        )
        return dict(self.content["results"])


def package_versions() -> dict[str, str]:
    """The installed ones among the packages that a result may depend on."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_state(file: Path) -> dict[str, Any] | None:
    """The commit of the checkout that `file` is in, and whether its files differ from it (`dirty`; None: unknown).

    None where `file` is in no checkout, as when this package is installed, or git doesn't answer.
    """

    def git(*arguments: str) -> str | None:
        command = ["git", "-c", "core.fsmonitor=false", "-C", str(file.parent), *arguments]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        variables["GIT_OPTIONAL_LOCKS"] = "0"
        try:
            finished = subprocess.run(
                command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, timeout=GIT_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return finished.stdout.decode(errors="replace").strip()

    commit = git("rev-parse", "--verify", "HEAD")
    if not commit or git("ls-files", "--error-unmatch", "--", file.name) is None:
        return None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def device_name(args: TrainingArguments) -> str:
    """`"NVIDIA H100 80GB HBM3"`, or `"cpu, 2 threads"`."""
    if args.device.type == "cuda":
        return torch.cuda.get_device_name(args.device)
    return f"{args.device.type}, {torch.get_num_threads()} threads"
