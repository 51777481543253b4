"""The model card: `README.md` beside a trained model, as Hugging Face's and ModelScope's hubs show it.

It tells what is known of the data, the model, the training and the results, from `run.json`, the shard set's manifest and
the saved model. Names in it come from files that others may have written, so everything is escaped: no name can become
a link, an image, HTML or a key of the front matter. What isn't known (the licence and the language) is left to the user.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

import shards
from shards.common.files import write_atomically
from shards.common.text import plural, printable, visible
from train.run_directory import MODEL_NAME
from train.sampling import Continuation

CARD_NAME = "README.md"
MAX_SOURCES = 20
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&$!@:])|(?<=www)(\.)", re.IGNORECASE)


def write_model_card(
    run: Path, record: Mapping[str, Any], data: shards.Data, samples: Sequence[Continuation] = ()
) -> list[str]:
    """Write the card of the model in `run`, whose `run.json` is `record`. Returns a line for the user if that fails."""
    try:
        card = model_card(record, data, run / MODEL_NAME, samples)
        write_atomically(run / MODEL_NAME / CARD_NAME, card.encode())
    except (OSError, ValueError, LookupError, SafetensorError) as error:  # the model is worth more than its card
        return [f"the model card can't be written: {printable(str(error) or type(error).__name__)}"]
    return []


def model_card(record: Mapping[str, Any], data: shards.Data, model: Path, samples: Sequence[Continuation] = ()) -> str:
    """The card's text, Markdown with a front matter in YAML. `model` is the directory with the saved model."""
    name = str(record["settings"]["tracking"]["name"] or Path(record["settings"]["output_dir"]).resolve().name)
    config = json.loads((model / "config.json").read_bytes())
    parts = [
        front_matter(str(config["model_type"])),
        f"# {escaped(name)}\n\nA language model trained from random weights. It continues text; it was not tuned to answer "
        "questions or to follow instructions.",
        "## Data\n\n" + data_section(data),
        "## Model\n\n" + model_section(config, model),
        "## Training\n\n" + training_section(record),
        "## Evaluation\n\n" + evaluation_section(record, data),
        "## Use\n\n" + use_section(record),
        "## Limits\n\n" + limits_section(config),
    ]
    if samples:
        parts.append("## Samples\n\n" + samples_section(record, samples))
    return "\n\n".join(parts) + "\n"


def front_matter(model_type: str) -> str:
    """What the hubs read. Licence and language are for the user to state: they follow from the texts."""
    return f"""\
---
# license: state the licence that you give the model under, with regard to that of the texts
# language: state the languages of the texts, such as zh
library_name: transformers
pipeline_tag: text-generation
tags: {json.dumps([model_type, "pretrained", "causal-lm"])}
---"""


def data_section(data: shards.Data) -> str:
    """A table of each shard set, and what it was made from."""
    parts = []
    if isinstance(data, shards.Mixture):
        shares = [
            (escaped(part.path.name), f"{share / 10:g} %")
            for part, share in zip(data.sets, data.per_mille, strict=True)
        ]
        parts.append(table(("Shard set", "Share of the blocks trained on"), shares))
    for part in data.sets:
        manifest = part.manifest
        rows = [
            ("Shard set", escaped(part.path.name)),
            ("Fingerprint", f"`{manifest.fingerprint}`"),
            ("Tokenizer", f"{escaped(manifest.tokenizer.name)}, {manifest.tokenizer.vocab_size:,} entries"),
            ("Packing", f"{escaped(manifest.packing)}, blocks of {manifest.block_tokens:,} tokens"),
        ]
        for split, entry in manifest.splits.items():
            counts = ((entry.num_documents, "document"), (entry.num_tokens, "token"), (entry.num_blocks, "block"))
            rows.append((f"Split {escaped(split)}", ", ".join(plural(*count) for count in counts)))
        parts.append(table(("", ""), rows))
        sources = [
            f"* {escaped(source.path)}: {source.num_records:,} records, {source.num_bytes:,} bytes"
            for source in manifest.sources[:MAX_SOURCES]
        ]
        if len(manifest.sources) > MAX_SOURCES:
            sources.append(f"* … and {len(manifest.sources) - MAX_SOURCES:,} more")
        if sources:
            parts.append("Made from:\n\n" + "\n".join(sources))
    return "\n\n".join(parts)


def model_section(config: Mapping[str, Any], model: Path) -> str:
    """The shape of the model."""
    tied = ", tied with the head" if config.get("tie_word_embeddings") else ""
    heads = f"{config['num_attention_heads']:,}, {config['num_key_value_heads']:,} for keys and values"
    rows = [
        ("Architecture", escaped(", ".join(config.get("architectures") or [config["model_type"]]))),
        ("Parameters", f"{num_parameters(model):,}"),
        ("Hidden size", f"{config['hidden_size']:,}"),
        ("Layers", f"{config['num_hidden_layers']:,}"),
        ("Attention heads", heads),
        ("Intermediate size", f"{config['intermediate_size']:,}"),
        ("Activation", escaped(str(config["hidden_act"]))),
        ("Vocabulary", f"{config['vocab_size']:,} rows{tied}"),
        ("Positions", f"{config['max_position_embeddings']:,} tokens"),
    ]
    return table(("", ""), rows)


