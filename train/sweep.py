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
from typing import Any

from shards.common.command_line import Parser, Terminated, run_command, say
from shards.common.errors import InputError
from shards.common.files import write_atomically
from shards.common.text import nearest, printable
from train.__main__ import load
from train.compare.__main__ import as_lines
from train.compare.page import check_out, render
from train.compare.runs import read_runs
from train.run_directory import RECORD_NAME, changed_settings, lock_run, plan_run, read_record
from train.settings import TOP_LEVEL, option_names
from train.training_fields import REFUSED_ARGUMENTS
from train.values import read_yaml, require

KEYS = ("config", "output_dir", "fixed", "grid", "runs")
PAGE_NAME = "compare.html"
_MAX_RUNS = 1000
_NAME = re.compile(r"[A-Za-z0-9_=,+-][A-Za-z0-9._=,+-]{0,99}")
_DECISIVE = ("training", "shards", "shuffle", "document_mask", "loss", "model_config", "model", "groups")
_EPILOG = """\
FILE.yaml names a config, a directory and a grid of settings; see configs/sweep.yaml. For example:

  python -m train.sweep configs/sweep.yaml --dry-run
  python -m train.sweep configs/sweep.yaml
"""


@dataclasses.dataclass(kw_only=True)
class SweptRun:
    """One run of a sweep."""

    name: str  # of its directory
    directory: Path
    changes: dict[str, Any]  # what differs from the other runs
    arguments: list[str]  # of `python -m train`
    state: str = ""  # of its directory before this sweep: empty, or that of `run.json`

    def __str__(self) -> str:
        """`wide: model.hidden_size 256 (new)`."""
        comes = {"": "new", "finished": "finished, passed over"}.get(self.state, "interrupted, goes on")
        changes = ", ".join(f"{key} {printable(spelled(value))}" for key, value in self.changes.items())
        return f"{self.name}: {changes} ({comes})"


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train.sweep",
        description="Train several runs that differ in settings, one after another, and compare them.",
        epilog=_EPILOG,
    )
    parser.add_argument("file", metavar="FILE.yaml", type=Path, help="what the runs have in common and what differs")
    parser.add_argument("--dry-run", action="store_true", help="check all runs, list them, train nothing")
    return parser


def main(argv: list[str]) -> int:
    """Run the sweep. 0: all runs are finished; 1: some failed. Raises `InputError` before the first run starts."""
    options = build_parser().parse_args(argv)
    output_dir, runs = plan_sweep(options.file)
    for run in runs:
        check_run(run, options.file)
    finished = sum(run.state == "finished" for run in runs)
    say(f"sweep    {options.file}: {len(runs):,} runs in {output_dir}, {finished:,} of them finished")
    heads = [f"run {number} of {len(runs)}  {run}" for number, run in enumerate(runs, start=1)]
    if options.dry_run:
        say(*heads)
        return 0
    if output_dir.is_dir():
        check_out(output_dir / PAGE_NAME)
    failed = []
    with lock_run(output_dir):
        for run, head in zip(runs, heads, strict=True):
            say(head)
            if run.state != "finished" and (status := run_one(run)):
                failed.append(f"{run.name} (exit status {status})")
        paths = [run.directory for run in runs if (run.directory / RECORD_NAME).is_file()]
        if paths:
            found = read_runs(paths)
            write_atomically(output_dir / PAGE_NAME, render(found))
            say("", *as_lines(found), "", f"page  {output_dir / PAGE_NAME}")
    if failed:
        sys.stderr.write(f"{len(failed):,} of {len(runs):,} runs failed: {'; '.join(failed)}\n")
    return 1 if failed else 0


def plan_sweep(file: Path) -> tuple[Path, list[SweptRun]]:
    """The directory of a sweep and its runs, in order; nothing about their values is checked. Raises `InputError`."""
    content = read_yaml(file, keys=KEYS)
    for key in content:
        if key not in KEYS:
            raise InputError(f"{file}: unknown key {printable(str(key))!r}{nearest(str(key), KEYS)}")
    for key in ("config", "output_dir"):
        require(isinstance(content.get(key), str) and content[key] != "", f"{file}: {key}", "a path", content.get(key))
    if (content.get("grid") is None) == (content.get("runs") is None):
        raise InputError(f"{file}: expected either `grid` or `runs`")
    output_dir = Path(content["output_dir"]).expanduser()
    fixed = _settings(content.get("fixed") or {}, f"{file}: fixed")
    named = _from_grid(content["grid"], file) if content.get("runs") is None else _from_list(content["runs"], file)
    require(len(named) <= _MAX_RUNS, f"{file}", f"at most {_MAX_RUNS:,} runs", len(named))
    lowered = [str(name).lower() for name, _ in named]  # a file system may not tell `A` from `a`
    runs = []
    for name, changes in named:
        is_name = isinstance(name, str) and _NAME.fullmatch(name) is not None and name != PAGE_NAME
        expected = "letters, digits and . _ = , + - and at most 100 characters; give it a `name` under `runs`"
        require(is_name, f"{file}: name of a run", expected, name)
        if lowered.count(name.lower()) > 1:
            raise InputError(f"{file}: two runs with the name {name!r} or the same settings; name them under `runs`")
        directory = output_dir / name
        values = {"tracking.name": name, **fixed, **changes}
        arguments = [f"--config={content['config']}", f"--output_dir={directory}"]
        arguments += [f"--{key}={spelled(value)}" for key, value in values.items()]
        runs.append(SweptRun(name=name, directory=directory, changes=changes, arguments=arguments))
    return output_dir, runs


