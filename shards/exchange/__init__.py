"""Exchange with other formats: `python -m shards export` and `python -m shards import`.

Each module describes the bytes of one format at its top. NumPy, the hash and the standard library only, as in all of
`shards`; `arrow` alone imports pyarrow.
"""
