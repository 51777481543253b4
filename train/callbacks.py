"""Callbacks of a training that need not be of our Trainer: samples at evaluations, the end at SIGTERM."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from shards.common.command_line import Terminated, say
from shards.common.text import printable
from train.sampling import Continuation, continue_prompts
from train.settings import GenerationSettings

SAME_REQUEST_SECONDS = 30  # torchrun forwards a SIGTERM that its workers got too
MAX_SAMPLE_TOKENS = 64  # of a sample during training
# With several processes they must stop at the same step, and asking each other makes a GPU wait: not at each step.
_STEPS_BETWEEN_QUESTIONS = 10


class SamplesAtEvaluation(TrainerCallback):  # type: ignore[misc]
    """Continues the prompts at each evaluation before the last step, and gives the samples and the step to `keep`.

    What the model wrote at its end comes from the saved model. For the first process only. A failure ends the samples,
    never the training.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        tokenizer: PreTrainedTokenizerBase,
        keep: Callable[[list[Continuation], int], None],
    ) -> None:
        self._tokenizer, self._keep, self._failed = tokenizer, keep, False
        self._settings = dataclasses.replace(settings, max_new_tokens=min(settings.max_new_tokens, MAX_SAMPLE_TOKENS))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step >= state.max_steps or self._failed:
            return
        was_training = model.training
        try:
            model.eval()
            self._keep(list(continue_prompts(model, self._tokenizer, self._settings)), state.global_step)
        except Exception as error:
            self._failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            say(f"no samples from step {state.global_step:,} on: {printable(reason)}")
        finally:
            model.train(was_training)


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """SIGTERM while a model trains: the step at hand is finished, a checkpoint is saved, then the run ends.

    Schedulers send it some time before they kill, and it may arrive twice: repeats within half a minute are the same
    request, a later one ends the run at once. So does Ctrl-C: who presses it waits for the prompt.
    """

    requested_at: float | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _note(self, *_: object) -> None:
        now = time.monotonic()
        if self.requested_at is None:
            self.requested_at = now
        elif now - self.requested_at > SAME_REQUEST_SECONDS:
            raise Terminated

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        requested = self.requested_at is not None
        if args.world_size > 1:
            if args.device.type != "cpu" and state.global_step % _STEPS_BETWEEN_QUESTIONS:
                return
            answer = torch.tensor([int(requested)], device=args.device)
            dist.all_reduce(answer, op=dist.ReduceOp.MAX)
            requested = bool(answer.item())
        if requested:
            self.requested_at = self.requested_at or time.monotonic()
            control.should_save = control.should_training_stop = True
