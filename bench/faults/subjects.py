"""What the faults are tried on: a build and a training run, each with the result of an undisturbed one."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bench.faults.process import Command, Fault
from shards.common.errors import InputError
from shards.verify import verify
from train.run_directory import read_lines, read_record

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample" / "wikipedia-zh-sample.json"


@dataclasses.dataclass
class Subject:
    """A command that makes `out`. `whole` is what it makes when nothing disturbs it, in `seconds`."""

    name: str
    main: Callable[[list[str]], int | None]
    work: Path
    out: Path = Path()
    whole: Path = Path()
    seconds: float = 0.0

    def prepare(self) -> None:
        """Make all that the command needs, and `whole`."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.whole, self.out = self.work / "whole", self.work / "place" / "out"
        self.make_inputs()
        self.remove()
        begin = time.monotonic()
        ended = self.start().end()
        self.seconds = time.monotonic() - begin
        if ended.status:
            raise SystemExit(f"{self.name}: failed undisturbed: {ended.errors}")
        shutil.rmtree(self.whole, ignore_errors=True)
        self.out.rename(self.whole)

    def remove(self) -> None:
        """Begin from nothing."""
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir(parents=True)

    def start(self, fault: Fault | None = None, *more: str) -> Command:
        return Command(self.main, [*self.arguments(), *more], self.work, fault)

    def make_inputs(self) -> None:
        raise NotImplementedError

    def arguments(self) -> list[str]:
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        """Whether the result is there, as a person would see it."""
        raise NotImplementedError

    def wrong(self) -> str | None:
        """What is wrong with the result that is there."""
        raise NotImplementedError

    def repair(self) -> tuple[str, ...]:
        """Do what the error's line says for what can't be continued: arguments to add, after what was to be removed."""
        raise NotImplementedError


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def make_tokenizer(directory: Path) -> None:
    from pipeline.train_tokenizer import train_tokenizer

    if not directory.exists():
        train_tokenizer([str(SAMPLE)], directory, vocab_size=600)


class BuildSubject(Subject):
    def make_inputs(self) -> None:
        import json

        make_tokenizer(self.work / "tokenizer")
        records = json.loads(SAMPLE.read_text(encoding="utf-8"))
        numbered = [{"text": record["text"] + str(number)} for number in range(12) for record in records]
        (self.work / "corpus.json").write_text(json.dumps(numbered, ensure_ascii=False), encoding="utf-8")

    def arguments(self) -> list[str]:
        options = ["--tokenizer", str(self.work / "tokenizer"), "--unit-bytes", "60000", "--block-tokens", "64"]
        return ["build", str(self.work / "corpus.json"), "--out", str(self.out), "--workers", "2", *options]

    @property
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


class TrainSubject(Subject):
    def make_inputs(self) -> None:
        import json

        from pipeline.__main__ import main

        if (self.work / "set").exists():
            return
        letters = "".join(chr(33 + number) for number in range(90))
        source = self.work / "source.jsonl"
        source.write_text("".join(json.dumps({"text": letters[n % 60 :][:40] + str(n)}) + "\n" for n in range(40)))
        tokenizer = self.work / "tokenizer"
        make_tokenizer(tokenizer)
        options = ["--tokenizer", str(tokenizer), "--block-tokens", "16", "--val-fraction", "0.2", "--quiet"]
        Command(main, ["build", str(source), "--out", str(self.work / "set"), *options], self.work).end()
        settings: dict[str, Any] = {
            "shards": str(self.work / "set"),
            "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
            | {"intermediate_size": 32},
            "training": {"per_device_train_batch_size": 4, "max_steps": 24, "logging_steps": 1, "save_steps": 3}
            | {"eval_strategy": "steps", "eval_steps": 8, "use_cpu": True, "bf16": False, "save_total_limit": 3},
            "tracking": {"mode": "disabled"},
            "generation": {"prompts": ["ab"], "max_new_tokens": 5},
        }
        (self.work / "config.yaml").write_text(yaml.safe_dump(settings))

    def arguments(self) -> list[str]:
        return ["--config", str(self.work / "config.yaml"), "--output_dir", str(self.out)]

    @property
    def is_done(self) -> bool:
        try:
            return read_record(self.out).get("state") == "finished"
        except InputError:
            return False

    def wrong(self) -> str | None:
        def learned(run: Path) -> list[tuple[Any, ...]]:
            lines = read_lines(run / "metrics.jsonl")
            return [tuple(line.get(name) for name in ("step", "loss", "grad_norm", "eval_loss")) for line in lines]

        model, samples = "model/model.safetensors", "samples.jsonl"
        if (self.out / model).read_bytes() != (self.whole / model).read_bytes():
            return "other weights"
        there, expected = learned(self.out), learned(self.whole)
        if there != expected:
            gone = [line for line in expected if line not in there]
            return f"other lines in metrics.jsonl: {there}; gone: {gone}"
        if read_lines(self.out / samples) != read_lines(self.whole / samples):
            return "other lines in samples.jsonl"
        # SIGTERM saves a checkpoint of its own: as many must be left, not the same.
        names, wanted = (sorted(path.name.split("-")[0] for path in run.iterdir()) for run in (self.out, self.whole))
        if names != wanted:
            return f"files: {names}, expected {wanted}"
        return None

    def repair(self) -> tuple[str, ...]:
        shutil.rmtree(self.out, ignore_errors=True)
        return ()
