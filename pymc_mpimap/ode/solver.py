"""One solve by SUNDIALS, in compiled code from beginning to end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types

from pymc_mpimap.ode import sundials as c
from pymc_mpimap.ode.cache import compiled_callback
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
    TALLY,
    USER,
    VALUES,
    Y,
    acquire,
    give_back,
)
from pymc_mpimap.ode.layout import PARAMETERS, PART
from pymc_mpimap.ode.memory import call_jacobian, call_rhs, data, doubles, increase, words
from pymc_mpimap.ode.methods import AUTO, BDF
from pymc_mpimap.ode.schedule import Schedule, Shape, boundaries, check, dose, enter, prepare
from pymc_mpimap.tally import N_COUNTS

__all__ = ["REFUSED", "drive"]

REFUSED = 1000
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
def _start(record: Any, memory: Any, implicit: Any, now: Any, first_step: Any) -> None:
    h, r = words(memory), words(record)
    doubles(h[USER])[PART] = IMPLICIT_PART if implicit else 1.0
    if implicit:
        c.CVodeReInit(h[IMPLICIT], now, h[Y])
        c.CVodeSetInitStep(h[IMPLICIT], first_step)
    else:
        c.ERKStepReInit(h[EXPLICIT], r[RHS], now, h[Y])
        c.ARKodeSetInitStep(h[EXPLICIT], first_step)


@njit(error_model="numpy")
def _is_stiff(record: Any, memory: Any, n: Any, now: Any) -> Any:
    """Whether stability, not accuracy, seems to keep the explicit method's steps short."""
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
    h, at = words(memory), memory + 8 * REACHED
    if not implicit:
        c.ARKodeGetNumSteps(h[EXPLICIT], memory + 8 * COUNT)
        before = h[COUNT]
        budget = max_steps if method != AUTO else min(max_steps, STEPS_BEFORE_A_LOOK)
        left = max_steps
        # The explicit method steps to each output: its interpolant is less accurate.
        c.ARKodeSetStopTime(h[EXPLICIT], target)
        while True:
            c.ARKodeSetMaxNumSteps(h[EXPLICIT], min(budget, left))
            flag = c.ARKodeEvolve(h[EXPLICIT], target, h[Y], at, 1)
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
                    _start(record, memory, True, target, 0.0)
                    implicit = True
            return flag, implicit
        _start(record, memory, True, doubles(memory)[REACHED], 0.0)
    c.CVodeSetMaxNumSteps(h[IMPLICIT], max_steps)
    c.CVodeSetStopTime(h[IMPLICIT], stop)
    return c.CVode(h[IMPLICIT], target, h[Y], at, 1), True


@njit(inline="always")
def _numbers(a: Any, k: Any) -> Any:
    """Return the array of numbers whose address and length are at `k`."""
    return carray(doubles(a[k]), (a[k + 1],))


@njit(inline="always")
def _integers(a: Any, k: Any) -> Any:
    return carray(words(a[k]), (a[k + 1],))


@compiled_callback(types.int32(types.intp))
def drive(arguments: Any) -> Any:
    """Check one solve's inputs and solve; called by address, so that it is compiled but once.

    Parameters
    ----------
    arguments : int
        The address of what `call_with` has packed: the address of the problem's record, the
        method, the most steps, the initial time, the relative tolerance and the first step; the
        five single numbers of `Shape` and its two arrays; the arrays of `Schedule`; and as arrays
        the initial states, the output times, the parameters, the absolute tolerances, and what is
        filled in: the solution with its sensitivities, (n_times, n_states, width), and the time
        derivatives at the output times, (n_times, n_states), or of no length if nobody wants them.

    Returns
    -------
    int
        SUNDIALS' flag, or `REFUSED` and the number of what `check` finds amiss.
    """
    a, f = words(arguments), doubles(arguments)
    record, method, max_steps, t0, rtol, first_step = a[0], a[1], a[2], f[3], f[4], f[5]
    n, width = a[6], a[7]
    columns, stepped = _integers(a, 11), _integers(a, 13)
    shape = Shape(n, width, len(columns), columns, a[8], a[9], a[10], stepped)
    steps = carray(words(a[29]), (a[30], a[31]))
    schedule = Schedule(
        _numbers(a, 15),
        _numbers(a, 17),
        _numbers(a, 19),
        _numbers(a, 21),
        _integers(a, 23),
        _numbers(a, 25),
        _numbers(a, 27),
        steps,
    )
    y0, ts, p, atol = _numbers(a, 32), _numbers(a, 34), _numbers(a, 36), _numbers(a, 38)
    amiss = check(t0, ts, n, schedule)
    if amiss:
        return REFUSED + amiss
    solution = carray(doubles(a[40]), (a[41], a[42], a[43]))
    slopes = carray(doubles(a[44]), (a[45], a[46]))
    n_times = len(ts)
    room = PARAMETERS + shape.n_parameters + 2 * n + len(shape.stepped) + width
    room += 3 * len(schedule.times)
    memory = acquire(record, method, n, n * width, room)
    h, r = words(memory), words(record)
    u = carray(doubles(h[USER]), (room,))
    y = carray(doubles(h[VALUES]), (n, width))
    slope = carray(data(h[SLOPE]), (n, width))
    prepare(u, y, shape, y0, p, rtol, atol, schedule)
    implicit = method == BDF
    stops = boundaries(t0, ts[-1] if n_times else t0, schedule)
    flag = 0
    # As before anything begins at t0: an earlier start would have been without it.
    enter(u, shape, schedule, np.nextafter(t0, -np.inf), t0)
    if shape.initial_time >= 0:
        if call_rhs(r[RHS], (t0, h[Y], h[SLOPE], h[USER])) != 0:
            flag = FIRST_RHS_FAILED
        for i in range(n):
            y[i, shape.initial_time] = -slope[i, 0]
    k, now = 0, t0
    for segment in range(-1, len(stops)):
        stop = t0
        if segment >= 0:
            stop = stops[segment]
            enter(u, shape, schedule, now, stop)
            _start(record, memory, implicit, now, first_step)
        while flag >= 0:
            target = stop
            if k < n_times and ts[k] < stop:
                target = ts[k]
            # Closer times than this are one to SUNDIALS.
            if target - now > max(1e-14 * max(abs(now), abs(target)), 1e-100):
                flag, implicit = _advance(
                    record, memory, method, implicit, n, target, stop, max_steps
                )
            now = target
            while flag >= 0 and k < n_times and ts[k] <= now:
                for i in range(n):
                    for s in range(width):
                        solution[k, i, s] = y[i, s]
                if slopes.size:
                    if call_rhs(r[RHS], (now, h[Y], h[SLOPE], h[USER])) != 0:
                        flag = FIRST_RHS_FAILED
                    for i in range(n):
                        slopes[k, i] = slope[i, 0]
                k += 1
            if now >= stop:
                break
        if flag < 0:
            break
        # After the outputs of the same time: they are of the moment before the dose.
        dose(y, shape, schedule, now)
    tally = r[TALLY]
    increase(tally, 1)
    if flag < 0:
        increase(tally + 8 * min(-flag, N_COUNTS - 1), 1)
        for k in range(n_times):
            for i in range(n):
                for s in range(width):
                    solution[k, i, s] = np.nan
                if slopes.size:
                    slopes[k, i] = np.nan
    give_back(record, memory)
    return flag
