"""Errors that do not reach the user by themselves, and who waits for them.

A sampler may evaluate in threads of its own, in compiled code. An exception that is raised there
reaches no Python frame: compiled code takes it for a point that has no density. Others catch what
is raised, and go on without a word. So an error is also told to whoever watches over the sampler.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Hashable, Set as AbstractSet
from types import FrameType

__all__ = ["Watch", "may_be_evaluating", "outermost_module", "tell", "without_caller"]

_COMPILED_CALLERS = ("pymc_mpimap", "pytensor", "numba")
"""Packages whose functions compiled code calls: below them there is no Python."""

_EVALUATING = ("pymc_mpimap.op", "pymc_mpimap.pool")
"""Functions that a thread is in while it evaluates maps, or holds the lock of a pool."""

_open: weakref.WeakSet[Watch] = weakref.WeakSet()
_lock = threading.Lock()


class Watch:
    """Waits for errors of what one sampler evaluates.

    Parameters
    ----------
    here : bool
        It evaluates in this thread; else in threads that have no caller in Python.
    ops : set, optional
        The Ops that it evaluates, as far as that is known.

    Attributes
    ----------
    error : BaseException or None
        The first that was raised.
    """

    def __init__(self, *, here: bool, ops: AbstractSet[Hashable] | None = None):
        self.thread = threading.get_ident() if here else None
        self.ops = ops
        self.error: BaseException | None = None
        with _lock:
            _open.add(self)

    def close(self) -> None:
        """Wait for no more; what came is kept."""
        with _lock:
            _open.discard(self)


def tell(error: BaseException, op: Hashable | None = None, *, foreign: bool) -> bool:
    """Tell an error to those who wait for it; return whether there is anybody.

    Parameters
    ----------
    error : BaseException
    op : Op, optional
        What was evaluated. Only those who know it are told, or everybody where nobody does: it may
        have been evaluated within something else.
    foreign : bool
        Whether this is a thread of somebody's who evaluates in threads of their own.
    """
    thread = None if foreign else threading.get_ident()
    with _lock:
        watches = [watch for watch in _open if watch.thread == thread]
        knowing = [watch for watch in watches if watch.ops is not None and op in watch.ops]
        for watch in knowing or watches:
            if watch.error is None:
                watch.error = error
        return bool(watches)


def outermost_module() -> str:
    """Return the name of the module whose function this thread began with."""
    frame: FrameType = sys._getframe()  # noqa: SLF001 # CPython's public name for it
    while frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


def without_caller() -> bool:
    """Return whether compiled code, not Python's, receives what is raised in this thread."""
    return outermost_module().split(".")[0] in _COMPILED_CALLERS


def may_be_evaluating() -> bool:
    """Return whether this thread may be amid an evaluation of maps, so that others wait for it.

    That is not known of threads that Python did not start: their work may be a chain of a sampler.
    """
    mine = threading.get_ident() == threading.main_thread().ident
    if not mine and outermost_module() != threading.__name__:
        return True
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 # CPython's public name for it
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_EVALUATING):
            return True
        frame = frame.f_back
    return False
