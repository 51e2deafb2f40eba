"""Faults: a right-hand side, or its derivative, that is not finite.

At a state of 0 a derivative may be infinite, as those of ``sqrt(y)`` and of powers below 1 are.
Such a state mostly starts there, or waits for its first dose, and nothing has moved it yet: its
sensitivities are exactly 0, and so is the product. Where the derivative is not a number at all, as
``0 * inf``, its limit is taken: its value at one point is of no account for the solution, but has
to be a number. Only what is infinite times something is a fault.

The code here runs where a sum of all that was computed is not finite, and costs nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import njit, types

from pymc_mpimap.native.memory import compact, doubles, words
from pymc_mpimap.ode.cache import compiled_callback
from pymc_mpimap.ode.layout import FAULT, FAULT_STATE, FAULT_TIME, FAULT_VALUE
from pymc_mpimap.tally import (
    DERIVATIVE,
    FIRST_NOT_FINITE,
    LAST_NOT_FINITE,
    N_PLACES,
    NOT_FINITE_DERIVATIVE,
    OTHER,
    PLACE,
    PLACES,
    RIGHT_HAND_SIDE,
)

__all__ = ["AGAIN", "TINY", "mended", "number_of", "ordered", "place_of", "tables"]

AGAIN = 2
"""The value of `mended` by which it asks for a limit."""

# Where states at 0 are moved to, by turns: first so near that its powers are no different from 0's,
# then so that powers of its reciprocal do not overflow. No state has such a value by itself.
TINY = (0.0, 1.2345678901234567e-100, 1.2345678901234567e-30)

STEP_TOO_SMALL, NO_CONVERGENCE = 3, 4


@njit(error_model="numpy")
def _note(u: Any, fault: Any, state: Any, t: Any, value: Any) -> None:
    u[FAULT], u[FAULT_STATE], u[FAULT_TIME], u[FAULT_VALUE] = fault, state, t, value


@njit(error_model="numpy")
def _suspect(y: Any, w: Any, row: Any, tables: Any) -> Any:
    """Return which of the states that a derivative depends on is at the edge of some domain."""
    found, worst = row, 0
    for k in range(tables[0]):
        at = N_SIZES + 2 * k
        if tables[at] == row:
            value = y[tables[at + 1] * w]
            rank = 0
            if value < 0.0:
                rank = 3
            elif value <= TINY[-1]:
                rank = 2
            elif not np.isfinite(value):
                rank = 1
            if rank > worst:
                found, worst = tables[at + 1], rank
    return found


@njit(error_model="numpy")
def _keep(dy: Any, w: Any, n: Any, o: Any, kept: Any, m: Any, turn: Any) -> None:
    """Keep what was found at 0; later, of what is no number there, what it is nearby."""
    for k in range(m):
        if turn == 0 or (np.isnan(kept[k]) and np.isfinite(o[k])):
            kept[k] = o[k]
    for i in range(n):
        # With the inputs from doses, which do not depend on states.
        if turn == 0:
            kept[i] = dy[i * w]
        dy[i * w] = kept[i]
        for s in range(1, w):
            dy[i * w + s] = 0.0


@njit(error_model="numpy")
def _move(y: Any, dy: Any, w: Any, n: Any, turn: Any, to: Any) -> Any:
    """Move the states at 0 to `TINY`, each in the direction in which it goes, on, or back to 0."""
    any_moves = False
    for i in range(n):
        if abs(y[i * w]) == TINY[turn]:
            y[i * w] = -TINY[to] if to > 0 and dy[i * w] < 0.0 else TINY[to]
            any_moves = True
    return any_moves


def _mended(
    t: Any,
    y_at: Any,
    u_at: Any,
    dy_at: Any,
    o_at: Any,
    kept_at: Any,
    w: Any,
    n: Any,
    tables_at: Any,
    turn: Any,
) -> Any:
    """Compute again what was not finite; return 0, 1 where it is a fault, or `AGAIN`.

    Parameters
    ----------
    t : float
    y_at, dy_at : address of double
        The states with their sensitivities, ``(n, w)``, and their derivatives.
    u_at : address of double
        The parameters, see `layout`.
    o_at, kept_at : address of double
        The right-hand side and its derivatives by states and parameters; and room for as many,
        which is kept from turn to turn.
    w, n : int
    tables_at : address of int
        What `tables` has made.
    turn : int
        How often the states at 0 have been moved.
    """
    compact()
    y, u, dy, o, kept = (
        doubles(y_at),
        doubles(u_at),
        doubles(dy_at),
        doubles(o_at),
        doubles(kept_at),
    )
    tables = words(tables_at)
    if turn == 0:
        for i in range(n):
            if not np.isfinite(o[i]):
                state = _suspect(y, w, i, tables)
                _note(u, RIGHT_HAND_SIDE, state, t, y[state * w])
                return 1
    _keep(dy, w, n, o, kept, n + tables[1] + tables[2], turn)
    infinite = unknown = -1
    at, k = N_SIZES + 2 * tables[0], n
    for _ in range(tables[1]):
        i, j, moves = tables[at], tables[at + 1], False
        for s in range(1, w):
            tangent = y[j * w + s]
            # A derivative that nothing is multiplied by may be whatever it is.
            if tangent != 0.0:
                dy[i * w + s] += kept[k] * tangent
                moves = True
        if moves and not np.isfinite(kept[k]):
            if np.isnan(kept[k]):
                unknown = j
            else:
                infinite = j
        at, k = at + 2, k + 1
    for _ in range(tables[2]):
        i, column = tables[at], tables[at + 1]
        if tables[at + 2] > 0:
            column += int(u[tables[at + 2]])
        dy[i * w + column] += kept[k]
        if np.isnan(kept[k]):
            unknown = _suspect(y, w, i, tables)
        elif np.isinf(kept[k]):
            infinite = _suspect(y, w, i, tables)
        at, k = at + 3, k + 1
    flag = 0
    if infinite >= 0 or unknown >= 0:
        flag = 1
        state = infinite if infinite >= 0 else unknown
        value = y[state * w]
        _note(u, DERIVATIVE, state, t, 0.0 if abs(value) == TINY[turn] else value)
        if infinite < 0 and turn + 1 < len(TINY) and _move(y, dy, w, n, turn, turn + 1):
            return AGAIN
    _move(y, dy, w, n, turn, 0)
    return flag


@cache
def mended() -> Any:
    """Return what computes again what was not finite, see above."""
    signature = types.int32(types.float64, *[types.intp] * 9)
    return compiled_callback(signature, RIGHT_HAND_SIDE, DERIVATIVE)(_mended)


N_SIZES = 3


def tables(
    depends: Sequence[tuple[int, int]],
    by_state: Sequence[tuple[int, int]],
    by_parameter: Sequence[tuple[int, int, int]],
) -> np.ndarray:
    """Return what `mended` is told of a system.

    Parameters
    ----------
    depends : sequence of (int, int)
        Which row of the right-hand side depends on which state.
    by_state : sequence of (int, int)
        Row and state of each derivative by a state, in their order.
    by_parameter : sequence of (int, int, int)
        Of each derivative by a parameter, in their order: its row, its column, and 0 or the entry
        of the parameters `u` with a number that is to be added to the column.

    Returns
    -------
    array of int
        How many each of them are, then all of their numbers.
    """
    parts = depends, by_state, by_parameter
    numbers = [number for part in parts for row in part for number in row]
    return np.array([*map(len, parts), *numbers], np.int64)


@njit(error_model="numpy")
def number_of(flag: Any, u: Any, reached: Any, y: Any, w: Any, n: Any) -> Any:
    """Return the number of the reason for which a solve has failed.

    Parameters
    ----------
    flag : int
        The solver's.
    u, y : pointer to doubles or array
        The parameters, see `layout`, and the states with their sensitivities, ``(n, w)``.
    reached : float
        The time that the solver had come to.
    w, n : int
    """
    number = -flag
    derivative = u[FAULT] == DERIVATIVE
    if FIRST_NOT_FINITE <= number <= LAST_NOT_FINITE:
        return NOT_FINITE_DERIVATIVE if derivative else number
    # Others, of the linear solver and of the solver's own arguments, do not come up.
    if number > NO_CONVERGENCE:
        return OTHER
    for i in range(n):
        if not np.isfinite(y[i * w]):
            # It was so from the start, and no derivative depends on it.
            _note(u, RIGHT_HAND_SIDE, i, reached, y[i * w])
            return FIRST_NOT_FINITE
    if number in (STEP_TOO_SMALL, NO_CONVERGENCE) and derivative and u[FAULT_TIME] >= reached:
        # Its limit was too large to be gone on with.
        return NOT_FINITE_DERIVATIVE
    return number


@njit(error_model="numpy")
def place_of(number: Any, u: Any, key: Any) -> Any:
    """Return where in the tally a state's failures are counted, by its key; 0 if nowhere."""
    if u[FAULT] == 0.0 or not (FIRST_NOT_FINITE <= number <= NOT_FINITE_DERIVATIVE):
        return 0
    place = 2 * key + (1 if number == NOT_FINITE_DERIVATIVE else 0)
    return PLACES + PLACE * (place % N_PLACES)


@njit(error_model="numpy")
def ordered(bits: Any) -> Any:
    """Return the upper half of a double, from its bits, as an integer of the same order."""
    upper = bits >> 32
    return upper if upper >= 0 else -(upper & 0x7FFFFFFF)
