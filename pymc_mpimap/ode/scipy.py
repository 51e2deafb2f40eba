"""The same solves by SciPy's `solve_ivp`: slower, and independent of SUNDIALS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp as scipy_solve_ivp

from pymc_mpimap.ode.callbacks import Callbacks
from pymc_mpimap.ode.faults import number_of, ordered, place_of
from pymc_mpimap.ode.layout import ATOL, FAULT_STATE, FAULT_TIME, FAULT_VALUE
from pymc_mpimap.ode.methods import SCIPY
from pymc_mpimap.ode.schedule import (
    PROBLEMS,
    SIZES,
    STEPS,
    UNEVEN_DOSES,
    Schedule,
    Shape,
    boundaries,
    check,
    dose,
    enter,
    prepare,
    room,
)
from pymc_mpimap.ode.system import BREAKS, T0, TS, Y0, Solve
from pymc_mpimap.tally import PLACE, TALLY, register_states

__all__ = ["solve_with_scipy"]

EVALUATIONS_A_STEP = 20
"""SciPy counts no steps: so many evaluations of the right-hand side stand for one."""

TOO_MANY_STEPS, STEP_TOO_SMALL, NOT_FINITE = -1, -3, -10

STEEP, FAR = 1e100, 1e60
"""A slope that no step is short enough for, and a state that it leads to. SciPy has no other way to
say that the right-hand side fails, as Radau raises where it is not finite."""

IMPLICIT = ("BDF", "Radau", "LSODA")
"""SciPy's methods that take the Jacobian."""


class _FailedError(Exception):
    """The solve fails, with SUNDIALS' number of the reason, at a time that had been reached."""


def _count_failure(failed: _FailedError, u: np.ndarray, y: np.ndarray, first: int) -> None:
    """Count a failure, and where it was if that is known; see `tally`."""
    flag, reached = failed.args
    number = number_of(flag, u, reached, y.ravel(), y.shape[1], len(y))
    TALLY[number] += 1
    key = first + int(u[FAULT_STATE])
    if place := place_of(number, u, key):
        time, value = (ordered(u.view(np.int64)[k]) for k in (FAULT_TIME, FAULT_VALUE))
        TALLY[place : place + PLACE] += [1, key, key * key, time, value]


@cache
def _functions(solve: Solve) -> tuple[Any, Any]:
    """Return ``f(t, y, parameters, dy)`` with these sensitivities, and the states' Jacobian."""
    implicit = SCIPY[solve.system.method] in IMPLICIT
    callbacks = Callbacks(solve.system.thaw(), solve.layout, implicit=implicit)
    return callbacks.step, callbacks.fill


