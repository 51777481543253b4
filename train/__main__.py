"""`python -m train --config FILE.yaml`: train a model on a shard set.

What can be wrong with the settings, the shard set and the run's directory is found before torch is imported; what
transformers knows better is checked by it before anything is written.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

import shards
from shards.common.command_line import Parser, run_command, say
from shards.common.errors import InputError
from train.environment import check_tracking, prepare_environment
from train.run_directory import plan_run, process_rank
from train.settings import OPTIONS, Settings, load_settings, option_types

RANK_PATIENCE_SECONDS = 10

EPILOG = """\
Every field of transformers' TrainingArguments is an option (--learning_rate 1e-3, --max_steps 100),
and so is every setting of the other sections, written with the section's name
(--model.hidden_size 256, --tracking.mode offline, --generation.seed 1). Options win over the file.

The same command again continues an interrupted run from its newest complete checkpoint.

example: python -m train --config configs/sample.yaml --output_dir runs/fast --learning_rate 5e-3
"""


def build_parser() -> Parser:
    description = "Train a model on a shard set."
    parser = Parser(prog="python -m train", description=description, epilog=EPILOG, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE.yaml", help="the settings of the run")
    types = option_types()

    def switch(name: str) -> dict[str, Any]:
        """An option that may be true needn't have a value."""
        return {"nargs": "?", "const": "true"} if "bool" in types[name] else {}

    for name, option in OPTIONS.items():
        parser.add_argument(f"--{name}", **option, **switch(name))
    parser.add_argument(
        "--resume_from_checkpoint",
        nargs="?",
        const="latest",
        default=None,
        metavar="PATH|latest",
        help="the checkpoint to continue from (without a value: the newest complete one of the run)",
    )
    for name, text in (
        ("allow_data_change", "go on with another shard set (of the same tokenizer), seed, shuffle or batch"),
        ("check", "only check the settings, the shard set and the run's directory"),
        ("dry_run", "only say what the run would take (steps, time, memory, disk), from a few micro-batches of it"),
    ):
        parser.add_argument(f"--{name}", action="store_true", default=False, help=text)
    for name in types:
        if f"--{name}" not in parser.options:
            parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **switch(name))
    return parser


def main(argv: list[str]) -> None:
    try:
        settings, data, options = prepare(argv)
        prepare_environment()
        if options["check"]:
            from train.arguments import check

            check(settings, data)
        elif options["dry_run"]:
            from train.trials import dry_run

            lines = dry_run(settings, data)
            say(*(lines if process_rank() == 0 else ()))
        else:
            from train.run import train

            resume, allow_data_change = options["resume_from_checkpoint"], options["allow_data_change"]
            command = ["python", "-m", "train", *argv]
            train(settings, data, command, resume=resume, allow_data_change=allow_data_change)
    except InputError:
        if process_rank() != 0:  # the first process reports it, and torchrun then ends this one
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(RANK_PATIENCE_SECONDS)
        raise


def prepare(argv: list[str]) -> tuple[Settings, shards.Data, dict[str, Any]]:
    """As `load`; and the run's directory may be used. Writes nothing."""
    settings, data, options = load(argv)
    if process_rank() == 0:
        plan_run(settings.output_dir, options["resume_from_checkpoint"], check_content=False)
    return settings, data, options


def load(argv: list[str]) -> tuple[Settings, shards.Data, dict[str, Any]]:
    """The settings and the shard set, checked, and the options that are no settings. Raises `InputError`; no torch."""
    values = vars(build_parser().parse_args(argv))
    names = ("config", "resume_from_checkpoint", "allow_data_change", "check", "dry_run")
    options = {name: values.pop(name) for name in names}
    settings = load_settings(options["config"], values)
    from shards.verify import verify  # with NumPy: an import that Ctrl-C ends without a traceback

    data = shards.open_data(settings.shards, notice=say)
    for part in data.sets:
        for fault in verify(part.path, quick=True):
            raise InputError(fault)
    if len(data["train"]) == 0:
        raise InputError(f"{data.description}: has no training blocks: the corpus is smaller than a block")
    shards.validation_sets(data, settings.eval_shards)
    limit = settings.model.max_position_embeddings
    if limit is not None and limit < data.block_tokens:
        name = "model.max_position_embeddings"
        where = f"--{name}" if name in values else f"{options['config']}: {name.replace('.', ': ')}"
        blocks = f"{data.description}, whose blocks have {data.block_tokens:,} tokens"
        raise InputError(f"{where}: {limit:,} positions are too few for {blocks}")
    check_tracking(settings.tracking.mode)
    return settings, data, options


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
