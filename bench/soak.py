"""Training for an hour, and builds one after another: does anything grow?

    python -m bench.soak WORK [--minutes 60] [--builds 20] [--seconds-between 5]

The builds (JSON Lines, Parquet, gzip, a JSON array with --dedup exact, in turns) are made by one process, which is looked
at after each, from the fifth on: what is loaded once is no growth. Then `configs/sample.yaml` is trained in epochs without
end and stopped by SIGTERM; it and its children are looked at every few seconds. Temporary files are those in
a TMPDIR of their own. Each measure's median in the first quarter is set against the one in the last: it grows if that is
more by 2 % and 8 MiB (counts: by one).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.corpus import SAMPLE, articles, make_tokenizer, numbered, write_array, write_lines
from bench.measure import REPOSITORY, ours, print_head, print_row, process_tree, run
from shards.common.command_line import Parser, run_command

Sample = dict[str, float]
MEASURES: dict[str, Callable[[psutil.Process], float]] = {  # they are added up
    "memory (RSS), MiB": lambda process: process.memory_info().rss / 2**20,
    "of that, what no other process shares (USS), MiB": lambda process: process.memory_full_info().uss / 2**20,
    "file descriptors": lambda process: process.num_fds(),
    "threads": lambda process: process.num_threads(),
    "processes": lambda process: 1,
}
_ALLOWED_SHARE, _ALLOWED_MIB = 0.02, 8.0


def look(process: int, temporary: Path, begin: float) -> Sample:
    """All measures of a process with its children, now."""
    found = {"seconds": time.monotonic() - begin, **dict.fromkeys(MEASURES, 0.0)}
    for one in process_tree(process):
        with contextlib.suppress(psutil.Error):  # it has ended
            own = {name: measure(one) for name, measure in MEASURES.items()}
            found |= {name: found[name] + value for name, value in own.items()}
    found["entries of /dev/shm, whoever made them"] = len(os.listdir("/dev/shm"))
    found["files in TMPDIR"] = sum(1 for path in temporary.rglob("*") if path.is_file())
    return found


def print_growth(what: str, samples: Sequence[Sample]) -> bool:
    """Whether anything grows."""
    print(f"\n{what}, {len(samples):,} looks")
    print_head("measure", "first quarter", "last quarter", "highest", "second half: an hour", "verdict")
    quarter, half, grows = max(1, len(samples) // 4), len(samples) // 2, False
    seconds = [sample["seconds"] for sample in samples]
    for name in list(samples[0])[1:]:
        values = [sample[name] for sample in samples]
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        limit = first * (1 + _ALLOWED_SHARE) + _ALLOWED_MIB if "MiB" in name else first
        grows |= last > limit
        slope = 3600 * float(np.polyfit(seconds[half:], values[half:], 1)[0]) if len(values) > 3 else 0.0
        figures = [f"{value:,.1f}" for value in (first, last, max(values))]
        print_row(name, *figures, f"{slope:+,.1f}", "GROWS" if last > limit else "does not grow")
    return grows


def make_corpora(work: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Some megabytes in each format, and the settings of its build."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = list(numbered(articles(), 20 * len(articles())))
    lines, packed, table = (work / f"corpus.{suffix}" for suffix in ("jsonl", "jsonl.gz", "parquet"))
    packed.write_bytes(gzip.compress(write_lines(lines, texts).read_bytes(), 1))
    array = write_array(work / "corpus.json", 2 * lines.read_bytes().splitlines())
    pq.write_table(pa.table({"text": texts}), table, row_group_size=500)
    return [(lines, {}), (packed, {}), (array, {"dedup": "exact"}), (table, {})]


def make_builds(work: Path, num_builds: int) -> None:
    """In a process of its own: the builds, and a line of JSON after each."""
    from pipeline.build import build
    from pipeline.settings import BuildSettings

    corpora, begin = make_corpora(work), time.monotonic()
    for number in range(-len(corpora), num_builds):
        source, options = corpora[number % len(corpora)]
        settings = BuildSettings(unit_bytes=1 << 20, **options)
        build([str(source)], work / "set", tokenizer_name="qwen2", settings=settings, num_workers=2)
        shutil.rmtree(work / "set")
        if number >= 0:  # what is loaded and started once is no growth
            print(json.dumps(look(os.getpid(), Path(os.environ["TMPDIR"]), begin)), flush=True)


def soak_builds(work: Path, num_builds: int) -> bool:
    place, environment = fresh(work / "builds"), os.environ | {"TMPDIR": str(fresh(work / "tmp"))}
    ended = run(ours("bench.soak", place, "--builds", num_builds, "--inside"), environment=environment)
    left = sorted(path.name for path in place.iterdir() if not path.name.startswith("corpus."))
    if left:
        raise SystemExit(f"the builds have left {left}")
    return print_growth(f"{num_builds} builds in one process", list(map(json.loads, ended.output.splitlines())))


def soak_training(work: Path, minutes: float, seconds_between: float) -> bool:
    temporary, out, log = fresh(work / "tmp"), work / "run", work / "training.log"
    shutil.rmtree(out, ignore_errors=True)
    shards, tokenizer = work / "sample-set", make_tokenizer(work / "tokenizer", 4096)
    options = ("--tokenizer", tokenizer, "--block-tokens", 128, "--packing", "best-fit", "--val-fraction", 0.06)
    run(ours("pipeline", "build", SAMPLE, "--out", shards, *options))
    config = ("--config", "configs/sample.yaml", "--shards", shards, "--output_dir", out)
    command = ours("train", *config, "--num_train_epochs", 1_000_000, "--tracking.mode", "offline")
    environment = os.environ | {"TMPDIR": str(temporary)}
    with log.open("wb") as lines:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=lines, stderr=lines)
    samples, begin = [], time.monotonic()
    try:
        while time.monotonic() - begin < 60 * minutes and process.poll() is None:
            time.sleep(seconds_between)
            if (out / "metrics.jsonl").exists():
                samples.append(look(process.pid, temporary, begin))
            else:  # what is loaded before the first log line is no growth
                begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 128 + signal.SIGTERM:
        raise SystemExit(f"expected status 143, found {process.returncode}: {log}")
    grows = print_growth(f"{minutes:g} minutes of training", samples)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    left = sorted(path.name for path in temporary.rglob("*") if path.is_file())
    print(f"\n{logged[-1]['step']:,} steps; left in TMPDIR after the end: {', '.join(left) or 'nothing'}")
    return grows


def fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("work", type=Path, help="directory for all of it")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training (60); 0: none")
    parser.add_argument("--builds", type=int, default=20, help="builds, one after another (20); 0: none")
    parser.add_argument("--seconds-between", type=float, default=5.0, help="between two looks at the training (5)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.inside:
        make_builds(work, options.builds)
        return 0
    grows = options.builds > 0 and soak_builds(work, options.builds)
    if options.minutes > 0:
        grows |= soak_training(work, options.minutes, options.seconds_between)
    return int(grows)


if __name__ == "__main__":
    run_command(main)
