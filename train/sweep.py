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

import contextlib
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.command_line import Parser, Terminated, run_command, say
from shards.errors import InputError, nearest, printable
from shards.files import write_atomically
from train.__main__ import prepare
from train.compare.command import as_lines, check_out
from train.compare.page import render
from train.compare.runs import find_runs, read_runs
from train.compare.table import duration
from train.run_directory import RECORD_NAME, changed_settings, lock_run, now, read_record
from train.settings import REFUSED_ARGUMENTS, SECTIONS, TOP_LEVEL, read_yaml, section_types

KEYS = ("config", "output_dir", "fixed", "grid", "runs")
STATE_NAME, PAGE_NAME, LOGS_NAME = "sweep.json", "compare.html", "logs"
_MAX_RUNS = 1000
_MAX_NAME_CHARACTERS = 100
_OWN_DIRECTORY = "the sweep gives each run a directory of its own, in its `output_dir`"
_EPILOG = """\
FILE.yaml names a config, a directory and a grid of settings; see configs/sweep.yaml. For example:

  python -m train.sweep configs/sweep.yaml --dry-run
  python -m train.sweep configs/sweep.yaml
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep."""

    name: str  # of its directory
    directory: Path
    changes: dict[str, Any]  # what tells it from the other runs
    arguments: list[str]  # of `python -m train`
    state: str = ""  # of its directory now: empty, or that of `run.json`

    @property
    def what_differs(self) -> str:
        """`learning_rate 1e-3, optim muon`."""
        return ", ".join(f"{key} {printable(spelled(value))}" for key, value in self.changes.items())


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of a run in this sweep, for `sweep.json`."""

    name: str
    changes: dict[str, Any]
    status: str  # waiting, running, finished, failed, interrupted
    exit_status: int | None = None
    error: str | None = None  # the last line that it wrote, if it failed
    seconds: float | None = None  # of this time
    written_at: str | None = None


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
    runs = [checked(run, options.file) for run in runs]
    finished = sum(run.state == "finished" for run in runs)
    say(f"sweep    {options.file}: {len(runs):,} runs in {output_dir}, {finished:,} of them finished")
    if options.dry_run:
        for number, run in enumerate(runs, start=1):
            say(f"run {number} of {len(runs)}  {run.name}: {run.what_differs} ({_next(run)})")
        return 0
    if output_dir.is_dir():
        check_out(output_dir / PAGE_NAME)
    with lock_run(output_dir):
        outcomes = run_all(runs, output_dir, quiet=options.quiet)
        conclude(runs, output_dir)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        names = "; ".join(
            f"{outcome.name} ({outcome.error or f'exit status {outcome.exit_status}'})" for outcome in failed
        )
        sys.stderr.write(f"{len(failed):,} of {len(runs):,} runs failed: {printable(names)}\n")
    return 1 if failed else 0


# ---- the plan ----


def plan_sweep(file: Path) -> tuple[Path, list[PlannedRun]]:
    """The directory of a sweep and its runs, in order; nothing about their values is checked. Raises `InputError`."""
    content = read_yaml(file)
    for key in content:
        if key not in KEYS:
            raise InputError(f"{file}: unknown key {printable(str(key))!r}{nearest(str(key), KEYS)}")
    for key in ("config", "output_dir"):
        if not isinstance(content.get(key), str) or not content[key]:
            raise InputError(f"{file}: {key}: expected a path, found {printable(repr(content.get(key)))[:80]}")
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
        runs.append(PlannedRun(name=name, directory=directory, changes=changes, arguments=arguments))
    return output_dir, runs


def _from_grid(grid: Any, file: Path) -> list[tuple[str, dict[str, Any]]]:
    """All combinations, the last setting changing fastest."""
    settings = _settings(grid, f"{file}: grid")
    if not settings:
        raise InputError(f"{file}: grid: expected settings with a list of values each, found none")
    for key, values in settings.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{file}: grid: {key}: expected a list of values, found {printable(repr(values))[:80]}")
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
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file}: runs: expected a list of mappings, found {printable(repr(entries))[:80]}")
    if len(entries) > _MAX_RUNS:
        raise InputError(f"{file}: runs: {len(entries):,} runs; at most {_MAX_RUNS:,} make a sweep")
    named: list[tuple[str | None, dict[str, Any]]] = []
    for number, entry in enumerate(entries, start=1):
        where = f"{file}: runs: run {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected a mapping of settings, found {printable(repr(entry))[:80]}")
        name = entry.get("name")
        if name is not None and (not isinstance(name, str) or safe_name(name) != name or name in _taken_names()):
            raise InputError(
                f"{where}: name: expected letters, digits and . _ = , + - and at most {_MAX_NAME_CHARACTERS} characters, "
                f"found {printable(repr(name))[:80]}"
            )
        named.append((name, _settings({key: value for key, value in entry.items() if key != "name"}, where)))
    return _named(named, file)


def _named(runs: Sequence[tuple[str | None, dict[str, Any]]], file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Names for those that have none; what would be ambiguous gets a digest of the settings."""
    derived = [name or derived_name(changes) for name, changes in runs]
    lowered = [name.lower() for name in derived]  # a file system may not tell `A` from `a`
    named: list[tuple[str, dict[str, Any]]] = []
    for (given, changes), name in zip(runs, derived, strict=True):
        if given is None and (lowered.count(name.lower()) > 1 or name in _taken_names()):
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


def _taken_names() -> tuple[str, ...]:
    return ("", STATE_NAME, PAGE_NAME, LOGS_NAME)


