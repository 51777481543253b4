"""transformers' Trainer over a shard set: the order of blocks, the epoch, exact evaluation, sealed checkpoints.

* One "epoch" of the Trainer is the whole run. The sampler is a pure function of the position in it (`shards.torch`), so
  resuming never replays or skips data. The `epoch` that is logged and saved is the true one: positions / blocks.
* A checkpoint is complete when it is sealed, in `on_save` (`train.checkpoints`).
* Logs have tokens, tokens per second, training seconds (of all sessions of the run) and perplexity.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import shards
from shards.torch import IGNORED, BlockDataset, BlockSampler, collate_blocks, has_padding, text_collator
from train.checkpoints import DataPosition, replace_directory, set_aside, share_files
from train.evaluation import evaluate_blocks, spread_evenly
from train.flops import flops_a_token, peak_flops, peak_memory_bytes
from train.model import Qwen2ForCausalLM
from train.optimizer import MuonWithAdamW, parameter_groups
from train.settings import MUON, Settings


class BlockTrainer(Trainer):  # type: ignore[misc]
    """A Trainer of `model` on `data`. `args.max_steps` must be set.

    `position` describes the run's data (its `step` is ignored); `add_files` adds files to what is saved.
    """

    optimizer: torch.optim.Optimizer  # the Trainer's own attribute, None until `create_optimizer`
    _group_settings: Sequence[dict[str, Any]] = ()  # of the groups of parameters, as the settings have them

    def __init__(
        self,
        *,
        settings: Settings,
        data: shards.Data,
        model: Qwen2ForCausalLM,
        args: TrainingArguments,
        position: DataPosition,
        add_files: Callable[[Path], None],
    ) -> None:
        assert args.max_steps > 0
        self.settings, self.position, self.add_files = settings, position, add_files
        self.sampler = BlockSampler(
            shards.run_order(data, settings.seed, settings.shuffle), stop=args.max_steps * position.global_batch_blocks
        )
        self._epoch_blocks = shards.epoch_blocks(data)
        self._every_token_is_label = not (settings.document_mask or has_padding(data))
        self._text_collator = text_collator(data.eos_id, document_mask=settings.document_mask)
        on_gpu = args.device.type == "cuda"
        self._peak_flops = peak_flops(torch.cuda.get_device_name(args.device)) if on_gpu else None
        self._clock = Clock()
        self.has_begun = False  # a step: what had to be loaded was loaded
        # Old checkpoints are deleted after the new one is sealed.
        self.save_total_limit, args.save_total_limit = args.save_total_limit, None
        super().__init__(
            model=model,
            args=args,
            train_dataset=BlockDataset(data, "train"),
            eval_dataset=BlockDataset(data, "val") if len(data["val"]) else None,
            data_collator=collate_blocks if self._every_token_is_label else self._text_collator,
        )

    # ---- data ----

    def get_train_dataloader(self) -> Any:
        """Batches in the order of positions, dealt out to the ranks one after another by accelerate.

        Its generator is its own: the loader's iterator draws a number, which must not come from the state that a
        checkpoint restores.
        """
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_size=args.train_batch_size,
            sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            worker_init_fn=ignore_sigterm,
            generator=torch.Generator(),
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int]:
        """The micro-batches of a step, and how many labels it has over all ranks.

        Where the number is known beforehand, no rank and no GPU is waited for.
        """
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        if self._every_token_is_label:
            blocks = sum(len(batch["labels"]) for batch in batches)
            return batches, int(blocks * (self.position.block_tokens - 1) * self._ranks_counted)
        count = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in batches).to(device)
        return batches, self.accelerator.gather(count).sum() if self._ranks_counted > 1 else count

    @property
    def _ranks_counted(self) -> int:
        return int(self.args.world_size) if self.args.average_tokens_across_devices else 1

    def true_epoch(self, step: int) -> float:
        """Passes over all blocks that are complete after `step` steps."""
        return step * self.position.global_batch_blocks / self._epoch_blocks

    # ---- optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the settings over the named groups of parameters; those of other kinds are Trainer's."""
        args, trained = self.args, self.model if model is None else model
        if self.optimizer is not None or args.optim_target_modules or "lomo" in args.optim.value:
            made: torch.optim.Optimizer = super().create_optimizer(trained)
            return made
        groups = parameter_groups(
            trained, self.settings.groups, learning_rate=args.learning_rate, weight_decay=args.weight_decay
        )
        if self.settings.training.get("optim") == MUON:
            betas = (args.adam_beta1, args.adam_beta2)
            self.optimizer = MuonWithAdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon)
        else:
            kind, options = self.get_optimizer_cls_and_kwargs(args, trained)
            self.optimizer = kind(groups, **options)
        self._group_settings = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        return self.optimizer

    def apply_settings(self) -> None:
        """After a checkpoint was loaded: its state stays, but rates, decays and the rest are this command's."""
        scheduler = self.lr_scheduler
        if not isinstance(scheduler, LambdaLR) or len(self._group_settings) != len(self.optimizer.param_groups):
            return
        scheduler.base_lrs = [group["lr"] for group in self._group_settings]
        scheduler._last_lr = [
            rate * share(scheduler.last_epoch)
            for rate, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        groups = zip(self.optimizer.param_groups, self._group_settings, scheduler._last_lr, strict=True)
        for group, given, rate in groups:
            group.update({**given, "lr": rate, "initial_lr": given["lr"]})

    # ---- logs and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        step, clock = self.state.global_step, self._clock
        self.state.epoch = self.true_epoch(step)
        step_tokens = self.position.global_batch_blocks * self.position.block_tokens
        if "loss" in logs or "eval_loss" in logs:
            logs["tokens"], logs["seconds"] = step * step_tokens, clock.seconds(step)
        if "loss" in logs:
            logs["tokens_per_second"] = rate = clock.steps_per_second(step) * step_tokens
            logs["seconds_left"] = (self.args.max_steps - step) * step_tokens / max(rate, 1e-9)
            logs["peak_memory_bytes"] = peak_memory_bytes(self.args.device)
            if self._peak_flops is not None:
                config = self.accelerator.unwrap_model(self.model).config
                done = rate * flops_a_token(config, self.position.block_tokens)
                logs["mfu"] = done / (self._peak_flops * self.args.world_size)
            clock.start(step)
        super().log(logs, start_time)

    def start_clock(self, *, seconds_before: float) -> None:
        """Count training seconds from here on, after `seconds_before` of earlier sessions."""
        self._clock = Clock(seconds_before)
        self._clock.start(self.state.global_step)

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Time spent here is not training."""
        self._clock.stop()
        try:
            yield
        finally:
            self._clock.resume()

    def evaluate(self, *_: Any, all_blocks: bool = False, **__: Any) -> dict[str, float]:
        """Loss and perplexity on validation blocks, `settings.eval_blocks` of them or all, logged; on every rank."""
        args, dataset, start = self.args, self.eval_dataset, time.monotonic()
        limit = None if all_blocks else self.settings.eval_blocks
        numbers = spread_evenly(len(dataset), limit)
        with self.clock_stopped():
            sums, counts = evaluate_blocks(
                self.model_wrapped,
                dataset,
                numbers,
                self._text_collator,
                device=args.device,
                batch_blocks=args.per_device_eval_batch_size,
                autocast=self.compute_loss_context_manager,
                on_batch=self._note_evaluated_batch,
            )
            loss, seconds = float(sums.sum() / max(counts.sum(), 1)), time.monotonic() - start
            metrics = {
                "eval_loss": loss,
                "eval_perplexity": math.exp(min(loss, 700.0)),
                "eval_runtime": seconds,
                "eval_samples": len(numbers),
                "eval_samples_per_second": len(numbers) / max(seconds, 1e-9),
            }
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    def _note_evaluated_batch(self, batches: range) -> None:
        self.callback_handler.eval_dataloader = batches  # its length is that of the progress bar
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    # ---- what is saved ----

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Private, because no hook runs before files are written: an older checkpoint of that name must step aside.
        with self.clock_stopped():
            if self.args.should_save:
                set_aside(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)

    def save_final_model(self, directory: Path) -> None:
        """Save the model to `directory`, which appears as a whole. Every rank calls this."""
        partial = directory.with_name(directory.name + ".tmp")
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(partial), _internal_call=True)
        if self.args.should_save:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial / "training_args.bin")  # a pickle; the settings are in run.json
            self.add_files(partial)
            share_files(partial)
            replace_directory(partial, directory)
        self.accelerator.wait_for_everyone()


class Clock:
    """Seconds of training, in all and since the last log."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._until_log, self._log_step = seconds_before, 0
        self._since_log, self._resumed = 0.0, time.monotonic()

    def start(self, step: int) -> None:
        """A log was written at `step`: count from here."""
        self._until_log += self._running()
        self._log_step, self._since_log, self._resumed = step, 0.0, time.monotonic()

    def stop(self) -> None:
        self._since_log, self._resumed = self._running(), math.nan

    def resume(self) -> None:
        self._resumed = time.monotonic()

    def _running(self) -> float:
        return self._since_log + (0.0 if math.isnan(self._resumed) else time.monotonic() - self._resumed)

    def seconds(self, step: int) -> float:
        """In all; after the last step's log nothing is trained."""
        return self._until_log + (self._running() if step > self._log_step else 0.0)

    def steps_per_second(self, step: int) -> float:
        return (step - self._log_step) / max(self._running(), 1e-9)


def ignore_sigterm(_number: int) -> None:
    """A loader's worker leaves SIGTERM to its parent, as schedulers send it to all; it ends when its parent does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
