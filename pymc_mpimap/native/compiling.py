"""The circumstances and the order of compiling."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["compiling", "postponing", "soon", "starting_with_callees", "with_callees_first"]


_lock = threading.RLock()


@contextmanager
def compiling() -> Iterator[None]:
    """Collect no garbage while numba compiles, one thread at a time.

    It makes a million objects and keeps them to the end: looking through them, again and again,
    and through all that PyMC has loaded, takes a tenth of the time. What is compiled within, and
    kept by a cache, is compiled once: code that nobody keeps is freed, though it be called by its
    address.
    """
    with _lock:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was_enabled:
                gc.enable()


class _Order(threading.local):
    postponed: list[Callable[[], None]] | None = None
    callees_first = False


_order = _Order()


@contextmanager
def postponing() -> Iterator[list[Callable[[], None]]]:
    """Collect what `soon` is told of, for the caller to do before the code is called.

    Code that is called by address can be compiled after the code that calls it. So two processes
    that begin at different ends share the work, by way of the cache.
    """
    outside, _order.postponed = _order.postponed, []
    try:
        yield _order.postponed
    finally:
        _order.postponed = outside


def soon(work: Callable[[], None]) -> None:
    """Do this now, unless somebody is `postponing`."""
    if _order.postponed is None:
        work()
    else:
        _order.postponed.append(work)


@contextmanager
def starting_with_callees() -> Iterator[None]:
    """Compile what is called by address before that which calls it, in this thread."""
    outside, _order.callees_first = _order.callees_first, True
    try:
        yield
    finally:
        _order.callees_first = outside


def with_callees_first() -> bool:
    """Say whether this thread is `starting_with_callees`."""
    return _order.callees_first
