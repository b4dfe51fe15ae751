"""Fits classifiers on pooled features: `accelerate launch eval/probe.py RECIPE [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["probe", *sys.argv[1:]]))