def _from_grid(grid: Any, file: Path) -> list[tuple[Any, dict[str, Any]]]:
    """All combinations with their names, the last setting changing fastest."""
    settings = _settings(grid, f"{file}: grid")
    require(settings != {}, f"{file}: grid", "settings with a list of values each", grid)
    for key, values in settings.items():
        require(isinstance(values, list) and values != [], f"{file}: grid: {key}", "a list of values", values)
    num_runs = math.prod(map(len, settings.values()))
    require(num_runs <= _MAX_RUNS, f"{file}: grid", f"at most {_MAX_RUNS:,} combinations", num_runs)
    combinations = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    return [(derived_name(changes), changes) for changes in combinations]


def _from_list(entries: Any, file: Path) -> list[tuple[Any, dict[str, Any]]]:
    require(isinstance(entries, list) and entries != [], f"{file}: runs", "a list of mappings", entries)
    named = []
    for number, entry in enumerate(entries, start=1):
        where = f"{file}: runs: run {number}"
        require(isinstance(entry, dict), where, "a mapping of settings", entry)
        changes = _settings({key: value for key, value in entry.items() if key != "name"}, where)
        named.append((entry["name"] if "name" in entry else derived_name(changes), changes))
    return named


def derived_name(changes: Mapping[str, Any]) -> str:
    """
    >>> derived_name({"learning_rate": "1e-3", "model.hidden_size": 64, "shards": "data/shards/wiki"})
    'learning_rate=1e-3,hidden_size=64,shards=wiki'
    """
    last_parts = [key.rpartition(".")[2] for key in changes]
    parts = []
    for key, value in changes.items():
        short = key.rpartition(".")[2]
        text = spelled(value).rstrip("/").rpartition("/")[2]
        parts.append(f"{short if last_parts.count(short) == 1 else key}={text}")
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", ",".join(parts))


def _settings(value: Any, where: str) -> dict[str, Any]:
    """A mapping whose keys are settings as on the command line. Raises `InputError` for an unknown one."""
    require(isinstance(value, dict), where, "a mapping of settings", value)
    known = [*TOP_LEVEL, *option_names()]
    settings = {}
    for key, setting in value.items():
        name = str(key).removeprefix("training.")
        if name not in known:
            raise InputError(f"{where}: unknown setting {printable(name)!r}{nearest(name, known)}")
        if name == "output_dir" or name in REFUSED_ARGUMENTS:
            own = "the sweep gives each run a directory of its own, in its `output_dir`"
            raise InputError(f"{where}: {name}: can't be set: {REFUSED_ARGUMENTS.get(name, own)}")
        settings[name] = setting
    return settings


def spelled(value: Any) -> str:
    """A value of YAML as the command line takes it.

    >>> [spelled(value) for value in (True, None, 0.001, "1e-3", [1, "一"])]
    ['true', 'none', '0.001', '1e-3', '[1, "一"]']
    """
    if value is None or isinstance(value, str):
        return value or "none"
    return json.dumps(value, ensure_ascii=False, default=str)


def check_run(run: SweptRun, file: Path) -> None:
    """Note the state of `run`. Raises `InputError` unless it can be trained, continued or passed over; writes nothing."""
    record = read_record(run.directory)
    run.state = str(record.get("state") or "")
    try:
        settings, data, _ = load(run.arguments)
        from train.run import check

        settings, _ = check(settings, data)
        if run.state != "finished":  # `train` would refuse the directory; what is in it is compared below
            plan_run(settings.output_dir, None)
    except InputError as error:
        raise InputError(f"{file}: run {run.name}: {error}") from None
    wanted = json.loads(json.dumps(settings.as_record(), default=str))
    had, shards_had = (record[key] if isinstance(record.get(key), dict) else {} for key in ("settings", "shards"))
    changes = [change for key in _DECISIVE if key in had for change in changed_settings(had[key], wanted[key], key)]
    before = shards_had.get("fingerprint")
    if before is not None and before != data.fingerprint:
        changes.append(f"fingerprint of the shard set {str(before)[:12]} before, {data.fingerprint[:12]} now")
    if changes:
        raise InputError(
            f"{run.directory}: holds a run with other settings ({'; '.join(changes)[:300]}); "
            "delete it, or choose another output_dir for the sweep"
        )


def run_one(run: SweptRun) -> int:
    """Train one run in a process of its own, and return its exit status.

    The process is in a group of its own, so that Ctrl-C reaches it once: from here, as SIGTERM does. Raises
    `KeyboardInterrupt` after it has ended; a second one doesn't wait for that.
    """
    command = [sys.executable, "-m", "train", *run.arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0) as process:
        try:
            return process.wait()
        except BaseException as stop:
            try:
                process.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
                process.wait()
            except BaseException:
                process.kill()
                raise
            raise


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
