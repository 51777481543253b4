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
process of its own; its output is kept in `logs/NAME.log`. A run that fails is recorded in `sweep.json` and the others go
on. The same command again passes over finished runs and continues the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.common.command_line import Parser, Terminated, run_command, say
from shards.common.errors import InputError
from shards.common.files import write_atomically
from shards.common.text import nearest, printable
from train.__main__ import load
from train.arguments import require
from train.checks import REFUSED_ARGUMENTS
from train.compare.__main__ import as_lines, check_out
from train.compare.page import render
from train.compare.runs import read_runs
from train.compare.table import duration
from train.run_directory import RECORD_NAME, changed_settings, lock_run, now, plan_run, read_record, write_json
from train.settings import TOP_LEVEL, option_types, read_yaml

KEYS = ("config", "output_dir", "fixed", "grid", "runs")
STATE_NAME, PAGE_NAME, LOGS_NAME = "sweep.json", "compare.html", "logs"
_TAKEN_NAMES = ("", STATE_NAME, PAGE_NAME, LOGS_NAME)
_MAX_RUNS = 1000
_MAX_NAME_CHARACTERS = 100
_DECISIVE = ("training", "shards", "shuffle", "document_mask", "loss", "model_config", "model")  # for what is trained
_OWN_DIRECTORY = "the sweep gives each run a directory of its own, in its `output_dir`"
_EPILOG = """\
FILE.yaml names a config, a directory and a grid of settings; see configs/sweep.yaml. For example:

  python -m train.sweep configs/sweep.yaml --dry-run
  python -m train.sweep configs/sweep.yaml
"""


@dataclasses.dataclass(kw_only=True)
class SweptRun:
    """One run of a sweep, and what becomes of it."""

    name: str  # of its directory
    directory: Path
    changes: dict[str, Any]  # what tells it from the other runs
    arguments: list[str]  # of `python -m train`
    state: str = ""  # of its directory before this sweep: empty, or that of `run.json`
    status: str = "waiting"  # then running, finished, failed or interrupted
    exit_status: int | None = None
    error: str | None = None  # the last line that it wrote, if it failed
    seconds: float | None = None  # of this time
    written_at: str | None = None

    @property
    def what_differs(self) -> str:
        """`learning_rate 1e-3, optim muon`."""
        return ", ".join(f"{key} {printable(spelled(value))}" for key, value in self.changes.items())


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m train.sweep",
        description="Train several runs that differ in settings, one after another, and compare them.",
        epilog=_EPILOG,
    )
    parser.add_argument("file", metavar="FILE.yaml", type=Path, help="what the runs have in common and what differs")
    parser.add_argument("--dry-run", action="store_true", help="check all runs, list them, train nothing")
    parser.add_argument("--quiet", action="store_true", help="a line for each run, without the lines that it prints")
    return parser


def main(argv: list[str]) -> int:
    """Run the sweep. 0: all runs are finished; 1: some failed. Raises `InputError` before the first run starts."""
    options = build_parser().parse_args(argv)
    output_dir, runs = plan_sweep(options.file)
    for run in runs:
        check_run(run, options.file)
    finished = sum(run.state == "finished" for run in runs)
    say(f"sweep    {options.file}: {len(runs):,} runs in {output_dir}, {finished:,} of them finished")
    if options.dry_run:
        for number, run in enumerate(runs, start=1):
            comes = {"": "new", "finished": "finished, passed over"}.get(run.state, "interrupted, goes on")
            say(f"run {number} of {len(runs)}  {run.name}: {run.what_differs} ({comes})")
        return 0
    if output_dir.is_dir():
        check_out(output_dir / PAGE_NAME)
    with lock_run(output_dir):
        run_all(runs, output_dir, quiet=options.quiet)
        conclude(runs, output_dir)
    failed = [run for run in runs if run.status == "failed"]
    if failed:
        names = "; ".join(f"{run.name} ({run.error or f'exit status {run.exit_status}'})" for run in failed)
        sys.stderr.write(f"{len(failed):,} of {len(runs):,} runs failed: {printable(names)}\n")
    return 1 if failed else 0


# ---- the plan ----


