"""The compiled code of this folder, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pymc_mpimap.native import cache

__all__ = ["STAMP", "compiled_callback"]

STAMP = cache.stamp("ode")
"""Part of each key in a cache."""


def compiled_callback(signature: Any, *key: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile one of this folder's functions; see `pymc_mpimap.native.cache`."""
    return cache.compiled_callback(signature, STAMP, *key)
