"""The model card: `README.md` beside a trained model, as Hugging Face's and ModelScope's hubs show it.

It says what is known of the data, the model, the training and the results, from `run.json`, the shard set's manifest and
the saved model. Names in it come from files that others may have written, so everything is escaped: no name can become
a link, an image, HTML or a key of the front matter. What isn't known (the license and the language) is left to the user.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

import shards
from shards.common.files import write_atomically
from shards.common.text import plural, printable, visible
from train.log_lines import sample_text
from train.run_directory import MODEL_NAME
from train.sampling import Continuation

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
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
    settings = record["settings"]
    config = json.loads((model / "config.json").read_bytes())
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[str(config["model_type"]), "pretrained", "causal-lm"],
    )
    mixed = isinstance(data, shards.Mixture)
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        name=str(settings["tracking"]["name"] or Path(settings["output_dir"]).resolve().name),
        sets=data.sets,
        shares=[(part.path.name, f"{share / 10:g} %") for part, share in zip(data.sets, data.per_mille, strict=True)]
        if mixed
        else [],
        max_sources=MAX_SOURCES,
        model=_model_rows(config, model),
        training=_training_rows(record),
        results=_result_rows(record.get("results")),
        num_val_blocks=len(data["val"]),
        code=_code(str((settings["generation"].get("prompts") or ["Once"])[0])),
        config=config,
        generation=settings["generation"],
        samples=[fenced(sample_text(sample), "text") for sample in samples],
        escaped=escaped,
        plural=plural,
    )
    return str(card)


def _model_rows(config: Mapping[str, Any], model: Path) -> list[tuple[str, str]]:
    heads = f"{config['num_attention_heads']:,}, {config['num_key_value_heads']:,} for keys and values"
    tied = ", tied with the head" if config.get("tie_word_embeddings") else ""
    return [
        ("Architecture", ", ".join(config.get("architectures") or [config["model_type"]])),
        ("Parameters", f"{num_parameters(model):,}"),
        ("Hidden size", f"{config['hidden_size']:,}"),
        ("Layers", f"{config['num_hidden_layers']:,}"),
        ("Attention heads", heads),
        ("Intermediate size", f"{config['intermediate_size']:,}"),
        ("Activation", str(config["hidden_act"])),
        ("Vocabulary", f"{config['vocab_size']:,} rows{tied}"),
        ("Positions", f"{config['max_position_embeddings']:,} tokens"),
    ]


def num_parameters(model: Path) -> int:
    """Of a saved model, from the headers of its safetensors files."""
    total = 0
    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def _training_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    args, session, settings = record["training_arguments"], record["sessions"][-1], record["settings"]
    steps = int(args["max_steps"])
    batch = int(args["train_batch_size"]) * int(args["gradient_accumulation_steps"]) * int(session["processes"])
    tokens = batch * int(record["shards"]["block_tokens"])
    passes = steps * batch / max(1, int(record["shards"]["train_blocks"]))
    decay = f", weight decay {args['weight_decay']:g}" if args.get("weight_decay") else ""
    betas = f", betas {args['adam_beta1']:g} and {args['adam_beta2']:g}"
    rows = [
        ("Steps", f"{steps:,}"),
        ("Batch", f"{plural(batch, 'block')} = {tokens:,} tokens a step"),
        ("Tokens", f"{steps * tokens:,}, {passes:.2f} × the set"),
        ("Optimizer", str(settings["training"].get("optim", args["optim"])) + betas + decay),
        ("Learning rate", f"{args['learning_rate']:g} at its peak"),
        ("Schedule", f"{args['lr_scheduler_type']}, warm-up {args['warmup_steps']:g} steps"),
        ("Gradient clipping", f"norm {args['max_grad_norm']:g}"),
        ("Precision", str(session["precision"])),
        ("Seed", f"{args['seed']}"),
        ("Documents in a block", "masked from each other" if settings.get("document_mask") else "attend to each other"),
        ("Device", f"{session['device']}, processes {session['processes']}"),
        ("Software", ", ".join(f"{name} {version}" for name, version in session["packages"].items())),
    ]
    if git := session.get("git"):
        rows.append(("Code", f"commit {git['commit']}" + (", with changes" if git["dirty"] else "")))
    return rows


def _result_rows(results: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if results is None:
        return []
    rows = (
        ("Training loss, nats a token", "last_train_loss", ".4f"),
        ("Validation loss, nats a token", "eval_loss", ".4f"),
        ("Perplexity of a token", "eval_perplexity", ",.2f"),
        ("Bits per byte of text", "eval_bits_per_byte", ".4f"),
    )
    return [(label, "–" if results.get(key) is None else format(results[key], spec)) for label, key, spec in rows]


def _code(prompt: str) -> str:
    """Python that loads the model and continues a prompt."""
    code = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "."  # this directory, or the model's name on a hub
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
inputs = tokenizer({json.dumps(visible(prompt), ensure_ascii=False)}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))"""
    return fenced(code, "python")


def escaped(text: str) -> str:
    """`text` on one line as Markdown shows it, every character as itself."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", printable(text))


def fenced(text: str, language: str) -> str:
    """A code block around `text`, whatever back-ticks are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
