"""Measures speed beside OpenAI's network: `python eval/bench.py [options]`."""

import sys

from difformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