def plan_sweep(file: Path) -> tuple[Path, list[SweptRun]]:
    """The directory of a sweep and its runs, in order; nothing about their values is checked. Raises `InputError`."""
    content = read_yaml(file)
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
    runs = []
    for name, changes in named:
        directory = output_dir / name
        values = {"tracking.name": name, **fixed, **changes}
        arguments = [f"--config={content['config']}", f"--output_dir={directory}"]
        arguments += [f"--{key}={spelled(value)}" for key, value in values.items()]
        runs.append(SweptRun(name=name, directory=directory, changes=changes, arguments=arguments))
    return output_dir, runs


def _from_grid(grid: Any, file: Path) -> list[tuple[str, dict[str, Any]]]:
    """All combinations, the last setting changing fastest."""
    settings = _settings(grid, f"{file}: grid")
    if not settings:
        raise InputError(f"{file}: grid: expected settings with a list of values each, found none")
    for key, values in settings.items():
        require(isinstance(values, list) and values != [], f"{file}: grid: {key}", "a list of values", values)
        spelt = [spelled(value) for value in values]
        for value in spelt:
            if spelt.count(value) > 1:
                raise InputError(f"{file}: grid: {key}: {printable(value)[:80]} is given twice")
    num_runs = math.prod(map(len, settings.values()))
    if num_runs > _MAX_RUNS:
        raise InputError(f"{file}: grid: {num_runs:,} combinations; at most {_MAX_RUNS:,} runs make a sweep")
    combinations = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    return _named([(None, changes) for changes in combinations], file)


def _from_list(entries: Any, file: Path) -> list[tuple[str, dict[str, Any]]]:
    require(isinstance(entries, list) and entries != [], f"{file}: runs", "a list of mappings", entries)
    if len(entries) > _MAX_RUNS:
        raise InputError(f"{file}: runs: {len(entries):,} runs; at most {_MAX_RUNS:,} make a sweep")
    named: list[tuple[str | None, dict[str, Any]]] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{file}: runs: run {number}"
        require(isinstance(entry, dict), where, "a mapping of settings", entry)
        name = entry.get("name")
        is_name = isinstance(name, str) and safe_name(name) == name and name not in _TAKEN_NAMES
        expected = f"letters, digits and . _ = , + - and at most {_MAX_NAME_CHARACTERS} characters"
        require(name is None or is_name, f"{where}: name", expected, name)
        named.append((name, _settings({key: value for key, value in entry.items() if key != "name"}, where)))
    return _named(named, file)


