"""New shard sets of old ones, without tokenizing: merge, split, subset."""
