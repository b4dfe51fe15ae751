"""Fits probes of every block and timestep: `accelerate launch eval/sweep.py RECIPE [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
