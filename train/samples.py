"""How the model continues the prompts at each evaluation, kept in `samples.jsonl` and shown in SwanLab.

Training isn't disturbed: the random states and the modes of the model's parts are afterwards as they were, so that losses
are the same to the last bit with samples and without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from shards.common.command_line import say
from shards.common.text import printable
from train.run_directory import append_lines
from train.sampling import Continuation, continue_prompts, sample_records
from train.settings import GenerationSettings

MAX_NEW_TOKENS = 64  # of a sample during training


class SamplesAtEvaluation(TrainerCallback):  # type: ignore[misc]
    """Continues the prompts at each evaluation before the last step. For the first process only.

    What the model wrote at its end comes from the saved model. A failure ends the samples, never the training.
    """

    def __init__(
        self,
        path: Path,
        settings: GenerationSettings,
        tokenizer: PreTrainedTokenizerBase,
        *,
        on_samples: Callable[[Sequence[Continuation], int], None],
    ) -> None:
        self._path, self._tokenizer, self._on_samples = path, tokenizer, on_samples
        self._settings = dataclasses.replace(settings, max_new_tokens=min(settings.max_new_tokens, MAX_NEW_TOKENS))
        self._failed = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        step = state.global_step
        if step >= state.max_steps or self._failed:
            return
        try:
            with undisturbed(model):
                samples = list(continue_prompts(model, self._tokenizer, self._settings))
            append_lines(self._path, sample_records(samples, step, self._settings))
            self._on_samples(samples, step)
        except Exception as error:
            self._failed = True
            reason = (str(error) or type(error).__name__).splitlines()[0]
            say(f"no samples from step {step:,} on: {printable(reason)}")


@contextlib.contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """The model ready to generate; at the end it and the random states of the process are as they were before."""
    modes = [(module, module.training) for module in model.modules()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
            np.random.set_state(numpy_state)
            random.setstate(python_state)
