"""Trains a head from a recipe: `accelerate launch train/train.py train/configs/NAME.yaml [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
