"""Freed tensors keep their pages.

glibc hands a large freed tensor back to the kernel, and the next one of its size faults every page
in again: 15,000 faults and 30 ms of a 190 ms step of a small VGG. A training loop
asks for the same sizes at every step, so the pages are better kept, as GPU allocators do.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# From malloc.h; a value is a C int.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_ABOVE, _TRIM_ABOVE = 1 << 30, (1 << 31) - 1


@cache
def keep_pages() -> bool:
    """Stop this process's malloc from returning memory below 2 GiB; True where that is possible.

    The process's resident memory then stays at its peak. Only glibc has the setting; elsewhere
    nothing changes.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(_M_MMAP_THRESHOLD, _MMAP_ABOVE) and mallopt(_M_TRIM_THRESHOLD, _TRIM_ABOVE)
    )
