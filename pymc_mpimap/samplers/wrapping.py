"""Functions of other packages, with something around them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from pymc_mpimap.op import MapRectOp

__all__ = ["Around", "maps_in", "wrap"]

Around = Callable[..., Any]
"""Takes a function and the arguments of a call; returns what the caller gets."""


def wrap(owner: Any, arounds: Mapping[str, Around]) -> bool:
    """Put something around functions of a module or class, or leave all as they are.

    Parameters
    ----------
    owner : module or class
        Changed in place, so that all who use it are served, however they imported it.
    arounds : dict
        For each function's name, what is called in its place, with the function first:
        ``around(function, *args, **kwargs)`` for ``function(*args, **kwargs)``.

    Returns
    -------
    bool
        False if a function is not there.
    """
    if not all(hasattr(owner, name) for name in arounds):
        return False
    for name, around in arounds.items():
        wrapped: Any = _wrapped(getattr(owner, name), around)
        if isinstance(inspect.getattr_static(owner, name), staticmethod):
            wrapped = staticmethod(wrapped)
        setattr(owner, name, wrapped)
    return True


def _wrapped(function: Callable[..., Any], around: Around) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(function, *args, **kwargs)

    return wrapped


def maps_in(graph: Any) -> frozenset[MapRectOp]:
    """Return the Ops of this package in a graph, and in those within its Ops."""
    found: set[MapRectOp] = set()
    for node in graph.apply_nodes:
        if isinstance(node.op, MapRectOp):
            found.add(node.op)
        elif (inner := getattr(node.op, "fgraph", None)) is not None:
            found |= maps_in(inner)
    return frozenset(found)
