"""The command line: `difformer VERB`."""

from difformer.cli.entry import main
from difformer.cli.weights import SKIPPED

__all__ = ["SKIPPED", "main"]
