"""Memory that is freed and soon wanted again stays with the process."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of settings in glibc's malloc.h


def keep_freed():
    """Let glibc keep freed tensors of up to 2 GB; other C libraries go on as before.

    By default it hands large tensors back to the system and asks for them anew, page by page,
    which takes a quarter of the time of the measures.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, 2**31 - 1)
