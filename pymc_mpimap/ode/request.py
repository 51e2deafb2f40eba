"""Arguments of the driver: the table, once for a kind of solve; the request, with each call.

Both are words of memory. A request is of one or several jobs, whose inputs lie one after the
other; an input that all share is there once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from pymc_mpimap.native.memory import compact, doubles, words
from pymc_mpimap.ode import handle
from pymc_mpimap.ode.handle import VALUES
from pymc_mpimap.ode.memory import data

__all__ = [
    "address",
    "advance",
    "first_column",
    "n_columns",
    "numbers",
    "resolve",
    "size",
    "store",
    "store_nan",
]

# A request: the table's address, how many jobs, and three words for each input and output.
TABLE, N_JOBS, SLOTS = range(3)

# A table: single numbers, and where in it the others begin.
(
    DRIVER,
    RECORD,
    METHOD,
    MAX_STEPS,
    RTOL,
    FIRST_STEP,
    N_STATES,
    N_PARAMETERS,
    FIXED_WIDTH,
    INITIAL_STATES,
    INITIAL_TIME,
    DOSES,
    AMOUNTS,
    N_INPUTS,
    N_OUTPUTS,
    N_LEAVES,
    N_STEPPED,
    SLOPES,
    ATOL,
    COLUMNS,
    OUTPUTS,
    LEAVES,
    FREE,
    KEY,
) = range(24)
N_NUMBERS = 24

NONE = -1
"""No such input, output or column."""

# Of each output: the input whose size is the number of its columns, or NONE where it is one; and
# the first of its columns, or:
DYNAMIC, SLOPE = -1, -2

# Of each parameter: its size, or that of one of its values where it is stepped; then the input
# with the times of its steps, and the output with the derivatives by its values, or NONE.
LEAF = 3


def _word(k: int, kind: Any) -> Any:
    """Return what reads word `k` of an input or output of the job at hand, as this kind.

    An intrinsic, as it is in use all over: numba would compile a function, or copy it, each time.
    """

    def typed(_typing: Any, _q: Any, _slot: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            q, slot = arguments
            word = ir.IntType(64)
            at = builder.add(builder.mul(slot, word(3)), word(SLOTS + k))
            value = builder.load(builder.gep(q, [at]))
            target = context.get_value_type(kind)
            return value if target == word else builder.inttoptr(value, target)

        return kind(types.CPointer(types.intp), types.intp), codegen

    return intrinsic(typed)


# Outputs come after the inputs: output `o` is `t[N_INPUTS] + o`.
address: Any = _word(0, types.intp)
"""``address(q, i)``: where an input or output is."""

numbers: Any = _word(0, types.CPointer(types.float64))
"""``numbers(q, i)``: an input or output itself."""

size: Any = _word(1, types.intp)
"""``size(q, i)``: how many numbers input `i` has."""

first_column: Any = _word(1, types.intp)
"""``first_column(q, o)``: which column an output begins with."""

n_columns: Any = _word(2, types.intp)
"""``n_columns(q, o)``: how many columns an output has."""


@njit(error_model="numpy")
def resolve(q: Any, t: Any) -> Any:
    """Complete a request as it comes; return the width of its solves.

    An input comes with its address, how many numbers there are in all jobs, and whether it is per
    job: this becomes how many there are in one job, and how many bytes on the next job's are. To
    an output's address come its first column and how many it has.
    """
    compact()
    for i in range(t[N_INPUTS]):
        at = SLOTS + 3 * i
        if q[at + 2] and q[N_JOBS]:
            q[at + 1] //= q[N_JOBS]
            q[at + 2] = 8 * q[at + 1]
    width = t[FIXED_WIDTH]
    for o in range(t[N_OUTPUTS]):
        at, row = SLOTS + 3 * (t[N_INPUTS] + o), t[OUTPUTS] + 2 * o
        n = 1 if t[row] == NONE else size(q, t[row])
        first = t[row + 1]
        if first == DYNAMIC:
            first = width
            width += n
        q[at + 1], q[at + 2] = first, n
    return width


@njit(error_model="numpy")
def advance(q: Any, t: Any, n_rows: Any) -> None:
    """Turn to the next job; outputs have so many rows."""
    compact()
    for i in range(t[N_INPUTS]):
        q[SLOTS + 3 * i] += q[SLOTS + 3 * i + 2]
    for o in range(t[N_INPUTS], t[N_INPUTS] + t[N_OUTPUTS]):
        q[SLOTS + 3 * o] += 8 * n_rows * n_columns(q, o)


@njit(error_model="numpy")
def store(q: Any, t: Any, k: Any, memory: Any, width: Any) -> None:
    """Store the states and their derivatives, from solver memory, as row `k` of the outputs."""
    compact()
    h, n = words(memory), t[N_STATES]
    for o in range(t[N_INPUTS], t[N_INPUTS] + t[N_OUTPUTS]):
        first, count, out = first_column(q, o), n_columns(q, o), numbers(q, o)
        source = doubles(h[VALUES])
        if first == SLOPE:
            first, source = 0, data(h[handle.SLOPE])
        for i in range(n):
            for c in range(count):
                out[(k * n + i) * count + c] = source[i * width + first + c]


@njit(error_model="numpy")
def store_nan(q: Any, t: Any, n_rows: Any) -> None:
    """Store so many rows of NaN."""
    compact()
    for o in range(t[N_INPUTS], t[N_INPUTS] + t[N_OUTPUTS]):
        out = numbers(q, o)
        for k in range(n_rows * n_columns(q, o)):
            out[k] = np.nan