def _named(runs: Sequence[tuple[str | None, dict[str, Any]]], file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Names for those that have none; what would be ambiguous gets a digest of the settings."""
    derived = [name or derived_name(changes) for name, changes in runs]
    lowered = [name.lower() for name in derived]  # a file system may not tell `A` from `a`
    named: list[tuple[str, dict[str, Any]]] = []
    for (given, changes), name in zip(runs, derived, strict=True):
        if given is None and (lowered.count(name.lower()) > 1 or name in _TAKEN_NAMES):
            digest = hashlib.sha256(json.dumps(changes, sort_keys=True, default=str).encode()).hexdigest()
            name = f"{name}-{digest[:6]}"
        if name.lower() in (other.lower() for other, _ in named):
            raise InputError(f"{file}: two runs with the name {name!r} or the same settings; give them a `name`")
        named.append((name, changes))
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
        value_text = spelled(value)
        value_text = value_text.rstrip("/").rpartition("/")[2] or value_text
        parts.append(f"{short if last_parts.count(short) == 1 else key}={value_text}")
    name = safe_name(",".join(parts)) or "base"
    if len(",".join(parts)) > _MAX_NAME_CHARACTERS:
        name = f"{name[: _MAX_NAME_CHARACTERS - 7]}-{hashlib.sha256(','.join(parts).encode()).hexdigest()[:6]}"
    return name


def safe_name(text: str) -> str:
    """`text` with `_` for what a path, a shell or `make` might misread, cut to a length that file systems take."""
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", text).lstrip(".-")[:_MAX_NAME_CHARACTERS]


def _settings(value: Any, where: str) -> dict[str, Any]:
    """A mapping whose keys are settings as on the command line. Raises `InputError` for an unknown one."""
    require(isinstance(value, dict), where, "a mapping of settings", value)
    known = [*TOP_LEVEL, *option_types()]
    settings = {}
    for key, setting in value.items():
        name = key.removeprefix("training.") if isinstance(key, str) else str(key)
        if name not in known:
            raise InputError(f"{where}: unknown setting {printable(name)!r}{nearest(name, known)}")
        if name == "output_dir" or name in REFUSED_ARGUMENTS:
            raise InputError(f"{where}: {name}: can't be set: {REFUSED_ARGUMENTS.get(name, _OWN_DIRECTORY)}")
        settings[name] = setting
    return settings


def spelled(value: Any) -> str:
    """A value of YAML as the command line takes it.

    >>> [spelled(value) for value in (True, None, 0.001, "1e-3", [1, "一"])]
    ['true', 'none', '0.001', '1e-3', '[1, "一"]']
    """
    if value is None:
        return "none"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


# ---- checks before the first run ----


def check_run(run: SweptRun, file: Path) -> None:
    """Note the state of `run`. Raises `InputError` unless it can be trained, continued or passed over; writes nothing."""
    record = read_record(run.directory)
    run.state = str(record.get("state") or "")
    try:
        settings, data, _ = load(run.arguments)
        if run.state == "finished":  # `train` would refuse the directory; what is in it is compared below
            run.status = "finished"
        else:
            plan_run(settings.output_dir, None)
    except InputError as error:
        raise InputError(f"{file}: run {run.name}: {error}") from None
    if record:
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


# ---- running ----


def run_all(runs: Sequence[SweptRun], output_dir: Path, *, quiet: bool) -> None:
    """Train what is not finished, one run after another. Raises `KeyboardInterrupt` when it is stopped."""
    (output_dir / LOGS_NAME).mkdir(exist_ok=True)
    seconds: list[float] = []
    for number, run in enumerate(runs, start=1):
        head = f"run {number} of {len(runs)}  {run.name}: {run.what_differs}"
        if run.state == "finished":
            say(f"{head}  finished already")
            continue
        waiting = sum(other.status == "waiting" for other in runs)
        left = f"  about {duration(sum(seconds) / len(seconds) * waiting)} left" if seconds else ""
        say(f"{head}{'  continued' if run.state else ''}{left}")
        run.status = "running"
        _write_state(output_dir, runs)
        started = time.monotonic()
        try:
            run.exit_status, last_line = run_one(run, output_dir / LOGS_NAME / f"{run.name}.log", quiet=quiet)
            run.status, run.error = ("failed", last_line) if run.exit_status else ("finished", None)
        except KeyboardInterrupt:
            run.status = "interrupted"
            raise
        finally:
            run.seconds, run.written_at = round(time.monotonic() - started, 2), now()
            _write_state(output_dir, runs)
        seconds.append(run.seconds)
        if run.status == "failed":
            say(f"failed   {run.name}: exit status {run.exit_status}: {printable(run.error or '')}")


def run_one(run: SweptRun, log: Path, *, quiet: bool) -> tuple[int, str]:
    """Train one run in a process of its own: its exit status and the last line that it wrote.

    The process is in a group of its own, so that Ctrl-C reaches it once: from here, as SIGTERM does. Raises
    `KeyboardInterrupt` after it has ended.
    """
    last_line = ""
    with (
        open(log, "a", encoding="utf-8") as file,
        subprocess.Popen(
            [sys.executable, "-m", "train", *run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            process_group=0,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                last_line = line.strip() or last_line
                if not quiet and line.strip():
                    say(f"  {printable(line.rstrip())}")
            return process.wait(), last_line
        except BaseException as stop:
            try:
                process.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
                file.writelines(process.stdout)
                process.wait()
            except BaseException:  # who stops the sweep a second time doesn't wait for the run to save itself
                process.kill()
                raise
            raise


def conclude(runs: Sequence[SweptRun], output_dir: Path) -> None:
    """Print the comparison of the runs that have a record, and write its page."""
    paths = [run.directory for run in runs if (run.directory / RECORD_NAME).is_file()]
    if not paths:
        return
    found = read_runs(paths)
    page = output_dir / PAGE_NAME
    write_atomically(page, render(found))
    say("", *as_lines(found), "", f"page  {page}")


def _write_state(output_dir: Path, runs: Sequence[SweptRun]) -> None:
    keys = ("name", "changes", "status", "exit_status", "error", "seconds", "written_at")
    write_json(output_dir / STATE_NAME, {"runs": [{key: getattr(run, key) for key in keys} for run in runs]})


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
