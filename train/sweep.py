"""`python -m train.sweep FILE.yaml`: several runs that differ in settings, one after another.

    config: configs/sample.yaml     # what all runs have in common
    output_dir: runs/sweep          # one directory for each run in it
    fixed: {num_train_epochs: 4}    # optional: other values than the config's, for all runs
    grid:                           # every combination is a run …
      learning_rate: [1e-3, 2.5e-3]
      optim: [adamw_torch_fused, muon]
    runs:                           # … or, instead of the grid, each run by itself, with a name if you like
      - {name: wide, model.hidden_size: 256}

Settings are named as on the command line of `python -m train`. All runs are checked before the first starts. Each is a
process of its own. A run that fails doesn't stop the others. The same command again passes over finished runs and
continues the others; at the end the runs are compared.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from shards.common.command_line import Parser, Terminated, run_command, say
from shards.common.errors import InputError
from shards.common.text import printable
from train.__main__ import load
from train.compare.__main__ import main as compare
from train.compare.page import check_out
from train.run_directory import RECORD_NAME, changed_settings, lock_run, part_of, plan_run, read_record
from train.settings import build, option_types
from train.values import Allowed, Text, read_yaml, require, require_known

PAGE_NAME = "compare.html"
_MAX_RUNS = 1000
_NAME = re.compile(r"(?!compare\.html$)[A-Za-z0-9_=,+-][A-Za-z0-9._=,+-]{0,99}")
_DECISIVE = ("training", "shards", "shuffle", "document_mask", "loss", "model_config", "model", "groups", "fingerprint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep's file holds; see above."""

    config: Text
    output_dir: Path
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Allowed("a list of values", bool)]] = dataclasses.field(default_factory=dict)
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweptRun:
    """One run of a sweep."""

    directory: Path
    changes: dict[str, Any]  # what differs from the other runs
    arguments: list[str]  # of `python -m train`

    def __str__(self) -> str:
        """`wide: model.hidden_size 256`."""
        changes = ", ".join(f"{key} {printable(spelled(value))}" for key, value in self.changes.items())
        return f"{self.directory.name}: {changes}"


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train.sweep",
        description="Train several runs that differ in settings, one after another, and compare them.",
        epilog="FILE.yaml names a config, a directory and a grid of settings; configs/sweep.yaml is one",
    )
    parser.add_argument("file", metavar="FILE.yaml", type=Path, help="what the runs have in common and what differs")
    parser.add_argument("--dry-run", action="store_true", help="check all runs, list them, train nothing")
    return parser


def main(argv: list[str]) -> int:
    """Run the sweep. 0: all runs are finished; 1: some failed. Raises `InputError` before the first run starts."""
    options = build_parser().parse_args(argv)
    output_dir, runs = plan_sweep(options.file)
    states = [check_run(run, options.file) for run in runs]
    say(f"sweep    {options.file}: {len(runs):,} runs in {output_dir}, {states.count('finished'):,} of them finished")
    comes = {"": "new", "finished": "finished, passed over"}
    heads = [
        f"run {number} of {len(runs)}  {run} ({comes.get(state, 'interrupted, goes on')})"
        for number, (run, state) in enumerate(zip(runs, states, strict=True), start=1)
    ]
    if options.dry_run:
        say(*heads)
        return 0
    page = output_dir / PAGE_NAME
    if output_dir.is_dir():
        check_out(page)
    failed = []
    with lock_run(output_dir):
        for run, state, head in zip(runs, states, heads, strict=True):
            say(head)
            if state != "finished" and (status := run_one(run)):
                failed.append(f"{run.directory.name} (exit status {status})")
        if found := [str(run.directory) for run in runs if (run.directory / RECORD_NAME).is_file()]:
            say("")
            compare([*found, f"--out={page}"])
    if failed:
        sys.stderr.write(f"{len(failed):,} of {len(runs):,} runs failed: {'; '.join(failed)}\n")
    return 1 if failed else 0


