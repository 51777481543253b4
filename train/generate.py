"""`python -m train.generate RUN_DIR --prompt TEXT`: continue prompts with a trained model.

On a terminal, and with `--interactive`, the text appears as it is written, one sequence after the other. Elsewhere, and
with `--batch`, several sequences are written at a time.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.common.command_line import Parser, Terminated, run_command, say
from shards.common.errors import InputError, nearest_path
from shards.common.text import nearest, printable, visible
from train.checkpoints import is_sealed, numbered_checkpoints
from train.environment import out_of_memory, prepare_environment
from train.run_directory import MODEL_NAME, record_part
from train.settings import BATCH_SEQUENCES, GenerationSettings, build
from train.values import Count, convert

if TYPE_CHECKING:
    from train.sampling import Continuation

OPTIONS = {
    "max_new_tokens": (int, "N", "length of a continuation, in tokens"),
    "temperature": (float, "T", "0: always the likeliest token; higher: more surprising"),
    "top_p": (float, "P", "sample from the likeliest tokens that together have this probability"),
    "top_k": (int, "N", "sample from this many likeliest tokens; 0: no limit"),
    "repetition_penalty": (float, "X", "above 1: avoid tokens that are in the text already"),
    "seed": (int, "N", "of the random choices (0)"),
}


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train.generate",
        description="Continue prompts with a trained model. What isn't given is as the model was saved with.",
        epilog="example: python -m train.generate runs/sample --prompt 牛顿 --prompt 北京市 --temperature 0.8",
    )
    add = parser.add_argument
    add("run", metavar="RUN_DIR", type=Path, help="a run's directory, or a model's own directory")
    several = "text to continue; may be given several times (default: the prompts that the run was trained with)"
    add("--prompt", action="append", default=[], metavar="TEXT", help=several)
    add("--prompt-file", type=Path, metavar="FILE", help="a prompt a line, UTF-8; -: standard input")
    add("--interactive", action="store_true", help="ask for one prompt after the other")
    add("--num", type=int, default=1, metavar="N", help="continuations of each prompt (1)")
    add("--checkpoint", metavar="STEP", help="use RUN_DIR/checkpoint-STEP, also while the run goes on; or: latest")
    for name, (kind, metavar, text) in OPTIONS.items():
        names = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        add(*names, type=kind, metavar=metavar, dest=name, help=text)
    at_a_time = f"sequences at a time ({BATCH_SEQUENCES}; on a terminal 1, shown as it is written)"
    add("--batch", type=int, metavar="N", help=at_a_time)
    add("--json", action="store_true", help="a JSON object a line, for programs")
    return parser


def main(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    for name in ("num", "batch"):
        convert(getattr(options, name), Count | None, f"--{name}")
    if options.interactive and (options.prompt or options.prompt_file or options.json or options.batch):
        raise InputError("--interactive: asks for the prompts and shows the text; leave out --prompt, --json, --batch")
    directory = find_model(options.run, options.checkpoint)
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    prompts = options.prompt + (read_prompts(options.prompt_file) if options.prompt_file else [])
    if not prompts and not options.interactive:
        prompts = prompts_of_run(directory)
    settings = dataclasses.replace(generation_settings(directory, given), prompts=prompts)
    if options.num > 1 and settings.temperature == 0:
        raise InputError(f"--num {options.num}: without chance all are the same; give --temperature above 0")
    prepare_environment()
    from train.sampling import continue_prompts, load_model

    with out_of_memory("choose a smaller --batch or --max-new-tokens"):
        model, tokenizer = load_model(directory)
        if options.interactive:
            converse(model, tokenizer, settings, num_samples=options.num)
        elif options.batch is None and not options.json and sys.stdout.isatty():
            for prompt in prompts:
                show_as_written(model, tokenizer, dataclasses.replace(settings, prompts=[prompt]), options.num)
        else:
            sizes = {"num_samples": options.num, "batch_sequences": options.batch or BATCH_SEQUENCES}
            for sample in continue_prompts(model, tokenizer, settings, **sizes):
                say(json_line(sample, settings) if options.json else f"{sample}\n")


def show_as_written(model: Any, tokenizer: Any, settings: GenerationSettings, num_samples: int) -> None:
    """Write the continuations of the one prompt to standard output while they are generated, the prompt in 【】."""
    from transformers import TextStreamer

    from train.sampling import continue_prompts

    def write(text: str, stream_end: bool = False) -> None:
        sys.stdout.write(visible(text))
        sys.stdout.flush()

    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.on_finalized_text = write
    samples = continue_prompts(model, tokenizer, settings, num_samples=num_samples, streamer=streamer)
    for _ in range(num_samples):
        write(f"【{settings.prompts[0]}】")
        next(samples)
        say("", "")


def converse(model: Any, tokenizer: Any, settings: GenerationSettings, *, num_samples: int) -> None:
    """Read prompts from standard input until it ends, and write their continuations. Ctrl-C stops a text."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        import readline  # noqa: F401 (from here on `input` edits lines)

        say("A prompt. Ctrl-C stops a text, Ctrl-D ends.")
    while True:
        try:
            line = input("> " if on_terminal else "")
        except UnicodeDecodeError:
            say("that was not UTF-8")
            continue
        except EOFError:
            return
        try:
            if line.strip():
                show_as_written(model, tokenizer, dataclasses.replace(settings, prompts=[line]), num_samples)
        except InputError as error:
            say(printable(str(error)))
        except Terminated:
            raise
        except KeyboardInterrupt:
            say("\n(stopped)")


