"""The command line: `difformer VERB`."""

from difformer.cli.entry import main
from difformer.cli.help import SKIPPED

__all__ = ["SKIPPED", "main"]
