"""What `python -m pipeline build` costs: CPU, time, memory; against its tokenizer alone and the tutorial's way.

    python bench/pipeline.py [--corpus FILE] [--formats array,jsonl,compact,gz] [--rounds 3] [--work DIR]

Everything is measured in turns (alternative, ours, alternative, ours, …) in one run; the ratios' medians count, since
machines are shared. CPU seconds are user and system time of all processes. Prints a Markdown table for bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.corpus import write_rehearsal  # noqa: E402
from pipeline.fields import TextOf  # noqa: E402
from pipeline.readers import open_stretch  # noqa: E402
from pipeline.records import ReadOptions, raise_bad  # noqa: E402
from pipeline.sources import find_sources  # noqa: E402
from pipeline.units import plan_units  # noqa: E402


class Cost(NamedTuple):
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int  # PSS of all processes together


def texts_of(path: Path) -> Iterator[list[str]]:
    """The corpus's texts in batches of about a megabyte."""
    options, text_of = ReadOptions(on_bad=raise_bad), TextOf("text")
    sources = find_sources([str(path)])
    for unit in plan_units(sources, 1 << 62):
        for batch in open_stretch(sources[0], unit.stretches[0], options):
            yield [text for text in text_of.texts(batch, options) if text]


def tokenizer_alone(path: Path) -> None:
    """(In a process of its own) the CPU seconds that `encode_batch_flat` takes for all texts, which are in memory."""
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    from fastokens import _native

    from pipeline.tokenizers import load_tokenizer_files

    tokenizer = _native.Tokenizer.from_json_str(load_tokenizer_files("qwen2").tokenizer_json.decode())
    batches = list(texts_of(path))
    begin = time.process_time()
    num_tokens = 0
    for batch in batches:
        ids, _ = tokenizer.encode_batch_flat(batch, add_special_tokens=False, split_special_tokens=True)
        num_tokens += len(ids) // 4
    print(json.dumps({"cpu_seconds": time.process_time() - begin, "num_tokens": num_tokens}))


def tutorial(path: Path, tokenizer: Path, num_workers: int) -> None:
    """(In a process of its own) the original script's way: `datasets.map`, tails dropped, no cache."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    qwen2 = AutoTokenizer.from_pretrained(tokenizer)
    raw = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))

    def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
        outputs = qwen2(
            rows["text"], truncation=True, max_length=512, return_overflowing_tokens=True, return_length=True
        )
        pairs = zip(outputs["length"], outputs["input_ids"], strict=True)
        return {"input_ids": [ids for length, ids in pairs if length == 512]}

    begin = time.perf_counter()
    raw.map(tokenize, batched=True, remove_columns=raw.column_names, num_proc=num_workers if num_workers > 1 else None)
    print(json.dumps({"wall_seconds": time.perf_counter() - begin}))


def in_process(function: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--function", function, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def build(sources: list[Path], out: Path, num_workers: int) -> Cost:
    """One build, watched."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "pipeline", "build", *map(str, sources), "--out", str(out), "--quiet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    process = subprocess.Popen([*command, "--workers", str(num_workers)], cwd=REPOSITORY)
    watch = MemoryWatch(process.pid)
    watch.start()
    if process.wait() != 0:
        raise SystemExit(f"the build of {sources} failed")
    wall = time.perf_counter() - begin
    watch.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, wall, watch.peak_bytes)


class MemoryWatch(threading.Thread):
    """The highest sum of PSS over a process and its children, looked at five times a second."""

    def __init__(self, parent: int) -> None:
        super().__init__(daemon=True)
        self._parent, self.peak_bytes = parent, 0

    def run(self) -> None:
        while Path(f"/proc/{self._parent}/status").exists():
            try:
                children = Path(f"/proc/{self._parent}/task/{self._parent}/children").read_text().split()
                total = sum(self._pss(number) for number in [str(self._parent), *children])
            except (FileNotFoundError, ProcessLookupError):
                break
            if total == 0:
                break
            self.peak_bytes = max(self.peak_bytes, total)
            time.sleep(0.2)

    def _pss(self, process: str) -> int:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def convert(corpus: Path, name: str, work: Path) -> Path:
    """The corpus (an array, one record a line) in another format."""
    path = (
        work / {"array": corpus.name, "jsonl": "corpus.jsonl", "compact": "compact.json", "gz": "corpus.json.gz"}[name]
    )
    if name == "array":
        return corpus
    if not path.exists():
        with corpus.open("rb") as source, gzip.open(path, "wb", 6) if name == "gz" else path.open("wb") as file:
            if name == "gz":
                shutil.copyfileobj(source, file, 1 << 20)
                return path
            for number, line in enumerate(line for line in source if line.startswith(b"{")):
                record = line.rstrip(b",\n")
                if name == "jsonl":
                    file.write(record + b"\n")
                    continue
                if number % 10 == 0:  # every tenth record with \\uXXXX escapes
                    record = json.dumps(json.loads(record)).encode()
                file.write((b", " if number else b"[") + record)
            if name == "compact":
                file.write(b"]")
    return path


