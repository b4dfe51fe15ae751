"""Measures a classifier: `accelerate launch eval/evaluate.py RUN_OR_CLASSIFIER [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
