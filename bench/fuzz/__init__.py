"""Readers under fuzz; see `python -m bench.fuzz --help`. Each target is a function of bytes that raises what it finds."""
