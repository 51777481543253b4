"""The model with its loss is transformers' model: same losses, gradients, generation and files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from shards.torch import DocumentCollator
from train.model import GatedMLP, Qwen2ForCausalLM, build_model
from train.settings import GenerationSettings, ModelSettings

VOCAB_SIZE, EOS_ID, BLOCK_TOKENS = 700, 600, 24


def make_model(*, tied: bool = True, loss: str = "plain") -> Qwen2ForCausalLM:
    shape: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = ModelSettings(**shape, intermediate_size=48, tie_word_embeddings=tied, initializer_range=0.2)
    sizes = {"vocab_size": VOCAB_SIZE, "eos_id": EOS_ID, "block_tokens": BLOCK_TOKENS}
    model = build_model(settings, GenerationSettings(), **sizes, seed=1)
    model.head_loss = loss
    return model


def plain(model: Qwen2ForCausalLM) -> transformers.Qwen2ForCausalLM:
    """transformers' own, with the same weights."""
    reference = transformers.Qwen2ForCausalLM(model.config)
    reference.load_state_dict(model.state_dict())
    return reference.train(model.training)


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB_SIZE, (3, BLOCK_TOKENS), generator=generator, dtype=torch.int32)
    labels = ids.clone()
    labels[:, ::5] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model: Any, batch: dict[str, Tensor], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**batch, **options).loss
    loss.backward()
    return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def naming(name: str) -> Callable[[str], str]:
    """A message of `assert_close` that begins with `name`."""
    return lambda text: f"{name}: {text}"


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-7)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-6, msg=naming(name))


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((left[name] - right[name]).square().sum()) for name in left))


def wide(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.long() for name, tensor in batch.items()}


