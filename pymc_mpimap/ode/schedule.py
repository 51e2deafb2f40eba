"""What happens when: doses, steps and other discontinuities of one solve, for numba and Python.

The solver runs from one discontinuity to the next. At each it stops, the state jumps or a
constant input changes, and it starts anew. The times are data, so sensitivities are carried over
as they are; what depends on an amount begins with its dose.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

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

__all__ = ["PROBLEMS", "Schedule", "Shape", "boundaries", "check", "dose", "enter", "prepare"]


class Schedule(NamedTuple):
    """The discontinuities of one solve.

    Attributes
    ----------
    breaks : array of float, (n_breaks,)
        Where the right-hand side itself is discontinuous in time.
    times, amounts, durations : array of float, (n_doses,)
        A duration of 0 is a bolus: the state jumps. Others are infusions at a constant rate.
    states : array of int, (n_doses,)
        Which state a dose goes to.
    step_times, step_values : array of float
        Of all stepped parameters, one after the other.
    steps : array of int, (n_stepped, 5)
        For each: where its times begin and how many there are, where its values begin and how
        many numbers one of them has, and the parameter that it begins with.
    """

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
    n_states, width : int
    n_parameters : int
    columns : array of int, (n_parameters,)
        The column of each parameter.
    initial_states, initial_time, amounts : int
        The first column of each.
    stepped : array of int, (n_stepped,)
        The first column of the values of each stepped parameter.
    """

    n_states: Any
    width: Any
    n_parameters: Any
    columns: Any
    initial_states: Any
    initial_time: Any
    amounts: Any
    stepped: Any


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
)
"""What `check` finds amiss, by its number."""


@njit(error_model="numpy")
def check(t0: Any, ts: Any, n_states: Any, schedule: Any) -> Any:
    """Return the number of the first of `PROBLEMS` that these times have; 0 where all is well."""
    if not np.isfinite(t0):
        return 2
    last = t0
    for t in ts:
        if not (last <= t < np.inf):
            return 1
        last = t
    n_doses = len(schedule.times)
    if len(schedule.amounts) != n_doses or len(schedule.durations) != n_doses:
        return 3
    if len(schedule.states) != n_doses:
        return 3
    for t in schedule.times:
        if not (t0 <= t < np.inf):
            return 4
    for duration in schedule.durations:
        if not (0.0 <= duration < np.inf):
            return 5
    for state in schedule.states:
        if not (0 <= state < n_states):
            return 6
    for k in range(len(schedule.steps)):
        start, n_times = schedule.steps[k, 0], schedule.steps[k, 1]
        for i in range(start, start + n_times):
            if not np.isfinite(schedule.step_times[i]):
                return 7
            if i > start and schedule.step_times[i] <= schedule.step_times[i - 1]:
                return 7
    for t in schedule.breaks:
        if not np.isfinite(t):
            return 8
    return 0


@njit(error_model="numpy")
def boundaries(t0: Any, end: Any, schedule: Any) -> Any:
    """Return where the solver stops, in order: all discontinuities after `t0`, and the end."""
    n_doses = len(schedule.times)
    found = np.empty(len(schedule.breaks) + 2 * n_doses + len(schedule.step_times) + 1)
    n = 0
    for t in schedule.breaks:
        found[n] = t
        n += 1
    for k in range(n_doses):
        found[n] = schedule.times[k]
        found[n + 1] = schedule.times[k] + schedule.durations[k]
        n += 2
    for t in schedule.step_times:
        found[n] = t
        n += 1
    found[n] = end
    for i in range(1, len(found)):  # By insertion: they are few, and mostly in order.
        t, k = found[i], i
        while k > 0 and found[k - 1] > t:
            found[k] = found[k - 1]
            k -= 1
        found[k] = t
    n = 0
    last = t0
    for t in found:
        if last < t <= end:
            found[n] = last = t
            n += 1
    return found[:n]


