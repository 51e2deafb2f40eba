"""What is done around compiling."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["compiling"]


@contextmanager
def compiling() -> Iterator[None]:
    """Collect no garbage while numba compiles.

    It makes a million objects and keeps them to the end: looking through them, again and again,
    and through all that PyMC has loaded, takes a tenth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
