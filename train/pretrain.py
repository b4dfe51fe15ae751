"""Trains a denoiser from a recipe: `accelerate launch train/pretrain.py train/pretraining/NAME.yaml [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
