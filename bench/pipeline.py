"""What `python -m pipeline build` costs: time and memory; against the tutorial's way, and the peers.

    python -m bench.pipeline [--corpus FILE] [--only wall memory peers] [--rounds N]

The corpus that is made by default repeats its text, which suits encoders that remember words. For text that no encoder has
seen, name a corpus of your own (JSON Lines, or an array with one record a line) and a part as large as all of it.

All is measured in turns in one run, and the ratios' medians count, since machines are shared. Tokens are compared wherever
both sides should have the same. Prints Markdown tables for bench/RESULTS.md.

wall    and CPU s a GB, with 2 and 1 workers; a corpus of 1 MB; a second run with nothing to do
memory  PSS of all processes together, for the corpus and for two such files
peers   MB/s with 2 processes of the tutorial's `datasets.map`, datatrove, Megatron and litdata, on a part of the
        corpus (`--part-bytes`); what `make peers` hasn't installed is left out
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.corpus import write_part, write_rehearsal
from bench.measure import PEERS_VENV, Ended, ours, print_head, print_machine, print_rounds, ratios, run
from shards.common.command_line import Parser, run_command
from shards.manifest import read_manifest

MEASURES = ("wall", "memory", "peers")
PEERS = ("datatrove", "megatron", "litdata")
NUM_WORKERS = 2


class Bench:
    """One corpus, measured in several ways; `work` holds what is written."""

    def __init__(self, corpus: Path, work: Path, rounds: int, part_bytes: int) -> None:
        self.corpus, self.work, self.rounds, self.part_bytes = corpus, work, rounds, part_bytes
        self.megabytes, self.out = corpus.stat().st_size / 1e6, work / "set"
        write_part(corpus, 1_000_000, work / "small", 1)
        self.small, self.tokenizer = work / "small" / "0.jsonl", work / "tokenizer"
        self.build(self.small)
        shutil.copytree(self.out / "tokenizer", self.tokenizer, dirs_exist_ok=True)

    def build(self, *sources: Path, num_workers: int = NUM_WORKERS, anew: bool = True, watch: bool = False) -> Ended:
        if anew:
            shutil.rmtree(self.out, ignore_errors=True)
        os.sync()  # what an earlier one left to be written is not this one's
        options = ("--out", self.out, "--workers", num_workers, "--quiet")
        return run(ours("pipeline", "build", *sources, *options), watch_memory=watch)

    def way(self, name: str, texts: Path, python: Path = Path(sys.executable), num_workers: int = NUM_WORKERS) -> Any:
        directory = self.work / "way"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        arguments = ("-m", "bench.ways", name, texts, self.tokenizer, directory / "tokens", num_workers)
        return run([python, *arguments]).last_line()

    def wall(self) -> None:
        two, one, cpu, small, again = [], [], [], [], []
        for _ in range(self.rounds):
            ended = self.build(self.corpus)
            two.append(ended.wall_seconds)
            cpu.append(ended.cpu_seconds / self.megabytes * 1e3)
            one.append(self.build(self.corpus, num_workers=1).wall_seconds)
        for _ in range(max(3, self.rounds)):
            small.append(self.build(self.small).wall_seconds)
            again.append(self.build(self.small, anew=False).wall_seconds)
        print_rounds("wall s, 2 workers", two, "{:.1f}", "< 30 at 1.9 GB")
        print_rounds("wall s, 1 worker", one, "{:.1f}")
        print_rounds("CPU s a GB, 2 workers", cpu, "{:.1f}")
        print_rounds("wall s, 1 worker / 2", ratios(one, two), "{:.2f}", "< 2.1")
        print_rounds("1 MB: wall s from start to end", small, "{:.2f}", "first unit < 3")
        print_rounds("nothing changed since: wall s", again, "{:.2f}", "< 1")

    def memory(self) -> None:
        twice = Path(shutil.copy(self.corpus, self.work / f"twice{self.corpus.suffix}"))
        once, both = [], []
        for _ in range(self.rounds):
            once.append(self.build(self.corpus, watch=True).total_bytes / 2**20)
            both.append(self.build(self.corpus, twice, watch=True).total_bytes / 2**20)
        print_rounds("peak memory of all processes (PSS), 2 workers, MiB", once, "{:.0f}", "< 1,229")
        print_rounds("two files of that size / one", ratios(both, once), "{:.3f}", "0.9 – 1.1")

    def peers(self) -> None:
        part = self.work / "part"
        megabytes = write_part(self.corpus, self.part_bytes, part, NUM_WORKERS) / 1e6
        peers = [name for name in PEERS if any(PEERS_VENV.glob(f"lib/*/site-packages/{name}"))]
        print(f"{', '.join(sorted({*PEERS} - {*peers})) or 'none'} left out: not installed", file=sys.stderr)
        names = ("datasets.map, 1 process", "datasets.map", *peers)
        rates: dict[str, list[float]] = {name: [] for name in names}
        whole, same = [], []
        for _ in range(self.rounds):
            whole.append(self.megabytes / self.build(self.corpus).wall_seconds)
            same.append(megabytes / self.build(*sorted(part.iterdir())).wall_seconds)
            expected = sum(split.num_tokens for split in read_manifest(self.out).splits.values())
            rates["datasets.map, 1 process"].append(megabytes / self.way("tutorial", part, num_workers=1)[0])
            rates["datasets.map"].append(megabytes / self.way("tutorial", part)[0])
            for name in peers:
                seconds, num_tokens = self.way(name, part, PEERS_VENV / "bin" / "python")
                if num_tokens != expected:
                    raise SystemExit(f"{name}: {num_tokens:,} tokens, expected {expected:,}")
                rates[name].append(megabytes / seconds)
        print_rounds("build, the corpus as it is, start-up included: MB/s", whole, "{:.1f}")
        print_rounds(f"build, {megabytes:.0f} MB in two files: MB/s", same, "{:.1f}")
        for name, measured in rates.items():
            print_rounds(f"{name}, imports left out: MB/s", measured, "{:.2f}")
            print_rounds(f"build of the corpus / {name}", ratios(whole, measured), "{:.1f}")


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="the texts (default: a rehearsal corpus that is made)")
    parser.add_argument("--records", type=int, default=60_000, help="of the rehearsal corpus (60,000, which are 80 MB)")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES[:2], help="(wall memory)")
    parser.add_argument("--part-bytes", type=int, default=27_000_000, metavar="N", help="for the peers (27,000,000)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured (3)")
    parser.add_argument("--work", type=Path, help="where corpora and sets are written, 3 times the corpus (temporary)")
    options = parser.parse_args(argv)
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work = Path(temporary).resolve()
        corpus = options.corpus and options.corpus.resolve()
        if not corpus:
            corpus = work / "rehearsal.json"
            write_rehearsal(corpus, options.records)
        bench = Bench(corpus, work, options.rounds, options.part_bytes)
        print_machine(f"{bench.megabytes:,.0f} MB")
        print_head("measure", "median", "target", "every round")
        for name in options.only:
            getattr(bench, name)()


if __name__ == "__main__":
    run_command(main)