def _settings(value: Any, where: str) -> dict[str, Any]:
    """A mapping whose keys are settings as on the command line. Raises `InputError` for an unknown one."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a mapping of settings, found {printable(repr(value))[:80]}")
    known = [*TOP_LEVEL]
    for section in SECTIONS:
        known += [name if section == "training" else f"{section}.{name}" for name in section_types(section)]
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


def checked(run: PlannedRun, file: Path) -> PlannedRun:
    """`run` with its state, if it can be trained, continued or passed over. Raises `InputError`; writes nothing."""
    record = read_record(run.directory)
    state = str(record.get("state") or "")
    arguments = run.arguments
    if state == "finished":  # `train` would refuse the directory; what is in it is compared below
        arguments = [f"--output_dir={run.directory}.none" if a.startswith("--output_dir=") else a for a in arguments]
    try:
        settings, data, _ = prepare(arguments)
    except InputError as error:
        raise InputError(f"{file}: run {run.name}: {error}") from None
    if record:
        wanted = json.loads(json.dumps(settings.as_record(), default=str))
        changes = _other_training(record.get("settings"), wanted)
        shards_before = record.get("shards")
        before = shards_before.get("fingerprint") if isinstance(shards_before, dict) else None
        if before is not None and before != data.fingerprint:
            changes.append(f"fingerprint of the shard set {str(before)[:12]} before, {data.fingerprint[:12]} now")
        if changes:
            raise InputError(
                f"{run.directory}: holds a run with other settings ({'; '.join(changes)[:300]}); "
                "delete it, or choose another output_dir for the sweep"
            )
    return dataclasses.replace(run, state=state)


def _other_training(before: Any, wanted: dict[str, Any]) -> list[str]:
    """What was trained with other settings. Settings that an older version had not yet are left out."""
    if not isinstance(before, dict):
        return []
    changes = changed_settings(before.get("training"), wanted["training"], "training")
    for key in ("shards", "shuffle", "document_mask", "loss", "model_config"):
        if key in before:
            changes += changed_settings(before[key], wanted[key], key)
    model = before.get("model")
    if isinstance(model, dict):
        shared = {key: value for key, value in wanted["model"].items() if key in model}
        changes += changed_settings({key: model[key] for key in shared}, shared, "model")
    return changes


def _next(run: PlannedRun) -> str:
    return {"": "new", "finished": "finished, passed over"}.get(run.state, "interrupted, goes on")


# ---- running ----


def run_all(runs: Sequence[PlannedRun], output_dir: Path, *, quiet: bool) -> list[Outcome]:
    """Train what is not finished, one run after another. Raises `KeyboardInterrupt` when it is stopped."""
    outcomes = [
        Outcome(name=run.name, changes=run.changes, status="finished" if run.state == "finished" else "waiting")
        for run in runs
    ]
    (output_dir / LOGS_NAME).mkdir(exist_ok=True)
    seconds: list[float] = []
    for number, (run, outcome) in enumerate(zip(runs, outcomes, strict=True), start=1):
        head = f"run {number} of {len(runs)}  {run.name}: {run.what_differs}"
        if run.state == "finished":
            say(f"{head}  finished already")
            continue
        waiting = sum(other.status == "waiting" for other in outcomes)
        left = f"  about {duration(sum(seconds) / len(seconds) * waiting)} left" if seconds else ""
        say(f"{head}{'  continued' if run.state else ''}{left}")
        outcome.status = "running"
        _write_state(output_dir, outcomes)
        started = time.monotonic()
        try:
            outcome.exit_status, last_line = run_one(run, output_dir / LOGS_NAME / f"{run.name}.log", quiet=quiet)
        except KeyboardInterrupt:
            outcome.status = "interrupted"
            raise
        finally:
            outcome.seconds, outcome.written_at = round(time.monotonic() - started, 2), now()
            if outcome.exit_status is not None:
                outcome.status = "finished" if outcome.exit_status == 0 else "failed"
                outcome.error = None if outcome.exit_status == 0 else last_line
            _write_state(output_dir, outcomes)
        seconds.append(outcome.seconds)
        if outcome.status == "failed":
            say(f"failed   {run.name}: exit status {outcome.exit_status}: {printable(outcome.error or '')}")
    return outcomes


def run_one(run: PlannedRun, log: Path, *, quiet: bool) -> tuple[int, str]:
    """Train one run in a process of its own: its exit status and the last line that it wrote.

    The process is in a group of its own, so that Ctrl-C reaches it once: from here, as SIGTERM does. Raises
    `KeyboardInterrupt` after it has ended.
    """
    last_line = ""
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            process_group=0,
        )
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
            with _patience(process):
                process.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
                for line in process.stdout:
                    file.write(line)
                process.wait()
            raise
        finally:
            process.stdout.close()


@contextlib.contextmanager
def _patience(process: subprocess.Popen[str]) -> Iterator[None]:
    """Whoever stops the sweep a second time doesn't wait for the run to save itself."""
    try:
        yield
    except BaseException:
        process.kill()
        process.wait()
        raise


def conclude(runs: Sequence[PlannedRun], output_dir: Path) -> None:
    """Print the comparison of the runs that have a record, and write its page."""
    paths = [run.directory for run in runs if (run.directory / RECORD_NAME).is_file()]
    if not paths:
        return
    found = read_runs(find_runs(paths))
    page = output_dir / PAGE_NAME
    write_atomically(page, render(found))
    say("", *as_lines(found), "", f"page  {page}")


def _write_state(output_dir: Path, outcomes: Sequence[Outcome]) -> None:
    content = {"runs": [dataclasses.asdict(outcome) for outcome in outcomes]}
    text = json.dumps(content, ensure_ascii=False, indent=2, default=str)
    write_atomically(output_dir / STATE_NAME, (text + "\n").encode())


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
