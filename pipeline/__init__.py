"""From a corpus to a shard set: read, tokenize in parallel, pack, write. CPU only, run once."""
