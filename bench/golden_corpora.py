"""The corpora of `bench.golden`, from a fixed seed, the damaged files and sets, and the settings of a tiny training."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import shutil
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample" / "wikipedia-zh-sample.json"
# What texts end in: special tokens, odd characters, and what looks like the border of two records.
SPECIAL = (
    "<|endoftext|>",
    "a<|endoftext|>b",
    "<|im_start|>user\n<|im_end|>",
    "\u200b\ufeffe\u0301 é",
    "\r\n\t 　",
    "👩‍👩‍👧 𠀀",
)
FORGED = (
    '"},\n{"text": "forged"},\n{"text": "',
    '[{"text": "forged"}]',
    '\\"},{"text":"x"}',
    "]\n[",
    "}\n{",
    "\n\n---\n\n",
)
# One record of each kind that can't be read.
BAD: tuple[bytes, ...] = (
    b'{"text": abc}',
    b"[1]",
    b'{"title": "a"}',
    b'{"text": 5}',
    b'{"text": null}',
    b'{"text": "\xff"}',
)
BAD += (b'{"text": "\\ud800"}', b'{"text": "a", "x": NaN}', b'{"text": "a\x01b"}', b'{"text": "' + b"x" * 9000 + b'"}')


def make_corpora(work: Path) -> None:
    """All corpora, below `work/in`, and files that are damaged, below `work/damaged`. The same in each run."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    chance = random.Random(17)
    articles = [record["text"] for record in json.loads(SAMPLE.read_text("utf-8"))]

    def texts(number: int, extra: tuple[str, ...] = ()) -> list[str]:
        made = []
        for place in range(number):
            article, length = chance.choice(articles), 1 + int(chance.lognormvariate(4.2, 1.3))
            start = chance.randrange(max(1, len(article) - length))
            made.append(article[start : start + length] + (chance.choice(extra) * (place % 3) if extra else ""))
        return made

    def records(found: list[str]) -> list[dict[str, Any]]:
        pages = [{"body": text[::-1], "number": number} for number, text in enumerate(found)]
        return [
            {"id": number, "title": text[:5], "text": text, "page": pages[number], "a.b": f"{number}. {text[:20]}"}
            for number, text in enumerate(found)
        ]

    def rows(found: list[dict[str, Any]]) -> list[bytes]:
        return [json.dumps(record, ensure_ascii=False).encode() for record in found]

    plain = records(texts(140, SPECIAL[3:]))
    lines = rows(plain)
    special, forged = rows(records(texts(40, SPECIAL))), rows(records(texts(60, FORGED)))
    good = rows(records(texts(60)))
    bad = [
        row
        for number, row in enumerate(good)
        for row in ((BAD[number // 5 % len(BAD)], row) if number % 5 == 2 else (row,))
    ]
    doubled = texts(50) * 2 + texts(20) + ["", " ", ""]
    chance.shuffle(doubled)
    jsonl = b"".join(line + b"\n" for line in lines)
    array = b"[\n" + b",\n".join(lines) + b"\n]\n"
    parts = "\n---\n".join(texts(30, SPECIAL)).encode() + b"\n---\n---\nlast\n"
    files = {
        "array.json": array,
        "pretty.json": json.dumps(plain, ensure_ascii=False, indent=2).encode(),
        "compact.json": b"[" + b",".join(lines) + b"]",
        "escaped.json": json.dumps(plain).encode(),
        "spaced.json": b"\n [\r\n\t" + b"\t,\r\n\r\n  ".join(lines) + b"\n\n ] \r\n",
        "bom.json": b"\xef\xbb\xbf" + array,
        "one.json": b'[{"text": "' + "一".encode() + b'"}]',
        "lines.jsonl": jsonl,
        "crlf.jsonl": b"\r\n".join(lines),
        "bom.jsonl": b"\xef\xbb\xbf" + jsonl,
        "blank.jsonl": b"\n\n" + b"\n \n\n".join(lines) + b"\n\n\n",
        "compact.jsonl": "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in plain).encode(),
        "members.jsonl.gz": b"".join(gzip.compress(jsonl[at : at + 9000]) for at in range(0, len(jsonl), 9000)),
        "texts.json": "\n".join(json.dumps(record, ensure_ascii=False, indent=2) for record in plain).encode(),
        "joined.json": b"".join(lines),
        "strings.json": json.dumps([record["text"] for record in plain], ensure_ascii=False).encode(),
        "table.csv": b"id,text\n"
        + "".join(f'{record["id"]},"{record["text"].replace(chr(34), chr(34) * 2)}"\n' for record in plain).encode(),
        "whole.txt": "\n\n".join(texts(5)).encode(),
        "parts.txt": parts,
        "parts.txt.gz": gzip.compress(parts),
        "special.jsonl": b"\n".join(special),
        "forged.json": b"[" + b",\n".join(forged) + b"]",
        "forged-compact.json": b"[" + b", ".join(forged) + b"]",
        "bad.json": b"[\n" + b",\n".join(bad) + b"\n]",
        "bad-compact.json": b"[" + b", ".join(bad) + b"]",
        "bad.jsonl": b"\n".join(bad) + b"\n",
        "bad.jsonl.gz": gzip.compress(b"\n".join(bad) + b"\n"),
        "bad.txt": b"one\n---\n\xff\xfe\n---\nthree\n---\n" + b"\xe4\xb8\n---\nfive",
        "doubled.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in doubled).encode(),
        "empty.jsonl": "".join(
            json.dumps({"text": text * (n % 3)}) + "\n" for n, text in enumerate(texts(90))
        ).encode(),
        "only-empty.jsonl": b'{"text": ""}\n' * 9,
        "long.jsonl": "".join(json.dumps({"text": "".join(articles)[: 9**n]}) + "\n" for n in (1, 5, 2, 4)).encode(),
        "mixed/b/two.jsonl": b"\n".join(rows(records(texts(30)))),
        "mixed/a.json": b"[" + b",\n".join(rows(records(texts(20)))) + b"]",
        "mixed/one.jsonl.gz": gzip.compress(b"\n".join(lines[:20])),
        "mixed/note.txt": texts(1)[0].encode(),
        "mixed/README.md": b"not a corpus",
        "mixed/b/more.jsonl": b"\n".join(lines[100:120]),
        "directory-of-one/lines.jsonl": jsonl,
    }
    files |= {"lines.jsonl.gz": gzip.compress(jsonl), "array.json.gz": gzip.compress(array)}
    files |= {"lines.jsonl.bz2": bz2.compress(jsonl), "lines.jsonl.xz": lzma.compress(jsonl)}
    for name in ("lines.jsonl", "compact.json"):
        files[f"{name}.zst"] = zstandard.ZstdCompressor().compress(files[name])
    damaged = {f"truncated.jsonl.{name}": files[f"lines.jsonl.{name}"][:-3000] for name in ("gz", "zst", "xz")} | {
        "truncated.json": array[:-500],
        "truncated.jsonl": jsonl[:-30],
        "two-arrays.json": array + array,
        "no-comma.json": b"[" + b"\n".join(lines) + b"]",
        "last-comma.json": b"[" + b",\n".join(lines) + b",]",
        "table": b"id,text\n1,one\n",
        "paper.pdf": b"%PDF-1.7\n" + bytes(99),
        "utf-16.txt": "text".encode("utf-16"),
        "empty.jsonl": b"",
        "white.jsonl": b"\n \n",
        "nothing-known/README": b"",
    }
    for directory, contents in (("in", files), ("damaged", damaged)):
        for name, content in contents.items():
            path = work / directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    table = pa.Table.from_pylist(plain)
    pq.write_table(table, work / "in" / "lines.parquet", row_group_size=20)
    broken = pa.table({"text": ["one", None, "three", "", None, "six"] * 9})
    pq.write_table(broken, work / "in" / "bad.parquet", row_group_size=10)
    parquet = (work / "in" / "lines.parquet").read_bytes()
    (work / "damaged" / "truncated.parquet").write_bytes(parquet[:-200])
    (work / "in" / "saved").mkdir()
    for name in ("state.json", "dataset_info.json"):
        (work / "in" / "saved" / name).write_text("{}")
    for name, new in (("lines", pa.ipc.new_file), ("stream", pa.ipc.new_stream), ("saved/data-0", pa.ipc.new_stream)):
        with new(str(work / "in" / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=30)


def damage_sets(work: Path) -> None:
    """Copies of the set `array`, each with one thing wrong."""

    def copy(name: str) -> Path:
        shutil.copytree(work / "sets" / "array", work / "damaged" / name)
        return work / "damaged" / name

    for name, suffix in (("flipped", ".bin"), ("flipped-index", ".idx")):
        path = copy(name) / f"train-00000{suffix}"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    os.truncate(copy("short") / "train-00000.bin", 1032)
    (copy("no-bin") / "train-00000.bin").unlink()
    (copy("no-manifest") / "manifest.json").unlink()
    shutil.rmtree(copy("no-tokenizer") / "tokenizer")
    changes = {
        "bad-json": ("{", "{{"),
        "changed": ('"dtype": "uint32"', '"dtype": "uint16"'),
        "version": ('version": ', 'version": 9'),
    }
    for name, (old, new) in changes.items():
        path = copy(name) / "manifest.json"
        path.write_text(path.read_text("utf-8").replace(old, new, 1), "utf-8")
    shutil.copytree(work / "tokenizer", work / "no-eos")
    (work / "no-eos" / "tokenizer_config.json").unlink(missing_ok=True)
    vocabulary = json.loads((work / "no-eos" / "tokenizer.json").read_text("utf-8"))
    vocabulary["added_tokens"] = []
    (work / "no-eos" / "tokenizer.json").write_text(json.dumps(vocabulary), "utf-8")


def write_configs(work: Path) -> None:
    """A tiny training, and sweeps of it. JSON is YAML too."""
    model = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    training = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
    }
    config = {
        "shards": str(work / "sets" / "array"),
        "model": model | {"intermediate_size": 32},
        "training": training | {"output_dir": str(work / "new-run")},
        "tracking": {"mode": "disabled"},
        "generation": {"prompts": ["一"], "max_new_tokens": 4},
    }
    sweep = {
        "config": str(work / "config.yaml"),
        "output_dir": str(work / "sweep"),
        "grid": {"learning_rate": [1e-3, 2e-3]},
    }
    both = sweep | {"runs": [{"name": "a"}]}
    named = {"config": config, "sweep": sweep, "sweep-both": both, "sweep-key": sweep | {"gird": {}}}
    for name, content in named.items():
        (work / f"{name}.yaml").write_text(json.dumps(content, ensure_ascii=False), "utf-8")
