"""The settings of a run: a YAML file, overridden by the command line, checked, then frozen. Imports no torch.

    shards: data/shards/sample      # this and other options of `Settings`
    model: {…}                      # `ModelSettings`; `config`: see `train.model_config`
    training: {…}                   # any field of transformers' TrainingArguments: see `train.arguments`
    groups, tracking, generation    # as the classes below

On the command line a field of TrainingArguments is `--learning_rate 1e-3`; a field of another section is written
with its section, `--model.hidden_size 256`. Every fault is an `InputError` that names the file, the key and the value.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from shards.common.errors import InputError
from shards.layout import Shuffle
from train.model_config import published_fields
from train.values import Allowed, Count, NotNegative, Positive, Seed, Text, convert, read_yaml, require, require_known

Section = TypeVar("Section")

Dropout = Annotated[float, Allowed("0 or more, below 1", lambda value: 0 <= value < 1)]
Temperature = Annotated[float, Allowed("0, or 0.001 to 100", lambda value: value == 0 or 1e-3 <= value <= 100)]
TopP = Annotated[float, Allowed("above 0, at most 1", lambda value: 0 < value <= 1)]
TopK = Annotated[int, Allowed("0 or more", lambda value: value >= 0)]
Penalty = Annotated[float, Allowed("0.01 to 100 (1: none)", lambda value: 0.01 <= value <= 100)]

BATCH_SEQUENCES = 8  # that are generated at a time
MUON = "muon"  # our own value of `optim`: see `train.optimizer`

# Fields of TrainingArguments that would contradict how this trainer works.
REFUSED_ARGUMENTS = {
    "accelerator_config": "how batches are dealt out to the processes is part of the order of blocks",
    "auto_find_batch_size": "the order of blocks is counted in global batches of one size",
    "data_seed": "the order of blocks follows `seed`",
    "dataloader_drop_last": "every global batch is full already",
    "deepspeed": "it isn't supported; `fsdp` is",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint in any case",
    "ignore_data_skip": "a resumed run always starts at its own position, without skipping",
    "label_smoothing_factor": "no loss of `loss` smooths",
    "local_rank": "torchrun sets it",
    "neftune_noise_alpha": "the noise isn't for models that are trained from scratch, and would have no effect here",
    "parallelism_config": "it isn't supported; `fsdp` is",
    "push_to_hub": "push the saved model, RUN/model, with `hf upload`",
    "remove_unused_columns": "a batch has nothing but what the model needs",
    "report_to": "see the section `tracking`",
    "resume_from_checkpoint": "it is an option of the command line",
    "run_name": "see `tracking: name`",
    "save_only_model": "a run can't be continued without the state of its optimizer and its schedule",
    "train_sampling_strategy": "the order of blocks is that of the shard set",
    "use_cache": "a saved model generates with a cache, and training has none",
    "use_liger_kernel": "the loss over the vocabulary is computed in chunks here: `loss: chunked`",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A Qwen2 model. Its vocabulary is the shard set's, rounded up to a multiple of `vocab_multiple`."""

    hidden_size: Count  # width of the residual stream
    num_hidden_layers: Count  # layers
    num_attention_heads: Count  # heads; each has hidden_size / heads dimensions
    num_key_value_heads: Count  # key-value heads, each shared by several heads
    intermediate_size: Count  # width of the MLP
    tie_word_embeddings: bool = True  # one matrix for embedding and head
    max_position_embeddings: int | None = None  # context, in tokens; None: the shard set's block_tokens
    vocab_multiple: Count = 128  # the matrix has the vocabulary rounded up to a multiple of this
    hidden_act: str = "silu"  # activation of the MLP
    initializer_range: Positive = 0.02  # standard deviation of the first weights
    rms_norm_eps: Positive = 1e-6  # added to the mean square in each norm
    rope_theta: Positive = 10_000.0  # base of the rotary position embedding
    attention_dropout: Dropout = 0.0  # share of attention weights that is dropped in training


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """What differs in the groups of parameters other than the matrices between hidden states (`train.optimizer`)."""

    embedding_learning_rate_multiplier: NotNegative = 1.0  # of embedding and head: times learning_rate
    embedding_weight_decay: NotNegative | None = None  # of the same; None: weight_decay
    norm_learning_rate_multiplier: NotNegative = 1.0  # of norms and biases: times learning_rate
    norm_weight_decay: NotNegative | None = 0.0  # of the same; None: weight_decay


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where SwanLab keeps the run. `auto` is `online` when logged in and `offline` otherwise."""

    mode: Literal["auto", "online", "offline", "local", "disabled"] = "auto"  # auto, online, offline, local or disabled
    project: Text = "block-pretraining"  # SwanLab project
    workspace: str | None = None  # of SwanLab; None: your own
    name: str | None = None  # of the run; None: the name of the output directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How text is sampled. The values become the saved model's generation defaults too."""

    prompts: list[Text] = dataclasses.field(default_factory=list)  # texts to continue
    max_new_tokens: Count = 128  # length of a continuation, in tokens
    temperature: Temperature = 0.8  # 0: always the likeliest token
    top_p: TopP = 0.95  # sample from the likeliest tokens that together have this probability
    top_k: TopK = 50  # sample from this many likeliest tokens; 0: no such limit
    repetition_penalty: Penalty = 1.0  # 1: none
    seed: Seed = 0  # of the random choices
    every_evaluation: bool = True  # whether the prompts are continued at each evaluation, not only at the end


