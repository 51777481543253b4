"""A model's shape from a published configuration: `model: {config: "hf:Qwen/Qwen2-0.5B", num_hidden_layers: 12}`.

The values are defaults for the other keys of the section `model`. Only what `ModelSettings` has is taken, so that a
model of 24 layers can be cut to 12: the lists with an entry a layer, the vocabulary and the weights are left out.
Imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.common.errors import InputError, nearest_path
from shards.share.hub import is_reference, parse_reference
from train.values import convert, require

CONFIG_NAME = "config.json"
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# What transformers' Qwen2Config takes where a configuration is silent, where that isn't our own default too.
_DEFAULTS: dict[str, Any] = {"max_position_embeddings": 32768, "tie_word_embeddings": False}


def published_fields(name: str, types: Mapping[str, str]) -> dict[str, Any]:
    """Those of the fields, given with their `types`, that the configuration called `name` has.

    `name` is `hf:ORG/NAME` or `ms:ORG/NAME` (then `@REVISION`), a directory with a `config.json`, or such a file.
    Raises `InputError` if it can't be had, or isn't a Qwen2 model that can be built here.
    """
    try:
        content = json.loads(_find(name).read_bytes())
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: not valid JSON ({error})") from None
    require(isinstance(content, dict), name, "an object", content)
    require(content.get("model_type") == "qwen2", f"{name}: model_type", "'qwen2'", content.get("model_type"))
    for key in _REQUIRED:
        require(content.get(key) is not None, f"{name}: {key}", "a number", None)
    heads, width, head_dim = (content.get(key) for key in ("num_attention_heads", "hidden_size", "head_dim"))
    layer_types = content.get("layer_types") or ["full_attention"]
    theta = content.get("rope_theta")
    for key in ("rope_parameters", "rope_scaling"):
        rope = content.get(key) or {}
        require(isinstance(rope, dict), f"{name}: {key}", "a mapping", rope)
        kind = rope.get("rope_type", rope.get("type", "default"))
        require(kind == "default", f"{name}: {key}", "the rotary embedding 'default'", kind)
        theta = rope.get("rope_theta", theta)
    is_full = isinstance(layer_types, list) and set(map(str, layer_types)) == {"full_attention"}
    require(is_full, f"{name}: layer_types", "full_attention alone", layer_types)
    require(not content.get("use_sliding_window"), f"{name}: use_sliding_window", "false", True)
    same = head_dim is None or width == heads * head_dim
    require(same, f"{name}: head_dim", "hidden_size / num_attention_heads", head_dim)
    kv_heads = heads if content.get("num_key_value_heads") is None else content["num_key_value_heads"]
    content = {**_DEFAULTS, **content, "rope_theta": theta, "num_key_value_heads": kv_heads}
    return {
        key: convert(content[key], kinds, f"{name}: {key}")
        for key, kinds in types.items()
        if content.get(key) is not None
    }


def _find(name: str) -> Path:
    """The file with the configuration called `name`."""
    path = Path(name).expanduser()
    if is_reference(name) and not path.exists():
        from shards.share.hub import small_files

        return small_files(parse_reference(name), CONFIG_NAME) / CONFIG_NAME
    path = path / CONFIG_NAME if path.is_dir() else path
    if not path.is_file():
        hint = nearest_path(path)
        if not hint and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            hint = f"; on a hub it is hf:{name}"
        expected = f"hf:ORG/NAME, ms:ORG/NAME, a directory with a {CONFIG_NAME}, or such a file"
        raise InputError(f"{path}: no such file{hint} (expected {expected})")
    return path
