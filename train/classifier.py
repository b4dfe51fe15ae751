"""Trains a classifier from a recipe: `accelerate launch train/classifier.py train/configs/NAME.yaml [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