def solve_with_scipy(solve: Solve, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a solve; see `op.SolveIVP`."""
    system, layout = solve.system, solve.layout
    t0, y0, ts = inputs[T0].item(), inputs[Y0], inputs[TS]
    shape, columns = _shape(solve, inputs)
    schedule, p = _schedule(solve, inputs, columns)
    amiss = check(t0, len(ts), ts, system.n_states, schedule)
    if len(y0) != system.n_states or (len(inputs[BREAKS]) and not system.breaks):
        amiss = SIZES
    if amiss:
        raise ValueError(PROBLEMS[amiss])
    n, width = shape.n_states, shape.width
    u = np.empty(room(n, width, len(p), schedule.n_stepped, schedule.n_doses))
    y = np.empty((n, width))
    prepare(u, y.ravel(), shape, y0, p, system.rtol, schedule)
    tolerances = u[int(u[ATOL]) :]
    tolerances[:n] = system.atol
    atol = (tolerances[:n, None] * tolerances[n : n + width]).ravel()
    result = np.full((len(ts), n, width), np.nan)
    slopes = np.full((len(ts) if layout.slopes else 0, n), np.nan)
    TALLY[0] += 1
    try:
        _solve(
            solve,
            u,
            y,
            shape,
            schedule,
            t0=t0,
            ts=ts,
            atol=atol,
            result=result,
            slopes=slopes,
        )
    except _FailedError as failed:
        _count_failure(failed, u, y, register_states(system.name, system.states))
        result[:] = slopes[:] = np.nan
    outputs = [result[:, :, 0].copy()]
    for i in solve.wrt:
        if i == TS:
            outputs.append(slopes)
        else:
            part = result[:, :, columns[i] : columns[i] + inputs[i].size]
            outputs.append(part.copy().reshape((len(ts), n, *inputs[i].shape)))
    return outputs


def _solve(
    solve: Solve,
    u: np.ndarray,
    y: np.ndarray,
    shape: Shape,
    schedule: Schedule,
    *,
    t0: float,
    ts: np.ndarray,
    atol: np.ndarray,
    result: np.ndarray,
    slopes: np.ndarray,
) -> None:
    """Go from one discontinuity to the next, as `solver.integrate` does."""
    flat = y.ravel()
    stops = np.empty(schedule.n_breaks + 2 * schedule.n_doses + schedule.n_step_times + 1)
    stops = stops[: boundaries(stops, t0, ts[-1] if len(ts) else t0, schedule)]
    (step, fill), system = _functions(solve), solve.system
    left = EVALUATIONS_A_STEP * system.max_steps * max(1, len(ts))

    def rhs(t: float, y: np.ndarray) -> np.ndarray:
        nonlocal left
        left -= 1
        if left < 0:
            raise _FailedError(TOO_MANY_STEPS, t)
        y = np.ascontiguousarray(y)
        dy = np.empty_like(y)
        if step(t, y, u, dy) != 0:
            raise _FailedError(NOT_FINITE, t)
        return dy

    def store(k: int, t: float) -> int:
        """Store the outputs up to this time; return how many there are by now."""
        while k < len(ts) and ts[k] <= t:
            result[k] = y
            if slopes.size:
                slopes[k] = rhs(t, flat).reshape(y.shape)[:, 0]
            k += 1
        return k

    enter(u, shape, schedule, np.nextafter(t0, -np.inf), t0)
    if shape.initial_time >= 0:
        y[:, shape.initial_time] = -rhs(t0, flat).reshape(y.shape)[:, 0]
    k, now = store(0, t0), t0
    dose(flat, shape, schedule, now)
    for stop in stops:
        enter(u, shape, schedule, now, stop)
        inside = np.unique(ts[(ts > now) & (ts < stop)])
        times = np.append(inside, stop)
        functions = rhs, _jacobian(fill, u, shape)
        for t, states in _segment(solve, functions, y, (now, stop), times, atol=atol):
            y[:] = states.reshape(y.shape)
            k = store(k, t)
        now = stop
        dose(flat, shape, schedule, now)


def _jacobian(fill: Any, u: np.ndarray, shape: Shape) -> Callable[..., np.ndarray] | None:
    """Return that of the states for each column, see `vectors`; None for explicit methods.

    SciPy's own moves sensitivities away from zero, where their derivative may be infinite.
    """
    if fill is None:
        return None

    def jacobian(t: float, y: np.ndarray) -> np.ndarray:
        made = np.empty((shape.n_states, shape.n_states))
        fill(t, y, u, made.ravel())
        return np.kron(made.T, np.eye(shape.width))

    return jacobian


def _segment(
    solve: Solve,
    functions: tuple[Callable[..., np.ndarray], Callable[..., np.ndarray] | None],
    y: np.ndarray,
    span: tuple[float, float],
    times: np.ndarray,
    *,
    atol: np.ndarray,
) -> Iterable[tuple[float, np.ndarray]]:
    """Return the times and the states there, from one discontinuity to the next."""
    rhs, jacobian = functions
    latest: _FailedError | None = None
    count = since = 0

    def tried(t: float, y: np.ndarray) -> np.ndarray:
        """Return the right-hand side; where it fails what lets a shorter step be tried."""
        nonlocal latest, count, since
        count, since = count + 1, since + 1
        if latest is not None and not (np.abs(y) < FAR).all():
            return np.full_like(y, STEEP)  # It follows from the latest failure.
        try:
            return rhs(t, y)
        except _FailedError as failed:
            at_once = count == 1 or SCIPY[solve.system.method] == "LSODA"
            if at_once or failed.args[0] == TOO_MANY_STEPS:
                raise
            latest, since = failed, 0
            return np.full_like(y, STEEP)

    options: dict[str, Any] = {"first_step": solve.system.first_step or None}
    if jacobian is not None:
        options["jac"] = jacobian
    if not np.isfinite(y[:, 0]).all():
        raise _FailedError(STEP_TOO_SMALL, span[0])
    with np.errstate(all="ignore"):
        solution = scipy_solve_ivp(
            tried,
            span,
            y.ravel(),
            method=SCIPY[solve.system.method],
            t_eval=times,
            rtol=solve.system.rtol,
            atol=atol,
            **options,
        )
    if not solution.success or not np.isfinite(solution.y).all():
        if latest is not None and since <= EVALUATIONS_A_STEP:
            raise latest
        raise _FailedError(STEP_TOO_SMALL, np.inf)  # It does not say when.
    return zip(solution.t, solution.y.T, strict=True)


def _shape(solve: Solve, inputs: Sequence[np.ndarray]) -> tuple[Shape, dict[int, int]]:
    """Return the columns of a solve, and the first one of each sensitivity."""
    system, layout = solve.system, solve.layout
    columns = np.array([-1 if c is None else c for c in layout.columns], np.int64)
    width = layout.fixed_width
    at = {T0: width - 1, Y0: width - layout.initial_time - layout.n_states}
    first = 0
    for k, i in enumerate(system.leaves):
        if i in solve.wrt and not system.stepped[k]:
            at[i] = int(columns[first]) if inputs[i].size else 0
        first += int(np.prod(system.shapes[k], dtype=int))
    for i in solve.wrt:
        k = i - system.leaves.start
        if i == system.amounts or (i in system.leaves and system.stepped[k]):
            at[i] = width
            width += inputs[i].size
    initial_states, initial_time, amounts = (
        at[i] if i is not None and i in solve.wrt else -1 for i in (Y0, T0, system.amounts)
    )
    shape = Shape(
        layout.n_states,
        width,
        len(columns),
        columns,
        initial_states,
        initial_time,
        amounts,
        np.array(system.free),
    )
    return shape, at


def _schedule(
    solve: Solve, inputs: Sequence[np.ndarray], columns: dict[int, int]
) -> tuple[Schedule, np.ndarray]:
    """Return the discontinuities of a solve, and its parameters."""
    system = solve.system
    p, step_times, step_values, steps = [], [np.empty(0)], [np.empty(0)], []
    times = iter(system.step_times)
    first = n_times = n_values = 0
    for k, i in enumerate(system.leaves):
        size = int(np.prod(system.shapes[k], dtype=int))
        if system.stepped[k]:
            when = inputs[next(times)]
            if len(inputs[i]) != len(when) + 1:
                raise ValueError(PROBLEMS[STEPS])
            column = columns[i] if i in solve.wrt else -1
            steps.append((n_times, len(when), n_values, size, first, column))
            step_times.append(when)
            step_values.append(inputs[i].ravel())
            n_times, n_values = n_times + len(when), n_values + inputs[i].size
            p.append(np.zeros(size))
        else:
            if inputs[i].size != size:
                raise ValueError(PROBLEMS[SIZES])
            p.append(inputs[i].ravel())
        first += size
    empty = np.empty(0)
    doses = [inputs[i] for i in system.dose_inputs] or [empty] * 3 + [np.empty(0, np.int64)]
    times_of_doses, amounts, durations, states = doses
    if len({len(values) for values in doses}) > 1:
        raise ValueError(PROBLEMS[UNEVEN_DOSES])
    schedule = Schedule(
        len(inputs[BREAKS]),
        len(times_of_doses),
        n_times,
        len(steps),
        inputs[BREAKS],
        times_of_doses,
        amounts,
        durations,
        states,
        np.concatenate(step_times),
        np.concatenate(step_values),
        np.array(steps, np.int64).ravel(),
    )
    return schedule, np.concatenate([empty, *p])
