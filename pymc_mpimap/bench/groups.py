"""The measurements: who competes with whom, and what is to be learned from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pymc_mpimap.bench import by_hand, workloads
from pymc_mpimap.bench.timing import Contestant, Effort, Timing, alternate, calls
from pymc_mpimap.bench.together import Together, floor
from pymc_mpimap.bench.workloads import Workload
from pymc_mpimap.pool.serial import SerialPool

__all__ = ["BARE", "BY_HAND", "GROUPS", "PLAIN", "POOL", "SERIAL", "Fact", "Group", "Setting"]

PLAIN, SERIAL, POOL, BARE, BY_HAND = (
    "plain PyTensor",
    "map_rect, serially",
    "map_rect, all ranks",
    "bare MPI",
    "mpi4py by hand",
)
"""The contestants."""


@dataclass(frozen=True)
class Setting:
    """The settings of a measurement.

    Attributes
    ----------
    ranks : int
    effort : Effort
    quick : bool
        Whether to make the workloads small: to see that all works, not how fast.
    together : Together
    """

    ranks: int
    effort: Effort
    quick: bool
    together: Together


@dataclass(frozen=True)
class Fact:
    """One number that follows from the timings.

    Attributes
    ----------
    name : str
    value : float
        By the medians.
    at_minimum : float
        By the minima, which other programs on the machine disturb less.
    unit : str
        "us", or "" for a ratio.
    goal : str
        What was aimed at; empty if there is no such number, or not for this many ranks.
    """

    name: str
    value: float
    at_minimum: float
    unit: str = ""
    goal: str = ""

    def __str__(self) -> str:
        median, minimum = (
            f"{x:.1f} {self.unit}" if self.unit else f"{x:.2f}"
            for x in (self.value, self.at_minimum)
        )
        goal = f"; goal {self.goal} {self.unit}".rstrip() if self.goal else ""
        return f"{self.name}: {median} (by the minima {minimum}{goal})"


@dataclass(frozen=True)
class Group:
    """The results of one measurement.

    Attributes
    ----------
    name : str
        By which it is asked for.
    title : str
    meaning : str
        What the figures tell.
    timings : list of Timing
        The first is what the others are compared with.
    facts : list of Fact
    stan : dict of str to float
        What Stan needs, in microseconds, on 2 cores of an AMD EPYC.
    """

    name: str
    title: str
    meaning: str
    timings: list[Timing]
    facts: list[Fact] = field(default_factory=list)
    stan: dict[str, float] = field(default_factory=dict)


def compete(
    setting: Setting,
    workload: Workload,
    *,
    bare: bool = True,
    written: Contestant | None = None,
) -> list[Timing]:
    """Let plain PyTensor, `map_rect` with and without ranks, and bare MPI take turns."""
    contestants: dict[str, Any] = {}
    if workload.plain is not None:
        contestants[PLAIN] = calls(workload.plain, workload.point)
    contestants[SERIAL] = calls(workload.function, workload.point, SerialPool())
    if setting.ranks > 1:
        contestants[POOL] = calls(workload.function, workload.point)
        if bare:
            down, up = workload.down(setting.ranks), workload.up(setting.ranks)
            contestants[BARE] = floor(setting.together, down, up)
        if written is not None:
            contestants[BY_HAND] = written
    return alternate(contestants, setting.effort)


def fact(
    name: str,
    timings: list[Timing],
    formula: Callable[[dict[str, float]], float],
    unit: str = "",
    goal: str = "",
) -> Fact:
    """Return what a formula gives of the contestants' seconds."""
    median = formula({timing.name: timing.median for timing in timings})
    minimum = formula({timing.name: timing.minimum for timing in timings})
    return Fact(name, median, minimum, unit, goal)


def efficiency(timings: list[Timing], ranks: int) -> list[Fact]:
    """Return the parallel efficiency: serial time over ranks times parallel time."""
    if ranks == 1:
        return []
    return [fact("efficiency", timings, lambda t: t[SERIAL] / (ranks * t[POOL]))]