def json_line(sample: Continuation, settings: GenerationSettings) -> str:
    """A JSON object on one line, nothing in it that a terminal would obey."""
    content = {**dataclasses.asdict(sample), **{name: getattr(settings, name) for name in OPTIONS}}
    text = json.dumps(content, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that aren't empty. Raises `InputError`."""
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"{path}: can't be read ({error.strerror}){nearest_path(path, Path.is_file)}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{path}: no prompts in it; expected one a line")
    return prompts


def find_model(path: Path, checkpoint: str | None = None) -> Path:
    """The directory with the model: `path/model` or `path`, or with `checkpoint` (a step, or `latest`) that one.

    Raises `InputError` saying what was looked for.
    """
    if not path.exists():
        hints = (nearest_path(one, Path.is_dir) for one in (path, Path("runs", path.name)))
        expected = f"; expected a run's directory with a trained model in {MODEL_NAME}/"
        raise InputError(f"{path}: no such directory{next(filter(None, hints), expected)}")
    steps = [found.name.rpartition("-")[2] for found in numbered_checkpoints(path) if is_sealed(found)]
    if checkpoint is not None:
        step = steps[-1] if steps and checkpoint == "latest" else checkpoint.rpartition("checkpoint-")[2]
        if step not in steps:
            found = f"the run has {', '.join(steps) or 'none'}{nearest(checkpoint, steps)}"
            raise InputError(f"{path}: no checkpoint {printable(checkpoint)!r}; {found}")
        return path / f"checkpoint-{step}"
    for directory in (path / MODEL_NAME, path.resolve()):  # resolved: the run's record lies in its parent
        if (directory / "config.json").is_file():
            return directory
    hint = f"; its newest checkpoint can be used with --checkpoint {steps[-1]}" if steps else ""
    raise InputError(f"{path}: no model here: no {MODEL_NAME}/config.json (is the training finished?){hint}")


def prompts_of_run(directory: Path) -> list[str]:
    """The prompts in the settings of the run that the model belongs to. Raises `InputError` if there are none."""
    prompts = record_part(directory.parent, "settings", "generation").get("prompts")
    if not isinstance(prompts, list) or not prompts:
        raise InputError(f"{directory}: what to continue? give --prompt TEXT")
    return prompts


def generation_settings(directory: Path, options: dict[str, Any]) -> GenerationSettings:
    """The sampling settings that the model was saved with, and `options` instead of them. Raises `InputError`."""
    path = directory / "generation_config.json"
    try:
        content: Any = json.loads(path.read_bytes()) if path.exists() else {}
        saved = {name: content[name] for name in OPTIONS if content.get(name) is not None}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: can't be read ({error})") from None
    if saved and content.get("do_sample") is False:
        saved["temperature"] = 0.0

    def place(*keys: str) -> str:
        return ": ".join(f"--{key}" if key in options else f"{path}: {key}" for key in keys)

    return build(GenerationSettings, saved | options, place)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
