"""Readers under fuzz: `python -m bench.fuzz TARGET`. Each target is a function of bytes that raises where it finds a fault.

With atheris (`pip install atheris`) inputs are found by coverage of the readers' own code; without it, seeds and what was
kept earlier are changed at random.
"""