def num_parameters(model: Path) -> int:
    """Of a saved model, from the headers of its safetensors files."""
    total = 0
    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def training_section(record: Mapping[str, Any]) -> str:
    """How it was trained, and with what."""
    args, session = record["training_arguments"], record["sessions"][-1]
    steps = int(args["max_steps"])
    batch = int(args["train_batch_size"]) * int(args["gradient_accumulation_steps"]) * int(session["processes"])
    tokens = batch * int(record["shards"]["block_tokens"])
    optimizer = str(record["settings"]["training"].get("optim", args["optim"]))
    decay = f", weight decay {args['weight_decay']:g}" if args.get("weight_decay") else ""
    betas = f", betas {args['adam_beta1']:g} and {args['adam_beta2']:g}"
    rows = [
        ("Steps", f"{steps:,}"),
        ("Batch", f"{plural(batch, 'block')} = {tokens:,} tokens a step"),
        (
            "Tokens",
            f"{steps * tokens:,}, {steps * batch / max(1, int(record['shards']['train_blocks'])):.2f} × the set",
        ),
        ("Optimizer", escaped(optimizer) + betas + decay),
        ("Learning rate", f"{args['learning_rate']:g} at its highest"),
        ("Schedule", f"{escaped(str(args['lr_scheduler_type']))}, warm-up {args['warmup_steps']:g} steps"),
        ("Gradient norm", f"cut to {args['max_grad_norm']:g}"),
        ("Precision", escaped(str(session["precision"]))),
        ("Seed", f"{args['seed']}"),
        ("Documents in a block", "apart" if record["settings"].get("document_mask") else "see each other"),
        ("Device", f"{escaped(str(session['device']))}, processes: {session['processes']}"),
        ("Software", escaped(", ".join(f"{name} {version}" for name, version in session["packages"].items()))),
    ]
    git = session.get("git")
    if git:
        rows.append(("Code", f"commit `{git['commit']}`" + (", with changes" if git["dirty"] else "")))
    return table(("", ""), rows)


def evaluation_section(record: Mapping[str, Any], data: shards.Data) -> str:
    """The results, or why there are none."""
    results = record.get("results")
    if results is None:
        return "Not evaluated yet."
    rows = [
        ("Training loss, nats a token", _number(results.get("last_train_loss"), ".4f")),
        ("Validation loss, nats a token", _number(results.get("eval_loss"), ".4f")),
        ("Perplexity of a token", _number(results.get("eval_perplexity"), ",.2f")),
        ("Bits per byte of text", _number(results.get("eval_bits_per_byte"), ".4f")),
    ]
    return table(("", ""), rows) + f"\n\nOn the {len(data['val']):,} validation blocks, which were not trained on."


def use_section(record: Mapping[str, Any]) -> str:
    """Python that loads the model and continues the first of the run's prompts."""
    prompt = str((record["settings"]["generation"].get("prompts") or ["Once"])[0])
    code = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."  # this directory, or the model's name on a hub
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
inputs = tokenizer({json.dumps(visible(prompt), ensure_ascii=False)}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))"""
    return fenced(code, "python") + "\n\n`generation_config.json` holds the settings that it samples with."


def limits_section(config: Mapping[str, Any]) -> str:
    """What not to expect."""
    return f"""\
* What it writes sounds like its texts and need not be true. It has their mistakes and prejudices, and may repeat passages \
of them.
* It was trained on blocks of tokens; text beyond {config["max_position_embeddings"]:,} tokens is new to it.
* Nothing was done to make it safe for the public."""


def samples_section(record: Mapping[str, Any], samples: Sequence[Continuation]) -> str:
    """What it wrote at its end, the prompt in 【】."""
    settings = record["settings"]["generation"]
    how = (
        f"Temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, top-k {settings['top_k']}; not chosen."
    )
    texts = [fenced(f"【{visible(sample.prompt)}】{visible(sample.text)}", "text") for sample in samples]
    return "\n\n".join([how, *texts])


def escaped(text: str) -> str:
    """`text` on one line as Markdown shows it, every character as itself."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", printable(text))


def fenced(text: str, language: str) -> str:
    """A code block around `text`, whatever back-ticks are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    """A Markdown table of two columns whose cells are escaped already."""
    return "\n".join(f"| {left} | {right} |" for left, right in (head, ("---", "---"), *rows))


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)
