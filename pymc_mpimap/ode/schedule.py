"""Discontinuities of one solve, such as doses and steps, in time order, for numba and Python.

The solver runs from one discontinuity to the next. At each it stops, the state jumps or a
constant input changes, and it starts anew. The times are data, so sensitivities are carried over
as they are; what depends on an amount begins with its dose.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pymc_mpimap.native.memory import compact
from pymc_mpimap.ode.layout import (
    ATOL,
    FIRST,
    LAST,
    N_INPUTS,
    N_STATES,
    PARAMETERS,
    RTOL,
    WIDTH,
)

__all__ = [
    "DIFFERENT_NUMBERS",
    "PROBLEMS",
    "SIZES",
    "STEP",
    "STEPS",
    "UNEVEN_DOSES",
    "Schedule",
    "Shape",
    "boundaries",
    "check",
    "dose",
    "enter",
    "prepare",
    "room",
]

STEP = 6
"""The count of numbers that describe the steps of a parameter."""


class Schedule(NamedTuple):
    """The discontinuities of one solve.

    What is not a number is indexed from 0, and never asked for its length: compiled code has
    pointers there.

    Attributes
    ----------
    n_breaks, n_doses, n_step_times, n_stepped : int
    breaks : array of float, (n_breaks,)
        Where the right-hand side itself is discontinuous in time.
    times, amounts, durations : array of float, (n_doses,)
        A duration of 0 is a bolus: the state jumps. Others are infusions at a constant rate.
    states : array of int, (n_doses,)
        Which state a dose goes to.
    step_times, step_values : array of float
        Of all stepped parameters, one after the other.
    steps : array of int, (n_stepped * STEP,)
        For each stepped parameter: where its times begin and how many there are, where its values
        begin and how many numbers one of them has, the parameter that it begins with, and the
        first column of its values.
    """

    n_breaks: Any
    n_doses: Any
    n_step_times: Any
    n_stepped: Any
    breaks: Any
    times: Any
    amounts: Any
    durations: Any
    states: Any
    step_times: Any
    step_values: Any
    steps: Any


class Shape(NamedTuple):
    """The sizes and columns of one solve; a column of -1 is not there.

    Attributes
    ----------
    n_states, width, n_parameters : int
    columns : array of int, (n_parameters,)
        The column of each parameter.
    initial_states, initial_time, amounts : int
        The first column of each.
    free : array of int, (n_states,)
        Which initial states are no constants.
    """

    n_states: Any
    width: Any
    n_parameters: Any
    columns: Any
    initial_states: Any
    initial_time: Any
    amounts: Any
    free: Any


PROBLEMS = (
    "",
    "solve_ivp: the times ts must be finite, not decrease, and not lie before t0",
    "solve_ivp: t0 must be finite",
    "solve_ivp: the times, amounts, durations and states of doses must be of the same length",
    "solve_ivp: the times of doses must be finite and not lie before t0",
    "solve_ivp: the durations of doses must be finite and not negative",
    "solve_ivp: a dose goes to a state that there is not",
    "solve_ivp: the times of steps must increase, and there must be one more value than times",
    "solve_ivp: the times of breaks must be finite",
    "solve_ivp: an input is of another size than when the graph was made",
)
"""The faults that a solve's inputs can have, by number."""

UNEVEN_DOSES, STEPS, SIZES = 3, 7, 9

DIFFERENT_NUMBERS = "solve_ivp: inputs of different numbers of jobs"


@njit(error_model="numpy")
def check(t0: Any, n_times: Any, ts: Any, n_states: Any, schedule: Any) -> Any:
    """Return the number of the first of `PROBLEMS` that these times have; 0 where all is well."""
    compact()
    if not np.isfinite(t0):
        return 2
    last = t0
    for k in range(n_times):
        if not (last <= ts[k] < np.inf):
            return 1
        last = ts[k]
    if schedule is None:
        return 0
    for k in range(schedule.n_doses):
        if not (t0 <= schedule.times[k] < np.inf):
            return 4
        if not (0.0 <= schedule.durations[k] < np.inf):
            return 5
        if not (0 <= schedule.states[k] < n_states):
            return 6
    for k in range(schedule.n_stepped):
        start = schedule.steps[STEP * k]
        last = -np.inf
        for i in range(start, start + schedule.steps[STEP * k + 1]):
            if not (last < schedule.step_times[i] < np.inf):
                return 7
            last = schedule.step_times[i]
    for k in range(schedule.n_breaks):
        if not np.isfinite(schedule.breaks[k]):
            return 8
    return 0


@njit(error_model="numpy")
def boundaries(found: Any, t0: Any, end: Any, schedule: Any) -> Any:
    """Fill in where the solver stops, all discontinuities after `t0` and the end; count them."""
    compact()
    if schedule is None:
        found[0] = end
        return 1 if t0 < end else 0
    n = 0
    for k in range(schedule.n_breaks):
        found[n] = schedule.breaks[k]
        n += 1
    for k in range(schedule.n_doses):
        found[n] = schedule.times[k]
        found[n + 1] = schedule.times[k] + schedule.durations[k]
        n += 2
    for k in range(schedule.n_step_times):
        found[n] = schedule.step_times[k]
        n += 1
    found[n] = end
    for i in range(1, n + 1):  # By insertion: they are few, and mostly in order.
        t, k = found[i], i
        while k > 0 and found[k - 1] > t:
            found[k] = found[k - 1]
            k -= 1
        found[k] = t
    n_kept = 0
    last = t0
    for i in range(n + 1):
        t = found[i]
        if last < t <= end:
            found[n_kept] = last = t
            n_kept += 1
    return n_kept


