"""What shard sets mean, kept before a change of the code and compared after it.

    python bench/golden.py record before.json --repo CHECKOUT    # of another checkout; without --repo, of this one
    python bench/golden.py record after.json
    python bench/golden.py compare before.json after.json       # exit status 1 if what is compared differs

`record` makes small corpora of every kind from a fixed seed, builds sets of them, and keeps what is in the sets and not
their bytes: the ids of the documents in order, the counts, what was rejected, the order of blocks, and how 150
commands end. Digests of documents are given twice: in order, and as a multiset (`any order`). Other wording of an error
is listed by `compare` and is no failure; another exit status is one. Takes about 3 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from bench.golden_cases import BUILDS, COMMANDS, DERIVED  # noqa: E402
from bench.golden_corpora import SAMPLE, damage_sets, make_corpora, write_configs  # noqa: E402

READER = Path(__file__).with_name("golden_reader.py")
KINDS = ("documents", "counts", "order", "status", "messages")


class Checkout:
    """The commands and the reader of one checkout, run as a user does."""

    def __init__(self, repository: Path, work: Path) -> None:
        self.repository, self.work = repository.resolve(), work
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SWANLAB_", "PYTHONPATH"))}
        self.environment = kept | {
            "HF_HUB_OFFLINE": "1",
            "HOME": str(work / "home"),
            "XDG_CACHE_HOME": str(work / "home"),
        }
        self.environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.takes_unit_bytes = "--unit-bytes" in self.run(["-m", "pipeline", "build", "--help"]).stdout

    def run(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.repository,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
        )

    def end_of(self, command: list[str]) -> tuple[int, list[str]]:
        """Exit status of `python -m COMMAND`, and its error lines: of a traceback the last one."""
        ended = self.run(["-m", *command])
        lines = ended.stderr.replace(str(self.work), "W").replace(str(self.repository), "REPO").splitlines()
        errors = [re.sub(r"W/new/\d+", "O", line) for line in lines if line.startswith("error: ")]
        if "Traceback (most recent call last)" in ended.stderr:
            errors.append(f"traceback: {lines[-1]}")
        return ended.returncode, errors

    def build(self, line: str) -> tuple[int, list[str]]:
        name, *words = shlex.split(line)
        options = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
        sources = [str(self.work / "in" / word) for word in words[:options]]
        given = words[options:]
        if "--unit-bytes" in given and not self.takes_unit_bytes:
            place = given.index("--unit-bytes")
            del given[place : place + 2]
        usual = {"--tokenizer": str(self.work / "tokenizer"), "--block-tokens": "64", "--workers": "2"}
        for option, value in usual.items():
            given += [] if option in given else [option, value]
        return self.end_of(["pipeline", "build", *sources, "--out", str(self.work / "sets" / name), "--quiet", *given])

    def command(self, number: int, line: str) -> tuple[int, list[str]]:
        own = str(self.work / "new" / str(number))
        os.makedirs(own)
        words = [re.sub(r"(^|,)W/", rf"\1{self.work}/", word) for word in shlex.split(line)]
        return self.end_of([own + word[1:] if word.startswith("O/") else word for word in words])


def lines_of(table: str) -> list[str]:
    return [line for line in table.splitlines() if line]


def record(repository: Path, work: Path) -> dict[str, Any]:
    """Everything that `compare` looks at."""
    make_corpora(work)
    checkout = Checkout(repository, work)
    ended: dict[str, tuple[int, list[str]]] = {}
    trained = ["pipeline", "tokenizer", str(SAMPLE), "--vocab-size", "1200", "--out", str(work / "tokenizer")]
    ended["tokenizer"] = checkout.end_of(trained)
    builds, derived, commands = map(lines_of, (BUILDS, DERIVED, COMMANDS))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ended |= zip((f"build {line}" for line in builds), pool.map(checkout.build, builds), strict=True)
        made = pool.map(
            checkout.command, range(1000, 1000 + len(derived)), (line.partition(" ")[2] for line in derived)
        )
        ended |= zip((f"derive {line}" for line in derived), made, strict=True)
        damage_sets(work)
        write_configs(work)
        config = str(work / "config.yaml")
        ended["run"] = checkout.end_of(["train", "--config", config, "--output_dir", str(work / "run")])
        ended |= zip(commands, pool.map(checkout.command, range(len(commands)), commands), strict=True)
    read = checkout.run(["-c", READER.read_text("utf-8"), str(work)])
    if read.returncode:
        raise SystemExit(f"the reader of {repository} failed:\n{read.stderr}")
    found: dict[str, Any] = json.loads(read.stdout)
    found["status"] = {line: status for line, (status, _lines) in ended.items()}
    found["messages"] |= {line: lines for line, (_status, lines) in ended.items()}
    return found


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": [1]}}` as `("a / b / 0", 1)`."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from flat(item, f"{name} / {key}" if name else str(key))
    else:
        yield name, value


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print what differs, and return the number of differences that are failures."""
    failures = 0
    for kind in KINDS:
        before, after = dict(flat(old[kind])), dict(flat(new[kind]))
        names = [name for name in {**before, **after} if before.get(name, "nothing") != after.get(name, "nothing")]
        for name in names:
            print(f"{kind}: {name}: {before.get(name, 'nothing')} → {after.get(name, 'nothing')}")
        print(f"{kind}: {len(names):,} of {len({**before, **after}):,} values differ")
        failures += len(names) if kind != "messages" else 0
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--repo", type=Path, default=REPOSITORY, help="the checkout that is looked at (this one)")
    recording.add_argument("--work", type=Path, help="a new directory for all that is made, which then stays")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        return 1 if compare(*(json.loads(path.read_text("utf-8")) for path in (options.old, options.new))) else 0
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record(options.repo, work.resolve()), ensure_ascii=False, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
