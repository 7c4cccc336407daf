"""What the decoders' C libraries print: libpng, libjpeg and libtiff write to `stderr` what is wrong with a file.

A stranger's file could fill a worker's log so. Their lines are kept in the C library's own buffer, and thrown away
behind each picture; the image's reason says what is wrong. Only what C code writes with `fprintf(stderr, …)` goes this
way: Python's lines, `std::cerr` and the kernel's do not. Where the C library is not glibc, everything stays as it is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

_BUFFER_BYTES: Final = 2**16
_FULLY_BUFFERED: Final = 0


def _throwing_away() -> Callable[[], object]:
    try:
        libc = ctypes.CDLL(None)
        stderr = ctypes.c_void_p.in_dll(libc, "stderr")
        purge, set_buffer, allocate = libc.__fpurge, libc.setvbuf, libc.malloc
    except (AttributeError, OSError, TypeError, ValueError):
        return lambda: None
    purge.argtypes, purge.restype = [ctypes.c_void_p], None
    set_buffer.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    allocate.argtypes, allocate.restype = [ctypes.c_size_t], ctypes.c_void_p
    # Never freed: the C library writes what is left there when the process ends.
    set_buffer(stderr, allocate(_BUFFER_BYTES), _FULLY_BUFFERED, _BUFFER_BYTES)
    return lambda: purge(stderr)


#: Throw away what was printed since the last time.
throw_away: Final = _throwing_away()