@njit(inline="always")
def room(n_states: Any, width: Any, n_parameters: Any, n_stepped: Any, n_doses: Any) -> Any:
    """Return how many numbers the parameters `u` are, see `layout`."""
    return PARAMETERS + n_parameters + 2 * n_states + n_stepped + width + 3 * n_doses


@njit(error_model="numpy")
def prepare(u: Any, y: Any, shape: Any, y0: Any, p: Any, rtol: Any, schedule: Any) -> None:
    """Fill in the parameters `u`, all but the tolerances, and the state with its sensitivities."""
    compact()
    n, width, n_parameters = shape.n_states, shape.width, shape.n_parameters
    n_stepped = 0 if schedule is None else schedule.n_stepped
    n_doses = 0 if schedule is None else schedule.n_doses
    at = PARAMETERS + n_parameters + n + n_stepped
    scale = at + n
    for k in range(room(n, width, n_parameters, n_stepped, n_doses)):
        u[k] = 0.0
    u[FIRST], u[LAST], u[N_STATES], u[WIDTH], u[RTOL] = -np.inf, np.inf, n, width, rtol
    u[ATOL] = at
    for s in range(width):
        u[scale + s] = 1.0
    for k in range(n * width):
        y[k] = 0.0
    # A sensitivity is as accurate as the state when the parameter's own size is its unit; below
    # one, the parameter counts as one, so that an effect near zero keeps an exact gradient.
    for k in range(n_parameters):
        u[PARAMETERS + k] = p[k]
        if shape.columns[k] >= 0:
            u[scale + shape.columns[k]] = 1.0 / max(1.0, abs(p[k]))
    for i in range(n):
        y[i * width] = y0[i]
        if shape.initial_states >= 0:
            u[scale + shape.initial_states + i] = 1.0 / max(1.0, abs(y0[i]))
            y[i * width + shape.initial_states + i] = 1.0 if shape.free[i] else 0.0
    if schedule is None:
        return
    if shape.amounts >= 0:
        for k in range(n_doses):
            u[scale + shape.amounts + k] = 1.0 / max(1.0, abs(schedule.amounts[k]))
    for k in range(n_stepped):
        s, row = schedule.steps, STEP * k
        n_times, first, size, column = s[row + 1], s[row + 2], s[row + 3], s[row + 5]
        if column >= 0:
            for i in range((n_times + 1) * size):
                u[scale + column + i] = 1.0 / max(1.0, abs(schedule.step_values[first + i]))


@njit(error_model="numpy")
def enter(u: Any, shape: Any, schedule: Any, a: Any, b: Any) -> None:
    """Set what is constant from one discontinuity, `a`, to the next, `b`."""
    compact()
    n = shape.n_states
    u[FIRST], u[LAST] = -np.inf, np.inf
    # Strictly between two breaks, by a little more than rounding: which side the right-hand side
    # takes at a break itself is then of no account.
    inside = 1e-15 * max(abs(a), abs(b))
    for k in range(schedule.n_breaks):
        if schedule.breaks[k] == a:
            u[FIRST] = a + inside
        if schedule.breaks[k] == b:
            u[LAST] = b - inside
    inputs = PARAMETERS + shape.n_parameters
    columns = inputs + n
    active = columns + schedule.n_stepped + n + shape.width
    for i in range(n):
        u[inputs + i] = 0.0
    n_active = 0
    for k in range(schedule.n_doses):
        start, duration = schedule.times[k], schedule.durations[k]
        if duration > 0.0 and start <= a < start + duration:
            u[inputs + schedule.states[k]] += schedule.amounts[k] / duration
            if shape.amounts >= 0:
                u[active + 3 * n_active] = schedule.states[k]
                u[active + 3 * n_active + 1] = shape.amounts + k
                u[active + 3 * n_active + 2] = 1.0 / duration
                n_active += 1
    u[N_INPUTS] = n_active
    for k in range(schedule.n_stepped):
        s, row = schedule.steps, STEP * k
        start, n_times, first = s[row], s[row + 1], s[row + 2]
        size, parameter, column = s[row + 3], s[row + 4], s[row + 5]
        passed = 0
        while passed < n_times and schedule.step_times[start + passed] <= a:
            passed += 1
        for i in range(size):
            u[PARAMETERS + parameter + i] = schedule.step_values[first + passed * size + i]
        if column >= 0:
            u[columns + k] = column + passed * size


@njit(error_model="numpy")
def dose(y: Any, shape: Any, schedule: Any, now: Any) -> None:
    """Let the state jump by the boluses of this time."""
    compact()
    for k in range(schedule.n_doses):
        if schedule.durations[k] == 0.0 and schedule.times[k] == now:
            row = schedule.states[k] * shape.width
            y[row] += schedule.amounts[k]
            if shape.amounts >= 0:
                y[row + shape.amounts + k] += 1.0
