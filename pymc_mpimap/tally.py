"""Counts of compiled code in this process: solves of ODEs, and why and where some failed.

Counts are words that are only ever added to, so that those of several ranks can be added up, and
what is not to count can be subtracted.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256
from itertools import combinations

import numpy as np

__all__ = [
    "DERIVATIVE",
    "FIRST_NOT_FINITE",
    "LAST_NOT_FINITE",
    "NOT_FINITE_DERIVATIVE",
    "N_COUNTS",
    "N_PLACES",
    "OTHER",
    "PLACE",
    "PLACES",
    "REASONS",
    "RIGHT_HAND_SIDE",
    "TALLY",
    "counts",
    "reasons",
    "register_states",
]

NOT_FINITE = {
    8: "the right-hand side was not finite",
    9: "the right-hand side was not finite at the first time",
    10: "the right-hand side was not finite, however small the step",
    11: "the right-hand side was not finite where a step had ended",
}

NOT_FINITE_DERIVATIVE, OTHER = 12, 13

REASONS = {
    1: "it took more than max_steps steps between two output times",
    2: "more accuracy was asked for than floating point has",
    3: "the step had become too small, and the error was still too large",
    4: "the Newton iteration did not converge with the smallest step",
    **NOT_FINITE,
    NOT_FINITE_DERIVATIVE: "the derivative of the right-hand side is not finite",
    OTHER: "the solver could not go on",
}
"""Why a solve fails, by the solver's own numbers but for the last two."""

FIRST_NOT_FINITE, LAST_NOT_FINITE = min(NOT_FINITE), max(NOT_FINITE)

RIGHT_HAND_SIDE, DERIVATIVE = 1, 2
"""The two things that may not be finite."""

# A place is of a state, for the right-hand side or its derivative: how many failures there were,
# and the sums of the state's keys, of their squares, of the times and of the state's values, as
# integers of the same order. A key is a hash of names, the same on each rank; it gives the place.
N_PLACES, PLACE = 16, 5
PLACES = OTHER + 1
N_COUNTS = PLACES + N_PLACES * PLACE

TALLY = np.zeros(N_COUNTS, np.int64)
"""The counts of compiled code: all solves, failures by their reason's number, then by place."""

_names: dict[int, tuple[str, str]] = {}


def counts() -> tuple[int, ...]:
    """Return the counts of solves and of failures by their reasons since the process began."""
    return tuple(TALLY[:PLACES].tolist())


def register_states(function: str, states: Sequence[str]) -> int:
    """Return the key of a system's first state, and remember its names.

    The next state has the next key.
    """
    text = " ".join([function, *states]).encode()
    first = int.from_bytes(sha256(text).digest()[:4], "little") >> 2
    _names.update({first + i: (state, function) for i, state in enumerate(states)})
    return first


def reasons(tally: Sequence[int] | np.ndarray) -> dict[str, int]:
    """Return why solves failed, and how often for each reason, from counts as in `TALLY`."""
    numbers = [int(n) for n in tally]
    found = {text: numbers[k] for k, text in REASONS.items() if k < FIRST_NOT_FINITE or k == OTHER}
    placed = [0, 0]
    for place in range(N_PLACES):
        times, keys, squares, t, value = numbers[PLACES + PLACE * place :][:PLACE]
        if times > 0:
            kind = place % 2
            placed[kind] += times
            what = ("right-hand side was", "derivative of the right-hand side is")[kind]
            middle = f"is {_mean(value, times):.4g}", f"near t = {_mean(t, times):.4g}"
            for where, n in _shares(place, times, keys, squares, middle).items():
                found[f"the {what} not finite {where}"] = n
    for k, text in NOT_FINITE.items():
        # Those of a known place are told already.
        known = min(placed[0], numbers[k])
        placed[0] -= known
        found[text] = numbers[k] - known
    found[REASONS[NOT_FINITE_DERIVATIVE]] = numbers[NOT_FINITE_DERIVATIVE] - placed[1]
    return {text: times for text, times in found.items() if times}


def _shares(
    place: int, times: int, keys: int, squares: int, middle: tuple[str, str]
) -> dict[str, int]:
    """Return of which states a place's failures are, and how many of each.

    Both sums tell one state's key, or those of two and how often each was added. What is in the
    middle of all values and times is that of one state only.
    """
    value, time = middle
    candidates = [key for key in _names if (2 * key + place % 2) % N_PLACES == place]
    for one in candidates:
        if (keys, squares % 2**64) == (times * one, times * one**2 % 2**64):
            state, function = _names[one]
            return {f"where state {state} {value} ({function}, {time})": times}
    for one, other in combinations(candidates, 2):
        n, rest = divmod(keys - times * one, other - one)
        if rest or not 0 < n < times:
            continue
        if ((times - n) * one**2 + n * other**2 - squares) % 2**64 == 0:
            counts = {one: times - n, other: n}
            return {"at state {} ({})".format(*_names[key]): c for key, c in counts.items()}
    return {f"where some state {value} ({time})": times}


def _mean(total: int, times: int) -> float:
    """Return the double that is in the middle of some, from the sum of their upper halves."""
    upper = round(total / times)
    bits = abs(upper) << 32
    value = float(struct.unpack("=d", struct.pack("=q", bits))[0])
    return value if upper >= 0 else -value
