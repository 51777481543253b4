"""A training loop of one's own over a shard set: plain PyTorch, or accelerate on any number of processes.

    python -m docs.examples.own_loop data/shards/wikipedia-zh-sample loop.pt --stop 10
    torchrun --nproc-per-node 2 -m docs.examples.own_loop data/shards/wikipedia-zh-sample loop.pt --accelerate

The second command goes on where the first one stopped, with the same batches: its position is `steps × global batch`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader

import shards
from shards.torch import BlockDataset, PaddingCollator, RunSampler

GLOBAL_BLOCKS, MICRO_BLOCKS = 16, 4  # blocks in a step, over all processes; in one forward pass


def batches(data: shards.Data, *, first_step: int, stop: int, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
    """The micro-batches of one process, from `first_step` to step `stop`. With accelerate, those of all."""
    sampler = RunSampler(
        shards.run_order(data, seed=42),
        start=first_step * GLOBAL_BLOCKS,
        stop=stop * GLOBAL_BLOCKS,
        rank=rank,
        world_size=world_size,
        micro_batch_blocks=MICRO_BLOCKS,
    )
    collate = PaddingCollator(data.eos_id, data.begin_id)
    return DataLoader(BlockDataset(data, "train"), batch_size=MICRO_BLOCKS, sampler=sampler, collate_fn=collate)


def train(data: shards.Data, checkpoint: Path, *, stop: int, accelerator: Any = None) -> Any:
    """Train a small model to step `stop`, from `checkpoint` where there is one, and replace it."""
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Embedding(data.vocab_size, 64), torch.nn.Linear(64, data.vocab_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state: Any = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {"step": 0}
    if state["step"]:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    loader: Any = batches(data, first_step=state["step"], stop=stop)
    if accelerator:
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    micro_batches = GLOBAL_BLOCKS // MICRO_BLOCKS // (accelerator.num_processes if accelerator else 1)
    for number, batch in enumerate(loader, start=1):
        logits = model(batch["input_ids"][:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()) / micro_batches
        accelerator.backward(loss) if accelerator else loss.backward()
        if number % micro_batches == 0:
            optimizer.step()
            optimizer.zero_grad()
            print(f"step {state['step'] + number // micro_batches}: loss {loss.item() * micro_batches:.4f}")
    model = accelerator.unwrap_model(model) if accelerator else model
    if accelerator is None or accelerator.is_main_process:
        torch.save({"step": stop, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--stop", type=int, default=20)
    parser.add_argument("--accelerate", action="store_true")
    options = parser.parse_args()
    accelerator: Any = None
    if options.accelerate:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
    train(shards.open_data(options.shards), options.checkpoint, stop=options.stop, accelerator=accelerator)
    if accelerator:
        accelerator.end_training()