def plan_sweep(file: Path) -> tuple[Path, list[SweptRun]]:
    """The directory of a sweep and its runs, in order; nothing about their values is checked. Raises `InputError`."""
    sweep = build(Sweep, read_yaml(file), lambda *keys: ": ".join([str(file), *keys]))
    if bool(sweep.grid) == bool(sweep.runs):
        raise InputError(f"{file}: expected either `grid` or `runs`")
    num_runs = len(sweep.runs) or math.prod(map(len, sweep.grid.values()))
    require(num_runs <= _MAX_RUNS, str(file), f"at most {_MAX_RUNS:,} runs", num_runs)
    # Every combination, the last setting changing fastest.
    combinations = (dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values()))
    known = [name for name in option_types() if name not in ("output_dir", "resume_from_checkpoint")]
    require_known(sweep.fixed, known, f"{file}: fixed")
    runs: dict[str, SweptRun] = {}
    for number, entry in enumerate(sweep.runs or combinations, start=1):
        changes = {key: value for key, value in entry.items() if key != "name"}
        require_known(changes, known, f"{file}: run {number}")
        name = str(entry.get("name", derived_name(changes)))
        expected = "letters, digits and . _ = , + - and at most 100 characters; give it a `name` under `runs`"
        require(_NAME.fullmatch(name) is not None, f"{file}: name of a run", expected, name)
        if name.lower() in runs:  # a file system may not tell `A` from `a`
            raise InputError(f"{file}: two runs with the name {name!r} or the same settings; name them under `runs`")
        directory = sweep.output_dir / name
        values = {"config": sweep.config, "output_dir": str(directory), "tracking.name": name, **sweep.fixed, **changes}
        arguments = [f"--{key}={spelled(value)}" for key, value in values.items()]
        runs[name.lower()] = SweptRun(directory=directory, changes=changes, arguments=arguments)
    return sweep.output_dir, list(runs.values())


def derived_name(changes: Mapping[str, Any]) -> str:
    """
    >>> derived_name({"learning_rate": "1e-3", "model.hidden_size": 64, "shards": "data/shards/wiki"})
    'learning_rate=1e-3,hidden_size=64,shards=wiki'
    """
    parts = (
        f"{key.rpartition('.')[2]}={spelled(value).rstrip('/').rpartition('/')[2]}" for key, value in changes.items()
    )
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", ",".join(parts))


def spelled(value: Any) -> str:
    """A value of YAML as the command line takes it.

    >>> [spelled(value) for value in (True, None, 0.001, "1e-3", [1, "一"])]
    ['true', 'none', '0.001', '1e-3', '[1, "一"]']
    """
    if value is None or isinstance(value, str):
        return value or "none"
    return json.dumps(value, ensure_ascii=False, default=str)


def check_run(run: SweptRun, file: Path) -> str:
    """The state of `run` in its directory, empty if it is new. Writes nothing.

    Raises `InputError` unless it can be trained, continued or passed over.
    """
    record = read_record(run.directory)
    state = str(record.get("state") or "")
    try:
        settings, data, _ = load(run.arguments)
        from train.arguments import check

        settings, _ = check(settings, data)
        if state != "finished":  # `train` would refuse the directory; what is in it is compared below
            plan_run(settings.output_dir, None)
    except InputError as error:
        raise InputError(f"{file}: run {run.directory.name}: {error}") from None
    before = part_of(record, run.directory, "settings") | part_of(record, run.directory, "shards")
    now = json.loads(json.dumps(settings.as_record(), default=str)) | {"fingerprint": data.fingerprint}
    decisive = [key for key in _DECISIVE if key in before]
    if changes := changed_settings({key: before[key] for key in decisive}, {key: now[key] for key in decisive}):
        raise InputError(
            f"{run.directory}: holds a run with other settings ({'; '.join(changes)[:300]}); "
            "delete it, or choose another output_dir for the sweep"
        )
    return state


def run_one(run: SweptRun) -> int:
    """Train one run in a process of its own, and return its exit status.

    The process is in a group of its own, so that Ctrl-C reaches it once: from here, as SIGTERM does. Raises
    `KeyboardInterrupt` after it has ended; a second one doesn't wait for that.
    """
    command = [sys.executable, "-m", "train", *run.arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0) as process:
        try:
            return process.wait()
        except KeyboardInterrupt as stop:
            process.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
            try:
                process.wait()
            except KeyboardInterrupt:
                process.kill()
            raise


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
