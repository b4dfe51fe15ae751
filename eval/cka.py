"""Compares representations by CKA: `python eval/cka.py RECIPE [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["cka", *sys.argv[1:]]))
