"""From one discontinuity to the next by SUNDIALS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from pymc_mpimap.native.memory import compact, doubles, words
from pymc_mpimap.ode import sundials as c
from pymc_mpimap.ode.handle import (
    COUNT,
    EXPLICIT,
    IMPLICIT,
    JACOBIAN,
    LAST_STEP,
    MATRIX,
    REACHED,
    RHS,
    SLOPE,
    USER,
    VALUES,
    Y,
)
from pymc_mpimap.ode.layout import PART
from pymc_mpimap.ode.memory import call_jacobian, call_rhs, data
from pymc_mpimap.ode.methods import AUTO, BDF
from pymc_mpimap.ode.request import (
    FIRST_STEP,
    MAX_STEPS,
    METHOD,
    N_STATES,
    RECORD,
    SLOPES,
    TABLE,
    numbers,
    size,
    store,
)
from pymc_mpimap.ode.schedule import boundaries, dose, enter
from pymc_mpimap.ode.system import T0, TS

__all__ = ["integrate"]

TOO_MANY_STEPS = -1
FIRST_RHS_FAILED = -9

# BDF's errors add up more than those of the explicit methods: its steps are allowed a part of the
# tolerance, so that sensitivities too end within ten times of it.
IMPLICIT_PART = 0.5

# The explicit method's steps are stable up to about 3.3 over the size of the Jacobian. Where its
# norm, an upper bound of that size, says that steps are near this limit, and there were many of
# them, it is stability and not accuracy that keeps them short.
STIFF = 1.5
MANY_STEPS = 50
STEPS_BEFORE_A_LOOK = 500


@njit(error_model="numpy")
def _start_explicit(record: Any, memory: Any, now: Any, first_step: Any) -> None:
    compact()
    h = words(memory)
    doubles(h[USER])[PART] = 1.0
    c.ERKStepReInit(h[EXPLICIT], words(record)[RHS], now, h[Y])
    c.ARKodeSetInitStep(h[EXPLICIT], first_step)


@njit(error_model="numpy")
def _start_implicit(memory: Any, now: Any, first_step: Any) -> None:
    compact()
    h = words(memory)
    doubles(h[USER])[PART] = IMPLICIT_PART
    c.CVodeReInit(h[IMPLICIT], now, h[Y])
    c.CVodeSetInitStep(h[IMPLICIT], first_step)


@njit(error_model="numpy")
def _is_stiff(record: Any, memory: Any, n: Any, now: Any) -> Any:
    """Return whether stability, not accuracy, seems to limit the explicit method's steps."""
    compact()
    h, r = words(memory), words(record)
    c.ARKodeGetLastStep(h[EXPLICIT], memory + 8 * LAST_STEP)
    if call_jacobian(r[JACOBIAN], (now, h[Y], 0, h[MATRIX], h[USER], 0, 0, 0)) != 0:
        return False
    jacobian = doubles(c.SUNDenseMatrix_Data(h[MATRIX]))
    largest = 0.0
    for i in range(n):
        row = 0.0
        for j in range(n):
            row += abs(jacobian[j * n + i])
        largest = max(largest, row)
    return doubles(memory)[LAST_STEP] * largest > STIFF


@njit(error_model="numpy")
def _advance_explicit(memory: Any, target: Any, max_steps: Any) -> Any:
    """Go on to `target` in explicit steps; return SUNDIALS' flag."""
    compact()
    h = words(memory)
    # The explicit method steps to each output: its interpolant is less accurate.
    c.ARKodeSetStopTime(h[EXPLICIT], target)
    c.ARKodeSetMaxNumSteps(h[EXPLICIT], max_steps)
    return c.ARKodeEvolve(h[EXPLICIT], target, h[Y], memory + 8 * REACHED, 1)


