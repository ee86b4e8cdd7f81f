"""System calls that Python's own modules lack."""

import ctypes
import os
from typing import Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """Return `result`, the result of a call of LIBC, if it is not negative.

    Raises:
        OSError: the result is negative. The error names `what`, the call or its purpose.
    """
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result
