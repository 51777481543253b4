"""`python -m train.evaluate RUN_DIR [--shards DIR]`: how well a trained model predicts validation text.

Loss and perplexity are a token's; bits per byte and per character are of the text, so that models
with different tokenizers can be compared. Padding is not counted, nor the first token of a block,
which nothing predicts. A run with intra-document masking (document_mask) is evaluated so too; then
the first token of a document isn't counted either. The precision is that of the run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import shards
from shards.common.command_line import Parser, run_command, say
from shards.common.errors import InputError, choice
from shards.common.text import plural
from shards.layout import SPLITS
from shards.mixture import is_mixture
from shards.tokenizer_files import read_vocabulary
from train.environment import out_of_memory, prepare_environment
from train.generate import find_model
from train.run_directory import read_record, record_part
from train.values import Count, convert, require

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

    from shards.torch import BlockDataset, Collator

Floats = npt.NDArray[np.float64]
_GZIP_TOKENS = 1 << 20


# ---- one function for evaluation in training, at its end, and here ----


def spread_evenly(total: int, limit: int | None) -> list[int]:
    """`limit` of the numbers below `total`, spread evenly; all where there are no more, or no limit.

    >>> spread_evenly(7, 3)
    [0, 2, 4]
    """
    count = total if limit is None else min(limit, total)
    return [number * total // count for number in range(count)]


def evaluate_blocks(
    model: Any,
    dataset: BlockDataset,
    numbers: Sequence[int],
    collate: Collator,
    *,
    device: torch.device,
    batch_blocks: int,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    on_batch: Callable[[range], None] = lambda _batches: None,
) -> tuple[Floats, Floats]:
    """The sums of losses (nats) and the numbers of labels at positions 1 … block_tokens − 1, over the blocks `numbers`.

    `model` is a `train.model.Qwen2ForCausalLM`, perhaps wrapped. Every process calls this and gets the sums of all: their
    mean is the same for any number of processes and any micro-batch. (transformers' own loop averages the means of
    batches, which is inexact where the last one is smaller, and with several processes evaluates some blocks twice.)
    """
    import torch
    import torch.distributed as dist

    from shards.torch import IGNORED

    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # A sharded model takes all processes for each batch, so all go through equally many; and all batches are of one size,
    # for which a compiled model is compiled once: blocks that make up the number have no labels.
    most = -(-len(numbers) // num_ranks)
    mine = list(numbers[rank::num_ranks])
    batch_blocks = min(batch_blocks, most)
    batches = range(0, most, batch_blocks)
    totals = torch.zeros(2, len(dataset[numbers[0]]) - 1, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for first in batches:
            chosen = mine[first : first + batch_blocks]
            batch = collate(dataset.__getitems__(chosen + [0] * (batch_blocks - len(chosen))))
            batch["labels"] = batch["labels"].clone()  # it may be the ids themselves
            batch["labels"][len(chosen) :] = IGNORED
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast():
                losses = model(**batch, num_items_in_batch=1, want_token_losses=True).token_losses
            totals[0] += losses.sum(dim=0, dtype=torch.float64)
            totals[1] += (batch["labels"][:, 1:] != IGNORED).sum(dim=0)
            on_batch(batches)
    if num_ranks > 1:
        dist.all_reduce(totals)
    model.train(was_training)
    sums, counts = totals.cpu().numpy()
    return sums, counts


def perplexity(loss: float) -> float:
    """Of a loss in nats; finite for any number."""
    return math.exp(min(loss, 700.0))


def best_evaluation(logs: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Of a run's logs the first evaluation with the lowest loss, of those on the most blocks: others are of other texts."""
    found = [log for log in logs if "eval_loss" in log]
    most = max((log.get("eval_samples") or 0 for log in found), default=0)
    whole = [log for log in found if (log.get("eval_samples") or 0) == most]
    finite = [log for log in whole if log["eval_loss"] is not None and math.isfinite(log["eval_loss"])]
    return min(finite, key=lambda log: log["eval_loss"], default=None)


def by_set(metrics: dict[str, Any]) -> dict[str, Any]:
    """Of an evaluation on several sets what it found on each: `{"wiki_loss": 3.1, "wiki_bits_per_byte": 1.0, …}`."""
    kinds = ("_loss", "_bits_per_byte")
    return {key[len("eval_") :]: value for key, value in metrics.items() if key.endswith(kinds) and key != "eval_loss"}


def bits_per_byte(splits: Sequence[shards.Split], loss: float | None) -> float | None:
    """What `loss`, in nats a token, is in bits per byte of the texts of `splits`; None if that isn't known.

    These are whole texts: tokens that nothing predicts are taken to cost what the others do, so that packings can be
    compared. A document's EOS is a token too: saying where a text ends is part of its price. A begin token is not.
    """
    names = ("num_predicted_tokens", "num_text_bytes")
    num_tokens, num_bytes = (sum(getattr(split, name) for split in splits) for name in names)
    return loss / math.log(2) * num_tokens / num_bytes if loss is not None and num_bytes else None


