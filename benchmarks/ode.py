"""Time one solve with its gradient on four problems that Stan's solvers were timed with.

From a checkout: ``python -m benchmarks.ode [problem ...]``. Each method is run on each problem at
the tolerance 1e-6, and at the largest one at which no sensitivity is further from the reference
than with Stan's solver at 1e-6. Printed are the tolerance, the error, and the time of value and
gradient of a sum of all outputs, by all parameters and initial states: on one core, warm, for each
of a block of 20. Methods take turns, so that a busy machine slows all of them.

Stan's figures are those of Stan 2.39 (Math 5.3, SUNDIALS 6.1.1; g++ 12 -O3), measured on a core of
an AMD EPYC: time of the solve and grad() of the sum of all outputs, median of five rounds. The
error is the largest over all sensitivities, each relative to its own largest size over time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.replace import vectorize_graph

import pymc_mpimap as mpimap
from pymc_mpimap.ode.system import LEAVES, Y0
from tests.ode.problems import PROBLEMS, Problem

TOLERANCES = (1e-5, 5e-6, 3e-6, 2e-6, 1e-6, 7e-7, 5e-7, 3e-7, 2e-7, 1e-7, 5e-8, 2e-8, 1e-8)
ROUNDS, SECONDS, BLOCK = 7, 0.15, 20


@dataclass(frozen=True)
class Stan:
    """What Stan needs at 1e-6: microseconds, and the largest error of a sensitivity."""

    solver: str
    microseconds: float
    error: float


STAN = {
    ("lv", "explicit"): Stan("rk45", 127, 8e-7),
    ("lv", "bdf"): Stan("bdf", 762, 2e-5),
    ("mm", "explicit"): Stan("rk45", 26, 4e-6),
    ("mm", "bdf"): Stan("bdf", 202, 2e-5),
    ("rob", "bdf"): Stan("bdf", 1514, 1e-4),
    ("fri", "explicit"): Stan("rk45", 8078, 9e-8),
    ("fri", "bdf"): Stan("bdf", 5135, 4e-6),
}
KIND = {"dopri5": "explicit", "tsit5": "explicit", "bdf": "bdf", "auto": "explicit"}


@dataclass
class Entry:
    """One method on one problem, ready to be timed."""

    problem: str
    method: str
    tolerance: float
    error: float
    function: Any
    point: list[np.ndarray]
    times: list[float]


def solution(problem: Problem, method: str, tolerance: float) -> tuple[Any, list[Any]]:
    """Return the solution as an expression of parameters and initial states."""
    p = pt.dvector("p", shape=(len(problem.p),))
    y0 = pt.dvector("y0", shape=(len(problem.y0),))
    options = {"method": method, "rtol": tolerance, "atol": tolerance}
    return mpimap.solve_ivp(problem.rhs, 0.0, y0, problem.ts, p, **options), [p, y0]


def largest_error(problem: Problem, method: str, tolerance: float) -> float:
    """Return the largest error of a sensitivity, relative to its largest size over time."""
    y, inputs = solution(problem, method, tolerance)
    solve = y.owner.op.with_sensitivities((Y0, LEAVES))
    by = solve.make_node(*y.owner.inputs).outputs[1:]
    by_y0, by_p = pytensor.function(inputs, by, mode="FAST_COMPILE")(problem.p, problem.y0)
    error = np.abs(np.concatenate([by_p, by_y0], axis=2) - problem.reference[:, :, 1:])
    scale = problem.scale[:, 1:]
    return float((error.max(axis=0) / np.where(scale > 1e-13 * scale.max(), scale, np.inf)).max())


def equal_tolerance(name: str, method: str) -> float:
    """Return the largest tolerance at which the error is no larger than Stan's."""
    bound = STAN.get((name, KIND.get(method, "")), STAN[name, "bdf"]).error
    for tolerance in TOLERANCES:
        if largest_error(PROBLEMS[name], method, tolerance) <= bound:
            break
    return tolerance


def entry(name: str, method: str, tolerance: float) -> Entry:
    """Compile a block of solves with their gradients."""
    problem = PROBLEMS[name]
    error = largest_error(problem, method, tolerance)
    y, inputs = solution(problem, method, tolerance)
    total = y.sum()
    # A block of jobs, as `map_rect` compiles it: the loop over them is compiled, too.
    blocks = [pt.dmatrix(shape=(BLOCK, len(value))) for value in (problem.p, problem.y0)]
    each = dict(zip(inputs, blocks, strict=True))
    outputs = vectorize_graph([total, *pt.grad(total, inputs)], each)
    function = pytensor.function(blocks, outputs, trust_input=True)
    point = [np.tile(value, (BLOCK, 1)) for value in (problem.p, problem.y0)]
    function(*point)
    return Entry(name, method, tolerance, error, function, point, [])


def measure(made: Entry) -> None:
    """Add the time of one round, per call."""
    count, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < SECONDS:
        made.function(*made.point)
        count += BLOCK
    made.times.append(passed / count)


def main(names: list[str]) -> None:
    """Compile everything, then measure in turns."""
    entries = [
        entry(name, method, tolerance)
        for name in names or list(PROBLEMS)
        for method in (("bdf", "auto") if name == "rob" else ("dopri5", "tsit5", "bdf", "auto"))
        for tolerance in sorted({1e-6, equal_tolerance(name, method)})
    ]
    for _ in range(ROUNDS):
        for made in entries:
            measure(made)
    print("problem  method       tolerance  error    median us (min)    Stan us, error")
    for made in sorted(entries, key=lambda e: [*PROBLEMS].index(e.problem)):
        stan = STAN.get((made.problem, KIND.get(made.method, "bdf")))
        theirs = f"{stan.solver} {stan.microseconds:.0f}, {stan.error:.0e}" if stan else ""
        ours = f"{np.median(made.times) * 1e6:.1f} ({min(made.times) * 1e6:.1f})"
        print(
            f"{made.problem:8} {made.method:12} {made.tolerance:.0e}      {made.error:.0e}    "
            f"{ours:18} {theirs}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