@pytest.mark.parametrize("loss", ["plain", "chunked"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("count", [None, 100])
def test_loss_and_gradients_are_those_of_transformers(loss: str, tied: bool, count: int | None) -> None:
    model = make_model(tied=tied, loss=loss)
    options = {} if count is None else {"num_items_in_batch": count}
    assert_same(gradients(model, make_batch(), **options), gradients(plain(model), wide(make_batch()), **options))


def test_copies_and_replicas_have_the_loss_of_their_own_weights() -> None:
    """A forward pass that hangs on an instance would be the original's."""
    model = make_model(loss="chunked")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    expected = plain(copied)(**wide(make_batch())).loss
    torch.testing.assert_close(copied(**make_batch()).loss, expected, rtol=1e-6, atol=0)
    assert all("forward" not in vars(module) for module in model.modules())
    replica = model._replicate_for_data_parallel()
    assert replica.forward.__self__ is replica and replica.head_loss == "chunked"


@pytest.mark.parametrize(
    "change", ["checkpointing", pytest.param("compiled", marks=pytest.mark.slow), "frozen embedding", "bf16"]
)
def test_other_ways_to_run_it_change_nothing(change: str) -> None:
    model = make_model(loss="chunked").train()
    reference, batch = plain(model), make_batch()
    running: Any = model
    if change == "checkpointing":
        model.activation_checkpointing_enable({"use_reentrant": False})
    if change == "compiled":
        running = torch.compile(model, backend="aot_eager")
    if change == "frozen embedding":
        model.model.embed_tokens.weight.requires_grad_(False)
        model(**batch).loss.backward()
        assert model.lm_head.weight.grad is None
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        return
    expected = gradients(reference, wide(batch))
    if change == "bf16":  # as near as transformers' own
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (_, found), (_, own) = gradients(model, batch), gradients(reference, wide(batch))
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        assert distance(found, expected[1]) <= 1.2 * distance(own, expected[1])
        return
    loss = running(**batch).loss
    loss.backward()
    assert_same((loss, {name: parameter.grad for name, parameter in model.named_parameters()}), expected)


def test_without_labels_it_gives_logits_and_generates() -> None:
    model = make_model(loss="chunked").eval()
    ids, reference = make_batch()["input_ids"].long(), plain(model).eval()
    assert torch.equal(model(ids).logits, reference(ids).logits)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    prompt: Any = {"inputs": ids[:2, :4], "max_new_tokens": 3, "do_sample": False, "pad_token_id": EOS_ID}
    whole = torch.ones_like(mask)
    assert torch.equal(*(one.generate(**prompt, attention_mask=whole) for one in (model, reference)))
    padded = model.generate(**prompt, attention_mask=mask)[0, 4:]
    assert torch.equal(padded, model.generate(**{**prompt, "inputs": ids[:1, 2:4]})[0, 2:])


def test_what_it_saves_is_a_plain_qwen2_and_loads_as_both(tmp_path: Path) -> None:
    model = make_model(loss="chunked").eval()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is transformers.Qwen2ForCausalLM and loaded.config.architectures == ["Qwen2ForCausalLM"]
    ids = make_batch()["input_ids"].long()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    ours = Qwen2ForCausalLM.from_pretrained(tmp_path)
    assert isinstance(ours.model.layers[0].mlp, GatedMLP) and torch.equal(ours(ids).logits, model(ids).logits)


def test_tied_weights_hold_one_gradient_and_not_two(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, original = make_model(loss="chunked"), list[int](), torch.empty_like

    def counting(like: Tensor, **options: Any) -> Tensor:
        made.extend([1] if like.shape == model.lm_head.weight.shape else [])
        return original(like, **options)

    monkeypatch.setattr(torch, "empty_like", counting)
    model(**make_batch()).loss.backward()
    assert sum(made) == 1


@pytest.mark.parametrize("loss", ["plain", "chunked"])
def test_losses_of_single_tokens_are_those_of_the_logits(loss: str) -> None:
    model, batch = make_model(loss=loss).eval(), wide(make_batch())
    with torch.no_grad():
        output = model(**batch, num_items_in_batch=1, want_token_losses=True)
        logits = plain(model).eval()(batch["input_ids"]).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    torch.testing.assert_close(output.token_losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss, expected.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", ["plain", "chunked"])
def test_whole_blocks_need_no_mask(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is given, even the causal one, keeps attention from its fast path."""
    model, given = make_model(loss=loss), []
    original = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        given.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return original(*args, **kwargs)

    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda ids: torch.zeros_like(ids))
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attention)
    model(**make_batch())
    assert given == [(None, True)] * 2


@pytest.mark.parametrize(
    ("loss", "compiled"),
    [("plain", False), ("chunked", False), pytest.param("chunked", True, marks=pytest.mark.slow)],
)
def test_a_document_that_shares_its_block_is_as_if_alone(loss: str, compiled: bool) -> None:
    model = make_model(loss=loss).eval()
    generator = torch.Generator().manual_seed(5)
    documents = [torch.randint(0, 599, (length,), generator=generator) for length in (9, 1, 14)]
    for document in documents:
        document[-1] = EOS_ID
    block = torch.cat(documents).int()
    batch = DocumentCollator(EOS_ID)(block[None].repeat(2, 1))
    assert batch["position_ids"][0].tolist() == [*range(9), 0, *range(14)]
    assert (batch["labels"][0] == -100).nonzero().flatten().tolist() == [9, 10]
    total = 0.0
    for document in documents:
        alone = plain(model)(input_ids=document[None], use_cache=False).logits[0]
        total += torch.nn.functional.cross_entropy(alone[:-1], document[1:], reduction="sum").item()
    running: Any = torch.compile(model, backend="aot_eager") if compiled else model
    assert running(**batch).loss.item() == pytest.approx(total / (24 - 3), rel=1e-5)
    joined = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.item()
    assert joined != pytest.approx(total / (24 - 3), rel=1e-3)


# ---- the gated MLP ----


def kept_bytes(model: Any, batch: dict[str, Tensor]) -> int:
    """Of all tensors but the weights that autograd keeps between the two passes, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=batch["input_ids"])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in kept.items() if place not in weights)


def test_two_tensors_a_layer_are_not_kept() -> None:
    model, batch = make_model(), wide(make_batch())
    assert kept_bytes(plain(model), batch) - kept_bytes(model, batch) == 2 * 2 * 3 * 24 * 48 * 4