@njit(error_model="numpy")
def _advance(
    record: Any,
    memory: Any,
    method: Any,
    implicit: Any,
    n: Any,
    target: Any,
    stop: Any,
    max_steps: Any,
) -> Any:
    """Go on to `target`; return SUNDIALS' flag, and whether BDF does it from here."""
    compact()
    h, at = words(memory), memory + 8 * REACHED
    if not implicit:
        c.ARKodeGetNumSteps(h[EXPLICIT], memory + 8 * COUNT)
        before = h[COUNT]
        budget = max_steps if method != AUTO else min(max_steps, STEPS_BEFORE_A_LOOK)
        left = max_steps
        while True:
            flag = _advance_explicit(memory, target, min(budget, left))
            left -= budget
            if flag != TOO_MANY_STEPS or left <= 0:
                break
            if _is_stiff(record, memory, n, doubles(memory)[REACHED]):
                implicit = True
                break
        if not implicit:
            if flag >= 0 and method == AUTO and target < stop:
                c.ARKodeGetNumSteps(h[EXPLICIT], memory + 8 * COUNT)
                many = h[COUNT] - before > MANY_STEPS
                if many and _is_stiff(record, memory, n, target):
                    _start_implicit(memory, target, 0.0)
                    implicit = True
            return flag, implicit
        _start_implicit(memory, doubles(memory)[REACHED], 0.0)
    c.CVodeSetMaxNumSteps(h[IMPLICIT], max_steps)
    c.CVodeSetStopTime(h[IMPLICIT], stop)
    return c.CVode(h[IMPLICIT], target, h[Y], at, 1), True


@njit(error_model="numpy", inline="always")
def integrate(
    q: Any, t: Any, memory: Any, shape: Any, schedule: Any, stops: Any, with_bdf: Any
) -> Any:
    """Solve, and store what there is at the output times; return SUNDIALS' flag.

    Parameters
    ----------
    q, t : pointer to words
        The request, see `request`, and the table.
    memory : int
        The address of solver memory that is prepared for the solve.
    shape : Shape
    schedule : Schedule or None
    stops : pointer to doubles
        Room for where the solver stops.
    with_bdf : bool or None
        None where the method is explicit for certain.
    """
    record, method, n, max_steps = t[RECORD], t[METHOD], t[N_STATES], t[MAX_STEPS]
    first_step = doubles(q[TABLE])[FIRST_STEP]
    h, r = words(memory), words(record)
    u, y, slope = doubles(h[USER]), doubles(h[VALUES]), data(h[SLOPE])
    t0, ts, n_times = numbers(q, T0)[0], numbers(q, TS), size(q, TS)
    implicit = method == BDF
    n_stops = boundaries(stops, t0, ts[n_times - 1] if n_times else t0, schedule)
    flag = 0
    if schedule is not None:
        # As before anything begins at t0: an earlier start would have been without it.
        enter(u, shape, schedule, np.nextafter(t0, -np.inf), t0)
    if shape.initial_time >= 0:
        if call_rhs(r[RHS], (t0, h[Y], h[SLOPE], h[USER])) != 0:
            flag = FIRST_RHS_FAILED
        for i in range(n):
            y[i * shape.width + shape.initial_time] = -slope[i * shape.width]
    k, now = np.int64(0), t0
    for segment in range(-1, n_stops):
        stop = t0
        if segment >= 0:
            stop = stops[segment]
            if schedule is not None:
                enter(u, shape, schedule, now, stop)
            if with_bdf is None:
                _start_explicit(record, memory, now, first_step)
            elif implicit:
                _start_implicit(memory, now, first_step)
            else:
                _start_explicit(record, memory, now, first_step)
        while flag >= 0:
            target = stop
            if k < n_times and ts[k] < stop:
                target = ts[k]
            # Closer times than this are one to SUNDIALS.
            if target - now > max(1e-14 * max(abs(now), abs(target)), 1e-100):
                if with_bdf is None:
                    flag = _advance_explicit(memory, target, max_steps)
                else:
                    flag, implicit = _advance(
                        record, memory, method, implicit, n, target, stop, max_steps
                    )
            now = target
            while flag >= 0 and k < n_times and ts[k] <= now:
                if t[SLOPES] and call_rhs(r[RHS], (now, h[Y], h[SLOPE], h[USER])) != 0:
                    flag = FIRST_RHS_FAILED
                store(q, t, k, memory, shape.width)
                k += 1
            if now >= stop:
                break
        if flag < 0:
            return flag
        if schedule is not None:
            # After the outputs of the same time: they are of the moment before the dose.
            dose(y, shape, schedule, now)
    return flag
