"""transformers' Trainer with three differences: the order of blocks, the epoch, and whole checkpoints.

* One "epoch" of the Trainer is the whole run. The sampler is a pure function of the position in it (`train.data`), so
  resuming never replays or skips data. The `epoch` that is logged and saved is the true one: positions / blocks.
* A checkpoint appears under its name only when it is complete (`train.checkpoints`).
* Logs carry tokens, tokens per second, training seconds (of all sessions of the run) and perplexity.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

import shards
from shards.common.errors import InputError
from shards.common.text import printable
from train.arithmetic import flops_a_token, peak_flops, peak_memory_bytes
from train.checkpoints import (
    SAVING_DIRECTORY,
    DataPosition,
    delete_old_checkpoints,
    publish_checkpoint,
    seal_checkpoint,
)
from train.data import BlockDataset, PositionSampler, collate_blocks, text_collator
from train.held_out import evaluate_held_out
from train.optimizer import build_muon
from train.rehearsal import refusing

STATE_NAME = "trainer_state.json"
# In messages of torch.save and safetensors.
_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "iostream error", "os error")


@contextlib.contextmanager
def loading(checkpoint: str | os.PathLike[str] | None) -> Iterator[None]:
    """What can't be loaded of a checkpoint is one `InputError`: damaged, or objects in it that `weights_only` refuses."""
    try:
        yield
    except (torch.OutOfMemoryError, InputError):
        raise
    except Exception as error:
        refused = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower()
        reason = "it holds objects that are no weights" if refused else (str(error) or type(error).__name__)
        raise InputError(
            f"{checkpoint}: the checkpoint can't be loaded: {printable(reason.splitlines()[0])[:300]}"
        ) from None


