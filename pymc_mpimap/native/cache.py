"""Compiled code that is kept on disk, in PyTensor's cache of numba code, and never out of date."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import cfunc
from pytensor.configdefaults import config
from pytensor.link.numba.cache import CACHED_SRC_FUNCTIONS

from pymc_mpimap.version import PACKAGE

__all__ = ["compiled_callback", "is_caching", "stamp"]


def stamp(folder: str) -> str:
    """Return a digest of all sources of a folder of the package, and of this module's folder.

    Numba looks at the file of a function alone, but compiles what it calls into it. Where the
    stamp is part of a key, the old code is not found when anything has changed.

    Parameters
    ----------
    folder : str
        Its name within the package; all folders below it are covered.
    """
    folders = [PACKAGE / folder, PACKAGE / Path(__file__).parent.name]
    files = [path for each in folders for path in sorted(each.rglob("*.py"))]
    parts = [part for p in files for part in (str(p.relative_to(PACKAGE)).encode(), p.read_bytes())]
    return sha256(b"\0".join(parts)).hexdigest()


def is_caching() -> bool:
    """Say whether PyTensor keeps numba code on disk."""
    return bool(config.numba__cache)


def compiled_callback(signature: Any, *key: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function to be called from C, or take it from the cache.

    Parameters
    ----------
    signature : numba signature
    *key
        The stamp of the function's folder, and what the function closes over, if it does.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        name = function.__name__
        digest = sha256(f"{name} {key} {signature}".encode()).hexdigest()
        CACHED_SRC_FUNCTIONS[function] = f"pymc_mpimap-{name}-{digest[:40]}"
        return cfunc(signature, cache=is_caching(), error_model="numpy")(function)

    return decorate
