"""Building a head that a file describes, before its weights are there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from difformer.checkpoints.weights import CheckpointError
from difformer.models.shapes import only_shapes

# A tokenizer, of a tap that is read at several timesteps.
_FOR_A_KEY = 4


@contextmanager
def outlined(tensors: int, keys: int, source: str) -> Iterator[None]:
    """A head built inside has shapes, but no values yet, and no more parameters than its file could hold.

    Args:
        tensors: of the head, in the file.
        keys: features that it reads. Each may cost it some parameters that it does not keep.
        source: the file, for the message.

    Raises:
        CheckpointError: more parameters.
    """
    thread, left = threading.get_ident(), tensors + _FOR_A_KEY * keys

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        # The hook is called for all threads.
        left -= parameter is not None and threading.get_ident() == thread
        if left < 0:
            raise CheckpointError(f"{source} describes more parameters than the {tensors} tensors that it holds")

    hook = register_module_parameter_registration_hook(register)
    try:
        with only_shapes():
            yield
    finally:
        hook.remove()
