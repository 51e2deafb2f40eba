"""What the tests of the solver share: a solve with all its sensitivities, and closed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.traversal import ancestors

from pymc_mpimap import SolveIVP, solve_ivp
from pymc_mpimap.tally import counts

__all__ = [
    "POINT",
    "TIMES",
    "allowed",
    "assert_within",
    "compiled",
    "failures",
    "linear",
    "node_of",
    "predators",
    "solution",
    "solve_nodes",
    "solves",
    "the_inputs",
    "vector",
    "with_derivatives",
]


def node_of(solution: Any) -> Any:
    """Return the solve that an expression contains."""
    (node,) = {
        v.owner
        for v in ancestors([solution])
        if v.owner is not None and isinstance(v.owner.op, SolveIVP)
    }
    return node


def with_derivatives(solution: Any, wrt: Sequence[int]) -> list[Any]:
    """Return the solution and its derivatives with respect to these inputs of its solve."""
    return node_of(solution).op.with_sensitivities(wrt)(*node_of(solution).inputs, return_list=True)


def solve_nodes(function: Any) -> list[Any]:
    """Return the solves of a compiled function."""
    return [n for n in function.maker.fgraph.apply_nodes if isinstance(n.op, SolveIVP)]


def solves(call: Callable[[], Any]) -> int:
    """Return how many solves a call does."""
    before = counts()[0]
    call()
    return counts()[0] - before


def failures(call: Callable[[], Any]) -> dict[int, int]:
    """Return how many solves of a call fail, by the number of the reason."""
    before = counts()
    call()
    after = counts()
    return {k: after[k] - before[k] for k in range(1, len(before)) if after[k] != before[k]}


def allowed(expected: Any, tolerance: float, size: Any = 1.0) -> Any:
    """Return the tolerance of a sensitivity of this size to a parameter of that size."""
    return tolerance * np.max(np.abs(expected), initial=0.0) + tolerance / max(1.0, abs(size))


def assert_within(result: Any, expected: Any, bound: Any, times: float = 10.0) -> None:
    """Compare arrays: no entry is farther off than so many times the bound."""
    assert np.shape(result) == np.shape(expected)
    excess = np.max(np.abs(np.asarray(result) - expected) / bound, initial=0.0)
    assert excess <= times, f"off by {excess:.3g} times the tolerance, not {times:g}"


def compiled(inputs: Sequence[Any], outputs: Any, **options: Any) -> Callable[..., Any]:
    """Compile in the mode of the test, whatever inputs are not used."""
    return pytensor.function(list(inputs), outputs, on_unused_input="ignore", **options)


def vector(name: str, length: int | None = None) -> Any:
    """Return a vector of numbers."""
    return pt.dvector(name, shape=(length,))


# A model that most tests of the Op take.

TIMES = np.array([0.5, 1.0, 2.0])


def predators(t: Any, y: Any, p: Any) -> Any:
    """Two states, driven; parameters of two shapes."""
    growth, rates = p["growth"], p["rates"]
    return [(growth - rates[0] * y[1]) * y[0], (rates[1] * y[0] - 0.5) * y[1] - 0.1 * np.sin(t)]


POINT = {
    "t0": np.array(0.1),
    "y0": np.array([1.2, 0.7]),
    "ts": TIMES,
    "growth": np.array(0.8),
    "rates": np.array([0.6, 0.9]),
}


def the_inputs() -> dict[str, Any]:
    """Return the model's inputs, by their names."""
    return {
        "t0": pt.dscalar("t0"),
        "y0": vector("y0", 2),
        "ts": vector("ts"),
        "growth": pt.dscalar("growth"),
        "rates": vector("rates", 2),
    }


def solution(inputs: Any, rhs: Any = predators, **options: Any) -> Any:
    """Return the model's solution."""
    params = {"growth": inputs["growth"], "rates": inputs["rates"]}
    return solve_ivp(rhs, inputs["t0"], inputs["y0"], inputs["ts"], params, **options)


def linear(k: Any, y0: Any, t0: Any, ts: Any, doses: Sequence[Any]) -> Any:
    """Return the solution of ``y' = K y`` with doses, for one or two states, in PyTensor.

    Each dose is a column: of a bolus at s, ``exp(K (t - s))`` is what is left of the amount at t;
    of an infusion at the rate 1 from s to e, its integral from s to min(t, e). A function of K is
    found at its two eigenvalues, which must differ.
    """
    times, amounts, durations, states = doses
    n = k.type.shape[0]
    if n == 1:
        projections = [(k[0, 0], pt.ones((1, 1)))]
    else:
        mean, eye = (k[0, 0] + k[1, 1]) / 2, pt.eye(2)
        root = pt.sqrt(mean**2 - (k[0, 0] * k[1, 1] - k[0, 1] * k[1, 0]))
        low, high = mean - root, mean + root
        projections = [(low, (k - high * eye) / -(2 * root)), (high, (k - low * eye) / (2 * root))]
    begun = ts[:, None] > times
    since = pt.switch(begun, ts[:, None] - times, 0.0)
    over = pt.switch(since > durations, since - durations, 0.0)
    lasting = pt.switch(durations > 0, durations, 1.0)
    which = pt.eq(states[:, None], pt.arange(n)).astype("float64")
    total = 0
    for value, projection in projections:
        left = pt.switch(
            durations > 0,
            (pt.exp(value * since) - pt.exp(value * over)) / (value * lasting),
            pt.exp(value * since),
        )
        given = (pt.switch(begun, left, 0.0) * amounts) @ which
        total = total + (pt.exp(value * (ts - t0))[:, None] * y0 + given) @ projection.T
    return total
