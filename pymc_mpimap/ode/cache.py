"""Compiled code that is kept on disk, in PyTensor's cache of numba code, and never out of date."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import cfunc
from pytensor.configdefaults import config
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS

__all__ = ["STAMP", "compiled_callback", "is_caching"]

# numba looks at the file of a function alone, but compiles what it calls into it. All of this
# folder's sources are part of each key: whatever changes, the old code is not found.
STAMP = sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


def is_caching() -> bool:
    """Say whether PyTensor keeps numba code on disk."""
    return bool(config.numba__cache)


def compiled_callback(signature: Any, *key: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function to be called from C, or take it from the cache.

    Parameters
    ----------
    signature : numba signature
    *key
        What the function closes over, if it does.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        name = function.__name__
        digest = sha256(f"{STAMP} {name} {key} {signature}".encode()).hexdigest()
        CACHED_SRC_FUNCTIONS[function] = f"pymc_mpimap-{name}-{digest[:40]}"
        return cfunc(signature, cache=is_caching(), error_model="numpy")(function)

    return decorate
