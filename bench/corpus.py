"""A rehearsal corpus of any size, in the published file's shape, from the embedded sample.

Texts are stretches of the sample's articles in random order, with log-normal lengths like Wikipedia's (430 characters on
average, at most 107,000). The same arguments always write the same bytes.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample" / "wikipedia-zh-sample.json"
_POOL_CHARS = 20_000_000
_SIGMA = 1.35


def write_rehearsal(path: Path, num_records: int, *, seed: int = 0) -> None:
    """Write a JSON array of `num_records` records, one a line."""
    rng = random.Random(seed)
    paragraphs = [
        paragraph
        for record in json.loads(SAMPLE.read_text(encoding="utf-8"))
        for paragraph in record["text"].split("\n")
    ]
    pool = ""
    while len(pool) < _POOL_CHARS:
        rng.shuffle(paragraphs)
        pool += "\n".join(paragraphs)
    mean = math.log(430) - _SIGMA**2 / 2
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for number in range(num_records):
            length = min(int(rng.lognormvariate(mean, _SIGMA)), 107_000)
            start = rng.randrange(len(pool) - length)
            text = pool[start : start + length].strip()
            record = {"id": str(number), "title": text[:8].replace("\n", " "), "tags": "", "text": text}
            file.write((",\n" if number else "") + json.dumps(record, ensure_ascii=False))
        file.write("\n]\n")
