"""`python -m train.compare`."""

import sys

from shards.command_line import run_command
from train.compare.command import main

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
