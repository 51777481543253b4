"""Training on a shard set: `python -m train`, `python -m train.generate`.

Reads shard sets through `shards` and never imports `pipeline`. Modules that are needed before the first error
can be reported (`settings`, `values`, `run_directory`, `checkpoints`, `environment`) don't import torch.
"""
