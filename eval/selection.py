"""Searches for block and timestep: `accelerate launch eval/selection.py RECIPE [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["select", *sys.argv[1:]]))
