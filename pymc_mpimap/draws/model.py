"""The model that draws are of: told from another one by what it makes of a kept draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pymc.blocking import DictToArrayBijection
from pymc.step_methods import (
    BinaryGibbsMetropolis,
    BinaryMetropolis,
    CategoricalGibbsMetropolis,
    Slice,
)
from pymc.step_methods.compound import flatten_steps
from pymc.step_methods.hmc.base_hmc import BaseHMC

__all__ = ["LogDensity", "difference", "has_logp", "newest_with_logp", "own_logp"]

LogDensity = Callable[[Mapping[str, np.ndarray]], Any]
"""From a point, of all value variables of a model, to its log-density."""

_WITH_MODEL_LOGP = (BinaryMetropolis, BinaryGibbsMetropolis, CategoricalGibbsMetropolis)
"""Step methods that were given the model's function of a point."""


def own_logp(step: Any) -> LogDensity | None:
    """Return the log-density of the whole model that a step method has compiled for itself.

    None if it has none: Metropolis and its kind have but differences of two, in which a change of
    the model may cancel.
    """
    for method in flatten_steps(step):
        if isinstance(method, BaseHMC):
            return partial(_by_gradient, method)
        if isinstance(method, Slice):
            return partial(_by_slice, method)
        if isinstance(method, _WITH_MODEL_LOGP):
            return partial(_by_model, method)
    return None


def _by_gradient(method: Any, point: Mapping[str, np.ndarray]) -> Any:
    q = _own_part(method, point)
    return method.integrator.compute_state(q, np.zeros_like(q.data)).model_logp


def _by_slice(method: Any, point: Mapping[str, np.ndarray]) -> Any:
    return method.logp(_own_part(method, point).data)


def _by_model(method: Any, point: Mapping[str, np.ndarray]) -> Any:
    [logp] = method.fs
    return logp(point)


def _own_part(method: Any, point: Mapping[str, np.ndarray]) -> Any:
    """Return a step method's own variables, raveled, and give it the others, as its step does."""
    for name, shared in method.shared.items():
        shared.set_value(point[name])
    return DictToArrayBijection.map({name: point[name] for name in method.var_names})


def has_logp(draw: int) -> bool:
    """Return whether the log-density is kept with a draw: 0, 1, 3, 7, 15 and so on.

    An evaluation for each draw might double what a chain costs; these are a few dozen, and the
    newest is always in the later half of the chain. The first draw alone would not do: it may be
    so far out that its log-density hides a change of the model among its digits.
    """
    return (draw + 1) & draw == 0


def newest_with_logp(n_draws: int) -> int:
    """Return the last of so many draws, at least one, with which the log-density is kept."""
    return (1 << (n_draws.bit_length() - 1)) - 1


_RELATIVE = 1e-6
"""By how much of its largest entry a quantity may differ and still be the same model's.

The same program gives the same bits. With other versions of its packages, or on another processor,
sums are rounded otherwise, and an ODE solver that takes other steps is as exact as its relative
tolerance, 1e-6 by default. A changed model hides below that only where it changes next to nothing.
"""

_ULPS = 64
"""The same in units in the last place, where these are coarser: in single precision."""

_ROUNDING = 1e-12
"""The most that rounding may leave of a difference of equal numbers."""


@dataclass(frozen=True)
class Difference:
    """Two values of one quantity that are not the same bits.

    Attributes
    ----------
    what : str
        What it was and what it is, where they differ first.
    is_other : bool
        Whether by more than rounding, so that they are of two models.
    """

    what: str
    is_other: bool


def difference(name: str, was: Any, now: Any, floor: float = _ROUNDING) -> Difference | None:
    """Compare what was kept with what the model gives now; NaN equals NaN.

    Parameters
    ----------
    name : str
    was, now : array
    floor : float
        Below this, a difference is rounding.
    """
    one, other = np.asarray(was), np.asarray(now)
    if one.shape != other.shape:
        return Difference(f"{name} was of shape {one.shape}, is of {other.shape}", True)
    unequal = (one != other) & ~(np.isnan(one) & np.isnan(other))
    if not unequal.any():
        return None
    apart = unequal
    if one.dtype.kind in "fc":
        tolerance = max(_RELATIVE, _ULPS * float(np.finfo(one.dtype).eps))
        # Of the largest, as a small entry may be a difference of large numbers.
        largest = np.abs(one[np.isfinite(one)]).max(initial=0)
        atol = max(floor, tolerance * float(largest))
        apart = ~np.isclose(one, other, rtol=0, atol=atol, equal_nan=True)
    is_other = bool(apart.any())
    at = tuple(map(int, np.argwhere(apart if is_other else unequal)[0]))
    entry = f"{name}{[*at]}" if at else name
    return Difference(f"{entry} was {one[at]!s}, is {other[at]!s}", is_other)
