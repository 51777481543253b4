"""Where a shard set is built: two implementations of `pipeline.outputs.base.Output`, a directory and an object store."""
