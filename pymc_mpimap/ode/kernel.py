"""A solve as one compiled function of its inputs, for every backend of PyTensor."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import Any

import numba
import numpy as np
from pytensor.link.numba.cache import compile_numba_function_src

from pymc_mpimap.ode.cache import STAMP, is_caching
from pymc_mpimap.ode.handle import DRIVER
from pymc_mpimap.ode.memory import call_with, symbol, words
from pymc_mpimap.ode.methods import METHODS
from pymc_mpimap.ode.problem import problem_of
from pymc_mpimap.ode.schedule import PROBLEMS
from pymc_mpimap.ode.solver import REFUSED
from pymc_mpimap.ode.system import BREAKS, T0, TS, Y0, Solve

__all__ = ["compiled", "kernel_source", "solve_kernel"]


def solve_kernel(solve: Solve) -> tuple[Any, str]:
    """Return a solve as a Python function for numba to compile, and its key in a cache."""
    problem = problem_of(solve)
    source = kernel_source(solve, problem.record.name)
    key = sha256(f"{STAMP} {source}".encode()).hexdigest()[:40]
    environment = {
        "__name__": __name__,
        "np": np,
        "call_with": call_with,
        "symbol": symbol,
        "words": words,
    }
    key = f"pymc_mpimap-solve-{key}"
    return compile_numba_function_src(source, "solve_ivp", environment, cache_key=key), key


def kernel_source(solve: Solve, record: str) -> str:
    """Return the source of a function from a solve's inputs to its outputs.

    Its vectors are copies: of one type whatever the graph around gives, and safe to write to.
    """
    system, layout = solve.system, solve.layout
    columns = _Columns(solve)
    lines = [
        f"def solve_ivp({', '.join(f'x{i}' for i in range(len(system.types)))}):",
        *(f"    v{i} = x{i}.flatten()" for i, t in enumerate(system.types) if t.ndim),
        f"    t0 = x{T0}.item()",
        f"    n_times = len(v{TS})",
        *_parameters(solve),
        *_schedule(solve),
        *columns.lines,
        f"    result = np.empty((n_times, {system.n_states}, width))",
        f"    slopes = np.empty((n_times if {layout.slopes} else 0, {system.n_states}))",
        f"    atol = np.array({list(system.atol)})",
        f"    record = symbol({record!r})",
        f"    flag = call_with(words(record)[{DRIVER}], (",
        f"        record, {METHODS[system.method]}, {system.max_steps}, t0, {system.rtol!r},",
        f"        {system.first_step!r}, {system.n_states}, width, {columns.numbers},",
        f"        columns, stepped, v{BREAKS}, {_doses(solve)}, step_times, step_values, steps,",
        f"        v{Y0}, v{TS}, p, atol, result, slopes))",
        f"    if flag > {REFUSED}:",
        *(
            line
            for number, text in enumerate(PROBLEMS)
            if number
            for line in (
                f"        if flag == {REFUSED + number}:",
                f"            raise ValueError({text!r})",
            )
        ),
        f"    return {', '.join(columns.returned)}",
    ]
    return "\n".join(lines) + "\n"


def _sizes(solve: Solve) -> list[int]:
    return [int(np.prod(shape, dtype=int)) for shape in solve.system.shapes]


def _parameters(solve: Solve) -> list[str]:
    """Fill the vector of parameters; the stepped ones are set segment by segment."""
    system = solve.system
    lines = [f"    p = np.zeros({sum(_sizes(solve))})"]
    at = 0
    for i, stepped, size in zip(system.leaves, system.stepped, _sizes(solve), strict=True):
        if not stepped:
            value = f"v{i}" if system.types[i].ndim else f"x{i}.item()"
            lines.append(f"    p[{at} : {at + size}] = {value}")
        at += size
    return lines


def _schedule(solve: Solve) -> list[str]:
    """Collect the steps of all stepped parameters."""
    system = solve.system
    lines = ["    step_times, step_values = np.empty(0), np.empty(0)"]
    lines.append(f"    steps = np.zeros(({sum(system.stepped)}, 5), np.int64)")
    firsts = np.cumsum([0, *_sizes(solve)])
    stepped = [k for k, is_stepped in enumerate(system.stepped) if is_stepped]
    for row, (k, i) in enumerate(zip(stepped, system.step_times, strict=True)):
        values, size = f"x{system.leaves[k]}", _sizes(solve)[k]
        lines += [
            f"    if {values}.shape[0] != len(v{i}) + 1:",
            f"        raise ValueError({PROBLEMS[7]!r})",
            f"    steps[{row}, 0], steps[{row}, 1] = len(step_times), len(v{i})",
            f"    steps[{row}, 2], steps[{row}, 3] = len(step_values), {size}",
            f"    steps[{row}, 4] = {firsts[k]}",
            f"    step_times = np.concatenate((step_times, v{i}))",
            f"    step_values = np.concatenate((step_values, v{system.leaves[k]}))",
        ]
    return lines


def _doses(solve: Solve) -> str:
    doses = [f"v{i}" for i in solve.system.dose_inputs]
    return ", ".join(doses or ["np.empty(0)"] * 3 + ["np.empty(0, np.int64)"])


class _Columns:
    """Where the columns of each sensitivity are, and what is returned of them."""

    def __init__(self, solve: Solve):
        system, layout = solve.system, solve.layout
        firsts = np.cumsum([0, *_sizes(solve)])
        fixed = layout.fixed_width
        at: dict[int, str] = {}
        if T0 in solve.wrt:
            at[T0] = str(fixed - 1)
        if Y0 in solve.wrt:
            at[Y0] = str(fixed - layout.initial_time - layout.n_states)
        columns = [-1 if c is None else c for c in layout.columns]
        self.lines = [
            f"    columns = np.array({columns}, np.int64)"
            if columns
            else "    columns = np.empty(0, np.int64)",
            f"    width = {fixed}",
            f"    stepped = np.full({len(layout.stepped_wanted)}, -1, np.int64)",
        ]
        for i in solve.wrt:
            k = i - system.leaves.start
            if i == system.amounts:
                at[i] = "amounts"
                self.lines += ["    amounts = width", f"    width += len(v{i})"]
            elif i in system.leaves and system.stepped[k]:
                at[i] = f"stepped[{sum(system.stepped[:k])}]"
                self.lines += [f"    {at[i]} = width", f"    width += len(v{i})"]
            elif i in system.leaves:
                at[i] = str(columns[firsts[k]]) if _sizes(solve)[k] else "1"
        known = (at.get(i, "-1") for i in (Y0, T0, system.amounts or -1))
        self.numbers = ", ".join(known)
        self.returned = ["np.ascontiguousarray(result[:, :, 0])"]
        for i in solve.wrt:
            kind = system.types[i]
            if i == TS:
                self.returned.append("slopes")
                continue
            count = f"len(v{i})" if kind.ndim else "1"
            sizes = [
                "n_times",
                str(system.n_states),
                *(f"x{i}.shape[{a}]" for a in range(kind.ndim)),
            ]
            part = f"np.ascontiguousarray(result[:, :, {at[i]} : {at[i]} + {count}])"
            self.returned.append(f"{part}.reshape(({', '.join(sizes)}))")


@cache
def compiled(solve: Solve) -> Any:
    """Return a solve as a function of arrays, for calls from Python."""
    function, _ = solve_kernel(solve)
    return numba.njit(cache=is_caching())(function)
