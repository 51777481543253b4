"""`python -m shards report`: a page of HTML about a shard set, for a person to look at before training from it.

`statistics` computes the numbers, `charts` and `page` show them, `command` is the command line. NumPy, the standard
library and the hash alone, as everywhere in `shards`.
"""