def gzip_bits_per_byte(data: shards.Data, splits: Sequence[shards.Split]) -> float | None:
    """What gzip needs for a byte of the texts of `splits` (the first million tokens): a yardstick that needs no model."""
    vocabulary = read_vocabulary(data.tokenizer_path)
    blocks = (split[number] for split in splits for number in range(len(split)))
    tokens = itertools.islice(blocks, _GZIP_TOKENS // data.block_tokens)
    no_text = {data.eos_id, data.begin_id}
    text = b"".join(vocabulary.piece(token) for block in tokens for token in block.tolist() if token not in no_text)
    return 8 * len(zlib.compress(text, 9)) / len(text) if text else None


# ---- the command ----


def build_parser() -> Parser:
    parser = Parser(prog="python -m train.evaluate", description=__doc__)
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="a run's directory, or a model's own directory")
    parser.add_argument("--shards", metavar="DIR", help="the shard set (default: the one the run was trained on)")
    parser.add_argument("--split", default="val", metavar="NAME", help=f"{' or '.join(SPLITS)} (val)")
    parser.add_argument("--blocks", type=int, metavar="N", help="look at the first N blocks (all)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="blocks at a time (8)")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def main(argv: list[str]) -> None:
    options = build_parser().parse_args(argv)
    directory = find_model(options.run)
    shard_set = shards.open(options.shards or shards_of_run(directory))
    choice("--split", options.split, SPLITS)
    for name in ("batch", "blocks"):
        convert(getattr(options, name), Count | None, f"--{name}")
    if not len(shard_set[options.split]):
        raise InputError(f"{shard_set.path}: split {options.split} has no blocks; choose another --split or --shards")
    check_model(directory, shard_set)
    prepare_environment()
    with out_of_memory("choose a smaller --batch"):
        result = evaluate(directory, shard_set, options.split, batch_blocks=options.batch, num_blocks=options.blocks)
    say(*([json.dumps(result, indent=2)] if options.json else lines(result)))


def shards_of_run(directory: Path) -> str:
    """The shard set that the run of this model was trained on. Raises `InputError`."""
    path: Any = record_part(directory.parent, "shards").get("path")
    if not isinstance(path, str):
        raise InputError(f"{directory}: evaluate on what? give --shards DIR")
    if is_mixture(path):
        raise InputError(f"{directory}: was trained on several sets ({path}); give one of them: --shards DIR")
    return path


def last_session(record: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says of the last time the run was started; empty where it doesn't."""
    sessions = record.get("sessions")
    last = sessions[-1] if isinstance(sessions, list) and sessions else {}
    return last if isinstance(last, dict) else {}


def check_model(directory: Path, shard_set: shards.ShardSet) -> None:
    """Raise `InputError` if the model is of another kind, or was trained with another tokenizer than the set's."""
    try:
        kind = json.loads((directory / "config.json").read_bytes())["model_type"]
        digest = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
    except (ValueError, OSError, LookupError, TypeError) as error:
        raise InputError(f"{directory}: config.json and tokenizer.json can't be read ({error})") from None
    require(kind == "qwen2", str(directory), "a model of the type 'qwen2'", kind)
    if digest != shard_set.manifest.tokenizer.sha256:
        raise InputError(
            f"{shard_set.path}: was built with another tokenizer than the model's; build the text anew with it"
        )


def evaluate(
    directory: Path, shard_set: shards.ShardSet, split_name: str, *, batch_blocks: int, num_blocks: int | None = None
) -> dict[str, Any]:
    """Evaluate the model in `directory` on the first `num_blocks` blocks (None: all) of a split; losses are in nats."""
    import torch

    from shards.torch import BlockDataset, text_collator
    from train.model import Qwen2ForCausalLM
    from train.sampling import load_model

    masked = record_part(directory.parent, "settings").get("document_mask") is True
    precision = str(last_session(read_record(directory.parent)).get("precision"))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    model, _tokenizer = load_model(directory, Qwen2ForCausalLM)
    split = shard_set[split_name]
    count = min(len(split), num_blocks or len(split))
    sums, counts = evaluate_blocks(
        model,
        BlockDataset(shard_set, split_name),
        range(count),
        text_collator(shard_set, document_mask=masked),
        device=model.device,
        batch_blocks=batch_blocks,
        autocast=functools.partial(torch.autocast, model.device.type, dtype=dtype, enabled=dtype is not None),
    )
    loss = float(sums.sum() / max(counts.sum(), 1))
    bits = bits_per_byte([split], loss)
    return {
        "num_blocks": count,
        "num_tokens": int(counts.sum()),  # that were predicted
        "document_mask": masked,
        "precision": precision if dtype else "fp32",
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits,
        "bits_per_char": bits and bits * split.num_text_bytes / split.num_text_chars,
        "loss_by_position": by_position(sums, counts),
    }


def by_position(sums: Floats, counts: Floats) -> list[tuple[int, int, float]]:
    """First and last position and the mean loss of 1, 2–3, 4–7, 8–15 …, counted from 0, which nothing predicts."""
    rows = []
    for first in (1 << power for power in range(len(sums).bit_length())):
        inside = slice(first - 1, 2 * first - 1)
        if counts[inside].sum():
            last = min(2 * first - 1, len(sums))
            rows.append((first, last, float(sums[inside].sum() / counts[inside].sum())))
    return rows


def lines(result: dict[str, Any]) -> list[str]:
    """What `evaluate` found, for people."""
    counts = f"{plural(result['num_tokens'], 'token')} in {plural(result['num_blocks'], 'block')}"
    of_bytes, of_chars = (
        "–" if bits is None else f"{bits:.4f}" for bits in (result["bits_per_byte"], result["bits_per_char"])
    )
    return [
        f"loss           {result['loss']:.4f} nats a token ({counts}, {result['precision']})",
        f"perplexity     {result['perplexity']:,.2f}",
        f"bits per byte  {of_bytes}",
        f"bits per char  {of_chars}",
        f"documents      {'masked from' if result['document_mask'] else 'attend to'} each other in a block",
        "",
        "loss by position in the block",
        *(f"  {first:>5} – {last:<5} {loss:.4f}" for first, last, loss in result["loss_by_position"]),
    ]


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
