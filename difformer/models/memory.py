"""Operations and memory of a piece of work, counted and not measured: the same numbers on every run and machine."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are created while it is active, until nothing holds them any more.

    Scratch memory inside an operation is not counted. Under `torch._subclasses.FakeTensorMode` nothing is computed, and
    the count is the same.

    Attributes:
        current: bytes alive now.
        peak: most bytes alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Inputs were there before, unless they were counted as results of an operation.
        before = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor) or _key(leaf) in before:
                continue
            storage = leaf.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.current += storage.nbytes()
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._release, storage.nbytes())
        return result

    def _release(self, size: int) -> None:
        self.current -= size


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class Demand:
    """What a piece of work needs from a machine.

    Attributes:
        flops: its matrix products and convolutions, a multiply-add counted as two.
        peak_bytes: most bytes of tensors alive at once, beyond those that were there before.
    """

    flops: float
    peak_bytes: int


def flop_counter() -> FlopCounterMode:
    """Torch's counter of operations, which does not know the fused attention of CPUs by itself."""

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(out: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(out, q, k, v))

    operations = torch.ops.aten
    mapping = {
        operations._scaled_dot_product_flash_attention_for_cpu: forward,
        operations._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


def demand(work: Callable[[], object]) -> Demand:
    """Counts what a piece of work needs.

    Args:
        work: called twice, since the counter of operations holds on to tensors of what it watches.
    """
    with TensorMemory() as memory:
        work()
    with flop_counter() as counter:
        work()
    return Demand(float(counter.get_total_flops()), memory.peak)
