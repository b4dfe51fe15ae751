"""Trains and tests heads on several data sets: `accelerate launch eval/transfer.py eval/configs/transfer.yaml`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["transfer", *sys.argv[1:]]))
