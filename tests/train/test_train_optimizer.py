"""Muon and AdamW as one optimizer: each does its own parameters, and a resumed run goes on to the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_train_loss import make_batch, make_model
from train.__main__ import main
from train.checkpoints import numbered_checkpoints
from train.optimizer import build_muon, is_hidden_matrix, orthogonalize
from train.run_directory import read_lines

SETTINGS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def gradients_of(model: Any, seed: int) -> None:
    model.zero_grad()
    batch = {key: tensor.long() for key, tensor in make_batch(seed).items()}
    model(**batch).loss.backward()


def test_each_parameter_is_updated_as_by_its_own_optimizer() -> None:
    model = make_model()
    reference = copy.deepcopy(model)
    decayed = [name for name, parameter in model.named_parameters() if parameter.ndim == 2]
    optimizer = build_muon(model, decayed=decayed, **SETTINGS)
    named = dict(reference.named_parameters())
    matrices = [parameter for name, parameter in named.items() if is_hidden_matrix(name, parameter)]
    others = [parameter for name, parameter in named.items() if not is_hidden_matrix(name, parameter)]
    assert len(matrices) == 2 * 7 and named["model.embed_tokens.weight"] in others
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": [parameter for parameter in others if parameter.ndim == 2], "weight_decay": 0.1},
            {"params": [parameter for parameter in others if parameter.ndim != 2], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=True,
    )
    before = copy.deepcopy(reference)
    for seed in range(3):
        for (name, parameter), found in zip(reference.named_parameters(), model.parameters(), strict=True):
            torch.manual_seed(len(name) + seed)
            parameter.grad = torch.randn_like(parameter)
            found.grad = parameter.grad.clone()
        for part in (optimizer, muon, adamw):
            part.step()
    for (name, parameter), start in zip(model.named_parameters(), before.parameters(), strict=True):
        expected = named[name]
        if is_hidden_matrix(name, parameter):  # torch's multiplies in bf16
            assert (parameter - expected).norm() < 0.03 * (expected - start).norm(), name
        else:
            assert torch.equal(parameter, expected), name


@pytest.mark.parametrize("shape", [(4, 16, 40), (3, 40, 16), (1, 24, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_together_is_orthogonalized_alone(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices, dtype)
    assert found.dtype == dtype and found.shape == shape
    for matrix, together in zip(matrices, found.float(), strict=True):
        torch.testing.assert_close(orthogonalize(matrix[None], dtype)[0].float(), together, rtol=0, atol=0.02)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.linalg.svdvals(together)[values > 0.05 * values.max()].min() > 0.6
        assert torch.linalg.svdvals(together).max() < 1.3
        wanted = left @ right
        assert (together * wanted).sum() > 0.9 * together.norm() * wanted.norm()


def test_many_matrices_are_done_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for limit in (1 << 26, 2000):
        monkeypatch.setattr("train.optimizer._STACKED_ELEMENTS", limit)
        model = make_model()
        optimizer = build_muon(model, decayed=[], **SETTINGS)
        gradients_of(model, 0)
        optimizer.step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


def test_state_that_is_saved_and_loaded_goes_on_to_the_same_bits() -> None:
    model = make_model()
    optimizer = build_muon(model, decayed=[], **SETTINGS)
    gradients_of(model, 0)
    optimizer.step()
    other = copy.deepcopy(model)
    continued = build_muon(other, decayed=[], **SETTINGS)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in (*optimizer.param_groups, *continued.param_groups):
        group["lr"] = 0.003  # as a scheduler does
    for seed in (1, 2):
        for trained, stepped in ((model, optimizer), (other, continued)):
            gradients_of(trained, seed)
            stepped.step()
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), other.parameters(), strict=True))


def test_a_run_with_muon_continues_to_the_same_bits(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(training={"optim": "muon"})
    main(["--config", str(config), "--output_dir", str(tmp_path / "whole")])
    main(["--config", str(write_config("adamw.yaml")), "--output_dir", str(tmp_path / "adamw")])
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(
            "train.trainer.BlockTrainer.save_final_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            main(["--config", str(config), "--output_dir", str(stopped), "--max_steps", "11"])
    for checkpoint in numbered_checkpoints(stopped)[2:]:
        for file in checkpoint.iterdir():
            file.unlink()
    main(["--config", str(config), "--output_dir", str(stopped), "--max_steps", "11"])
    losses, adamw = (
        [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("stopped", "adamw")
    )
    whole = [line["loss"] for line in read_lines(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    assert losses == whole and len(losses) == 11
    assert losses[3:] != adamw[3:]
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, right[key]) for key, tensor in left.items())
