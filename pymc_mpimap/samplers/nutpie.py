"""nutpie: its chains are threads of compiled code, where an exception rejects the proposal."""

from __future__ import annotations

import math
import threading
import time
from types import ModuleType
from typing import Any

from pymc_mpimap.pool.unseen import Watch, may_be_evaluating
from pymc_mpimap.samplers.wrapping import Around, maps_in, wrap

__all__ = ["guard"]

_BETWEEN_LOOKS = 0.05
"""Seconds: so long chains go on after an error."""

_WATCH = "_pymc_mpimap_watch"


def guard(module: ModuleType) -> bool:
    """Let nutpie's sampler end with the error of a job; return whether that can be had.

    All ways to its draws lead through one class: `nutpie.sample`, blocking or not, and
    `pm.sample`. While somebody waits for it, in whatever thread, it is looked now and then whether
    there was an error; then the chains are ended, and the error is raised.
    """
    arounds: dict[str, Around] = {
        "__init__": _started,
        "wait": _waited,
        "abort": _aborted,
        "inspect": _inspected,
        "cancel": _cancelled,
    }
    owner = getattr(module, "_BackgroundSampler", None)
    if hasattr(owner, "__del__"):
        arounds["__del__"] = _deleted
    return wrap(owner, arounds)


def _started(init: Any, sampler: Any, compiled_model: Any, *args: Any, **kwargs: Any) -> None:
    # Its chains begin to run within: the watch comes first.
    setattr(sampler, _WATCH, Watch(here=False, ops=_ops_of(compiled_model)))
    init(sampler, compiled_model, *args, **kwargs)


def _ops_of(compiled_model: Any) -> frozenset[Any] | None:
    """Return the maps that a compiled model evaluates; None if it does not tell."""
    functions = [getattr(compiled_model, name, None) for name in ("logp_func", "expand_func")]
    graphs = [getattr(getattr(f, "maker", None), "fgraph", None) for f in functions]
    if None in graphs:
        return None
    return frozenset[Any]().union(*map(maps_in, graphs))


def _waited(wait: Any, sampler: Any, *, timeout: float | None = None) -> Any:
    watch: Watch = getattr(sampler, _WATCH)
    end = math.inf if timeout is None else time.monotonic() + timeout
    while watch.error is None:
        left = max(0.0, end - time.monotonic())
        try:
            draws = wait(sampler, timeout=min(left, _BETWEEN_LOOKS))
        except TimeoutError:
            if left <= _BETWEEN_LOOKS and watch.error is None:
                raise
        except KeyboardInterrupt:
            raise  # nutpie then returns the draws so far.
        except BaseException:
            # What became of the error in compiled code: another one, or a panic.
            if watch.error is None:
                raise
        else:
            watch.close()
            if watch.error is None:
                return draws
    sampler.cancel()
    raise watch.error


def _aborted(abort: Any, sampler: Any) -> Any:
    watch: Watch = getattr(sampler, _WATCH)
    try:
        return _inspected(abort, sampler)
    finally:
        watch.close()


def _inspected(inspect: Any, sampler: Any) -> Any:
    """Return the draws so far, or raise the error for which they are not to be used."""
    watch: Watch = getattr(sampler, _WATCH)
    try:
        draws = inspect(sampler)
    except BaseException:
        if watch.error is None:
            raise
    if watch.error is not None:
        sampler.cancel()
        raise watch.error
    return draws


def _cancelled(cancel: Any, sampler: Any) -> None:
    watch: Watch = getattr(sampler, _WATCH)
    try:
        cancel(sampler)
    except BaseException:
        # A thread that ended by an error has left nothing to end; the error itself is known.
        if watch.error is None:
            raise
    finally:
        watch.close()


def _deleted(delete: Any, sampler: Any) -> None:
    """End the chains of a sampler that nobody has any more, in a thread that they do not wait for.

    The garbage collector calls this in whatever thread it runs: also in a chain's own, or in one
    that holds the lock of the pool that the chains are waiting for.
    """
    if not may_be_evaluating():
        delete(sampler)
        return
    ending = threading.Thread(target=delete, args=(sampler,), name="ends chains", daemon=True)
    ending.start()