@contextlib.contextmanager
def saving(directory: Path) -> Iterator[None]:
    """What can't be written, as on a full disk, is one `InputError`: torch and safetensors have errors of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not any(sign in str(error) for sign in _WRITE_FAILURES):
            raise
        reason = printable(str(error).splitlines()[0])[:200]
        raise InputError(
            f"{directory}: can't be written ({reason}); make room, then the same command goes on"
        ) from None


class BlockTrainer(Trainer):  # type: ignore[misc]
    """A Trainer over a `BlockDataset`. `args.max_steps` must be set.

    `position` describes the run's data (its `step` is ignored), `order` which block stands at each position,
    `epoch_blocks` how many make an epoch; `eval_blocks` how many an evaluation takes before the last step, None for all;
    with `has_filling` (`train.data`) filling is no label; `finish_checkpoint` may add files to a checkpoint before it is
    sealed.
    """

    def __init__(
        self,
        *,
        args: TrainingArguments,
        train_dataset: BlockDataset,
        position: DataPosition,
        order: shards.RunOrder,
        epoch_blocks: int,
        use_muon: bool = False,
        document_mask: bool = False,
        has_filling: bool = False,
        eval_blocks: int | None = None,
        eos_id: int,
        finish_checkpoint: Callable[[Path], None],
        **kwargs: Any,
    ) -> None:
        assert args.max_steps > 0
        self.position, self._finish_checkpoint = position, finish_checkpoint
        self._saving_directory: Path | None = None
        self._random_states_from: str | None = None
        on_gpu = args.device.type == "cuda"
        self._peak_flops = peak_flops(torch.cuda.get_device_name(args.device)) if on_gpu else None
        self._order, self._epoch_blocks, self._use_muon = order, epoch_blocks, use_muon
        self._every_token_is_label, self._eval_blocks = not (document_mask or has_filling), eval_blocks
        self.text_collator = text_collator(eos_id, document_mask=document_mask)
        self._last_log_step, self._training_seconds, self._resumed_at = 0, 0.0, time.monotonic()
        self._seconds_until_log = 0.0  # of training, until the last log
        collator = collate_blocks if self._every_token_is_label else self.text_collator
        super().__init__(args=args, train_dataset=train_dataset, data_collator=collator, **kwargs)
        self.add_callback(_TrueEpoch(self))

    # ---- data ----

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)
        inner.worker_init_fn = functools.partial(start_worker, inner.worker_init_fn)
        return loader

    def true_epoch(self, step: int) -> float:
        """Passes over all blocks that are complete after `step` steps."""
        return step * self.position.global_batch_blocks / self._epoch_blocks

    def _get_train_sampler(self, train_dataset: Any = None) -> PositionSampler:
        batch = self.position.global_batch_blocks
        return PositionSampler(
            order=self._order,
            num_positions=self.args.max_steps * batch,
            first_position=lambda: self.state.global_step * batch,
        )

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` trained on an epoch's last block. With 10 blocks and batches of 4: steps 3, 5, 8, 10."""
        batch = self.position.global_batch_blocks
        return step * batch // self._epoch_blocks > (step - 1) * batch // self._epoch_blocks

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        """How many labels a step has, over all ranks. Where it is known beforehand, no rank and no GPU is waited for."""
        if not self._every_token_is_label or not self.args.average_tokens_across_devices or self.args.n_gpu > 1:
            counted: torch.Tensor | int | None = super()._get_num_items_in_batch(batch_samples, device)
            return counted
        blocks = sum(len(batch["labels"]) for batch in batch_samples)
        return int(blocks * (self.position.block_tokens - 1) * self.args.world_size)

    # ---- what comes from a checkpoint ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with loading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The state is the checkpoint's, the settings are this command's: what was changed holds from here on."""
        groups = self.optimizer.param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        scheduler = self.lr_scheduler
        rates = list(getattr(scheduler, "base_lrs", []))
        with loading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not isinstance(scheduler, LambdaLR):
            return
        scheduler.base_lrs = rates
        scheduler._last_lr = [
            rate * share(scheduler.last_epoch) for rate, share in zip(rates, scheduler.lr_lambdas, strict=True)
        ]
        for group, given, rate in zip(self.optimizer.param_groups, settings, scheduler._last_lr, strict=True):
            group.update({**given, "lr": rate})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Put off to the first step: the `Trainer` makes the loader's iterator in between, which draws a number."""
        self._random_states_from = checkpoint

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._random_states_from is not None:
            with loading(self._random_states_from):
                super()._load_rng_state(self._random_states_from)
            self._random_states_from = None
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    # ---- optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self._use_muon and getattr(self, "optimizer", None) is None:
            trained = self.model if model is None else model
            self.optimizer = build_muon(
                trained,
                lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                decayed=self.get_decay_parameter_names(trained),
            )
        with refusing("optim", (ValueError, ImportError, NotImplementedError)):  # some look at the model
            optimizer: torch.optim.Optimizer = super().create_optimizer(*(() if model is None else (model,)))
        return optimizer

    # ---- logs ----

    def start_clock(self, *, seconds_before: float | None = None) -> None:
        """Count tokens per second from here on; at the run's start, training seconds from `seconds_before`."""
        if seconds_before is not None:
            self._seconds_until_log = seconds_before
        self._last_log_step, self._training_seconds, self._resumed_at = self.state.global_step, 0.0, time.monotonic()

    @contextlib.contextmanager
    def _clock_stopped(self) -> Iterator[None]:
        """Time spent here is not training."""
        self._training_seconds += time.monotonic() - self._resumed_at
        try:
            yield
        finally:
            self._resumed_at = time.monotonic()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        step = self.state.global_step
        self.state.epoch = self.true_epoch(step)
        if "eval_loss" in logs:
            logs["eval_perplexity"] = math.exp(min(logs["eval_loss"], 700.0))
            # The clock stands still. Behind the last step's log it has run on, but nothing was trained.
            logs["seconds"] = self._seconds_until_log + (self._training_seconds if step > self._last_log_step else 0.0)
        if "loss" in logs:
            step_tokens = self.position.global_batch_blocks * self.position.block_tokens
            seconds = self._training_seconds + time.monotonic() - self._resumed_at
            logs["tokens"] = step * step_tokens
            rate = (step - self._last_log_step) * step_tokens / max(seconds, 1e-9)
            logs["tokens_per_second"] = rate
            self._seconds_until_log += seconds
            logs["seconds"] = self._seconds_until_log
            logs["seconds_left"] = (self.args.max_steps - step) * step_tokens / max(rate, 1e-9)
            logs["peak_memory_bytes"] = peak_memory_bytes(self.args.device)
            if self._peak_flops is not None:
                flops = rate * flops_a_token(
                    self.accelerator.unwrap_model(self.model).config, self.position.block_tokens
                )
                logs["mfu"] = flops / (self._peak_flops * self.args.world_size)
            self.start_clock()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss on validation blocks, behind the last step on all, logged; the Trainer's own arguments are not used."""
        is_last = self.state.global_step >= self.args.max_steps
        with self._clock_stopped():
            metrics = evaluate_held_out(self, most_blocks=None if is_last else self._eval_blocks)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    # ---- checkpoints ----

    def _get_output_dir(self, trial: Any) -> str:
        """Where `Trainer` makes its `checkpoint-STEP`; elsewhere while one is being saved."""
        return str(self._saving_directory or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._clock_stopped():
            self._save_whole_checkpoint(model, trial)

    def _save_whole_checkpoint(self, model: Any, trial: Any) -> None:
        run, partial = Path(self.args.output_dir), Path(self.args.output_dir, SAVING_DIRECTORY)
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with self._saving_into(partial), saving(partial):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each rank has written its random state
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).parent == partial:
                self.state.best_model_checkpoint = str(run / Path(best).name)
                self.state.save_to_json(str(partial / name / STATE_NAME))
            self._finish_checkpoint(partial / name)
            seal_checkpoint(partial / name, dataclasses.replace(self.position, step=self.state.global_step))
            publish_checkpoint(partial / name, run / name)
            shutil.rmtree(partial, ignore_errors=True)
            self.delete_old_checkpoints()
        self.accelerator.wait_for_everyone()

    def delete_old_checkpoints(self) -> None:
        """Delete what `save_total_limit` doesn't keep; in the first process."""
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            delete_old_checkpoints(Path(self.args.output_dir), keep=self.args.save_total_limit, best=best)

    @contextlib.contextmanager
    def _saving_into(self, directory: Path) -> Iterator[None]:
        """Let `Trainer` save into `directory` and leave the deletion of older checkpoints to us."""
        self._saving_directory = directory
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit
            self._saving_directory = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the model with `use_cache` on: `Trainer` turns it off for training, generation needs it."""
        config = self.accelerator.unwrap_model(self.model).config
        before, config.use_cache = config.use_cache, True
        try:
            super()._save(output_dir, state_dict)
        finally:
            config.use_cache = before

    def save_final_model(self, directory: Path) -> None:
        """Save the model to `directory`, which appears as a whole. Every rank calls this."""
        partial = directory.with_name(directory.name + ".tmp")
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with saving(partial):
            self.save_model(str(partial), _internal_call=True)
        if self.args.should_save:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial / "training_args.bin")  # a pickle; the settings are in run.json
            self._finish_checkpoint(partial)
            publish_checkpoint(partial, directory)
        self.accelerator.wait_for_everyone()


def start_worker(also: Callable[[int], None] | None, number: int) -> None:
    """A loader's worker leaves SIGTERM to its parent, as schedulers send it to all; it ends when its parent does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if also is not None:
        also(number)


class _TrueEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the true epoch after each step, and does what the Trainer does at the end of its own, only, epoch.

    The last step is always logged. Its evaluation is left to the caller, who saves the model first.
    """

    def __init__(self, trainer: BlockTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)  # a checkpoint brings those of its own command
        self._trainer.start_clock(
            seconds_before=max((log.get("seconds", 0.0) for log in state.log_history), default=0.0)
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        step = state.global_step
        state.epoch = self._trainer.true_epoch(step)
        if step < state.max_steps:
            if self._trainer.ends_epoch(step):
                control.should_log |= args.logging_strategy == "epoch"
                control.should_save |= args.save_strategy == "epoch"
                control.should_evaluate |= args.eval_strategy == "epoch" and args.eval_delay <= state.epoch
            return control
        control.should_log |= args.logging_strategy != "no"
        if not args.load_best_model_at_end:
            control.should_evaluate = False
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        state.epoch = self._trainer.true_epoch(state.global_step)
        if not args.load_best_model_at_end:
            control.should_evaluate = False
        return control


def wait_for_all_ranks() -> None:
    """Return when every process of the run has come here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
