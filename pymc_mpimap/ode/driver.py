"""The driver: what compiled graphs call to have one or several jobs solved."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import njit, types

from pymc_mpimap.native.memory import compact, doubles, increase, words
from pymc_mpimap.ode.cache import compiled_callback
from pymc_mpimap.ode.faults import number_of, ordered, place_of
from pymc_mpimap.ode.handle import REACHED, TALLY, USER, VALUES, acquire, give_back
from pymc_mpimap.ode.layout import ATOL as ATOL_AT, FAULT_STATE, FAULT_TIME, FAULT_VALUE
from pymc_mpimap.ode.memory import apart
from pymc_mpimap.ode.request import (
    AMOUNTS,
    ATOL,
    COLUMNS,
    DOSES,
    FREE,
    INITIAL_STATES,
    INITIAL_TIME,
    KEY,
    LEAF,
    LEAVES,
    METHOD,
    N_JOBS,
    N_LEAVES,
    N_PARAMETERS,
    N_STATES,
    N_STEPPED,
    NONE,
    RECORD,
    RTOL,
    TABLE,
    address,
    advance,
    first_column,
    numbers,
    resolve,
    size,
    store_nan,
)
from pymc_mpimap.ode.schedule import (
    SIZES,
    STEP,
    STEPS,
    UNEVEN_DOSES,
    Schedule,
    Shape,
    check,
    prepare,
    room,
)
from pymc_mpimap.ode.solver import integrate
from pymc_mpimap.ode.system import BREAKS, LEAVES as FIRST_LEAF, T0, TS, Y0
from pymc_mpimap.tally import N_COUNTS

__all__ = ["driver"]


@njit(error_model="numpy")
def _collect(q: Any, t: Any, p: Any, schedule: Any) -> Any:
    """Fill in the parameters, and the steps of those that are stepped; return what is amiss."""
    compact()
    n_p = n_stepped = n_times = n_values = 0
    for k in range(t[N_LEAVES]):
        leaf = t[LEAVES] + LEAF * k
        width, times, wanted = t[leaf], t[leaf + 1], t[leaf + 2]
        given, values = size(q, FIRST_LEAF + k), numbers(q, FIRST_LEAF + k)
        n = 0 if times == NONE else size(q, times)
        if given != width * (n + 1):
            return SIZES if times == NONE else STEPS
        if times == NONE:
            for i in range(width):
                p[n_p + i] = values[i]
        elif schedule is not None:
            steps, row = schedule.steps, STEP * n_stepped
            steps[row], steps[row + 1], steps[row + 2] = n_times, n, n_values
            steps[row + 3], steps[row + 4] = width, n_p
            steps[row + 5] = NONE if wanted == NONE else first_column(q, wanted)
            when = numbers(q, times)
            for i in range(n):
                schedule.step_times[n_times + i] = when[i]
            for i in range(given):
                schedule.step_values[n_values + i] = values[i]
            n_stepped, n_times, n_values = n_stepped + 1, n_times + n, n_values + given
        n_p += width
    return 0


@njit(error_model="numpy")
def _count_discontinuities(q: Any, t: Any) -> Any:
    """Return how many times of steps there are, numbers as values between them, and doses."""
    compact()
    n_times = n_values = n_doses = 0
    for k in range(t[N_LEAVES]):
        times = t[t[LEAVES] + LEAF * k + 1]
        if times != NONE:
            n_times += size(q, times)
            n_values += size(q, FIRST_LEAF + k)
    if t[DOSES] != NONE:
        n_doses = size(q, t[DOSES])
        for i in range(1, 4):
            if size(q, t[DOSES] + i) != n_doses:
                n_doses = -1
                break
    return n_times, n_values, n_doses


@njit(error_model="numpy")
def _count_failure(t: Any, flag: Any, memory: Any, width: Any) -> None:
    """Count a failure, and where it was if that is known; see `tally`."""
    apart()
    h = words(memory)
    u, bits = doubles(h[USER]), words(h[USER])
    tally, reached = words(t[RECORD])[TALLY], doubles(memory)[REACHED]
    number = number_of(flag, u, reached, doubles(h[VALUES]), width, t[N_STATES])
    increase(tally + 8 * number, 1)
    key = t[KEY] + int(u[FAULT_STATE])
    place = place_of(number, u, key)
    if place:
        increase(tally + 8 * place, 1)
        increase(tally + 8 * place + 8, key)
        increase(tally + 8 * place + 16, key * key)
        increase(tally + 8 * place + 24, ordered(bits[FAULT_TIME]))
        increase(tally + 8 * place + 32, ordered(bits[FAULT_VALUE]))


# Inlined by numba: as a function of its own, all that it calls would be optimized once more.
@njit(error_model="numpy", inline="always")
def _solve(q: Any, t: Any, width: Any, scheduled: Any, with_bdf: Any) -> Any:
    """Check and solve one job; return the number of what is amiss with its inputs."""
    record, n, n_parameters, n_stepped = t[RECORD], t[N_STATES], t[N_PARAMETERS], t[N_STEPPED]
    n_step_times = n_step_values = n_doses = 0
    if scheduled is not None:
        n_step_times, n_step_values, n_doses = _count_discontinuities(q, t)
    elif size(q, BREAKS) > 0:
        return SIZES
    if n_doses < 0:
        return UNEVEN_DOSES
    if size(q, Y0) != n:
        return SIZES
    amounts = NONE if t[AMOUNTS] == NONE else first_column(q, t[AMOUNTS])
    columns = words(q[TABLE] + 8 * t[COLUMNS])
    free = words(q[TABLE] + 8 * t[FREE])
    initial = t[INITIAL_STATES], t[INITIAL_TIME]
    shape = Shape(n, width, n_parameters, columns, *initial, amounts, free)
    # In the parameters' memory, behind them: what is made of the inputs for this job.
    n_u = room(n, width, n_parameters, n_stepped, n_doses)
    n_stops = size(q, BREAKS) + 2 * n_doses + n_step_times + 1
    n_all = n_u + n_parameters + STEP * n_stepped + n_step_times + n_step_values + n_stops
    memory = acquire(record, t[METHOD], n, n * width, n_all, with_bdf)
    h = words(memory)
    p = h[USER] + 8 * n_u
    steps = p + 8 * n_parameters
    step_times = steps + 8 * STEP * n_stepped
    step_values = step_times + 8 * n_step_times
    stops = step_values + 8 * n_step_values
    schedule = None
    if scheduled is not None:
        # Where there are no doses, any input does in the place of theirs.
        doses, after = (BREAKS, 0) if t[DOSES] == NONE else (t[DOSES], 1)
        schedule = Schedule(
            size(q, BREAKS),
            n_doses,
            n_step_times,
            n_stepped,
            numbers(q, BREAKS),
            numbers(q, doses),
            numbers(q, doses + after),
            numbers(q, doses + 2 * after),
            words(address(q, doses + 3 * after)),
            doubles(step_times),
            doubles(step_values),
            words(steps),
        )
    amiss = _collect(q, t, doubles(p), schedule)
    if not amiss:
        amiss = check(numbers(q, T0)[0], size(q, TS), numbers(q, TS), n, schedule)
    if not amiss:
        u, settings = doubles(h[USER]), doubles(q[TABLE])
        prepare(u, doubles(h[VALUES]), shape, numbers(q, Y0), doubles(p), settings[RTOL], schedule)
        for i in range(n):
            u[int(u[ATOL_AT]) + i] = settings[t[ATOL] + i]
        flag = integrate(q, t, memory, shape, schedule, doubles(stops), with_bdf)
        increase(words(record)[TALLY], 1)
        if flag < 0:
            _count_failure(t, flag, memory, width)
            store_nan(q, t, size(q, TS) * n)
    give_back(record, memory)
    return amiss


@cache
def driver(*, scheduled: bool, implicit: bool) -> Any:
    """Return the driver for solves with or without discontinuities and BDF.

    Leaving out what is not used saves a third of the time to compile. Numba leaves out what
    depends on a comparison of None.
    """
    schedule, with_bdf = scheduled or None, implicit or None

    @compiled_callback(types.int32(types.intp), scheduled, implicit, N_COUNTS)
    def drive(request: Any) -> Any:
        """Check and solve all jobs; return 0, or what `PROBLEMS` says is amiss with one."""
        q = words(request)
        t = words(q[TABLE])
        width = resolve(q, t)
        for _ in range(q[N_JOBS]):
            amiss = _solve(q, t, width, schedule, with_bdf)
            if amiss:
                return amiss
            advance(q, t, size(q, TS) * t[N_STATES])
        return 0

    return drive
