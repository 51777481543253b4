"""What the faults are tried on: a build and a training run, each with the result of an undisturbed one."""

from __future__ import annotations

import abc
import random
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

import pipeline.__main__
from bench.corpus import articles, json_line, make_tokenizer, numbered, write_array, write_lines
from bench.faults.process import Command, Fault, damage
from bench.measure import process_tree
from shards.common.errors import InputError
from shards.verify import verify
from train.run_directory import read_lines, read_record


class Subject(abc.ABC):
    """A command that makes `out`. `whole` is what it makes when nothing disturbs it, in `seconds`."""

    name, calls_can_fail = "", True

    def __init__(self, work: Path) -> None:
        self.work = work / self.name
        self.whole, self.out = self.work / "whole", self.work / "place" / "out"
        self.work.mkdir(parents=True, exist_ok=True)
        self.make_inputs()
        self.remove()
        begin = time.monotonic()
        ended = self.start().end()
        self.seconds = time.monotonic() - begin
        if ended.status:
            raise SystemExit(f"{self.name}: failed undisturbed: {ended.errors}")
        if not self.is_done():
            raise SystemExit(f"{self.name}: nothing there: {ended.errors}")
        shutil.rmtree(self.whole, ignore_errors=True)
        self.out.rename(self.whole)
        self.remove()

    def remove(self) -> None:
        """Begin from nothing."""
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir(parents=True)

    def start(self, fault: Fault | None = None, *more: str) -> Command:
        return Command(self.main, [*self.arguments(), *more], self.work, fault)

    def damage(self, rng: random.Random) -> str | None:
        """Damage a file of what is there; says what was done."""
        return damage(self.out.parent, rng)

    @staticmethod
    @abc.abstractmethod
    def main(argv: list[str], /) -> int | None: ...

    @abc.abstractmethod
    def make_inputs(self) -> None: ...

    @abc.abstractmethod
    def arguments(self) -> list[str]: ...

    @abc.abstractmethod
    def is_done(self) -> bool:
        """Whether the result is there, as a person would see it; what is in an object store is then seen here too."""

    @abc.abstractmethod
    def wrong(self) -> str | None:
        """What is wrong with the result that is there."""

    @abc.abstractmethod
    def repair(self) -> tuple[str, ...]:
        """Do what the error's line says for what can't be continued: arguments to add, after what was to be removed."""


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


class BuildSubject(Subject):
    name, url, unit_bytes, main = "build", "", 60_000, staticmethod(pipeline.__main__.main)

    def make_inputs(self) -> None:
        make_tokenizer(self.work / "tokenizer", 600)
        write_array(self.work / "corpus.json", map(json_line, numbered(articles(), 12 * len(articles()))))

    def arguments(self) -> list[str]:
        options = ["--tokenizer", self.work / "tokenizer", "--unit-bytes", self.unit_bytes, "--block-tokens", 64]
        command = ["build", self.work / "corpus.json", "--out", self.url or self.out, "--workers", 2, *options]
        return list(map(str, command))

    def workers(self, command: Command) -> list[int]:
        return [process.pid for process in process_tree(command.pid)[1:]]

    def is_done(self) -> bool:
        return self.out.exists()

    def wrong(self) -> str | None:
        there, expected = contents(self.out), contents(self.whole)
        different = sorted(name for name in there.keys() | expected.keys() if there.get(name) != expected.get(name))
        beside = sorted(path.name for path in self.out.parent.iterdir() if path != self.out)
        if different or beside:
            return f"different: {different}; left beside it: {beside}"
        return "; ".join(verify(self.out)) or None

    def repair(self) -> tuple[str, ...]:
        partial = self.out.with_name(self.out.name + ".partial")
        if not (partial / "plan.json").exists():  # nothing says any more whose files these are
            shutil.rmtree(partial, ignore_errors=True)
        return ("--force",)


class RaySubject(BuildSubject):
    """By the engine ray, each time on a cluster of its own."""

    name, unit_bytes, calls_can_fail = "ray", 400_000, False

    def arguments(self) -> list[str]:
        return [*super().arguments(), "--engine", "ray"]

    def workers(self, command: Command) -> list[int]:
        """Not Ray's own processes, with which a node dies, and with its node the driver."""
        names = {process: Path(f"/proc/{process}/cmdline") for process in super().workers(command)}
        own = (b"ray::IDLE", b"ray::_run_task")
        return [process for process, name in names.items() if name.exists() and name.read_bytes().startswith(own)]


SETTINGS: dict[str, Any] = {
    "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    | {"intermediate_size": 32},
    "training": {"per_device_train_batch_size": 4, "max_steps": 24, "logging_steps": 1, "save_steps": 3}
    | {"eval_strategy": "steps", "eval_steps": 8, "use_cpu": True, "bf16": False, "save_total_limit": 3},
    "tracking": {"mode": "disabled"},
    "generation": {"prompts": ["ab"], "max_new_tokens": 5},
}


class TrainSubject(Subject):
    name = "train"

    @staticmethod
    def main(argv: list[str]) -> None:
        import torch

        from train.__main__ import main

        torch.set_num_threads(1)
        main(argv)

    def make_inputs(self) -> None:
        out, letters = self.work / "set", "".join(chr(33 + number) for number in range(90))
        if out.exists():
            return
        source = write_lines(self.work / "source.jsonl", (letters[n % 60 :][:40] + str(n) for n in range(40)))
        options = ["--tokenizer", str(make_tokenizer(self.work / "tokenizer", 600)), "--block-tokens", "16", "--quiet"]
        build = ["build", str(source), "--out", str(out), "--val-fraction", "0.2", *options]
        Command(BuildSubject.main, build, self.work).end()
        (self.work / "config.yaml").write_text(yaml.safe_dump({"shards": str(out), **SETTINGS}))

    def arguments(self) -> list[str]:
        return ["--config", str(self.work / "config.yaml"), "--output_dir", str(self.out)]

    def is_done(self) -> bool:
        try:
            return read_record(self.out).get("state") == "finished"
        except InputError:
            return False

    def wrong(self) -> str | None:
        model, fields = "model/model.safetensors", ("step", "loss", "grad_norm", "eval_loss")
        if (self.out / model).read_bytes() != (self.whole / model).read_bytes():
            return "other weights"
        there, expected = (
            [[line.get(name) for name in fields] for line in read_lines(run / "metrics.jsonl")]
            for run in (self.out, self.whole)
        )
        if there != expected:
            return f"other lines in metrics.jsonl: {there}; gone: {[line for line in expected if line not in there]}"
        if read_lines(self.out / "samples.jsonl") != read_lines(self.whole / "samples.jsonl"):
            return "other lines in samples.jsonl"
        # SIGTERM saves a checkpoint of its own: as many must be left, not the same.
        names, wanted = (sorted(path.name.split("-")[0] for path in run.iterdir()) for run in (self.out, self.whole))
        return f"files: {names}, expected {wanted}" if names != wanted else None

    def repair(self) -> tuple[str, ...]:
        shutil.rmtree(self.out, ignore_errors=True)
        return ()