def bare(setting: Setting) -> Group:
    """Measure messages of several sizes by bare MPI."""
    sizes = (10, 1_000, 100_000)
    contestants = {f"{n} numbers": floor(setting.together, n, n) for n in sizes}
    title = "round trip to every other rank by bare MPI"
    timings = alternate(contestants, setting.effort) if setting.ranks > 1 else []
    meaning = "No program that sends as much can be faster."
    return Group("floor", title, meaning, timings)


def dispatch(setting: Setting) -> Group:
    """Measure jobs without work."""
    timings = compete(setting, workloads.nothing(setting.ranks))
    facts = [fact("added, serially", timings, lambda t: 1e6 * (t[SERIAL] - t[PLAIN]), "us")]
    if setting.ranks > 1:
        goal = {2: "15", 4: "60"}.get(setting.ranks, "")
        added = fact("added, all ranks", timings, lambda t: 1e6 * (t[POOL] - t[PLAIN]), "us", goal)
        facts.append(added)
    title = "W4: one job a rank, without work: what dispatch costs"
    stan = {"map_rect, 2 ranks": 3.2, "map_rect, 4 ranks on 2 cores": 13.0}
    meaning = "What is added is paid for each gradient, whatever its jobs do."
    return Group("dispatch", title, meaning, timings, facts, stan)


def spin(name: str, milliseconds: float) -> Callable[[Setting], Group]:
    """Return a measurement of equal jobs."""

    def measure(setting: Setting) -> Group:
        seconds = np.full(64, milliseconds * 1e-3 / 64)
        timings = compete(setting, workloads.spinning(seconds), bare=False)
        title = f"64 equal jobs that pass {milliseconds:g} ms together"
        facts = efficiency(timings, setting.ranks)
        work, n = float(seconds.sum()), len(seconds)
        facts.append(
            fact(
                "a job adds to its work, serially",
                timings,
                lambda t: 1e6 * (t[SERIAL] - work) / n,
                "us",
            )
        )
        meaning = (
            "Nothing competes for cores or memory: what is lost is lost by the package and MPI."
        )
        return Group(name, title, meaning, timings, facts)

    return measure


def unequal(name: str, *, ordered: bool) -> Callable[[Setting], Group]:
    """Return a measurement of jobs that take very different times."""

    def measure(setting: Setting) -> Group:
        seconds = np.random.default_rng(20240006).lognormal(0.0, 1.5, 64)
        seconds *= (2e-3 if setting.quick else 20e-3) / seconds.sum()
        if ordered:
            seconds.sort()
        workload = workloads.spinning(seconds)
        for _ in range(0 if setting.quick else 50):  # in which the pool may learn what jobs cost
            workload.function(*workload.point)
        timings = compete(setting, workload, bare=False)
        order = "sorted" if ordered else "random"
        facts = efficiency(timings, setting.ranks)
        if facts:
            best = seconds.sum() / (setting.ranks * least_maximum(seconds, setting.ranks))
            facts.append(Fact("efficiency of the best split into runs", best, best))
        total = 1e3 * seconds.sum()
        title = f"64 unequal jobs (log-normal, sigma 1.5) in {order} order that pass {total:.0f} ms"
        meaning = "Ranks work on consecutive jobs; below the best split, some wait for others."
        return Group(name, title, meaning, timings, facts)

    return measure


def least_maximum(costs: np.ndarray, parts: int) -> float:
    """Return the smallest possible cost of the costliest of so many consecutive runs.

    Examples
    --------
    >>> import numpy as np
    >>> round(least_maximum(np.array([1.0, 2.0, 3.0, 4.0]), 2), 6)
    6.0
    """
    low, high = float(costs.max()), float(costs.sum())
    for _ in range(60):
        middle = 0.5 * (low + high)
        runs, filled = 1, 0.0
        for cost in costs.tolist():
            filled += cost
            if filled > middle:
                runs, filled = runs + 1, cost
        low, high = (low, middle) if runs <= parts else (middle, high)
    return high


