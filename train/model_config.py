"""A model's shape from a published configuration: `model: {config: "hf:Qwen/Qwen2-0.5B", num_hidden_layers: 12}`.

The values are defaults for the other keys of the section `model`. Only what `ModelSettings` has is taken, so that a
model of 24 layers can be cut to 12: the lists with an entry a layer, the vocabulary and the weights are left out.
Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from shards.common.errors import InputError
from shards.common.text import nearest, printable
from shards.share.hub import is_reference, parse_reference, small_file
from train.values import convert, require

CONFIG_NAME: Final = "config.json"
MODEL_TYPE = "qwen2"

_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# What transformers' Qwen2Config takes where a configuration is silent, where that isn't our own default too.
_DEFAULTS: dict[str, Any] = {"max_position_embeddings": 32768, "tie_word_embeddings": False}


def published_fields(name: str, types: Mapping[str, str]) -> dict[str, Any]:
    """Those of the fields that are given with their `types` which the configuration called `name` has.

    `name` is `hf:ORG/NAME` or `ms:ORG/NAME` (then `@REVISION`), a directory with a `config.json`, or such a file.
    Raises `InputError` if it can't be had, or isn't a Qwen2 model that can be built here.
    """
    content = _read(_find(name), name)
    model_type = content.get("model_type")
    if model_type != MODEL_TYPE:
        found = printable(repr(model_type))[:80]
        raise InputError(f"{name}: expected model_type {MODEL_TYPE!r}, which alone is built here, found {found}")
    _check_attention(content, name)
    content = {**_DEFAULTS, **content, "rope_theta": _rope_theta(content, name)}
    if content.get("num_key_value_heads") is None:
        content["num_key_value_heads"] = content.get("num_attention_heads")
    for key in _REQUIRED:
        if content.get(key) is None:
            raise InputError(f"{name}: no {key}, so it is no model's configuration")
    return {
        key: convert(content[key], kinds, f"{name}: {key}")
        for key, kinds in types.items()
        if content.get(key) is not None
    }


def _find(name: str) -> Path:
    """The file with the configuration called `name`."""
    path = Path(name).expanduser()
    if is_reference(name) and not path.exists():
        return small_file(parse_reference(name), CONFIG_NAME)
    if path.is_dir():
        path = path / CONFIG_NAME
    if not path.is_file():
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        hint = nearest(path.name, siblings)
        if not hint and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            hint = f"; on a hub it is hf:{name}"
        raise InputError(
            f"{path}: no such file{printable(hint)} (expected hf:ORG/NAME, ms:ORG/NAME, a directory with a {CONFIG_NAME}, "
            "or such a file)"
        )
    return path


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{name}: expected an object")
    return content


def _check_attention(content: Mapping[str, Any], name: str) -> None:
    """Raise `InputError` if attention isn't the plain one, which is all that `ModelSettings` can say."""
    if content.get("use_sliding_window"):
        raise InputError(f"{name}: use_sliding_window: true; the models built here attend to all tokens before")
    layer_types = content.get("layer_types") or []
    is_full = isinstance(layer_types, list) and all(kind == "full_attention" for kind in layer_types)
    require(is_full, f"{name}: layer_types", "full_attention alone", layer_types)
    heads, width, head_dim = (content.get(key) for key in ("num_attention_heads", "hidden_size", "head_dim"))
    if head_dim is not None and isinstance(heads, int) and isinstance(width, int):
        require(head_dim * heads == width, f"{name}: head_dim", "hidden_size / num_attention_heads", head_dim)


def _rope_theta(content: Mapping[str, Any], name: str) -> Any:
    """The base of the rotary embedding: `rope_theta`, in newer files within `rope_parameters`; None: not said."""
    theta = content.get("rope_theta")
    for key in ("rope_parameters", "rope_scaling"):
        rope = content.get(key) or {}
        require(isinstance(rope, dict), f"{name}: {key}", "a mapping", rope)
        kind = rope.get("rope_type", rope.get("type", "default"))
        require(kind == "default", f"{name}: {key}", "the rotary embedding 'default'", kind)
        theta = rope.get("rope_theta", theta)
    return theta
