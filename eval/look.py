"""Writes a page about what blocks see: `python eval/look.py RECIPE [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["look", *sys.argv[1:]]))
