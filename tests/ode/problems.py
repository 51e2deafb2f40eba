"""Four problems with solutions and sensitivities that are known to many digits.

`references.npz` has for each problem its solution, (n_times, (1 + n_params + n_states) n_states):
the states, then their derivatives with respect to each parameter and to each initial state, a row
of `n_states` each. It was made by SciPy's DOP853 with rtol 2.3e-14 and atol 1e-15 (Robertson: by
Radau with rtol 1e-12 and atol 1e-20) on the states together with their sensitivities. A second
method, Radau with rtol 1e-11 (Robertson: LSODA with 1e-12), agrees to 5e-13, 2e-12, 1.3e-9 and
7e-12 of an entry's scale, in the order below. The scales, beside each solution, are an entry's
largest size on a fine grid of times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PROBLEMS", "Problem"]

FILE = Path(__file__).parent / "references.npz"


@dataclass(frozen=True)
class Problem:
    """A right-hand side with its parameters, initial states and times; t0 is 0."""

    name: str
    rhs: Callable[..., Any]
    p: Any
    y0: Any
    ts: Any

    @cached_property
    def reference(self) -> np.ndarray:
        """The states and their sensitivities, (n_times, n_states, 1 + n_params + n_states)."""
        with np.load(FILE) as file:
            return self._entries(file[self.name])

    @cached_property
    def scale(self) -> np.ndarray:
        """How large each entry of the reference becomes, (n_states, 1 + n_params + n_states)."""
        with np.load(FILE) as file:
            return self._entries(file[f"{self.name}_scale"])

    def _entries(self, flat: np.ndarray) -> np.ndarray:
        shape = (*flat.shape[:-1], 1 + len(self.p) + len(self.y0), len(self.y0))
        return np.swapaxes(flat.reshape(shape), -1, -2)

    def allowed(self, rtol: float, atol: float) -> np.ndarray:
        """Return the tolerance of each entry, as `solve_ivp` documents it."""
        sizes = np.abs(np.concatenate([[1.0], self.p, self.y0]))
        return rtol * self.scale + atol / np.maximum(1.0, sizes)


def lotka_volterra(t, y, p):
    growth, predation, death, gain = p
    prey, predators = y
    return [(growth - predation * predators) * prey, (-death + gain * prey) * predators]


def michaelis_menten(t, y, p):
    ka, km, vm = p
    dose, volume = 30.0, 2.0
    return np.exp(-ka * t) * dose * ka / volume - (vm / volume) * y / (km + y)


def robertson(t, y, p):
    slow = 0.04 * p[0] * y[0]
    fast = 3e7 * p[1] * y[1] ** 2
    back = 1e4 * p[2] * y[1] * y[2]
    return [back - slow, slow - back - fast, fast]


def friberg(t, y, p):
    """Two compartments and absorption; five of maturing cells, which the drug holds down."""
    clearance, q, v1, v2, ka, transit, circ0, gamma, slope, kcirc = p
    k10, k12, k21, ktr = clearance / v1, q / v1, q / v2, 6.0 / transit
    effect = slope * (y[1] / v1)
    feedback = (circ0 / y[9]) ** gamma
    return [
        -ka * y[0],
        ka * y[0] - (k10 + k12) * y[1] + k21 * y[2],
        k12 * y[1] - k21 * y[2],
        ktr * y[3] * ((1 - effect) * feedback - 1),
        *(ktr * (y[i - 1] - y[i]) for i in range(4, 9)),
        ktr * y[8] - kcirc * y[9],
    ]


def _problem(name: str, rhs: Any, p: Any, y0: Any, ts: Any) -> Problem:
    return Problem(name, rhs, np.array(p, float), np.array(y0, float), np.array(ts, float))


PROBLEMS = {
    problem.name: problem
    for problem in (
        _problem("lv", lotka_volterra, [0.55, 0.028, 0.80, 0.024], [34, 6], range(1, 21)),
        _problem("mm", michaelis_menten, [0.75, 0.25, 1.0], [0], 0.5 * np.arange(1, 21)),
        _problem("rob", robertson, [1, 1, 1], [1, 0, 0], 10.0 ** (-2 + 7 * np.arange(20) / 19)),
        _problem(
            "fri",
            friberg,
            [10, 15, 35, 105, 2.0, 125, 5, 0.17, 3e-4, 0.048],
            [80000, 0, 0, *[5] * 7],
            12.0 * np.arange(1, 41),
        ),
    )
}
"""Lotka-Volterra, Michaelis-Menten, Robertson, Friberg, by the names of their references."""