def _option(metavar: str, text: str, default: Any = None) -> Any:
    """A field that is an option by itself, with its line of help."""
    return dataclasses.field(default=default, metadata={"metavar": metavar, "help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run depends on, besides the shard set's content."""

    shards: list[dict[str, Any]] | Text = _option(
        "DIR",
        "shard set to train on, or several: wiki:0.7,books:0.3 by shares, wiki:1epochs,books:4epochs by passes; or a list "
        "of stages: {until: 0.8, mix: wiki:0.9,books:0.1}",
        dataclasses.MISSING,
    )
    shuffle: Shuffle = _option(
        "global|offset|window|none",
        "blocks are shuffled: all; all, and cut anew in each epoch; in windows; or not (global)",
        "global",
    )
    document_mask: bool = _option("true|false", "mask documents in a block from each other (false)", False)
    global_batch_blocks: Count | None = _option("BLOCKS", "blocks a step, over all processes and micro-batches")
    eval_blocks: Count | None = _option("BLOCKS", "validation blocks in an evaluation before the last one (all)")
    eval_shards: dict[str, Text] | None = _option(
        "JSON", "sets that are evaluated, by name: {wiki: DIR, news: DIR} (those trained on)"
    )
    loss: Literal["auto", "plain", "chunked"] = _option(
        "auto|plain|chunked", "all logits at once, or by chunks of tokens, in less memory (auto: by size)", "auto"
    )
    output_dir: Path = _option("DIR", "the run's directory, made if it is not there", dataclasses.MISSING)
    model: ModelSettings
    model_config: str | None = None  # where the section `model` took its defaults from
    training: dict[str, Any] = dataclasses.field(default_factory=dict)  # typed by `train.arguments.typed`
    groups: GroupSettings
    tracking: TrackingSettings
    generation: GenerationSettings
    origin: dict[str, str] = dataclasses.field(default_factory=dict)  # where each field of `training` was given

    @property
    def seed(self) -> int:
        """Of the model's first weights and of the order of blocks."""
        return int(self.training.get("seed", 42))

    def as_record(self) -> dict[str, Any]:
        """For `run.json`: plain values, the sections as in the YAML file."""
        record = {**dataclasses.asdict(self), "output_dir": str(self.output_dir)}
        return {key: value for key, value in record.items() if key != "origin"}


OPTIONS = {field.name: field.metadata for field in dataclasses.fields(Settings) if field.metadata}
SECTIONS = {name: kind for name, kind in typing.get_type_hints(Settings).items() if dataclasses.is_dataclass(kind)}


@functools.cache
def training_fields() -> dict[str, str]:
    """The fields of TrainingArguments and their types, read from the source: importing it takes seconds, with torch.

    So a misspelt setting is an error within milliseconds, and the fields are those of the version that is installed.
    """
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    (fields,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    nodes = [node for node in fields if isinstance(node, ast.AnnAssign)]
    types = {ast.unparse(node.target): ast.unparse(node.annotation) for node in nodes}
    return {name: kind for name, kind in types.items() if not name.startswith("_")}


def option_types() -> dict[str, str]:
    """All settings as on the command line, with their types: `shards`, `learning_rate`, `model.hidden_size`."""
    own = {field.name: str(field.type) for field in dataclasses.fields(Settings) if field.metadata}
    parts = {
        f"{name}.{field.name}": str(field.type) for name, kind in SECTIONS.items() for field in dataclasses.fields(kind)
    }
    return training_fields() | own | {"model.config": "str"} | parts


def load_settings(config_path: Path, overrides: Mapping[str, Any]) -> Settings:
    """The settings in `config_path`, with `overrides` such as `{"learning_rate": "1e-3", "model.hidden_size": "64"}`.

    The types of the section `training` are left to `train.arguments`. Raises `InputError`.
    """

    def place(*keys: str) -> str:
        option = ".".join(keys).removeprefix("training.")
        section = ["training"] if option == "output_dir" else []
        return f"--{option}" if option in overrides else ": ".join([str(config_path), *section, *keys])

    content = read_yaml(config_path)
    for key in content:
        if key in training_fields():
            raise InputError(f"{config_path}: unknown key {key!r}; it belongs in the section `training`")
    require_known(content, [*OPTIONS, *SECTIONS, "training"], str(config_path))
    for name in (*SECTIONS, "training"):
        content[name] = convert(content.get(name), dict[str, Any] | None, place(name)) or {}
    training, shape = content["training"], content["model"]
    blocks, steps = "global_batch_blocks", "gradient_accumulation_steps"
    for one, other in ((blocks, steps), (steps, blocks), ("num_train_epochs", "max_steps")):
        if one in overrides and other not in overrides:  # of two ways to say the same the command line's wins
            content.pop(other, None)
            training.pop(other, None)
    for option, value in overrides.items():
        section, _, key = option.rpartition(".")
        values = content if option in OPTIONS else content[section or "training"]
        values[key] = value
    require_known(training, training_fields(), place("training"))
    for name, reason in REFUSED_ARGUMENTS.items():
        if name in training:
            raise InputError(f"{place('training', name)}: can't be set: {reason}")
    if "output_dir" in training:
        content.setdefault("output_dir", training.pop("output_dir"))
    names, where = [field.name for field in dataclasses.fields(ModelSettings)], place("model", "config")
    require_known(shape, ["config", *names], place("model"))
    if config := convert(shape.pop("config", None), str | None, where):
        found = {key: value for key, value in published_fields(config, where).items() if key in names}
        published = build(ModelSettings, found, lambda *keys: ": ".join([where, config, *keys]))
        content |= {"model_config": config, "model": {**dataclasses.asdict(published), **shape}}
    settings = build(Settings, content, place)
    if settings.global_batch_blocks is not None and "gradient_accumulation_steps" in training:
        both = "sets gradient_accumulation_steps too; leave one of the two out"
        raise InputError(f"{config_path}: global_batch_blocks: {both}")
    model, heads = settings.model, settings.model.num_attention_heads
    where, expected = place("model", "hidden_size"), f"a multiple of 2 × num_attention_heads = {2 * heads}"
    require(model.hidden_size % (2 * heads) == 0, where, expected, model.hidden_size)
    where, expected = place("model", "num_key_value_heads"), f"a divisor of num_attention_heads = {heads}"
    require(heads % model.num_key_value_heads == 0, where, expected, model.num_key_value_heads)
    return dataclasses.replace(settings, origin={name: place("training", name) for name in training})


def build(kind: type[Section], values: Mapping[str, Any], place: Callable[..., str], *path: str) -> Section:
    """A `kind` of `values`, as its annotations ask; `place` names where a value was given. Raises `InputError`."""
    hints, found = typing.get_type_hints(kind, include_extras=True), {}
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    require_known(values, fields, place(*path))
    for name, field in fields.items():
        where = place(*path, name)
        if name not in values:
            if field.default is field.default_factory is dataclasses.MISSING:
                from_hub = "; or take it from a published model with config: hf:ORG/NAME" if path == ("model",) else ""
                raise InputError(f"{where} is missing{from_hub}")
        elif dataclasses.is_dataclass(hints[name]):
            found[name] = build(hints[name], values[name], place, *path, name)
        else:
            found[name] = convert(values[name], hints[name], where)
    return kind(**found)
