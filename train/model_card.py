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
from train.run_directory import MODEL_NAME
from train.sampling import Continuation

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
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
    settings, args, session = record["settings"], record["training_arguments"], record["sessions"][-1]
    config = json.loads((model / "config.json").read_bytes())
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[str(config["model_type"]), "pretrained", "causal-lm"],
    )
    batch = args["train_batch_size"] * args["gradient_accumulation_steps"] * session["processes"]
    run_blocks = args["max_steps"] * batch
    counts = shards.run_order(data, 0, run_blocks=run_blocks, batch_blocks=batch).counts(run_blocks)
    shares = [f"{100 * count / run_blocks:.4g} %" for count in counts] if isinstance(data, shards.Mixture) else []
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        name=settings["tracking"]["name"] or Path(settings["output_dir"]).resolve().name,
        sets=data.sets,
        shares=[(part.path.name, share) for part, share in zip(data.sets, shares, strict=False)],
        config=config,
        num_parameters=num_parameters(model),
        settings=settings,
        args=args,
        session=session,
        shards=record["shards"],
        batch=batch,
        results=record.get("results"),
        prompt=_python_text(str((settings["generation"]["prompts"] or ["Once"])[0])),
        samples=[fenced(str(sample)) for sample in samples],
        escaped=escaped,
        plural=plural,
        number=lambda value: "–" if value is None else f"{value:,.4f}",
    )
    return str(card)


def num_parameters(model: Path) -> int:
    """Of a saved model, from the headers of its safetensors files."""
    total = 0
    for path in model.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def _python_text(text: str) -> str:
    """A Python expression for `text` that can't end the code block around it."""
    return json.dumps(visible(text), ensure_ascii=False).replace("`", r"\u0060")


def escaped(text: Any) -> str:
    """`text` on one line as Markdown shows it, every character as itself."""
    return _SPECIAL.sub(lambda match: f"\\{match[0]}", printable(str(text)))


def fenced(text: str) -> str:
    """A code block around `text`, whatever back-ticks are in it."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}text\n{text.rstrip()}\n{fence}"
