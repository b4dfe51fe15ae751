"""What becomes of memory that tensors on the CPU leave behind."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Above this, glibc asks the system for every block anew, however often it was given one of that size.
_LARGEST_KEPT_BY_DEFAULT = 32 * 1024**2


def keep_freed_memory(keep: bool = True) -> bool:
    """Whether the process keeps memory that tensors have left for the next tensors, or gives it back to the system.

    glibc's `malloc` gives blocks of more than 32 MiB back at once, and the system clears the pages of each new one when
    they are first touched. A U-Net's activations at 256×256 pixels are such blocks: there, clearing pages takes longer
    than normalisation and activation functions do. Kept, memory stays with the process up to the most that it needed
    at any time.

    The verbs of the command line keep it. It is a setting of the whole process, so a program that uses this package
    decides by calling this function.

    Args:
        keep: False for glibc's own behaviour; what was kept then goes back.

    Returns:
        Whether it could be set, which needs glibc: on Linux, but not where musl stands in for it.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        largest = 1 << 30 if keep else _LARGEST_KEPT_BY_DEFAULT
        done = libc.mallopt(_MMAP_THRESHOLD, largest) and libc.mallopt(_TRIM_THRESHOLD, min(2 * largest, (1 << 31) - 1))
        if not keep:
            libc.malloc_trim(0)
        return bool(done)
    return False
