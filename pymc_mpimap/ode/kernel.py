"""A solve, or the same one for several jobs, as one compiled function of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from typing import Any

import numba
import numpy as np
from pytensor.link.numba.cache import compile_numba_function_src

from pymc_mpimap.native.cache import is_caching
from pymc_mpimap.native.compiling import soon
from pymc_mpimap.native.memory import call_with, symbol, words
from pymc_mpimap.ode.cache import STAMP
from pymc_mpimap.ode.request import DRIVER
from pymc_mpimap.ode.schedule import DIFFERENT_NUMBERS, PROBLEMS
from pymc_mpimap.ode.system import TS, Solve
from pymc_mpimap.ode.table import table_of

__all__ = ["compiled", "kernel_source", "solve_kernel"]


def solve_kernel(solve: Solve, per_job: Sequence[bool] = ()) -> tuple[Any, str | None]:
    """Return a solve as a Python function for numba to compile, and its key in a cache if any.

    Parameters
    ----------
    solve : Solve
    per_job : sequence of bool, optional
        For the solves of several jobs, which inputs are per job: these have a further first axis,
        and so have all outputs.
    """
    table = table_of(solve)
    soon(table.complete)
    source = kernel_source(solve, table.buffer.name, per_job)
    key = sha256(f"{STAMP} {source}".encode()).hexdigest()[:40]
    environment = {
        "__name__": __name__,
        "np": np,
        "call_with": call_with,
        "symbol": symbol,
        "words": words,
    }
    cache_key = f"pymc_mpimap-solve-{key}" if table.cached else None
    function = compile_numba_function_src(source, "solve_ivp", environment, cache_key=cache_key)
    return function, cache_key


def kernel_source(solve: Solve, table: str, per_job: Sequence[bool] = ()) -> str:
    """Return the source of a function from a solve's inputs to its outputs."""
    system = solve.system
    flags = [int(flag) for flag in per_job] or [0] * len(system.types)
    inputs = [f"x{i}" for i in range(len(flags))]
    outputs = [f"y{o}" for o in range(1 + len(solve.wrt))]
    batched = [name for name, flag in zip(inputs, flags, strict=True) if flag]
    lines = [
        f"def solve_ivp({', '.join(inputs)}):",
        f"    n_jobs = {f'{batched[0]}.shape[0]' if batched else 1}",
    ]
    if batched[1:]:
        lines += [
            f"    if {' or '.join(f'{name}.shape[0] != n_jobs' for name in batched[1:])}:",
            f"        raise ValueError({DIFFERENT_NUMBERS!r})",
        ]
    jobs = ["n_jobs"] if batched else []
    for name, i in zip(outputs, (None, *solve.wrt), strict=True):
        sizes = [*jobs, f"x{TS}.shape[{flags[TS]}]", str(system.n_states)]
        if i is not None and i != TS:
            sizes += [f"x{i}.shape[{flags[i] + axis}]" for axis in range(system.types[i].ndim)]
        lines.append(f"    {name} = np.empty(({', '.join(sizes)}))")
    packed = [f"{name}, {flag}" for name, flag in zip(inputs, flags, strict=True)]
    packed += [f"{name}, 0" for name in outputs]
    lines += [
        f"    table = symbol({table!r})",
        f"    driver = words(table)[{DRIVER}]",
        "    if driver == 0:",
        "        raise RuntimeError('solve_ivp: called before what it calls is compiled')",
        f"    amiss = call_with(driver, (table, n_jobs, {', '.join(packed)}))",
        "    if amiss:",
    ]
    for number, text in enumerate(PROBLEMS):
        if number:
            lines += [f"        if amiss == {number}:", f"            raise ValueError({text!r})"]
    return "\n".join([*lines, f"    return {', '.join(outputs)}"]) + "\n"


@cache
def compiled(solve: Solve) -> Any:
    """Return a solve as a function of arrays, for calls from Python."""
    function, key = solve_kernel(solve)
    table_of(solve).complete()
    return numba.njit(cache=key is not None and is_caching())(function)
