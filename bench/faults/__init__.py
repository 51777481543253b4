"""A campaign of faults against the build and the trainer; see `python -m bench.faults --help`."""
