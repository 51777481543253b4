"""SIGTERM while a model trains: the step at hand is finished, a checkpoint is saved, then the run ends.

Schedulers send it some time before they kill. A second SIGTERM ends the run at once, and so does Ctrl-C: who presses it
waits for the prompt, and the newest checkpoint is there.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from shards.common.command_line import Terminated

# With several processes they must stop at the same step, and asking each other makes a GPU wait: not at each step.
_STEPS_BETWEEN_QUESTIONS = 10


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and stops at the end of a step, once `listening` has heard SIGTERM in any process."""

    def __init__(self) -> None:
        self.requested = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _hear(self, _signal_number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise Terminated
        self.requested = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if args.world_size > 1:
            if args.device.type != "cpu" and state.global_step % _STEPS_BETWEEN_QUESTIONS:
                return control
            answer = torch.tensor([int(self.requested)], device=args.device)
            torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MAX)
            self.requested = bool(answer.item())
        if self.requested:
            control.should_save = control.should_training_stop = True
        return control
