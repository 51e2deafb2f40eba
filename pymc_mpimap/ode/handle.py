"""The memory that SUNDIALS works in: made once for each problem, and kept for the next solve.

There are as many blocks of it as threads have solved a problem at the same time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit, types

from pymc_mpimap.native.memory import compact, doubles, exchange, words
from pymc_mpimap.ode import sundials, sundials as c
from pymc_mpimap.ode.cache import compiled_callback
from pymc_mpimap.ode.methods import AUTO, BDF
from pymc_mpimap.ode.sundials import LINEAR_SOLVE, OPERATIONS, VECTOR_OPERATIONS

__all__ = ["N_RECORD", "acquire", "give_back", "releasing"]

sundials.require()
malloc: Any = types.ExternalFunction("malloc", types.intp(types.intp))
free: Any = types.ExternalFunction("free", types.void(types.intp))

N_REPLACED = len(OPERATIONS)

# A problem's record: what compiled code needs to know of it, and its solver memory.
RHS, JACOBIAN, WEIGHTS, SOLVE, TALLY, COEFFICIENTS = range(6)
REPLACED = 6
REPLACING = REPLACED + len(OPERATIONS)
SLOTS = REPLACING + len(OPERATIONS)
N_SLOTS = 16
N_RECORD = SLOTS + N_SLOTS

# Solver memory: a block of words.
LENGTH, ROOM, CONTEXT, VALUES, USER, Y, SLOPE, EXPLICIT, IMPLICIT, MATRIX, LINEAR = range(11)
TEMPLATE, REACHED, COUNT, LAST_STEP = range(11, 15)
N_WORDS = 15

NO_INTERPOLANT = -1

CONVERGED = 0.01
"""The part of the tolerance that Newton's iteration may be off by: CVODE's own 0.1 lets the
sensitivities, whose coupling to the state the Newton matrix leaves out, be off by more; stiff
problems take longer steps for it."""

SAFETY = 0.9
"""Of the step that should just pass, what is tried: ARKODE's own 0.96 has a third rejected."""


@njit
def _create(record: Any, method: Any, n: Any, size: Any, room: Any, with_bdf: Any) -> Any:
    """Make the memory for vectors of so many numbers and parameters of so much room."""
    compact()
    r = words(record)
    memory = malloc(8 * N_WORDS)
    h = words(memory)
    for k in range(N_WORDS):
        h[k] = 0
    h[LENGTH], h[ROOM] = size, room
    h[VALUES] = malloc(8 * (size + n))
    h[USER] = malloc(8 * room)
    values = doubles(h[VALUES])
    for k in range(size + n):
        values[k] = 0.0
    c.SUNContext_Create(0, memory + 8 * CONTEXT)
    # Without handlers nothing is printed: a failed solve is a rejected proposal.
    c.SUNContext_ClearErrHandlers(h[CONTEXT])
    h[Y] = c.N_VMake_Serial(size, h[VALUES], h[CONTEXT])
    c.N_VEnableFusedOps_Serial(h[Y], 1)
    table = words(words(h[Y])[1])
    for k in range(VECTOR_OPERATIONS):
        for j in range(N_REPLACED):
            if table[k] == r[REPLACED + j]:
                table[k] = r[REPLACING + j]
                break
    h[SLOPE] = c.N_VClone(h[Y])
    if method != BDF:
        h[EXPLICIT] = c.ERKStepCreate(r[RHS], 0.0, h[Y], h[CONTEXT])
        c.ERKStepSetTableName(h[EXPLICIT], r[COEFFICIENTS])
        c.ARKodeWFtolerances(h[EXPLICIT], r[WEIGHTS])
        c.ARKodeSetUserData(h[EXPLICIT], h[USER])
        c.ARKodeSetMaxHnilWarns(h[EXPLICIT], -1)
        c.ARKodeSetSafetyFactor(h[EXPLICIT], SAFETY)
        c.ARKodeSetErrorBias(h[EXPLICIT], 1.0)
        # Each output time is stepped to: nothing need be kept for interpolation.
        c.ARKodeSetInterpolantType(h[EXPLICIT], NO_INTERPOLANT)
    if with_bdf is not None and (method == BDF or method == AUTO):
        h[IMPLICIT] = c.CVodeCreate(2, h[CONTEXT])
        c.CVodeInit(h[IMPLICIT], r[RHS], 0.0, h[Y])
        c.CVodeSetUserData(h[IMPLICIT], h[USER])
        c.CVodeWFtolerances(h[IMPLICIT], r[WEIGHTS])
        c.CVodeSetMaxHnilWarns(h[IMPLICIT], -1)
        h[MATRIX] = c.SUNDenseMatrix(n, n, h[CONTEXT])
        h[TEMPLATE] = c.N_VMake_Serial(n, h[VALUES] + 8 * size, h[CONTEXT])
        h[LINEAR] = c.SUNLinSol_Dense(h[TEMPLATE], h[MATRIX], h[CONTEXT])
        words(words(h[LINEAR])[2])[LINEAR_SOLVE] = r[SOLVE]
        c.CVodeSetLinearSolver(h[IMPLICIT], h[LINEAR], h[MATRIX])
        c.CVodeSetJacFn(h[IMPLICIT], r[JACOBIAN])
        c.CVodeSetNonlinConvCoef(h[IMPLICIT], CONVERGED)
    return memory


@njit
def _destroy(memory: Any) -> None:
    compact()
    h = words(memory)
    if h[EXPLICIT]:
        c.ARKodeFree(memory + 8 * EXPLICIT)
    if h[IMPLICIT]:
        c.CVodeFree(memory + 8 * IMPLICIT)
        c.SUNLinSolFree(h[LINEAR])
        c.SUNMatDestroy(h[MATRIX])
        c.N_VDestroy(h[TEMPLATE])
    c.N_VDestroy(h[SLOPE])
    c.N_VDestroy(h[Y])
    c.SUNContext_Free(memory + 8 * CONTEXT)
    free(h[USER])
    free(h[VALUES])
    free(memory)


@njit
def acquire(record: Any, method: Any, n: Any, size: Any, room: Any, with_bdf: Any) -> Any:
    """Take solver memory that nobody uses, of the right size, or make some."""
    compact()
    for k in range(N_SLOTS):
        memory = exchange(record + 8 * (SLOTS + k), 0)
        if memory:
            if words(memory)[LENGTH] == size and words(memory)[ROOM] >= room:
                return memory
            _destroy(memory)
            break
    return _create(record, method, n, size, room, with_bdf)


@njit
def give_back(record: Any, memory: Any) -> None:
    """Keep solver memory for the next solve."""
    compact()
    for k in range(N_SLOTS):
        memory = exchange(record + 8 * (SLOTS + k), memory)
        if not memory:
            return
    _destroy(memory)


@cache
def releasing() -> Any:
    """Return a function that frees a problem's solver memory, and returns how much there was."""

    @compiled_callback(types.int32(types.intp))
    def release(record: Any) -> Any:
        n = 0
        for k in range(N_SLOTS):
            memory = exchange(record + 8 * (SLOTS + k), 0)
            if memory:
                _destroy(memory)
                n += 1
        return n

    return release
