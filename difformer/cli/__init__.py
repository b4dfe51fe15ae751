"""The command line: `difformer VERB`."""

from difformer.cli.entry import SKIPPED, main

__all__ = ["SKIPPED", "main"]
