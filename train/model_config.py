"""A model's shape from a published configuration: `model: {config: "hf:Qwen/Qwen2-0.5B", num_hidden_layers: 12}`.

The values are defaults for the other keys of the section `model`, so a model of 24 layers can be cut to 12; what that
section doesn't have, as the vocabulary and the lists with an entry a layer, is left out. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from shards.common.errors import InputError, nearest_path
from shards.share.hub import is_reference, parse_reference
from train.values import require

CONFIG_NAME = "config.json"
# What transformers' Qwen2Config takes where a configuration is silent, where that isn't our own default too.
_DEFAULTS: dict[str, Any] = {"max_position_embeddings": 32768, "tie_word_embeddings": False}


def published_fields(name: str, where: str) -> dict[str, Any]:
    """What the configuration called `name` sets, which `where` asked for.

    `name` is `hf:ORG/NAME` or `ms:ORG/NAME` (then `@REVISION`), a directory with a `config.json`, or such a file.
    Raises `InputError` if it can't be had, or isn't a Qwen2 model that can be built here.
    """
    try:
        content = json.loads(_find(name).read_bytes())
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {name}: not valid JSON ({error})") from None
    where = f"{where}: {name}"
    require(isinstance(content, dict), where, "an object", content)
    content = {**_DEFAULTS, **{key: value for key, value in content.items() if value is not None}}
    for key in ("rope_parameters", "rope_scaling"):
        rope = content.get(key, {})
        require(isinstance(rope, dict), f"{where}: {key}", "a mapping", rope)
        kind = rope.get("rope_type", rope.get("type", "default"))
        require(kind == "default", f"{where}: {key}", "the rotary embedding 'default'", kind)
        content |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    width, heads = content.get("hidden_size"), content.get("num_attention_heads")
    head_dim = width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None
    layers = content.get("layer_types", [])
    is_full = isinstance(layers, list) and set(map(str, layers)) <= {"full_attention"}
    for key, is_right, expected in (
        ("model_type", content.get("model_type") == "qwen2", "'qwen2'"),
        ("layer_types", is_full, "full_attention alone"),
        ("use_sliding_window", not content.get("use_sliding_window"), "false"),
        ("head_dim", content.get("head_dim") in (None, head_dim), "hidden_size / num_attention_heads"),
    ):
        require(is_right, f"{where}: {key}", expected, content.get(key))
    return {"num_key_value_heads": heads, **content}


def _find(name: str) -> Path:
    """The file with the configuration called `name`."""
    path = Path(os.path.expanduser(name))
    if is_reference(name) and not path.exists():
        from shards.share.hub import small_files

        return small_files(parse_reference(name), CONFIG_NAME) / CONFIG_NAME
    path = path / CONFIG_NAME if path.is_dir() else path
    if not path.is_file():
        is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", name)
        hint = nearest_path(path) or (f"; on a hub it is hf:{name}" if is_name else "")
        expected = f"hf:ORG/NAME, ms:ORG/NAME, a directory with a {CONFIG_NAME}, or such a file"
        raise InputError(f"{path}: no such file{hint} (expected {expected})")
    return path
