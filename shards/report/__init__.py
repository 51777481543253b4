"""`python -m shards report`: a page of HTML about a shard set, for a person to look at before training from it.

`statistics` computes the numbers, `plot` and `page` show them.
"""
