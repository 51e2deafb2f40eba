"""The state of a step method: taken after each draw, and given back to go on from there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from pymc.step_methods.compound import flatten_steps
from pymc.step_methods.state import DataClassState, equal_dataclass_values
from pymc.util import RandomGeneratorState

__all__ = ["changed_settings", "restore", "same_seed", "settings", "snapshot"]


def snapshot(step: Any) -> Any:
    """Return all that decides the next draws, and that can be pickled."""
    methods = flatten_steps(step)
    adaptations = [m.step_adapt for m in methods if hasattr(m, "step_adapt")]
    # A list that grows with every draw, for a warning that PyMC no longer gives; without it a
    # state keeps its size.
    lists = [adaptation._tuned_stats for adaptation in adaptations]  # noqa: SLF001
    for adaptation in adaptations:
        adaptation._tuned_stats = []  # noqa: SLF001
    try:
        state = step.sampling_state
    finally:
        for adaptation, own in zip(adaptations, lists, strict=True):
            adaptation._tuned_stats = own  # noqa: SLF001
    # PyMC's state has no place for this count, which is among the statistics of each draw.
    return state, [getattr(method, "divergences", None) for method in methods]


def restore(step: Any, taken: Any) -> None:
    """Give a step method the state that `snapshot` took of another one like it."""
    state, divergences = taken
    _keep_settings(state, step.sampling_state)
    step.sampling_state = state
    for method, count in zip(flatten_steps(step), divergences, strict=True):
        if count is not None:
            method.divergences = count


def _keep_settings(state: Any, own: Any) -> None:
    """Put a step method's own frozen fields in a state that it is to take.

    It refuses others. Among them is where the mass matrix began, which depends on the seed and
    no longer matters; what does matter, `changed_settings` compares.
    """
    for field in fields(state):
        value, mine = getattr(state, field.name), getattr(own, field.name)
        if field.metadata.get("frozen"):
            setattr(state, field.name, mine)
        elif isinstance(value, DataClassState):
            _keep_settings(value, mine)
        elif isinstance(value, list) and value and isinstance(value[0], DataClassState):
            for inner, my_inner in zip(value, mine, strict=True):
                _keep_settings(inner, my_inner)


_NOT_IN_STATE = ("max_treedepth", "early_max_treedepth", "path_length", "max_steps")
"""Settings of NUTS and HMC that PyMC's state of them leaves out."""


def settings(step: Any) -> dict[str, Any]:
    """Return how a step method that has not begun yet was set up, its random numbers included."""
    found = dict(_flat(step.sampling_state))
    for k, method in enumerate(flatten_steps(step)):
        name = f"{type(method).__name__}[{k}]"
        found[f"{name}.variables"] = [variable.name for variable in method.vars]
        found |= {f"{name}.{s}": getattr(method, s) for s in _NOT_IN_STATE if hasattr(method, s)}
    return found


def _flat(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(state):
        value = getattr(state, field.name)
        inner = name + field.name.strip("_")
        if isinstance(value, DataClassState):
            yield from _flat(value, f"{inner}.")
        elif isinstance(value, list) and value and isinstance(value[0], DataClassState):
            for k, one in enumerate(value):
                yield from _flat(one, f"{inner}[{k}].")
        else:
            yield inner, value


def same_seed(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether settings have the same random numbers before them."""
    return all(
        equal_dataclass_values(value, other.get(name))
        for name, value in one.items()
        if isinstance(value, RandomGeneratorState)
    )


def changed_settings(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what is another in one of two settings, but for the random numbers."""
    missing = [f"{name} was {was[name]}, is not there now" for name in was if name not in now]
    new = [f"{name} was not there, is {now[name]} now" for name in now if name not in was]
    seed = same_seed(was, now)
    changed = [
        f"{name} was {value}, is {now[name]}"
        for name, value in was.items()
        if name in now
        and not isinstance(value, RandomGeneratorState)
        and not equal_dataclass_values(value, now[name])
        # Another seed gives other starting points, and so other arrays to begin with.
        and (seed or isinstance(value, list) or np.ndim(value) == 0)
    ]
    return [*reversed(missing), *reversed(new), *changed]
