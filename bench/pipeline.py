"""What `python -m pipeline build` costs: CPU, time, memory; against its tokenizer alone, the tutorial's way, and the peers.

    python bench/pipeline.py [--corpus FILE] [--only cpu,wall,memory,tutorial,peers] [--rounds N] [--out FILE.json]

The corpus that is made by default repeats its text, which suits encoders that remember words. For text that no encoder has
seen, name a corpus of your own and a part as large as all of it.

Everything is measured in turns (alternative, ours, alternative, ours, …) in one run, and the ratios' medians count, since
machines are shared. CPU seconds are user and system time of all processes; tokens are compared wherever both sides
should have the same. Prints a Markdown table for bench/RESULTS.md.

cpu       the tokenizer's CPU seconds for the same texts, in memory, / the build's; array, jsonl, compact, gz
wall      with 2 and 1 workers; a corpus of 1 MB; a second run with nothing to do
memory    PSS of all processes together, for the corpus and for two such files
tutorial  MB/s of the corpus / MB/s of `datasets.map` with Qwen2's tokenizer on a part of it (`--part-bytes`)
scaling   CPU seconds a GB with 1, 2, 4 and 8 workers, and what one process does alone: loading, planning, finishing
peers     the same against datatrove, Megatron, litdata and dolma (made by `make peers`; left out where missing)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.builds import Cost, build_command, run, run_and_read, run_build  # noqa: E402
from bench.corpus import convert, write_part, write_rehearsal  # noqa: E402

MEASURES = ("cpu", "wall", "memory", "tutorial", "peers", "scaling")
QUICK = MEASURES[:3]
FORMATS = ("array", "jsonl", "compact", "gz")
EFFICIENCY_TARGETS = {"array": 0.90, "jsonl": 0.90, "compact": 0.80, "gz": 0.75}
PEERS = ("datatrove", "megatron", "litdata", "dolma")
NUM_WORKERS = 2


class Report:
    """The table: a row is printed as soon as it is known."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def head(self) -> None:
        print("| measure | median | target | every round |\n|---|---|---|---|", flush=True)

    def row(self, name: str, values: Sequence[float], form: str, target: str = "") -> None:
        median = statistics.median(values)
        self.rows.append({"measure": name, "median": median, "target": target, "values": list(values)})
        print(f"| {name} | {form.format(median)} | {target} | {', '.join(map(form.format, values))} |", flush=True)