def part_of(corpus: Path, num_bytes: int, work: Path) -> Path:
    """The first records of the corpus as JSON Lines."""
    path = work / "part.jsonl"
    with corpus.open("rb") as source, path.open("wb") as file:
        for line in source:
            if line.startswith(b"{"):
                file.write(line.rstrip(b",\n") + b"\n")
            if file.tell() > num_bytes:
                break
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a JSON array, one record a line (default: a rehearsal corpus)")
    parser.add_argument("--records", type=int, default=60_000, help="records of the rehearsal corpus (60,000)")
    parser.add_argument("--formats", default="array,jsonl,compact,gz")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="directory for converted corpora and sets (default: a temporary one)")
    parser.add_argument("--function", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.function:
        name, path, *others = options.function
        if name == "tokenizer_alone":
            tokenizer_alone(Path(path))
        else:
            tutorial(Path(path), Path(others[0]), int(others[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        corpus = options.corpus or work / "rehearsal.json"
        if not corpus.exists():
            write_rehearsal(corpus, options.records)
        measure(corpus, options.formats.split(","), options.rounds, work)


def measure(corpus: Path, formats: list[str], rounds: int, work: Path) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load before {load}; corpus of ", end=""
    )
    print(f"{corpus.stat().st_size / 1e6:,.0f} MB\n")
    print("| measure | median | all rounds |\n|---|---|---|", flush=True)
    out = work / "set"
    for name in formats:
        path = convert(corpus, name, work)
        num_bytes = corpus.stat().st_size if name == "gz" else path.stat().st_size
        ratios, rates, costs = [], [], []
        for _ in range(rounds):
            alone = in_process("tokenizer_alone", path)["cpu_seconds"]
            cost = build([path], out, 2)
            ratios.append(alone / cost.cpu_seconds)
            rates.append(num_bytes / 1e6 / cost.cpu_seconds)
            costs.append(cost)
        row(f"{name}: tokenizer's CPU seconds / ours", ratios, "{:.3f}")
        row(f"{name}: MB a CPU second", rates, "{:.1f}")
        row(f"{name}: wall seconds, 2 workers", [cost.wall_seconds for cost in costs], "{:.1f}")
        row(f"{name}: peak PSS in MiB, 2 workers", [cost.peak_bytes / 2**20 for cost in costs], "{:.0f}")
    one, two = [], []
    for _ in range(rounds):
        one.append(build([corpus], out, 1).wall_seconds)
        two.append(build([corpus], out, 2).wall_seconds)
    row("array: wall seconds, 1 worker / 2 workers", [a / b for a, b in zip(one, two, strict=True)], "{:.2f}")
    twice = work / "twice.json"
    shutil.copy(corpus, twice)
    row("two files of that size: peak PSS in MiB", [build([corpus, twice], out, 2).peak_bytes / 2**20], "{:.0f}")
    twice.unlink()
    part = part_of(corpus, 1_000_000, work)
    row("1 MB: wall seconds, start-up included", [build([part], out, 2).wall_seconds for _ in range(rounds)], "{:.2f}")
    again = []
    for _ in range(rounds):
        begin = time.perf_counter()
        command = [sys.executable, "-m", "pipeline", "build", str(part), "--out", str(out), "--quiet"]
        subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
        again.append(time.perf_counter() - begin)
    row("up to date: wall seconds", again, "{:.2f}")
    against_tutorial(corpus, rounds, work)


def against_tutorial(corpus: Path, rounds: int, work: Path) -> None:
    out = work / "set"
    part = part_of(corpus, 27_000_000, work)
    ratios: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        ours = corpus.stat().st_size / build([corpus], out, 2).wall_seconds
        for num_processes, values in ratios.items():
            seconds = in_process("tutorial", part, out / "tokenizer", num_processes)["wall_seconds"]
            shutil.rmtree(work / "cache", ignore_errors=True)
            values.append(ours / (part.stat().st_size / seconds))
    row("MB/s against the tutorial's datasets.map as it is, one process", ratios[1], "{:.1f}")
    row("MB/s against the tutorial's datasets.map with num_proc=2", ratios[2], "{:.1f}")


def row(name: str, values: list[float], form: str) -> None:
    print(f"| {name} | {form.format(statistics.median(values))} | {', '.join(map(form.format, values))} |", flush=True)


if __name__ == "__main__":
    main()
