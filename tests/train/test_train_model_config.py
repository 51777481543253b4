"""`model: {config: …}`: the shape of a published model, with the other keys over it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shards.common.errors import InputError
from tests.hub_server import Hub
from tests.train.runs import WriteConfig
from train.settings import load_settings

# As published, of 24 layers; transformers' own writer adds the lists with an entry a layer.
QWEN2: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16"}
QWEN2 |= {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "max_window_layers": 24}
QWEN2 |= {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "hidden_act": "silu"}
QWEN2 |= {"bos_token_id": 151643, "eos_token_id": 151643, "use_cache": True, "tie_word_embeddings": True}
QWEN2 |= {"attention_dropout": 0.0, "initializer_range": 0.02, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0}
QWEN2 |= {"max_position_embeddings": 131072, "sliding_window": 131072, "use_sliding_window": False}
QWEN2 |= {"layer_types": ["full_attention"] * 24}


@pytest.fixture
def write(tmp_path: Path) -> WriteConfig:
    def write_config(**model: Any) -> Path:
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump({"shards": "set", "model": model, "training": {"output_dir": "run"}}))
        return path

    return write_config


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., str]:
    """Write a configuration with changes (None: without the key), and give its path."""

    def write_published(**changes: Any) -> str:
        content = {key: value for key, value in {**QWEN2, **changes}.items() if value is not None}
        (tmp_path / "model").mkdir(exist_ok=True)
        path = tmp_path / "model" / "config.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write_published


@pytest.mark.parametrize("name", ["hf:Qwen/Qwen2-0.5B", "ms:Qwen/Qwen2-0.5B", "hf:Qwen/Qwen2-0.5B@main"])
def test_the_named_model_gives_the_defaults_and_the_keys_win(hub: Hub, write: WriteConfig, name: str) -> None:
    hub.put("models/Qwen/Qwen2-0.5B", "config.json", json.dumps(QWEN2).encode())
    for _ in range(2):  # the second time from the cache
        settings = load_settings(write(config=name, num_hidden_layers=12), {"model.hidden_size": "448"})
        model = settings.model
        assert (model.num_hidden_layers, model.hidden_size, model.intermediate_size) == (12, 448, 4864)
        assert (model.num_attention_heads, model.num_key_value_heads) == (14, 2)
        assert (model.rope_theta, model.rms_norm_eps, model.tie_word_embeddings) == (1e6, 1e-6, True)
        assert model.max_position_embeddings == 131072
        assert settings.as_record()["model_config"] == name
        hub.status = 503
    assert hub.requests == ["config.json"]


def test_a_model_of_24_layers_cut_to_2_is_built_and_saved(
    write: WriteConfig, published: Callable[..., str], tmp_path: Path
) -> None:
    from transformers import Qwen2ForCausalLM

    from train.model import build_model

    path = published(hidden_size=28, intermediate_size=32)
    settings = load_settings(write(config=path, num_hidden_layers=2), {})
    model = build_model(settings.model, settings.generation, vocab_size=300, eos_id=299, block_tokens=16, seed=1)
    model.save_pretrained(tmp_path / "saved")
    loaded = Qwen2ForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.config.num_hidden_layers == len(loaded.config.layer_types) == len(loaded.model.layers) == 2
    assert loaded.config.rope_parameters["rope_theta"] == 1e6 and loaded.config.vocab_size == 384
    # What was saved is a configuration too.
    again = load_settings(write(), {"model.config": str(tmp_path / "saved")})  # a directory, as an option
    assert again.model == settings.model
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["rope_theta"] == settings.model.rope_theta  # where transformers 4 looks


def test_what_a_configuration_leaves_out_is_as_transformers_takes_it(
    write: WriteConfig, published: Callable[..., str]
) -> None:
    from transformers import Qwen2Config

    left_out = ("tie_word_embeddings", "rope_theta", "max_position_embeddings", "rms_norm_eps", "hidden_act")
    path = published(**dict.fromkeys(left_out), initializer_range=None, attention_dropout=None)
    model, default = load_settings(write(config=path), {}).model, Qwen2Config()
    for name in (*left_out, "initializer_range", "attention_dropout"):
        expected = default.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(default, name)
        assert getattr(model, name) == expected, name
    assert load_settings(write(config=published(num_key_value_heads=None)), {}).model.num_key_value_heads == 14
    rope = {"rope_type": "default", "rope_theta": 5e5}  # the newer spelling
    assert load_settings(write(config=published(rope_theta=None, rope_parameters=rope)), {}).model.rope_theta == 5e5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type: expected 'qwen2', found 'llama'"),
        ({"model_type": "\x1b[31m"}, r"found '\\x1b\[31m'"),
        ({"use_sliding_window": True}, "use_sliding_window: expected false, found True"),
        ({"layer_types": ["sliding_attention"]}, "layer_types: expected full_attention alone"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling: expected .* found 'yarn'"),
        ({"rope_parameters": [1]}, "rope_parameters: expected a mapping"),
        ({"head_dim": 128}, "head_dim"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "wide"}, "hidden_size: expected a whole number, found 'wide'"),
        ({"hidden_size": 900}, "hidden_size: expected a multiple of 2 × num_attention_heads"),
    ],
)
def test_other_models_are_refused_in_one_line(
    write: WriteConfig, published: Callable[..., str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as raised:
        load_settings(write(config=published(**changes)), {})
    assert str(raised.value).isprintable() and "train.yaml" in str(raised.value)


@pytest.mark.parametrize(("content", "words"), [(b"\xff", "not valid JSON"), (b"[]", "expected an object")])
def test_a_file_that_is_no_configuration_is_refused(
    write: WriteConfig, published: Callable[..., str], content: bytes, words: str
) -> None:
    path = Path(published())
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_settings(write(config=str(path)), {})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"config": "{directory}/modle"}, r"did you mean '.*model'"),
        ({"config": "Qwen/Qwen2-0.5B"}, "on a hub it is hf:Qwen/Qwen2-0.5B"),
        ({"config": "hf:Qwen2"}, "model: config: 'hf:Qwen2': expected hf:ORG/NAME"),
        ({"confg": "x"}, "did you mean 'config'"),
        ({"hidden_size": 64}, "is missing; or take it from a published model with config: hf:ORG/NAME"),
    ],
)
def test_mistyped_names_suggest_the_right_ones(
    write: WriteConfig, published: Callable[..., str], tmp_path: Path, model: dict[str, Any], words: str
) -> None:
    published()
    if "config" in model:
        model = {"config": model["config"].format(directory=tmp_path)}
    with pytest.raises(InputError, match=words):
        load_settings(write(**model), {})