class Bench:
    """One corpus, measured in several ways; `work` holds what is written."""

    def __init__(self, corpus: Path, work: Path, rounds: int, report: Report, part_bytes: int) -> None:
        self.corpus, self.work, self.rounds, self.report = corpus, work, rounds, report
        self.part_bytes, self.part = part_bytes, f"{part_bytes / 1e6:.0f} MB"
        self.corpus_bytes = corpus.stat().st_size
        self.out = work / "set"
        self.others: list[float] = []

    def build(self, sources: Sequence[Path], num_workers: int = NUM_WORKERS, *, watch_memory: bool = False) -> Cost:
        cost = run_build(sources, self.out, num_workers, watch_memory=watch_memory)
        self.others.append(cost.other_cores)
        return cost

    def alternative(self, name: str, *arguments: object) -> dict[str, Any]:
        return run_and_read([sys.executable, "-m", "bench.alternatives", name, *map(str, arguments)])

    def cpu(self, formats: Sequence[str]) -> None:
        start_up = statistics.median(self._small_build().cpu_seconds for _ in range(max(3, self.rounds)))
        for name in formats:
            path = convert(self.corpus, name, self.work)
            # Unpacked, .gz is the array.
            num_bytes = self.corpus_bytes if name == "gz" else path.stat().st_size
            alone, ours = [], []
            for _ in range(self.rounds):
                reference = self.alternative("tokenizer", path)
                cost = self.build([path])
                if cost.num_tokens != reference["num_tokens"]:
                    raise SystemExit(f"{path}: {cost.num_tokens:,} tokens, expected {reference['num_tokens']:,}")
                alone.append(reference["cpu_seconds"])
                ours.append(cost)
            cpu = [cost.cpu_seconds for cost in ours]
            ratios = [left / right for left, right in zip(alone, cpu, strict=True)]
            later = [left / (right - start_up) for left, right in zip(alone, cpu, strict=True)]
            row, target = self.report.row, f"≥ {EFFICIENCY_TARGETS[name]:.2f}"
            row(f"{name}: CPU efficiency, the tokenizer's seconds / the build's", ratios, "{:.3f}", target)
            row(f"{name}: the same, {start_up:.1f} CPU s of start-up left out", later, "{:.3f}")
            row(f"{name}: MB of source a CPU second, tokenizer alone", [num_bytes / 1e6 / v for v in alone], "{:.1f}")
            row(f"{name}: MB of source a CPU second, build", [num_bytes / 1e6 / v for v in cpu], "{:.1f}")
            row(f"{name}: wall seconds, 2 workers", [cost.wall_seconds for cost in ours], "{:.1f}")

    def wall(self) -> None:
        two, one = [], []
        for _ in range(self.rounds):
            two.append(self.build([self.corpus]))
            one.append(self.build([self.corpus], 1))
        row = self.report.row
        row("array: wall seconds, 2 workers", [cost.wall_seconds for cost in two], "{:.1f}", "< 30 at 1.9 GB")
        row("array: wall seconds, 1 worker", [cost.wall_seconds for cost in one], "{:.1f}")
        pairs = list(zip(one, two, strict=True))
        row("array: wall time, 1 worker / 2", [a.wall_seconds / b.wall_seconds for a, b in pairs], "{:.2f}", "< 2.1")
        row("array: CPU time, 1 worker / 2", [a.cpu_seconds / b.cpu_seconds for a, b in pairs], "{:.2f}")
        small = [self._small_build().wall_seconds for _ in range(max(3, self.rounds))]
        row("1 MB: wall seconds from start to end", small, "{:.2f}", "first unit < 3")
        again = [run(build_command([self._small()], self.out)).wall_seconds for _ in range(max(3, self.rounds))]
        row("nothing changed since: wall seconds", again, "{:.2f}", "< 1")

    def memory(self) -> None:
        twice = self.work / "twice.json"
        shutil.copy(self.corpus, twice)
        once, both = [], []
        for _ in range(self.rounds):
            once.append(self.build([self.corpus], watch_memory=True).peak_bytes / 2**20)
            both.append(self.build([self.corpus, twice], watch_memory=True).peak_bytes / 2**20)
        twice.unlink()
        row = self.report.row
        row("peak memory of all processes (PSS), 2 workers, MiB", once, "{:.0f}", "< 1,229")
        row("the same, two files of that size, MiB", both, "{:.0f}")
        row("two files / one", [b / a for a, b in zip(once, both, strict=True)], "{:.3f}", "0.9 – 1.1")

    def tutorial(self) -> None:
        part, num_bytes = self._part(1)
        ours: list[float] = []
        found: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(self.rounds):
            for num_processes, rates in found.items():
                seconds = self.alternative("tutorial", part / "0.jsonl", self._tokenizer(), num_processes)
                rates.append(num_bytes / 1e6 / seconds["wall_seconds"])
            ours.append(self.corpus_bytes / 1e6 / self.build([self.corpus]).wall_seconds)
        row = self.report.row
        row("build, the whole corpus, 2 workers: MB/s", ours, "{:.1f}")
        row(f"datasets.map, num_proc=2, {self.part}: MB/s", found[2], "{:.2f}")
        row("build / datasets.map with num_proc=2", _ratios(ours, found[2]), "{:.1f}", "≥ 40")
        row(f"datasets.map, one process (its tokenizer takes all cores), {self.part}: MB/s", found[1], "{:.2f}")
        row("build / datasets.map with one process", _ratios(ours, found[1]), "{:.1f}")

    def peers(self, environment: Path) -> None:
        pythons = {name: _peer_python(environment, name) for name in PEERS}
        for name in [name for name, python in pythons.items() if python is None]:
            print(f"{name}: left out, not installed: `make peers`", file=sys.stderr)
        part, num_bytes = self._part(NUM_WORKERS)
        tokenizer, files = self._tokenizer(), sorted(part.glob("*.jsonl"))
        rates: dict[str, list[float]] = {name: [] for name, python in pythons.items() if python is not None}
        whole, same = [], []
        for _ in range(self.rounds):
            same_part = self.build(files)
            for name, measured in rates.items():
                directory = self.work / "peer"
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                arguments = [name, part, tokenizer, directory / "tokens", NUM_WORKERS]
                result = run_and_read([str(pythons[name]), str(REPOSITORY / "bench/peers.py"), *map(str, arguments)])
                expected = same_part.num_tokens + sum(path.read_bytes().count(b"\n") for path in files)
                if result["num_tokens"] != expected:
                    raise SystemExit(f"{name}: {result['num_tokens']:,} tokens, expected {expected:,}")
                measured.append(num_bytes / 1e6 / result["wall_seconds"])
            same.append(num_bytes / 1e6 / same_part.wall_seconds)
            whole.append(self.corpus_bytes / 1e6 / self.build([self.corpus]).wall_seconds)
        row = self.report.row
        for name, measured in rates.items():
            row(f"{name}, {self.part}, 2 workers: MB/s", measured, "{:.2f}")
        row(f"build, the same {self.part}, start-up included: MB/s", same, "{:.1f}")
        row("build, the whole corpus: MB/s", whole, "{:.1f}")
        if rates:
            best = [max(values) for values in zip(*rates.values(), strict=True)]
            row("build of the whole corpus / best peer", _ratios(whole, best), "{:.1f}", "≥ 20")
            row(f"build of the same {self.part} / best peer", _ratios(same, best), "{:.1f}")

    def scaling(self) -> None:
        for number in (1, 2, 4, 8):
            costs = [self.build([self.corpus], number) for _ in range(self.rounds)]
            name = f"{number} workers" if number > 1 else "1 worker"
            row = self.report.row
            row(f"{name}: CPU seconds a GB", [cost.cpu_seconds / self.corpus_bytes * 1e9 for cost in costs], "{:.2f}")
            row(f"{name}: wall seconds", [cost.wall_seconds for cost in costs], "{:.1f}")

    def _small(self) -> Path:
        write_part(self.corpus, 1_000_000, self.work / "small", 1)
        return self.work / "small" / "0.jsonl"

    def _small_build(self) -> Cost:
        return self.build([self._small()])

    def _part(self, num_files: int) -> tuple[Path, int]:
        directory = self.work / f"part-{num_files}"
        return directory, write_part(self.corpus, self.part_bytes, directory, num_files)

    def _tokenizer(self) -> Path:
        """A shard set's tokenizer directory, out of the way of later builds."""
        directory = self.work / "tokenizer"
        if not directory.exists():
            self._small_build()
            shutil.copytree(self.out / "tokenizer", directory)
        return directory


