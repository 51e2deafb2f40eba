"""Where the microseconds of a gradient without work go.

From a checkout: ``mpiexec -n 2 python -m benchmarks.layers [--json FILE]``. Methods of the pool are
replaced by ones that also read the clock, which costs time itself: about 0.1 us for each, measured
and taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

import pymc_mpimap as mpimap
from benchmarks.common import keep, median_minimum, options
from pymc_mpimap.bench import workloads
from pymc_mpimap.bench.timing import calls
from pymc_mpimap.pool.assignment import Assignment
from pymc_mpimap.pool.controller import Controller
from pymc_mpimap.pool.mpi import MPIPool
from pymc_mpimap.pool.report import Recorder

WHOLE, PLAIN, POOL = "whole call", "a compiled function of the same shape", "the pool"
FITS, SEND, OWN, COLLECT = (
    "are the inputs as before?",
    "what changed is packed and sent",
    "rank 0's own jobs",
    "waiting for the answers",
)
FINISH, NOTE = "outputs are put together, times are noted", "what is not finite is counted"

METHODS = {
    POOL: (MPIPool, "evaluate"),
    FITS: (Assignment, "fits"),
    SEND: (Assignment, "send"),
    OWN: (Controller, "_own_part"),
    COLLECT: (Controller, "_collect"),
    FINISH: (Controller, "_finish"),
    NOTE: (Recorder, "gave"),
}
WITHIN = {FINISH: (OWN, COLLECT)}
"""Which of them call others."""


class Clock:
    """Adds up the time that is spent in some functions."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(METHODS, 0)
        self.count = dict.fromkeys(METHODS, 0)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        spent, count = self.spent, self.count

        def timed(*arguments: Any) -> Any:
            begun = perf_counter_ns()
            try:
                return function(*arguments)
            finally:
                spent[name] += perf_counter_ns() - begun
                count[name] += 1

        return timed


def price() -> tuple[float, float]:
    """Return the nanoseconds that a clock sees of itself, and that it takes in all."""

    def nothing(*_: Any) -> None:
        pass

    def loop(function: Callable[..., Any]) -> float:
        best = float("inf")
        for _ in range(20):
            begun = perf_counter_ns()
            for _ in range(1000):
                function(None, 1, 2)
            best = min(best, (perf_counter_ns() - begun) / 1000)
        return best

    clock = Clock()
    taken = loop(clock.around(POOL, nothing)) - loop(nothing)
    return clock.spent[POOL] / clock.count[POOL], taken


def layers(turn: Callable[[int], float], count: int, seen: float, taken: float) -> dict[str, float]:
    """Return the microseconds that each layer itself takes of a call, in one turn."""
    clock = Clock()
    with ExitStack() as stack:
        for name, (owner, method) in METHODS.items():
            timed = clock.around(name, getattr(owner, method))
            stack.enter_context(patch.object(owner, method, timed))
        whole = turn(count) / count * 1e9
    calls_each = {name: clock.count[name] / clock.count[POOL] for name in METHODS}
    gross = {
        name: clock.spent[name] / clock.count[POOL] - seen * calls_each[name] for name in METHODS
    }
    inner = [name for name in METHODS if name != POOL]
    below = {POOL: inner, **WITHIN}
    net = {
        name: gross[name] - taken * sum(calls_each[part] for part in below.get(name, ()))
        for name in METHODS
    }
    found = {WHOLE: whole - taken * sum(calls_each.values()), **net}
    direct = {POOL: [FITS, SEND, FINISH, NOTE], **WITHIN}
    own = {
        name: found[name] - sum(found[part] for part in direct.get(name, ())) for name in METHODS
    }
    outside = found[WHOLE] - found[POOL]
    return {
        k: v / 1e3 for k, v in {WHOLE: found[WHOLE], "outside the pool": outside, **own}.items()
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--calls", type=int, default=3000)
    asked = parser.parse_args()
    with mpimap.MPIPool() as pool:
        workload = workloads.nothing(pool.ranks)
        turn, plain = (calls(f, workload.point) for f in (workload.function, workload.plain))
        seen, taken = price()
        turn(100), plain(100)
        found: dict[str, list[float]] = {}
        for _ in range(asked.rounds):
            found.setdefault(PLAIN, []).append(plain(asked.calls) / asked.calls * 1e6)
            for name, value in layers(turn, asked.calls, seen, taken).items():
                found.setdefault(name, []).append(value)
        rows = [{"name": name, **median_minimum(values)} for name, values in found.items()]
        print(f"{pool.ranks} ranks: microseconds of a gradient without work, median (minimum)")
        for row in rows:
            print(f"  {row['name']:45s} {row['median']:6.2f} ({row['minimum']:.2f})")
        keep(asked.json, "layers", pool.report().hosts, layers=rows)


if __name__ == "__main__":
    main()
