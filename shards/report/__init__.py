"""A page about a shard set: `statistics` computes the numbers, `plot` and `page` show them, `document` writes the file."""
