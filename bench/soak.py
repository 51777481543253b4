"""Training for an hour, and builds one after another: does anything grow?

    python -m bench.soak WORK [--minutes 60] [--builds 20] [--seconds-between 5]

The builds (JSON Lines, Parquet, gzip, a JSON array with --dedup exact, in turns) are made by one process, which is looked
at after each, from the fifth on: what is loaded once is no growth. Then `configs/sample.yaml` is trained in epochs without
end and stopped by SIGTERM; it and its children are looked at every few seconds through /proc. Temporary files are those in
a TMPDIR of their own. Each measure's median in the first quarter is set against the one in the last: it grows if that is
more by 2 % and 8 MiB (counts: by one).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.builds import REPOSITORY, descendants
from bench.corpus import SAMPLE

MEASURES = {
    "rss": "memory (RSS), all processes, MiB",
    "own_rss": "memory (RSS), the process itself, MiB",
    "own_anon": "of that, its own (anonymous) pages, MiB",
    "descriptors": "file descriptors, all processes",
    "threads": "threads, all processes",
    "processes": "processes",
    "shared": "entries of /dev/shm, whoever made them",
    "temporary": "files in TMPDIR",
}
_IN_MIB = ("rss", "own_rss", "own_anon")
_ALLOWED_SHARE, _ALLOWED_MIB = 0.02, 8.0
_STOP_SECONDS = 120
Sample = dict[str, float]


def look(process: int, temporary: Path) -> Sample:
    """All measures of a process with its children, now."""
    found = dict.fromkeys(("rss", "own_rss", "own_anon", "descriptors", "threads", "processes"), 0.0)
    for number in descendants(process):
        try:
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{number}/status").read_text().splitlines())
            rss, anon = (int(fields.get(name, "0 kB").split()[0]) / 1024 for name in ("VmRSS", "RssAnon"))
            num_descriptors = len(os.listdir(f"/proc/{number}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            continue
        found["rss"] += rss
        if number == process:
            found["own_rss"], found["own_anon"] = rss, anon
        found["descriptors"] += num_descriptors
        found["threads"] += int(fields["Threads"])
        found["processes"] += 1
    found["shared"] = len(os.listdir("/dev/shm"))
    found["temporary"] = sum(1 for path in temporary.rglob("*") if path.is_file())
    return found


def print_table(what: str, samples: Sequence[Sample], seconds: Sequence[float]) -> bool:
    """Whether anything grows."""
    print(f"\n{what}, {len(samples):,} samples\n")
    print("| measure | first quarter | last quarter | highest | slope of the second half, an hour | verdict |")
    print("|---|---|---|---|---|---|")
    quarter, half = max(1, len(samples) // 4), len(samples) // 2
    grows = False
    for name, words in MEASURES.items():
        values = [sample[name] for sample in samples]
        first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
        limit = first * (1 + _ALLOWED_SHARE) + _ALLOWED_MIB if name in _IN_MIB else first
        grows |= last > limit
        form = "{:,.1f}" if name in _IN_MIB else "{:,g}"
        slope = 3600 * float(np.polyfit(seconds[half:], values[half:], 1)[0]) if len(values) > 3 else 0.0
        cells = [*(form.format(value) for value in (first, last, max(values))), f"{slope:+,.1f}"]
        print(f"| {words} | {' | '.join(cells)} | {'GROWS' if last > limit else 'does not grow'} |", flush=True)
    return grows


def write_corpora(work: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Some megabytes in each format, and the settings of its build."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = json.loads(SAMPLE.read_text(encoding="utf-8"))
    texts = [record["text"] + str(number) for number in range(20) for record in records]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    (work / "corpus.jsonl").write_bytes(lines)
    (work / "corpus.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    (work / "corpus.json").write_text(json.dumps([{"text": text} for text in texts * 2]), encoding="utf-8")
    pq.write_table(pa.table({"text": texts}), work / "corpus.parquet", row_group_size=500)
    options = {"corpus.jsonl": {}, "corpus.jsonl.gz": {}, "corpus.json": {"dedup": "exact"}, "corpus.parquet": {}}
    return {name: (work / name, settings) for name, settings in options.items()}


def make_builds(work: Path, num_builds: int) -> None:
    """In a process of its own: the builds, and a line of JSON after each."""
    from pipeline.build import build
    from pipeline.settings import BuildSettings

    corpora = list(write_corpora(work).values())
    begin = time.monotonic()
    for number in range(-len(corpora), num_builds):
        source, options = corpora[number % len(corpora)]
        settings = BuildSettings(unit_bytes=1 << 20, **options)
        build([str(source)], work / "set", tokenizer_name="qwen2", settings=settings, num_workers=2)
        shutil.rmtree(work / "set")
        if number < 0:  # what is loaded and started once is no growth
            continue
        sample = look(os.getpid(), Path(os.environ["TMPDIR"]))
        print(json.dumps({"seconds": time.monotonic() - begin, **sample}), flush=True)


def soak_builds(work: Path, num_builds: int) -> bool:
    temporary = fresh(work / "tmp")
    command = [sys.executable, "-m", "bench.soak", str(fresh(work / "builds")), "--builds", str(num_builds), "--inside"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(temporary), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    samples = [json.loads(line) for line in process.stdout]
    if process.wait():
        raise SystemExit(f"error: the builds ended with status {process.returncode}")
    left = sorted(path.name for path in (work / "builds").iterdir() if not path.name.startswith("corpus."))
    if left:
        raise SystemExit(f"error: the builds have left {left}")
    return print_table(f"{num_builds} builds in one process", samples, [sample.pop("seconds") for sample in samples])


def soak_training(work: Path, minutes: float, seconds_between: float) -> bool:
    temporary, run = fresh(work / "tmp"), work / "run"
    shutil.rmtree(run, ignore_errors=True)
    config = ["--config", "configs/sample.yaml", "--shards", str(sample_set(work)), "--output_dir", str(run)]
    options = ["--num_train_epochs", "1000000", "--tracking.mode", "offline"]
    log = work / "training.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *config, *options],
            cwd=REPOSITORY,
            env=environment(temporary),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    samples, seconds, begin = [], [], None
    try:
        while begin is None or time.monotonic() - begin < 60 * minutes:
            time.sleep(seconds_between)
            if process.poll() is not None:
                raise SystemExit(f"error: the training ended with status {process.returncode}: {log}")
            if begin is None:  # what is loaded before the first log line is no growth
                begin = time.monotonic() if (run / "metrics.jsonl").exists() else None
                continue
            seconds.append(time.monotonic() - begin)
            samples.append(look(process.pid, temporary))
            with (work / "samples.jsonl").open("a") as lines:
                lines.write(json.dumps({"seconds": seconds[-1], **samples[-1]}) + "\n")
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 128 + signal.SIGTERM:
        raise SystemExit(f"error: expected status 143 after SIGTERM, found {process.returncode}: {log}")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    num_evaluations = sum("eval_loss" in line for line in logged)
    checkpoints = sorted(path.name for path in run.glob("checkpoint-*"))
    speeds = [line["tokens_per_second"] for line in logged if "tokens_per_second" in line]
    quarter = max(1, len(speeds) // 4)
    first, last = statistics.median(speeds[:quarter]), statistics.median(speeds[-quarter:])
    grows = print_table(f"{minutes:g} minutes of training", samples, seconds)
    print(f"\n{logged[-1]['step']:,} steps, {num_evaluations} evaluations, checkpoints kept: {', '.join(checkpoints)}")
    print(f"tokens a second: {first:,.0f} in the first quarter, {last:,.0f} in the last")
    left = sorted(path.name for path in temporary.rglob("*") if path.is_file())
    print(f"left in TMPDIR after the end: {', '.join(left) or 'nothing'}")
    return grows


def sample_set(work: Path) -> Path:
    """The shard set of configs/sample.yaml, as `make shards` builds it."""
    tokenizer, out = work / "tokenizer", work / "sample-set"
    pipeline = [sys.executable, "-m", "pipeline"]
    if not tokenizer.exists():
        command = [*pipeline, "tokenizer", str(SAMPLE), "--vocab-size", "4096", "--out", str(tokenizer)]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    options = ["--block-tokens", "128", "--packing", "best-fit", "--val-fraction", "0.05", "--quiet"]
    command = [*pipeline, "build", str(SAMPLE), "--out", str(out), "--tokenizer", str(tokenizer), *options]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return out


def fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="directory for all of it")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training (60); 0: none")
    parser.add_argument("--builds", type=int, default=20, help="builds, one after another (20); 0: none")
    parser.add_argument("--seconds-between", type=float, default=5.0, help="between two looks at the training (5)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.inside:
        make_builds(work, options.builds)
        return 0
    grows = options.builds > 0 and soak_builds(work, options.builds)
    if options.minutes > 0:
        grows |= soak_training(work, options.minutes, options.seconds_between)
    return 1 if grows else 0


if __name__ == "__main__":
    sys.exit(main())
