"""Contestants take turns, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from pymc_mpimap.pool.base import Pool

__all__ = ["Contestant", "Effort", "Timing", "alternate", "calls"]

Contestant = Callable[[int], float]
"""Does its work so many times over, and returns the seconds that all of it took."""


@dataclass(frozen=True)
class Effort:
    """The length of a measurement.

    Attributes
    ----------
    rounds : int
        How often each contestant has its turn.
    seconds : float
        How long a turn is to take.
    """

    rounds: int = 15
    seconds: float = 0.1


@dataclass(frozen=True)
class Timing:
    """The time that one contestant needed.

    Attributes
    ----------
    name : str
    times : tuple of float
        Seconds for one call, the mean of each turn.
    """

    name: str
    times: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the turns, in seconds."""
        return float(np.median(self.times))

    @property
    def minimum(self) -> float:
        """The quickest turn, in seconds."""
        return min(self.times)


def calls(function: Callable[..., Any], point: list[np.ndarray], pool: Pool | None = None) -> Any:
    """Return a contestant that calls a compiled function.

    Parameters
    ----------
    function : callable
    point : list of array
        Its arguments; the first one changes from call to call, because a sampler never asks for
        the same point twice, and what has not changed need not be sent again. Of many numbers a
        thousand change, so that each rank's do.
    pool : Pool, optional
        To be entered for each turn; by default the pool in force is used.

    Returns
    -------
    Contestant
    """
    moving = point[0].reshape(-1)
    assert np.shares_memory(moving, point[0])
    moving = moving[:: max(1, moving.size // 1000)] if moving.size > 1000 else moving[:1]

    def turn(count: int) -> float:
        with pool or nullcontext():
            for _ in range(2):  # Wakes ranks that fell asleep while others had their turn.
                function(*point)
            begun = time.perf_counter()
            for _ in range(count):
                moving[...] += 1e-12
                function(*point)
            return time.perf_counter() - begun

    return turn


def alternate(contestants: Mapping[str, Contestant], effort: Effort) -> list[Timing]:
    """Let contestants take turns, and return what each needed.

    Parameters
    ----------
    contestants : mapping of str to Contestant
    effort : Effort
    """
    counts = {}
    for name, contestant in contestants.items():
        contestant(1)  # Compiles.
        once = min(contestant(3) / 3 for _ in range(2))
        counts[name] = max(1, int(effort.seconds / max(once, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(effort.rounds):
        for name, contestant in contestants.items():
            times[name].append(contestant(counts[name]) / counts[name])
    return [Timing(name, tuple(spent)) for name, spent in times.items()]
