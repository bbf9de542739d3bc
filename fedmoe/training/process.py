"""Settings of a process that trains; they are torch's and the C library's, not ours."""

import ctypes

import torch

# From malloc.h; the threshold is the largest that glibc accepts.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES, _MAP_BYTES = 256 * 2**20, 32 * 2**20


def prepare_process(num_threads: int) -> None:
    """Set torch's intra-op threads, and let the process keep the memory that it frees.

    A round allocates and frees stacks of some megabytes. As glibc comes, it hands them back to
    the system each time and gets them again page by page, which can take as long as the training
    of small models. What is kept is at most 256 MiB, and never more than was in use before.
    """
    torch.set_num_threads(num_threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Whether the C library took the settings; others than glibc know none such."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows
        return False
    mapped, kept = mallopt(_M_MMAP_THRESHOLD, _MAP_BYTES), mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    return bool(mapped and kept)
