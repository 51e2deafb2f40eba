"""JAX: of an exception in a callback, its own runtime keeps the text alone.

So a number is written into the text, by which the exception is found again where JAX returns to
Python.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from types import ModuleType
from typing import Any

from pymc_mpimap.pool.unseen import outermost_module, tell
from pymc_mpimap.samplers.wrapping import maps_in, wrap

__all__ = ["InCallbackError", "guard_linker", "guard_numpyro", "guard_pymc", "stand_in"]

_MOST_KEPT = 16
"""Exceptions that are kept until they are looked for: one of each thread that evaluates."""

_numbers = itertools.count(1)
_raised: OrderedDict[str, BaseException] = OrderedDict()


class InCallbackError(RuntimeError):
    """Stands in for what was raised in a callback, so that JAX passes on its text."""


def stand_in(error: BaseException) -> InCallbackError:
    """Return what is to be raised in a callback in place of this error."""
    number = f"pymc_mpimap:{next(_numbers)}"
    _raised[number] = error
    while len(_raised) > _MOST_KEPT:
        _raised.popitem(last=False)
    return InCallbackError(f"[{number}] {type(error).__name__}: {error}")


def _original(error: BaseException) -> BaseException | None:
    """Return the exception whose text an exception of JAX's has."""
    number = re.search(r"\[(pymc_mpimap:\d+)\]", str(error))
    return None if number is None else _raised.get(number[1])


def _with_original(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function that evaluates by JAX; raise what a callback raised as it was."""
    import jax

    try:
        # JAX returns before it has computed: an error would be raised where a number is used.
        return jax.block_until_ready(function(*args, **kwargs))
    except Exception as error:
        original = _original(error)
        if original is None:
            raise
        raise original from original.__cause__


class _Compiled:
    """A function compiled by JAX that raises what a callback raised."""

    def __init__(self, function: Any):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        try:
            return _with_original(self._function, *args)
        except BaseException as error:
            # nutpie's threads call it from compiled code, which panics unless the error says that
            # the chain may go on. It does until nutpie's caller has ended it.
            if outermost_module().split(".")[0] == "nutpie" and tell(error, foreign=True):
                error.is_recoverable = True  # type: ignore[attr-defined] # read by nutpie
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def guard_linker(module: ModuleType) -> bool:
    """Let functions of PyTensor's, compiled by JAX, raise what a job raised."""

    def compiled(jit_compile: Any, linker: Any, function: Any) -> Any:
        jitted = jit_compile(linker, function)
        return _Compiled(jitted) if maps_in(linker.fgraph) else jitted

    return wrap(module.JAXLinker, {"jit_compile": compiled})


def guard_pymc(module: ModuleType) -> bool:
    """Let PyMC's samplers by JAX raise what a job raised: NumPyro's and BlackJAX's."""
    steps = (
        "_get_batched_jittered_initial_points",
        "_sample_numpyro_nuts",
        "_sample_blackjax_nuts",
        "_get_log_likelihood",
        "_postprocess_samples",
    )
    return wrap(module, dict.fromkeys(steps, _with_original))


def guard_numpyro(module: ModuleType) -> bool:
    """Let NumPyro's own interface raise what a job raised."""
    return wrap(module.MCMC, dict.fromkeys(("run", "warmup"), _with_original))
