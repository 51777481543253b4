"""`python -m train --config FILE.yaml`: train a model on a shard set.

Everything that can be wrong with the settings, the shard set and the run's directory is found before torch is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import shards
from shards.common.command_line import Parser, run_command
from shards.common.errors import InputError
from shards.share.command import note as say
from shards.verify import verify
from train.checks import REFUSED_ARGUMENTS
from train.environment import prepare_environment
from train.run_directory import Plan, plan_run, process_rank
from train.settings import Settings, load_settings, option_types
from train.tracking import check_tracking

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
    data = parser.add_argument_group("what is trained on")
    data.add_argument(
        "--shards",
        metavar="DIR",
        help="the shard set to train on, or several: wiki:0.7,books:0.3 by shares, wiki:1epochs,books:4epochs by passes",
    )
    data.add_argument(
        "--shuffle",
        metavar="global|window|none",
        help="how blocks are shuffled: all, within stretches for disks that hate random reads, or not (global)",
    )
    data.add_argument(
        "--document_mask",
        nargs="?",
        const="true",
        metavar="true|false",
        help="documents that share a block don't see each other (false)",
    )
    data.add_argument(
        "--allow_data_change",
        action="store_true",
        default=False,
        help="go on with another shard set (of the same tokenizer), seed, shuffle or batch than the checkpoint's",
    )
    training = parser.add_argument_group("how a step is computed")
    training.add_argument(
        "--global_batch_blocks",
        metavar="BLOCKS",
        help="blocks a step over all processes; gradient accumulation follows from it",
    )
    training.add_argument(
        "--eval_blocks",
        metavar="BLOCKS",
        help="validation blocks in an evaluation before the last one, which takes all (all)",
    )
    training.add_argument(
        "--loss",
        metavar="auto|plain|chunked|liger",
        help="all logits at once, or a chunk of tokens at a time, which saves memory (auto: by the vocabulary's size)",
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--output_dir", metavar="DIR", help="the run's directory, made if it is not there")
    run.add_argument(
        "--resume_from_checkpoint",
        nargs="?",
        const="latest",
        default=None,
        metavar="PATH|latest",
        help="the checkpoint to continue from (without a value: the newest complete one of the run)",
    )
    run.add_argument(
        "--check",
        action="store_true",
        default=False,
        help="only check the settings, the shard set and the run's directory",
    )
    for name, types in option_types().items():
        if name not in REFUSED_ARGUMENTS and name != "output_dir":
            flag: dict[str, Any] = {"nargs": "?", "const": "true"} if "bool" in types else {}
            parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **flag)
    return parser


def main(argv: list[str]) -> None:
    try:
        settings, data, plan = prepare(argv)
    except InputError:
        if process_rank() != 0:  # the first process tells, and torchrun then ends this one
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(RANK_PATIENCE_SECONDS)
        raise
    if "--check" in argv:
        return
    prepare_environment()
    from train.run import train

    train(settings, data, plan, ["python", "-m", "train", *argv])
    if process_rank() != 0:
        # The first process has written everything. At interpreter exit torch's communication threads now and then abort
        # this one ("terminate called without an active exception"), and torchrun would then end the first one too.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def prepare(argv: list[str]) -> tuple[Settings, shards.Data, Plan]:
    """Settings, shard set and plan, all checked. Raises `InputError`. Imports no torch, writes nothing."""
    settings, data, options = load(argv)
    plan = plan_run(settings.output_dir, options["resume_from_checkpoint"])
    return settings, data, dataclasses.replace(plan, allow_data_change=options["allow_data_change"])


def load(argv: list[str]) -> tuple[Settings, shards.Data, dict[str, Any]]:
    """The settings and the shard set, checked, and the options that are no settings. Raises `InputError`."""
    for argument in argv:
        name = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and name in REFUSED_ARGUMENTS and name != "resume_from_checkpoint":
            raise InputError(f"--{name}: can't be set: {REFUSED_ARGUMENTS[name]}")
    values = vars(build_parser().parse_args(argv))
    options = {name: values.pop(name) for name in ("config", "resume_from_checkpoint", "allow_data_change", "check")}
    config_path = options["config"]
    settings = load_settings(config_path, values)
    data = shards.open_data(settings.shards, notice=say)
    for part in data.sets:
        for fault in verify(part.path, quick=True):
            raise InputError(fault)
    if len(data["train"]) == 0:
        raise InputError(f"{settings.shards}: has no training blocks: the corpus is smaller than a block")
    limit = settings.model.max_position_embeddings
    if limit is not None and limit < data.block_tokens:
        raise InputError(
            f"{config_path}: model: max_position_embeddings: {limit:,} positions are too few for {settings.shards}, "
            f"whose blocks have {data.block_tokens:,} tokens"
        )
    check_tracking(settings.tracking)
    return settings, data, options


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
