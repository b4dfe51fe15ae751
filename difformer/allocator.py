"""What happens to the memory of tensors on the CPU when they are freed."""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Above this size, glibc requests every block from the system again, even where one of that size was just freed.
_LARGEST_KEPT_BY_DEFAULT = 32 * 1024**2


def keep_freed_memory(keep: bool = True) -> bool:
    """Sets whether the process keeps freed memory for the next tensors, or returns it to the system.

    glibc's `malloc` returns blocks of more than 32 MiB at once, and the system clears the pages of each new block when
    they are first touched. A U-Net's activations at 256×256 pixels are such blocks: there, clearing pages takes longer
    than normalisation and activation functions do. With `keep`, the process keeps the most that it
    ever needed.

    The verbs of the command line keep freed memory. This is a setting of the whole process, so a program that uses this
    package decides by calling this function.

    Args:
        keep: False for glibc's own behaviour, which also returns the memory kept so far.

    Returns:
        Whether it could be set, which needs glibc: on Linux, except with musl.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        largest = 1 << 30 if keep else _LARGEST_KEPT_BY_DEFAULT
        done = libc.mallopt(_MMAP_THRESHOLD, largest) and libc.mallopt(_TRIM_THRESHOLD, min(2 * largest, (1 << 31) - 1))
        if not keep:
            libc.malloc_trim(0)
        return bool(done)
    return False