@njit(error_model="numpy")
def prepare(
    u: Any, y: Any, shape: Any, y0: Any, p: Any, rtol: Any, atol: Any, schedule: Any
) -> None:
    """Fill in the parameters `u`, see `layout`, and the state with its sensitivities at t0."""
    n, width, n_parameters = shape.n_states, shape.width, shape.n_parameters
    inputs = PARAMETERS + n_parameters
    at = inputs + n + len(shape.stepped)
    # Loops and not slices: numba compiles them several times faster.
    for k in range(len(u)):
        u[k] = 0.0
    u[FIRST], u[LAST], u[N_STATES], u[WIDTH], u[RTOL] = -np.inf, np.inf, n, width, rtol
    u[ATOL] = at
    for k in range(n_parameters):
        u[PARAMETERS + k] = p[k]
    scale = u[at + n : at + n + width]
    for s in range(width):
        scale[s] = 1.0
    for i in range(n):
        u[at + i] = atol[i]
        for s in range(width):
            y[i, s] = 0.0
        y[i, 0] = y0[i]
    # A sensitivity is as accurate as the state when the parameter's own size is its unit; below
    # one, the parameter counts as one, so that an effect near zero keeps an exact gradient.
    for k in range(n_parameters):
        if shape.columns[k] >= 0:
            scale[shape.columns[k]] = 1.0 / max(1.0, abs(p[k]))
    if shape.initial_states >= 0:
        for i in range(n):
            scale[shape.initial_states + i] = 1.0 / max(1.0, abs(y0[i]))
            y[i, shape.initial_states + i] = 1.0
    if shape.amounts >= 0:
        for k in range(len(schedule.amounts)):
            scale[shape.amounts + k] = 1.0 / max(1.0, abs(schedule.amounts[k]))
    for k in range(len(shape.stepped)):
        if shape.stepped[k] >= 0:
            start, n_values = schedule.steps[k, 2], schedule.steps[k, 1] + 1
            for i in range(n_values * schedule.steps[k, 3]):
                value = abs(schedule.step_values[start + i])
                scale[shape.stepped[k] + i] = 1.0 / max(1.0, value)


@njit(error_model="numpy")
def enter(u: Any, shape: Any, schedule: Any, a: Any, b: Any) -> None:
    """Set what is constant from one discontinuity, `a`, to the next, `b`."""
    n = shape.n_states
    u[FIRST], u[LAST] = -np.inf, np.inf
    for t in schedule.breaks:
        # Strictly between two breaks, by a little more than rounding: which side the
        # right-hand side takes at a break itself is then of no account.
        inside = 1e-15 * max(abs(a), abs(b))
        if t == a:
            u[FIRST] = a + inside
        if t == b:
            u[LAST] = b - inside
    inputs = PARAMETERS + shape.n_parameters
    columns = inputs + n
    active = columns + len(shape.stepped) + n + shape.width
    for i in range(n):
        u[inputs + i] = 0.0
    n_active = 0
    for k in range(len(schedule.times)):
        start, duration = schedule.times[k], schedule.durations[k]
        if duration > 0.0 and start <= a < start + duration:
            u[inputs + schedule.states[k]] += schedule.amounts[k] / duration
            if shape.amounts >= 0:
                u[active + 3 * n_active] = schedule.states[k]
                u[active + 3 * n_active + 1] = shape.amounts + k
                u[active + 3 * n_active + 2] = 1.0 / duration
                n_active += 1
    u[N_INPUTS] = n_active
    for k in range(len(schedule.steps)):
        start, n_times, values, size, parameter = schedule.steps[k]
        passed = 0
        while passed < n_times and schedule.step_times[start + passed] <= a:
            passed += 1
        for i in range(size):
            u[PARAMETERS + parameter + i] = schedule.step_values[values + passed * size + i]
        if shape.stepped[k] >= 0:
            u[columns + k] = shape.stepped[k] + passed * size


@njit(error_model="numpy")
def dose(y: Any, shape: Any, schedule: Any, now: Any) -> None:
    """Let the state jump by the boluses of this time."""
    for k in range(len(schedule.times)):
        if schedule.durations[k] == 0.0 and schedule.times[k] == now:
            y[schedule.states[k], 0] += schedule.amounts[k]
            if shape.amounts >= 0:
                y[schedule.states[k], shape.amounts + k] += 1.0
