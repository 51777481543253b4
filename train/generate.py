"""`python -m train.generate RUN_DIR --prompt TEXT`: continue prompts with a trained model."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from shards.command_line import Parser, run_command
from shards.errors import InputError, nearest_path
from train.environment import prepare_environment
from train.run_directory import MODEL_NAME, read_record
from train.settings import GenerationSettings

OPTIONS = {
    "max_new_tokens": (int, "length of the continuation, in tokens"),
    "temperature": (float, "0: always the likeliest token; higher: more surprising"),
    "top_p": (float, "sample from the likeliest tokens that together have this probability"),
    "top_k": (int, "sample from this many likeliest tokens; 0: no limit"),
    "repetition_penalty": (float, "above 1: avoid tokens that are in the text already"),
    "seed": (int, "of the random choices (default: 0)"),
}


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train.generate",
        description="Continue prompts with a trained model. What isn't given is as the model was saved with.",
    )
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="a run's directory, or a model's own directory")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to continue; may be given several times (default: the prompts that the run was trained with)",
    )
    for name, (kind, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=text)
    return parser


def main(argv: list[str]) -> None:
    arguments = vars(build_parser().parse_args(argv))
    directory = find_model(arguments.pop("run"))
    prompts = arguments.pop("prompt") or prompts_of_run(directory)
    settings = dataclasses.replace(saved_defaults(directory), prompts=prompts, **arguments)
    prepare_environment()
    from train.sampling import continue_prompts, load_model, printable_sample

    model, tokenizer = load_model(directory)
    for prompt, continuation in continue_prompts(model, tokenizer, settings):
        sys.stdout.write(f"{printable_sample(prompt, continuation)}\n\n")
        sys.stdout.flush()


def find_model(path: Path) -> Path:
    """The directory with the model: `path` or `path/model`. Raises `InputError` saying what was looked for."""
    for directory in (path / MODEL_NAME, path):
        if (directory / "config.json").is_file():
            return directory
    if not path.exists():
        hint = nearest_path(path, Path.is_dir) or f"; expected a run's directory with a trained model in {MODEL_NAME}/"
        raise InputError(f"{path}: no such directory{hint}")
    raise InputError(
        f"{path}: no model here: neither {MODEL_NAME}/config.json nor config.json was found (is the training finished?)"
    )


def prompts_of_run(directory: Path) -> list[str]:
    """The prompts in the settings of the run that the model belongs to. Raises `InputError` if there are none."""
    settings = read_record(directory.parent).get("settings", {})
    prompts: list[str] = settings.get("generation", {}).get("prompts", [])
    if not prompts:
        raise InputError(f"{directory}: what to continue? give --prompt TEXT")
    return prompts


def saved_defaults(directory: Path) -> GenerationSettings:
    """The sampling settings that the model was saved with."""
    try:
        content: Any = json.loads((directory / "generation_config.json").read_bytes())
        saved = {name: content[name] for name in OPTIONS if content.get(name) is not None}
    except FileNotFoundError:
        saved = {}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{directory / 'generation_config.json'}: can't be read ({error})") from None
    if saved and content.get("do_sample") is False:
        saved["temperature"] = 0.0
    return GenerationSettings(**saved)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
