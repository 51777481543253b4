"""The settings of a run: a YAML file, overridden by the command line, checked once, then frozen.

    shards: data/shards/sample      # a shard set's directory, or several with shares: wiki:0.7,books:0.3
    shuffle: global                 # or window, none: see `shards.order`
    global_batch_blocks: 256        # blocks a step, over all GPUs; sets gradient_accumulation_steps
    eval_blocks: null               # validation blocks in an evaluation before the last one; null: all
    document_mask: false            # whether documents that share a block don't see each other
    loss: auto                      # or plain, chunked, liger: see `train.loss`
    model: {…}                      # `ModelSettings`: the Qwen2 model that is built; `config`: see `train.model_config`
    training: {…}                   # any field of transformers' TrainingArguments
    tracking: {…}                   # `TrackingSettings`: SwanLab
    generation: {…}                 # `GenerationSettings`: what is sampled, and when

On the command line a field of TrainingArguments is `--learning_rate 1e-3`; a field of another section is written
with its section, `--model.hidden_size 256`. Every fault is an `InputError` that names the file, the key and the value.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from shards.common.errors import InputError, nearest_path
from shards.common.text import nearest, printable
from shards.run_order import SHUFFLES, Shuffle
from train.arguments import FieldTypes, convert, require, require_one_of, training_argument_types, type_names
from train.checks import AUTO_ARGUMENTS, REFUSED_ARGUMENTS, check_training
from train.model_config import published_fields

Record = TypeVar("Record", "ModelSettings", "TrackingSettings", "GenerationSettings")

TOP_LEVEL = ("shards", "shuffle", "document_mask", "loss", "global_batch_blocks", "eval_blocks")
LossName = Literal["auto", "plain", "chunked", "liger"]
LOSSES: tuple[LossName, ...] = ("auto", "plain", "chunked", "liger")
SECTIONS = ("model", "training", "tracking", "generation")
TRACKING_MODES = ("auto", "online", "offline", "local", "disabled")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A Qwen2 model. Its vocabulary is the shard set's, rounded up to a multiple of `vocab_multiple`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool = True
    max_position_embeddings: int | None = None  # tokens; None: the shard set's block_tokens
    vocab_multiple: int = 128
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            require(getattr(self, name) >= 1, f"model: {name}", "at least 1", getattr(self, name))
        for name in ("intermediate_size", "vocab_multiple"):
            require(getattr(self, name) >= 1, f"model: {name}", "at least 1", getattr(self, name))
        require(
            self.hidden_size % (2 * self.num_attention_heads) == 0,
            "model: hidden_size",
            f"a multiple of 2 × num_attention_heads = {2 * self.num_attention_heads}",
            self.hidden_size,
        )
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "model: num_key_value_heads",
            f"a divisor of num_attention_heads = {self.num_attention_heads}",
            self.num_key_value_heads,
        )
        require(0 <= self.attention_dropout < 1, "model: attention_dropout", "0 to 1", self.attention_dropout)
        for name in ("rms_norm_eps", "initializer_range", "rope_theta"):
            require(getattr(self, name) > 0, f"model: {name}", "above 0", getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where SwanLab keeps the run. `auto` is `online` when logged in and `offline` otherwise."""

    mode: str = "auto"
    project: str = "block-pretraining"
    workspace: str | None = None
    name: str | None = None  # of the run; None: the name of the output directory

    def __post_init__(self) -> None:
        require_one_of(TRACKING_MODES, self.mode, "tracking: mode")
        require(self.project != "", "tracking: project", "a name", self.project)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How text is sampled. The values become the saved model's generation defaults too."""

    prompts: list[str] = dataclasses.field(default_factory=list)
    max_new_tokens: int = 128
    temperature: float = 0.8  # 0: always the likeliest token
    top_p: float = 0.95  # sample from the likeliest tokens that together have this probability
    top_k: int = 50  # sample from this many likeliest tokens; 0: no such limit
    repetition_penalty: float = 1.0  # 1: none
    seed: int = 0
    every_evaluation: bool = True  # whether the prompts are continued at each evaluation, not only at the end

    def __post_init__(self) -> None:
        for number, prompt in enumerate(self.prompts):
            require(isinstance(prompt, str) and prompt != "", f"generation: prompts[{number}]", "text", prompt)
        require(self.max_new_tokens >= 1, "generation: max_new_tokens", "at least 1", self.max_new_tokens)
        require(self.temperature >= 0, "generation: temperature", "0 or more", self.temperature)
        usable = self.temperature == 0 or 1e-3 <= self.temperature <= 100
        require(usable, "generation: temperature", "0, or 0.001 to 100", self.temperature)
        require(0 < self.top_p <= 1, "generation: top_p", "above 0, at most 1", self.top_p)
        require(self.top_k >= 0, "generation: top_k", "0 or more", self.top_k)
        penalty = self.repetition_penalty
        require(0.01 <= penalty <= 100, "generation: repetition_penalty", "0.01 to 100 (1: none)", penalty)
        require(0 <= self.seed < 2**32, "generation: seed", "0 to 2**32 - 1", self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run depends on, besides the shard set's content."""

    shards: str  # a shard set's directory, or a mixture of several (`shards.mixture`)
    output_dir: Path
    shuffle: Shuffle
    document_mask: bool
    global_batch_blocks: int | None  # of a step, over all processes; None: by gradient_accumulation_steps
    eval_blocks: int | None  # of an evaluation, but of the last one, which takes all; None: of each
    loss: LossName
    model: ModelSettings
    training: dict[str, Any]  # fields of TrainingArguments, `output_dir` left out; see `train.checks`
    tracking: TrackingSettings
    generation: GenerationSettings
    model_config: str | None = None  # where the section `model` took its defaults from

    @property
    def seed(self) -> int:
        """Of the model's first weights and of the order of blocks."""
        return int(self.training.get("seed", 42))

    def as_record(self) -> dict[str, Any]:
        """For `run.json`: plain values, the sections as in the YAML file."""
        return {**dataclasses.asdict(self), "output_dir": str(self.output_dir)}


def load_settings(config_path: Path, overrides: Mapping[str, Any]) -> Settings:
    """The settings in `config_path`, with `overrides` such as `{"learning_rate": "1e-3", "model.hidden_size": "64"}`.

    Raises `InputError`.
    """
    content = read_yaml(config_path)
    known = (*TOP_LEVEL, *SECTIONS)
    for key in content:
        if key not in known:
            hint = nearest(str(key), known)
            if key in training_argument_types():
                hint = "; it belongs into the section `training`"
            raise InputError(f"{config_path}: unknown key {printable(str(key))!r}{hint}")
    sections = {name: _section(content, name, config_path) for name in SECTIONS}
    top: dict[str, Any] = {key: content.get(key) for key in TOP_LEVEL}
    origins: dict[tuple[str, str], str] = {}
    # Each of the two sets the other: the command line's wins over the file's.
    if "gradient_accumulation_steps" not in overrides and "global_batch_blocks" in overrides:
        sections["training"].pop("gradient_accumulation_steps", None)
    if "gradient_accumulation_steps" in overrides and "global_batch_blocks" not in overrides:
        top["global_batch_blocks"] = None
    for option, value in overrides.items():
        section, _, key = option.rpartition(".")
        if option in TOP_LEVEL:
            top[option] = value
            continue
        sections[section or "training"][key] = value
        origins[section or "training", key] = f"--{option}"
    shards = _shards(top["shards"], config_path)
    for key, choices in (("shuffle", SHUFFLES), ("loss", LOSSES)):
        if top[key] is None:
            top[key] = choices[0]
        require_one_of(choices, top[key], f"{config_path}: {key}")

    def where(section: str, key: str) -> str:
        return origins.get((section, key), f"{config_path}: {section}: {key}")

    model_config = sections["model"].pop("config", None)
    if model_config is not None:
        model_config = convert(model_config, frozenset({"str"}), where("model", "config"))
        try:
            defaults = published_fields(model_config, section_types("model"))
        except InputError as error:
            raise InputError(f"{where('model', 'config')}: {error}") from None
        sections["model"] = {**defaults, **sections["model"]}
    for section, fields in sections.items():
        types = section_types(section)
        for key, value in fields.items():
            if key not in types:
                hint = nearest(str(key), types)
                raise InputError(f"{config_path}: {section}: unknown key {printable(str(key))!r}{hint}")
            if section == "training" and key in REFUSED_ARGUMENTS:
                raise InputError(f"{where(section, key)}: can't be set: {REFUSED_ARGUMENTS[key]}")
            fields[key] = convert(value, types[key], where(section, key))
    training = sections["training"]
    check_training(training, lambda key: where("training", key))
    global_batch_blocks, eval_blocks = (
        _blocks(top[key], f"{config_path}: {key}") for key in ("global_batch_blocks", "eval_blocks")
    )
    if global_batch_blocks is not None and "gradient_accumulation_steps" in training:
        raise InputError(
            f"{config_path}: global_batch_blocks: sets gradient_accumulation_steps too; leave one of the two out"
        )
    output_dir = training.pop("output_dir", None)
    if not output_dir:
        raise InputError(f"{config_path}: training: output_dir is missing (or give --output_dir DIR)")
    return Settings(
        shards=shards,
        shuffle=top["shuffle"],
        document_mask=convert(top["document_mask"] or False, frozenset({"bool"}), f"{config_path}: document_mask"),
        loss=top["loss"],
        global_batch_blocks=global_batch_blocks,
        eval_blocks=eval_blocks,
        output_dir=Path(output_dir).expanduser(),
        model=_record(ModelSettings, sections["model"], config_path),
        training=training,
        tracking=_record(TrackingSettings, sections["tracking"], config_path),
        generation=_record(GenerationSettings, sections["generation"], config_path),
        model_config=model_config,
    )


def _shards(value: Any, config_path: Path) -> str:
    """The spec of the shard sets; in YAML it may be a list of its parts."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ",".join(value)
    require(isinstance(value, str) and value != "", f"{config_path}: shards", "a shard set's directory", value)
    return str(value)


def _blocks(value: Any, where: str) -> int | None:
    """A number of blocks, or None where none is set."""
    if value is None:
        return None
    blocks: int = convert(value, frozenset({"int"}), where)
    require(blocks >= 1, where, "a number of blocks from 1 on", blocks)
    return blocks


@functools.cache
def section_types(section: str) -> FieldTypes:
    """The keys of a section and the types of each."""
    if section == "training":
        types = dict(training_argument_types())
        types |= {key: frozenset({"bool", "str"}) for key in AUTO_ARGUMENTS}
        return types
    record = {"model": ModelSettings, "tracking": TrackingSettings, "generation": GenerationSettings}[section]
    fields = dataclasses.fields(record)
    types = {field.name: type_names(ast.parse(str(field.type), mode="eval").body) for field in fields}
    return {"config": frozenset({"str"}), **types} if section == "model" else types


def option_types() -> FieldTypes:
    """The keys of all sections, called as on the command line (`learning_rate`, `model.hidden_size`), and their types."""
    return {
        name if section == "training" else f"{section}.{name}": types
        for section in SECTIONS
        for name, types in section_types(section).items()
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `InputError`: no file, bad YAML, a key given twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such config file{nearest_path(path, Path.is_file)}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: expected a YAML file, found a directory") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise InputError(f"{path}: {place}{problem}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a date that there is not, a number of thousands of digits
        raise InputError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping with the keys {', '.join((*TOP_LEVEL, *SECTIONS))}")
    return content


_MOST_NODES = 100_000


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where the last would silently win, and aliases that stand for more
    than a config can hold, or for themselves."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _num_nodes(node, {}) > _MOST_NODES:
            raise yaml.constructor.ConstructorError(
                problem="aliases (*name) stand for too much, or for what they are in", problem_mark=node.start_mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _num_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes `node` is with each alias written out; more than `_MOST_NODES` where it holds itself."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES + 1
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_num_nodes(part, known) for part in inner)
    return known[id(node)]


def _section(content: Mapping[str, Any], name: str, config_path: Path) -> dict[str, Any]:
    section = content.get(name)
    require(section is None or isinstance(section, dict), f"{config_path}: {name}", "a mapping", section)
    return dict(section or {})


def _record(kind: type[Record], fields: dict[str, Any], config_path: Path) -> Record:
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in fields:
            section = kind.__name__.removesuffix("Settings").lower()
            hint = "; or take it from a published model with config: hf:ORG/NAME" if section == "model" else ""
            raise InputError(f"{config_path}: {section}: {field.name} is missing{hint}")
    try:
        return kind(**fields)
    except InputError as error:
        raise InputError(f"{config_path}: {error}") from None