def _ratios(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(left, right, strict=True)]


def _peer_python(environment: Path, name: str) -> Path | None:
    """dolma needs older packages than the others: its environment stands beside theirs."""
    directory = environment.with_name(f"{environment.name}-dolma") if name == "dolma" else environment
    python = directory / "bin" / "python"
    return python if any(directory.glob(f"lib/*/site-packages/{name}")) else None


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line.split(":")[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
    )


def names_of(value: str, allowed: Sequence[str]) -> list[str]:
    names = value.split(",")
    if unknown := set(names) - set(allowed):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(allowed)}, found {','.join(sorted(unknown))}")
    return names


def measures(value: str) -> list[str]:
    return names_of(value, MEASURES)


def formats(value: str) -> list[str]:
    return names_of(value, FORMATS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", type=Path, help="a JSON array, one record a line (default: a rehearsal corpus that is made)")
    add("--records", type=int, default=60_000, help="records of the rehearsal corpus (60,000, which are 80 MB)")
    add("--only", type=measures, default=QUICK, metavar="NAMES", help=f"what to measure ({','.join(QUICK)})")
    add(
        "--formats",
        type=formats,
        default=FORMATS[:2],
        metavar="NAMES",
        help=f"of cpu: {', '.join(FORMATS)} (the first two)",
    )
    add("--part-bytes", type=int, default=27_000_000, metavar="N", help="what the slow ones get (27,000,000)")
    add("--rounds", type=int, default=3, help="times that each is measured (3)")
    add("--out", type=Path, metavar="FILE", help="write all figures there as JSON")
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="converted corpora and sets go to DIR/pipeline-bench and are kept (a temporary one)",
    )
    add(
        "--peers-venv",
        type=Path,
        default=REPOSITORY / "bench" / ".peers-venv",
        metavar="DIR",
        help="made by `make peers`",
    )
    return parser


def main() -> None:
    options = make_parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        # A directory of our own: what is in it is overwritten and removed.
        work = (options.work or Path(temporary)).resolve() / "pipeline-bench"
        work.mkdir(parents=True, exist_ok=True)
        corpus = options.corpus or work / f"rehearsal-{options.records}.json"
        if not corpus.exists():
            if options.corpus:
                raise SystemExit(f"{corpus}: no such file")
            write_rehearsal(corpus, options.records)
        load = os.getloadavg()
        report = Report()
        bench = Bench(corpus.resolve(), work, options.rounds, report, options.part_bytes)
        print(f"{machine()}; load before {load[0]:.1f}; corpus of {bench.corpus_bytes / 1e6:,.0f} MB\n")
        report.head()
        steps = {"cpu": lambda: bench.cpu(options.formats), "peers": lambda: bench.peers(options.peers_venv)}
        for name in options.only:
            steps.get(name, getattr(bench, name))()
        if bench.others:
            report.row("cores that others kept busy during the builds", bench.others, "{:.2f}")
        if options.out:
            content = {"machine": machine(), "load": load, "corpus_bytes": bench.corpus_bytes, "rows": report.rows}
            options.out.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
