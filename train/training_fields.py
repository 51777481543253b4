"""The names of the fields of `TrainingArguments`, and which of them this trainer refuses. Imports no torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

from shards.common.errors import InputError

MUON = "muon"  # our own value of `optim`: see `train.optimizer`
AUTO_ARGUMENTS = ("bf16", "torch_compile")  # may also be "auto": what the device can do

# Fields that would contradict how this trainer works.
REFUSED_ARGUMENTS = {
    "auto_find_batch_size": "the order of blocks is counted in global batches of one size",
    "data_seed": "the order of blocks follows `seed`",
    "dataloader_drop_last": "every global batch is full already",
    "deepspeed": "it isn't supported; `fsdp` is",
    "ignore_data_skip": "a resumed run always starts at its own position, without skipping",
    "label_smoothing_factor": "no loss of `loss` smooths",
    "local_rank": "torchrun sets it",
    "neftune_noise_alpha": "the noise isn't for models that are trained from scratch, and would have no effect here",
    "parallelism_config": "it isn't supported; `fsdp` is",
    "push_to_hub": "push the saved model, RUN/model, with `hf upload`",
    "remove_unused_columns": "a batch has nothing but what the model needs",
    "report_to": "see the section `tracking`",
    "resume_from_checkpoint": "it is an option of the command line",
    "run_name": "see `tracking: name`",
    "save_only_model": "a run can't be continued without the state of its optimizer and its schedule",
    "train_sampling_strategy": "the order of blocks is that of the shard set",
    "use_cache": "a saved model generates with a cache, and training has none",
    "use_liger_kernel": "the loss over the vocabulary is computed in chunks here: `loss: chunked`",
}


@functools.cache
def training_fields() -> tuple[str, ...]:
    """The names of the fields, read from the source: importing the class takes seconds, as torch comes with it.

    So a misspelt setting is an error within milliseconds, and the fields are those of the version that is installed.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise InputError("transformers is not installed; `make setup` installs it")
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    (fields,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    names = (node.target.id for node in fields if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name))
    return tuple(name for name in names if not name.startswith("_"))
