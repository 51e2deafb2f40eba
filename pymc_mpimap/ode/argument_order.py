"""Right-hand sides that take their arguments in another order than ``rhs(t, y, params)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["another_order"]

_TIMES = {"t", "time", "times"}
_STATES = {"y", "ys", "state", "states"}
_PARAMETERS = {"p", "par", "pars", "params", "parameters", "theta", "args"}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def another_order(function: Callable[..., Any]) -> str | None:
    """Say what is amiss with the order of a right-hand side's arguments, by their names.

    With one state and one parameter, one would be taken for the other without an error. None where
    the names tell nothing: a temperature may be called ``T``.

    Examples
    --------
    >>> print(another_order(lambda y, t, k: -k * y))
    takes (y, t, k), the time after the states, as odeint and pm.ode have it
    >>> another_order(lambda t, y, k: -k * y)
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None  # It is written in C, or says that it has none.
    names = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL]
    first, *others = [_plain(name) for name in names[:4]] or [""]
    told = f"takes ({', '.join(names)})"
    if first and first not in _TIMES:
        if others[:1] and others[0] in _TIMES:
            return f"{told}, the time after the states, as odeint and pm.ode have it"
        if _TIMES & set(others):
            return f"{told}, the time last"
        if first in _STATES and others[:1] == ["x"]:
            return f"{told}, the time, x, after the states, as odeint has it"
    elif first in _TIMES and len(others) > 1 and others[0] in _PARAMETERS and others[1] in _STATES:
        return f"{told}, the states after the parameters"
    return None


def _plain(name: str) -> str:
    """Return a name in lower case, without underscores around it; ``T`` as it is."""
    name = name.strip("_")
    return name if name == "T" else name.lower()
