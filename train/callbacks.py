"""What happens between the Trainer's steps: the true epoch, the seal of a checkpoint, the end at SIGTERM."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from shards.common.command_line import Terminated
from train.checkpoints import OLD_SUFFIX, delete_old_checkpoints, remove, seal_checkpoint
from train.trainer import BlockTrainer

SAME_REQUEST_SECONDS = 30  # torchrun forwards a SIGTERM that its workers got too
# With several processes they must stop at the same step, and asking each other makes a GPU wait: not at each step.
_STEPS_BETWEEN_QUESTIONS = 10


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Sets the true epoch after each step, does what the Trainer does at the end of its own, only, epoch, and seals.

    The last step is always logged. Its evaluation is left to the caller, who saves the model first.
    """

    def __init__(self, trainer: BlockTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self._trainer
        state.compute_steps(args, state.max_steps)  # a checkpoint brings those of its own command
        trainer.sampler.load_state_dict({"position": state.global_step * trainer.position.global_batch_blocks})
        if state.global_step:
            trainer.apply_settings()
        trainer.start_clock(seconds_before=max((log.get("seconds", 0.0) for log in state.log_history), default=0.0))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.has_begun = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        step, epoch = state.global_step, self._trainer.true_epoch
        state.epoch = epoch(step)
        if step >= state.max_steps:
            control.should_log |= args.logging_strategy != "no"
            control.should_evaluate &= args.load_best_model_at_end
        elif int(epoch(step)) > int(epoch(step - 1)):  # with 10 blocks and batches of 4: steps 3, 5, 8, 10
            control.should_log |= args.logging_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"
            control.should_evaluate |= args.eval_strategy == "epoch" and args.eval_delay <= state.epoch
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        state.epoch = self._trainer.true_epoch(state.global_step)
        control.should_evaluate &= args.load_best_model_at_end
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the checkpoint that was written, then delete what `save_total_limit` doesn't keep."""
        trainer, run = self._trainer, Path(args.output_dir)
        with trainer.clock_stopped():
            trainer.accelerator.wait_for_everyone()  # each rank has written its random state
            if args.should_save:
                checkpoint = run / f"checkpoint-{state.global_step}"
                trainer.add_files(checkpoint)
                seal_checkpoint(checkpoint, dataclasses.replace(trainer.position, step=state.global_step))
                remove(checkpoint.with_name(checkpoint.name + OLD_SUFFIX))
                delete_old_checkpoints(run, keep=trainer.save_total_limit, best=state.best_model_checkpoint)
            trainer.accelerator.wait_for_everyone()


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """SIGTERM while a model trains: the step at hand is finished, a checkpoint is saved, then the run ends.

    Schedulers send it some time before they kill, and it may arrive twice: repeats within half a minute are the same
    request, a later one ends the run at once. So does Ctrl-C: who presses it waits for the prompt.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None

    @property
    def requested(self) -> bool:
        return self._requested_at is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, _signal_number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
        elif now - self._requested_at > SAME_REQUEST_SECONDS:
            raise Terminated

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if args.world_size > 1:
            if args.device.type != "cpu" and state.global_step % _STEPS_BETWEEN_QUESTIONS:
                return control
            answer = torch.tensor([int(self.requested)], device=args.device)
            dist.all_reduce(answer, op=dist.ReduceOp.MAX)
            if answer.item() and not self.requested:
                self._requested_at = time.monotonic()
        if self.requested:
            control.should_save = control.should_training_stop = True
        return control
