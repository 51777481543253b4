"""`python -m train.evaluate RUN_DIR [--shards DIR]`: how well a trained model foretells held-out text.

Loss and perplexity are a token's; bits per byte and per character are of the text, so that models
with different tokenizers can be compared. Filling is not counted, nor the first token of a block,
which nothing foretells. A run whose documents don't see each other (document_mask) is evaluated so
too; then the first token of a document isn't counted either.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import shards
from shards.common.command_line import Parser, run_command, say
from shards.common.errors import InputError, choice
from shards.common.text import plural
from shards.entries import SPLITS
from shards.mixture import is_mixture
from train.environment import prepare_environment
from train.generate import find_model
from train.memory import out_of_memory
from train.run_directory import record_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Of one split; losses are in nats."""

    num_blocks: int
    num_tokens: int  # that were foretold
    document_mask: bool  # whether documents that share a block didn't see each other
    loss: float
    perplexity: float
    bits_per_byte: float
    bits_per_char: float
    loss_by_position: list[tuple[int, int, float]]  # first and last position in the block, and the mean loss there


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
    if options.batch < 1 or (options.blocks is not None and options.blocks < 1):
        raise InputError("--batch and --blocks: expected at least 1")
    split = shard_set[options.split]
    if not len(split):
        raise InputError(f"{shard_set.path}: split {options.split} has no blocks")
    check_tokenizer(directory, shard_set)
    prepare_environment()
    from train.sampling import load_model

    with out_of_memory("choose a smaller --batch"):
        model, _tokenizer = load_model(directory)
        result = evaluate(
            model,
            split,
            shard_set.eos_id,
            document_mask=document_mask_of_run(directory),
            batch_blocks=options.batch,
            num_blocks=options.blocks,
        )
    say(*([json.dumps(asdict(result), indent=2)] if options.json else lines(result)))


def shards_of_run(directory: Path) -> str:
    """The shard set that the run of this model was trained on. Raises `InputError`."""
    path: Any = record_part(directory.parent, "shards").get("path")
    if not isinstance(path, str):
        raise InputError(f"{directory}: evaluate on what? give --shards DIR")
    if is_mixture(path):
        raise InputError(f"{directory}: was trained on several sets ({path}); give one of them: --shards DIR")
    return path


def document_mask_of_run(directory: Path) -> bool:
    """Whether this model was trained on documents that don't see each other; False where no run tells."""
    return record_part(directory.parent, "settings").get("document_mask") is True


def check_tokenizer(directory: Path, shard_set: shards.ShardSet) -> None:
    """Raise `InputError` if the model was trained with another tokenizer than the set's."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path}: missing, so nothing says that the set's ids are the model's")
    if hashlib.sha256(path.read_bytes()).hexdigest() != shard_set.manifest.tokenizer.sha256:
        raise InputError(
            f"{shard_set.path}: was built with another tokenizer than the model's; build the text anew with it"
        )


def evaluate(
    model: PreTrainedModel,
    split: shards.Split,
    eos_id: int,
    *,
    document_mask: bool = False,
    batch_blocks: int,
    num_blocks: int | None = None,
) -> Evaluation:
    """Evaluate on the first `num_blocks` blocks (None: all) of `split`."""
    import torch

    from train.data import IGNORED, text_collator
    from train.loss import token_losses

    collate = text_collator(eos_id, document_mask=document_mask)
    count = min(len(split), num_blocks or len(split))
    sums, counts = np.zeros(split.block_tokens - 1), np.zeros(split.block_tokens - 1, dtype=np.int64)
    with torch.no_grad():
        for start in range(0, count, batch_blocks):
            batch = collate(torch.from_numpy(split[start : min(start + batch_blocks, count)].astype(np.int64)))
            counted = (batch.pop("labels")[:, 1:] != IGNORED).numpy()
            losses = token_losses(model, **{name: tensor.to(model.device) for name, tensor in batch.items()})
            sums += np.where(counted, losses.double().cpu().numpy(), 0).sum(axis=0)
            counts += counted.sum(axis=0)
    loss = float(sums.sum() / counts.sum())
    num_bits = text_bits(loss, [split])
    return Evaluation(
        num_blocks=count,
        num_tokens=int(counts.sum()),
        document_mask=document_mask,
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=num_bits / split.num_text_bytes,
        bits_per_char=num_bits / split.num_text_chars,
        loss_by_position=by_position(sums, counts),
    )


def text_bits(loss: float, splits: Sequence[shards.Split]) -> float:
    """What the texts of `splits` take in bits when a token has `loss` nats.

    These are whole texts, as `num_text_bytes` and `num_text_chars` count them: tokens that the packing drops or that
    nothing foretells are taken to cost what the others do, so that packings can be compared. A document's EOS is a
    token too: where documents are closed by one, saying where a text ends is part of its price. The packing `tutorial`
    has none and doesn't pay for it: a token less for each document.
    """
    return loss / math.log(2) * sum(split.num_tokens + split.num_dropped_tokens for split in splits)


def by_position(sums: np.ndarray, counts: np.ndarray) -> list[tuple[int, int, float]]:
    """Mean losses over positions 1, 2–3, 4–7, 8–15 …, counted from 0; the token at 0 is foretold by nothing."""
    rows = []
    first = 1
    while first <= len(sums):
        last = min(2 * first - 1, len(sums))
        inside = slice(first - 1, last)
        if counts[inside].sum():
            rows.append((first, last, float(sums[inside].sum() / counts[inside].sum())))
        first *= 2
    return rows


def lines(result: Evaluation) -> list[str]:
    head = f"{plural(result.num_tokens, 'token')} in {plural(result.num_blocks, 'block')}"
    rows = [
        f"loss           {result.loss:.4f} nats a token ({head})",
        f"perplexity     {result.perplexity:,.2f}",
        f"bits per byte  {result.bits_per_byte:.4f}",
        f"bits per char  {result.bits_per_char:.4f}",
        f"documents      {'apart' if result.document_mask else 'see each other'} in a block",
        "",
        "loss by position in the block",
    ]
    return rows + [f"  {first:>5} – {last:<5} {loss:.4f}" for first, last, loss in result.loss_by_position]


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
