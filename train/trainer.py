"""transformers' Trainer over a shard set: the order of blocks, the epoch, exact evaluation, sealed checkpoints.

* One "epoch" of the Trainer is the whole run. The sampler is a pure function of the position in it (`shards.torch`), so
  resuming never replays or skips data. The `epoch` that is logged and saved is the true one: positions / blocks.
* A checkpoint is complete when it is sealed, after all its files (`train.checkpoints`).
* Logs have tokens, tokens per second, training seconds (of all sessions of the run) and perplexity.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

import shards
from shards.tokenizer_files import copy_tokenizer
from shards.torch import IGNORED, BlockDataset, RunSampler, collate_blocks, has_padding, text_collator
from train import checkpoints
from train.checkpoints import DataPosition
from train.environment import out_of_memory
from train.evaluate import bits_per_byte, evaluate_blocks, perplexity, spread_evenly
from train.flops import flops_a_token, peak_flops, peak_memory_bytes
from train.head_loss import chosen_loss
from train.model import Qwen2ForCausalLM, add_chat_template, build_model
from train.optimizer import MuonWithAdamW, parameter_groups
from train.run_directory import device_name
from train.settings import MUON, Settings


def order_of_run(settings: Settings, data: shards.Data, args: TrainingArguments) -> tuple[shards.RunOrder, int]:
    """Which block stands at each position of this run; and the blocks in a step, over all processes."""
    batch = int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
    run_blocks = args.max_steps * batch
    return shards.run_order(data, settings.seed, settings.shuffle, run_blocks=run_blocks, batch_blocks=batch), batch


def data_position(settings: Settings, data: shards.Data, args: TrainingArguments, step: int) -> DataPosition:
    """What a checkpoint of this run says about its data at `step`."""
    order, batch = order_of_run(settings, data, args)
    return DataPosition(
        step=step,
        global_batch_blocks=batch,
        block_tokens=data.block_tokens,
        seed=settings.seed,
        fingerprint=shards.fingerprint_until(data, order, step * batch),
        shuffle=settings.shuffle,
        document_mask=settings.document_mask,
    )


def first_model(settings: Settings, data: shards.Data, args: TrainingArguments) -> Qwen2ForCausalLM:
    """The model as its training begins, on the CPU."""
    ids: dict[str, Any] = {name: getattr(data, name) for name in ("vocab_size", "eos_id", "begin_id", "block_tokens")}
    with out_of_memory("the machine can't hold this model; choose a smaller one (section `model`)"):
        model = build_model(settings.model, settings.generation, seed=settings.seed, **ids)
    model.head_loss = chosen_loss(settings.loss, model.config.vocab_size, on_cpu=args.use_cpu)
    return model


class BlockTrainer(Trainer):  # type: ignore[misc]
    """A Trainer of the settings' model on `data`. `args.max_steps` must be set. Raises `InputError`."""

    optimizer: torch.optim.Optimizer  # the Trainer's own attribute, None until `create_optimizer`
    _last_log: tuple[int, float]  # its step, and the training seconds until then

    def __init__(self, settings: Settings, data: shards.Data, args: TrainingArguments) -> None:
        assert args.max_steps > 0
        validation = shards.validation_sets(data, settings.eval_shards)
        if not validation:
            args.eval_strategy, args.do_eval = type(args.eval_strategy)("no"), False
        self.validation = {name: part["val"] for name, part in validation.items()}
        self.settings, self.data = settings, data
        self.order, self.batch_blocks = order_of_run(settings, data, args)
        self.sampler = RunSampler(self.order, stop=args.max_steps * self.batch_blocks)
        self._every_token_is_label = not (settings.document_mask or has_padding(data) or data.begin_id is not None)
        self._text_collator = text_collator(data, document_mask=settings.document_mask)
        self._peak_flops = peak_flops(device_name(args.device))
        self._group_settings: list[dict[str, Any]] = []  # of the groups of parameters, as the settings have them
        self.start_clock(step=0, seconds_before=0.0)
        self.saved_step = 0  # the last one whose checkpoint is there
        self.has_begun = False  # a step: what had to be loaded was loaded
        # Old checkpoints are deleted after the new one is sealed.
        self.save_total_limit, args.save_total_limit = args.save_total_limit, None
        super().__init__(
            model=first_model(settings, data, args),
            args=args,
            train_dataset=BlockDataset(data, "train", torch.int32),
            eval_dataset={name: BlockDataset(part, "val", torch.int32) for name, part in validation.items()} or None,
            data_collator=collate_blocks if self._every_token_is_label else self._text_collator,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(RunCallback(self))

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
        """The micro-batches of a step, and its labels over all ranks: where known beforehand, without waiting for any."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        num_ranks = self.args.world_size if self.args.average_tokens_across_devices else 1
        if self._every_token_is_label:
            blocks = sum(len(batch["labels"]) for batch in batches)
            return batches, int(blocks * (self.data.block_tokens - 1) * num_ranks)
        count = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in batches).to(device)
        return batches, (self.accelerator.gather(count).sum() if num_ranks > 1 else count).clamp(min=1)

    def true_epoch(self, step: int) -> float:
        """Passes over all blocks that are complete after `step` steps."""
        return step * self.batch_blocks / shards.epoch_blocks(self.data)

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
        scheduler, groups = self.lr_scheduler, self.optimizer.param_groups
        if not isinstance(scheduler, LambdaLR) or len(self._group_settings) != len(groups):
            return
        for group, given, share in zip(groups, self._group_settings, scheduler.lr_lambdas, strict=True):
            group.update({**given, "lr": given["lr"] * share(scheduler.last_epoch), "initial_lr": given["lr"]})
        scheduler.base_lrs = [group["initial_lr"] for group in groups]
        scheduler._last_lr = [group["lr"] for group in groups]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        step, seconds = self.state.global_step, self.training_seconds()
        self.state.epoch = self.true_epoch(step)
        step_tokens = self.batch_blocks * self.data.block_tokens
        if "loss" in logs or "eval_loss" in logs:
            logs["tokens"] = step * step_tokens
            logs.setdefault("seconds", seconds)
        if "loss" in logs:
            last_step, last_seconds = self._last_log
            logs["tokens_per_second"] = rate = (step - last_step) * step_tokens / max(seconds - last_seconds, 1e-9)
            logs["seconds_left"] = (self.args.max_steps - step) * step_tokens / max(rate, 1e-9)
            logs["peak_memory_bytes"] = peak_memory_bytes(self.args.device)
            if self._peak_flops is not None:
                flops = flops_a_token(self.accelerator.unwrap_model(self.model).config, self.data.block_tokens)
                logs["mfu"] = rate * flops / (self._peak_flops * self.args.world_size)
            self._last_log = step, seconds
        super().log(logs, start_time)

    def start_clock(self, *, step: int, seconds_before: float) -> None:
        """Count training seconds from here on, at `step`, after `seconds_before` of earlier sessions."""
        self._started, self._last_log = time.monotonic() - seconds_before, (step, seconds_before)

    def training_seconds(self) -> float:
        """Of all sessions of the run, without what was `untimed`."""
        return time.monotonic() - self._started

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """What is done within is no training."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - begin

    def evaluate(self, *_: Any, all_blocks: bool = False, **__: Any) -> dict[str, float]:
        """On `settings.eval_blocks` validation blocks or all, on every rank: loss and perplexity, of each set too."""
        args = self.args
        if not self.validation:
            return {}
        last_step, seconds = self._last_log  # what came after the last step, as saving, is no training
        if self.state.global_step > last_step:
            seconds = self.training_seconds()
        num_blocks = sum(map(len, self.validation.values()))
        numbers = spread_evenly(num_blocks, None if all_blocks else self.settings.eval_blocks)
        with self.untimed():
            total, count, of_sets = 0.0, 0, dict[str, float]()
            firsts = itertools.accumulate(map(len, self.validation.values()), initial=0)
            for first, (name, split) in zip(firsts, self.validation.items(), strict=False):
                own = [number - first for number in numbers if first <= number < first + len(split)]
                if not own:
                    continue
                sums, counts = evaluate_blocks(
                    self.model_wrapped,
                    self.eval_dataset[name],
                    own,
                    self._text_collator,
                    device=args.device,
                    batch_blocks=args.per_device_eval_batch_size,
                    autocast=self.compute_loss_context_manager,
                    on_batch=self._note_evaluated_batch,
                )
                total, count = total + float(sums.sum()), count + int(counts.sum())
                loss = float(sums.sum() / max(counts.sum(), 1))
                of_sets[f"eval_{name}_loss"] = loss
                if (bits := bits_per_byte([split], loss)) is not None:
                    of_sets[f"eval_{name}_bits_per_byte"] = bits
            loss = total / max(count, 1)
            metrics = {
                "eval_loss": loss,
                "eval_perplexity": perplexity(loss),
                "eval_samples": len(numbers),
                **(of_sets if len(self.validation) > 1 else {}),
                "seconds": seconds,
            }
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    def _note_evaluated_batch(self, batches: range) -> None:
        self.callback_handler.eval_dataloader = batches  # its length is that of the progress bar
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Private, because no hook runs before files are written: checkpoints of a course that was left must go.
        run, step, is_saver = Path(self.args.output_dir), self.state.global_step, self.args.should_save
        checkpoint = run / f"checkpoint-{step}"
        if step == self.saved_step:  # the run went on from it, or SIGTERM came at the end of an epoch
            return
        with self.untimed():
            if is_saver:
                checkpoints.remove_abandoned(run, step)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each rank has written its random state
            if is_saver:
                self.add_tokenizer(checkpoint)
                checkpoints.seal_checkpoint(checkpoint, data_position(self.settings, self.data, self.args, step))
                checkpoints.remove_oldest(run, self.save_total_limit, best=self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()
        self.saved_step = step

    def add_tokenizer(self, directory: Path) -> None:
        """What a saved model needs besides its weights and its configuration."""
        copy_tokenizer(self.data.tokenizer_path, directory)
        add_chat_template(directory)

    def save_final_model(self, directory: Path) -> None:
        """Save the model to `directory`, which appears as a whole. Every rank calls this."""
        partial = directory.with_name(directory.name + ".tmp")
        with self.untimed():
            if self.args.should_save:
                checkpoints.remove(partial)
            self.accelerator.wait_for_everyone()
            self.save_model(str(partial), _internal_call=True)
            if self.args.should_save:
                (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; the settings are in run.json
                self.add_tokenizer(partial)
                checkpoints.flush_files(partial)
                checkpoints.replace_directory(partial, directory)
            self.accelerator.wait_for_everyone()


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Sets the true epoch after each step, and does what the Trainer does at the end of its own, only, epoch.

    The last step is always logged. Its evaluation is left to the caller, who saves the model first.
    """

    def __init__(self, trainer: BlockTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer = self._trainer
        state.compute_steps(args, state.max_steps)  # a checkpoint brings those of its own command
        trainer.sampler.load_state_dict({"position": state.global_step * trainer.batch_blocks})
        if state.global_step:
            trainer.apply_settings()
        seconds = max((log.get("seconds", 0.0) for log in state.log_history), default=0.0)
        trainer.start_clock(step=state.global_step, seconds_before=seconds)
        trainer.saved_step = state.global_step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.has_begun = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step, epoch = state.global_step, self._trainer.true_epoch
        state.epoch = epoch(step)
        if step >= state.max_steps:
            control.should_log |= args.logging_strategy != "no"
            control.should_evaluate &= args.load_best_model_at_end
        elif int(epoch(step)) > int(epoch(step - 1)):  # with 10 blocks and batches of 4: steps 3, 5, 8, 10
            control.should_log |= args.logging_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"
            control.should_evaluate |= args.eval_strategy == "epoch" and args.eval_delay <= state.epoch

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.epoch = self._trainer.true_epoch(state.global_step)
        control.should_evaluate &= args.load_best_model_at_end


def ignore_sigterm(_number: int) -> None:
    """A loader's worker leaves SIGTERM to its parent, as schedulers send it to all; it ends when its parent does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
