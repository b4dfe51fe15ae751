"""Loading of libraries that only some features need, with an error that says what to install."""

import importlib
from types import ModuleType


def require(module: str, purpose: str, install: str | None = None) -> ModuleType:
    """Imports a library when something needs it.

    Args:
        module: what to import.
        purpose: what needs it, as the start of a sentence: "reading from the Hugging Face hub".
        install: what to give to pip where it is not the module's name.

    Raises:
        ImportError: it is missing, or broken; a library built for another torch fails with errors of many types.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        name = install or module.partition(".")[0]
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
        raise ImportError(
            f"{purpose} needs {name}, which {state}; run: pip install --upgrade {name} "
            f"(built for the torch that is installed)"
        ) from error
