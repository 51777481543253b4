"""The settings of a run: a YAML file, overridden by the command line, checked, then frozen. Imports no torch.

    shards: data/shards/sample      # a shard set's directory, or several with shares: wiki:0.7,books:0.3
    shuffle: global                 # or window, none: see `shards.order`
    global_batch_blocks: 256        # blocks a step, over all GPUs; sets gradient_accumulation_steps
    eval_blocks: null               # validation blocks in an evaluation before the last one; null: all
    document_mask: false            # whether documents that share a block are masked from each other
    loss: auto                      # or plain, chunked: see `train.head_loss`
    model: {…}                      # `ModelSettings`: the Qwen2 model that is built; `config`: see `train.model_config`
    training: {…}                   # any field of transformers' TrainingArguments: see `train.arguments`
    groups: {…}                     # `GroupSettings`: learning rate and weight decay of each group of parameters
    tracking: {…}                   # `TrackingSettings`: SwanLab
    generation: {…}                 # `GenerationSettings`: what is sampled, and when

On the command line a field of TrainingArguments is `--learning_rate 1e-3`; a field of another section is written
with its section, `--model.hidden_size 256`. Every fault is an `InputError` that names the file, the key and the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from shards.common.errors import InputError
from shards.common.text import nearest, printable
from shards.layout import SHUFFLES, Shuffle
from train.model_config import published_fields
from train.training_fields import REFUSED_ARGUMENTS, training_fields
from train.values import convert, read_yaml, require, require_one_of

Section = TypeVar("Section", "ModelSettings", "GroupSettings", "TrackingSettings", "GenerationSettings")

TOP_LEVEL = ("shards", "shuffle", "document_mask", "loss", "global_batch_blocks", "eval_blocks")
SECTIONS = ("model", "training", "groups", "tracking", "generation")
LOSSES = ("auto", "plain", "chunked")
TRACKING_MODES = ("auto", "online", "offline", "local", "disabled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A Qwen2 model. Its vocabulary is the shard set's, rounded up to a multiple of `vocab_multiple`."""

    hidden_size: int  # width of the residual stream
    num_hidden_layers: int  # layers
    num_attention_heads: int  # heads; each has hidden_size / heads dimensions
    num_key_value_heads: int  # key-value heads, each shared by several heads
    intermediate_size: int  # width of the MLP
    tie_word_embeddings: bool = True  # one matrix for embedding and head
    max_position_embeddings: int | None = None  # context, in tokens; None: the shard set's block_tokens
    vocab_multiple: int = 128  # the matrix has the vocabulary rounded up to a multiple of this
    hidden_act: str = "silu"  # activation of the MLP
    initializer_range: float = 0.02  # standard deviation of the first weights
    rms_norm_eps: float = 1e-6  # added to the mean square in each norm
    rope_theta: float = 10_000.0  # base of the rotary position embedding
    attention_dropout: float = 0.0  # share of attention weights that is dropped in training

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        for name in (*sizes, "intermediate_size", "vocab_multiple"):
            require(getattr(self, name) >= 1, f"model: {name}", "at least 1", getattr(self, name))
        for name in ("rms_norm_eps", "initializer_range", "rope_theta"):
            require(getattr(self, name) > 0, f"model: {name}", "above 0", getattr(self, name))
        require(0 <= self.attention_dropout < 1, "model: attention_dropout", "0 to 1", self.attention_dropout)
        heads, width = self.num_attention_heads, self.hidden_size
        expected = f"a multiple of 2 × num_attention_heads = {2 * heads}"
        require(width % (2 * heads) == 0, "model: hidden_size", expected, width)
        expected = f"a divisor of num_attention_heads = {heads}"
        require(heads % self.num_key_value_heads == 0, "model: num_key_value_heads", expected, self.num_key_value_heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """Rates and decays of the three groups of parameters (`train.optimizer`). None: `training`'s own."""

    hidden_learning_rate: float | None = None  # matrices between hidden states: attention and MLP
    hidden_weight_decay: float | None = None  # of the same
    embedding_learning_rate: float | None = None  # embedding and head
    embedding_weight_decay: float | None = None  # of the same
    norm_learning_rate: float | None = None  # norms and biases
    norm_weight_decay: float | None = 0.0  # of the same

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            require(value is None or value >= 0, f"groups: {name}", "0 or more", value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where SwanLab keeps the run. `auto` is `online` when logged in and `offline` otherwise."""

    mode: str = "auto"  # auto, online, offline, local or disabled
    project: str = "block-pretraining"  # SwanLab project
    workspace: str | None = None  # of SwanLab; None: your own
    name: str | None = None  # of the run; None: the name of the output directory

    def __post_init__(self) -> None:
        require_one_of(TRACKING_MODES, self.mode, "tracking: mode")
        require(self.project != "", "tracking: project", "a name", self.project)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How text is sampled. The values become the saved model's generation defaults too."""

    prompts: list[str] = dataclasses.field(default_factory=list)  # texts to continue
    max_new_tokens: int = 128  # length of a continuation, in tokens
    temperature: float = 0.8  # 0: always the likeliest token
    top_p: float = 0.95  # sample from the likeliest tokens that together have this probability
    top_k: int = 50  # sample from this many likeliest tokens; 0: no such limit
    repetition_penalty: float = 1.0  # 1: none
    seed: int = 0  # of the random choices
    every_evaluation: bool = True  # whether the prompts are continued at each evaluation, not only at the end

    def __post_init__(self) -> None:
        for number, prompt in enumerate(self.prompts):
            require(isinstance(prompt, str) and prompt != "", f"generation: prompts[{number}]", "text", prompt)
        temperature, penalty = self.temperature, self.repetition_penalty
        for name, is_right, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", temperature == 0 or 1e-3 <= temperature <= 100, "0, or 0.001 to 100"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", 0.01 <= penalty <= 100, "0.01 to 100 (1: none)"),
            ("seed", 0 <= self.seed < 2**32, "0 to 2**32 - 1"),
        ):
            require(is_right, f"generation: {name}", expected, getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run depends on, besides the shard set's content."""

    shards: str  # a shard set's directory, or a mixture of several (`shards.mixture`)
    output_dir: Path
    shuffle: Shuffle
    document_mask: bool
    global_batch_blocks: int | None  # of a step, over all processes; None: by gradient_accumulation_steps
    eval_blocks: int | None  # of an evaluation, but of the last one, which takes all; None: of each
    loss: str
    model: ModelSettings
    training: dict[str, Any]  # fields of TrainingArguments but `output_dir`; typed by `train.arguments.typed`
    groups: GroupSettings
    tracking: TrackingSettings
    generation: GenerationSettings
    origin: Mapping[str, str]  # where each field of `training` was given: `--learning_rate`, or the file's key
    model_config: str | None = None  # where the section `model` took its defaults from

    @property
    def seed(self) -> int:
        """Of the model's first weights and of the order of blocks."""
        return int(self.training.get("seed", 42))

    def as_record(self) -> dict[str, Any]:
        """For `run.json`: plain values, the sections as in the YAML file."""
        record = {**dataclasses.asdict(self), "output_dir": str(self.output_dir)}
        del record["origin"]
        return record


_RECORDS = {
    "model": ModelSettings,
    "groups": GroupSettings,
    "tracking": TrackingSettings,
    "generation": GenerationSettings,
}


def section_keys(section: str) -> list[str]:
    """The keys of a section."""
    if section == "training":
        return list(training_fields())
    names = [field.name for field in dataclasses.fields(_RECORDS[section])]
    return ["config", *names] if section == "model" else names


def option_names() -> list[str]:
    """The keys of all sections as on the command line: `learning_rate`, `model.hidden_size`."""
    return [
        key if section == "training" else f"{section}.{key}" for section in SECTIONS for key in section_keys(section)
    ]


def load_settings(config_path: Path, overrides: Mapping[str, Any]) -> Settings:
    """The settings in `config_path`, with `overrides` such as `{"learning_rate": "1e-3", "model.hidden_size": "64"}`.

    The types of the section `training` are left to `train.arguments`. Raises `InputError`.
    """
    content = read_yaml(config_path, keys=(*TOP_LEVEL, *SECTIONS))
    for key in content:
        if key not in (*TOP_LEVEL, *SECTIONS):
            known = (*TOP_LEVEL, *SECTIONS)
            hint = "; it belongs in the section `training`" if key in training_fields() else nearest(str(key), known)
            raise InputError(f"{config_path}: unknown key {printable(str(key))!r}{hint}")
    sections = {name: _section(content, name, config_path) for name in SECTIONS}
    top: dict[str, Any] = {key: content.get(key) for key in TOP_LEVEL}
    origin = {(name, key): f"{config_path}: {name}: {key}" for name in SECTIONS for key in section_keys(name)}
    # Of two ways to set the batch the command line's wins.
    if "global_batch_blocks" in overrides and "gradient_accumulation_steps" not in overrides:
        sections["training"].pop("gradient_accumulation_steps", None)
    if "gradient_accumulation_steps" in overrides and "global_batch_blocks" not in overrides:
        top["global_batch_blocks"] = None
    for option, value in overrides.items():
        if option in TOP_LEVEL:
            top[option] = value
            continue
        section, _, key = option.rpartition(".")
        sections[section or "training"][key] = value
        origin[section or "training", key] = f"--{option}"
    for section, fields in sections.items():
        for key in fields:
            if key not in section_keys(section):
                hint = nearest(str(key), section_keys(section))
                raise InputError(f"{config_path}: {section}: unknown key {printable(str(key))!r}{hint}")
            if section == "training" and key in REFUSED_ARGUMENTS:
                raise InputError(f"{origin[section, key]}: can't be set: {REFUSED_ARGUMENTS[key]}")
    for key, choices in (("shuffle", SHUFFLES), ("loss", LOSSES)):
        top[key] = choices[0] if top[key] is None else top[key]
        require_one_of(choices, top[key], f"{config_path}: {key}")
    batch, eval_blocks = (_blocks(top[key], f"{config_path}: {key}") for key in ("global_batch_blocks", "eval_blocks"))
    training = sections["training"]
    if batch is not None and "gradient_accumulation_steps" in training:
        both = "sets gradient_accumulation_steps too; leave one of the two out"
        raise InputError(f"{config_path}: global_batch_blocks: {both}")
    output_dir = training.pop("output_dir", None)
    if not isinstance(output_dir, str) or not output_dir:
        raise InputError(f"{config_path}: training: output_dir is missing (or give --output_dir DIR)")
    where = {key: place for (section, key), place in origin.items() if section == "training"}
    model_config = _published_model(sections["model"], origin["model", "config"])
    return Settings(
        shards=_shards(top["shards"], config_path),
        shuffle=top["shuffle"],
        document_mask=convert(top["document_mask"] or False, "bool", f"{config_path}: document_mask"),
        loss=top["loss"],
        global_batch_blocks=batch,
        eval_blocks=eval_blocks,
        output_dir=Path(output_dir).expanduser(),
        model=_record(ModelSettings, "model", sections, origin, config_path),
        training=training,
        groups=_record(GroupSettings, "groups", sections, origin, config_path),
        tracking=_record(TrackingSettings, "tracking", sections, origin, config_path),
        generation=_record(GenerationSettings, "generation", sections, origin, config_path),
        origin=where,
        model_config=model_config,
    )


def _section(content: Mapping[str, Any], name: str, config_path: Path) -> dict[str, Any]:
    section = content.get(name)
    require(section is None or isinstance(section, dict), f"{config_path}: {name}", "a mapping", section)
    return dict(section or {})


def _published_model(section: dict[str, Any], where: str) -> str | None:
    """Fill the section `model` from the published configuration that its key `config` names; returns that name."""
    if section.get("config") is None:
        section.pop("config", None)
        return None
    name: str = convert(section.pop("config"), "str", where)
    try:
        types = {field.name: str(field.type) for field in dataclasses.fields(ModelSettings)}
        section |= {**published_fields(name, types), **section}
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return name


def _record(
    kind: type[Section],
    name: str,
    sections: Mapping[str, dict[str, Any]],
    origin: Mapping[tuple[str, str], str],
    config_path: Path,
) -> Section:
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in sections[name]:
            values[field.name] = convert(sections[name][field.name], str(field.type), origin[name, field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            hint = "; or take it from a published model with config: hf:ORG/NAME"
            raise InputError(f"{config_path}: {name}: {field.name} is missing{hint}")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{config_path}: {error}") from None


def _shards(value: Any, config_path: Path) -> str:
    """The spec of the shard sets; in YAML it may be a list of its parts."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ",".join(value)
    require(isinstance(value, str) and value != "", f"{config_path}: shards", "a shard set's directory", value)
    return str(value)


def _blocks(value: Any, where: str) -> int | None:
    """A number of blocks, or None where none is set."""
    blocks: int | None = convert(value, "int | None", where)
    require(blocks is None or blocks >= 1, where, "a number of blocks from 1 on", blocks)
    return blocks