def w1(setting: Setting) -> Group:
    """Measure a logistic regression."""
    rows = 2_000 if setting.quick else 100_000
    timings = compete(setting, workloads.shards(rows))
    stan = {"map_rect, serially": 2181.0, "map_rect, 2 ranks": 1034.0, "plain Stan": 2263.0}
    title = f"W1: logistic regression, {rows:,} rows, 20 shards"
    meaning = "Much data, little work with each number: memory and the compiler matter most."
    return Group("w1", title, meaning, timings, efficiency(timings, setting.ranks), stan)


def w3a(setting: Setting) -> Group:
    """Measure ODEs."""
    subjects = 8 if setting.quick else 64
    timings = compete(setting, workloads.lotka_volterra(subjects))
    stan = {"map_rect, serially": 6972.0, "map_rect, 2 ranks": 3766.0, "plain Stan": 7051.0}
    title = f"W3a: {subjects} subjects, a Lotka-Volterra ODE each, at 1e-6"
    meaning = "Costly jobs, short messages: what map_rect is for."
    return Group("w3a", title, meaning, timings, efficiency(timings, setting.ranks), stan)


def cheap(setting: Setting) -> Group:
    """Measure many cheap jobs."""
    n_jobs = 64 if setting.quick else 1000
    timings = compete(setting, workloads.cheap(n_jobs))
    goal = "350" if setting.ranks == 2 and not setting.quick else ""
    facts = efficiency(timings, setting.ranks)
    if setting.ranks > 1:
        facts.append(fact(POOL, timings, lambda t: 1e6 * t[POOL], "us", goal))
    stan = {"map_rect, 2 ranks": 390.0, "reduce_sum, 2 threads": 298.0}
    title = f"{n_jobs:,} jobs of 20 observations with 5 coefficients each"
    meaning = "Where plain PyTensor is much quicker than map_rect serially, jobs are too small."
    return Group("cheap", title, meaning, timings, facts, stan)


def big(name: str, *, shared: bool) -> Callable[[Setting], Group]:
    """Return a measurement of long messages."""

    def measure(setting: Setting) -> Group:
        size = 2_000 if setting.quick else 100_000
        own = 100
        if shared:
            workload = workloads.big_shared(setting.ranks, size)
            written = by_hand.shared(setting.together, size)
        else:
            workload = workloads.big_jobs(size, own)
            written = by_hand.jobs(setting.together, size // own, own)
        timings = compete(setting, workload, written=written)
        facts = []
        if setting.ranks > 1:
            facts = [
                fact("map_rect to bare MPI", timings, lambda t: t[POOL] / t[BARE], "", "1.5"),
                fact("map_rect to mpi4py by hand", timings, lambda t: t[POOL] / t[BY_HAND]),
            ]
        kind = "shared parameters" if shared else "parameters of jobs in all"
        title = f"{size:,} {kind}, next to no work"
        meaning = (
            "Bare MPI moves as many bytes and computes nothing; mpi4py by hand does the same work."
        )
        return Group(name, title, meaning, timings, facts)

    return measure


GROUPS: dict[str, Callable[[Setting], Group]] = {
    "floor": bare,
    "dispatch": dispatch,
    "spin-1ms": spin("spin-1ms", 1.0),
    "spin-5ms": spin("spin-5ms", 5.0),
    "unequal-random": unequal("unequal-random", ordered=False),
    "unequal-sorted": unequal("unequal-sorted", ordered=True),
    "cheap": cheap,
    "big-shared": big("big-shared", shared=True),
    "big-jobs": big("big-jobs", shared=False),
    "w1": w1,
    "w3a": w3a,
}
"""All measurements, by name."""
