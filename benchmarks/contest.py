"""Time `map_rect` and what else one might use, each in turn, in one run.

From a checkout: ``mpiexec -n 2 python -m benchmarks.contest [--json FILE] [w1 w3a cheap ...]``.
The alternatives of joblib and pytensor-federated are left out where those are not installed.
Each contestant works with as many processes as there are ranks; every one is checked to give the
same value and gradient before it is timed.
"""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from typing import Any

import numpy as np
import pymc as pm
from pytensor.graph.replace import graph_replace

import pymc_mpimap as mpimap
from benchmarks import alternatives
from benchmarks.common import keep, options, row
from pymc_mpimap.bench import workloads
from pymc_mpimap.bench.groups import BARE, POOL, SERIAL
from pymc_mpimap.bench.timing import Contestant, Effort, Timing, alternate, calls
from pymc_mpimap.bench.together import Together, floor

BUILD = {
    "w1": workloads.shards,
    "w3a": workloads.lotka_volterra,
    "cheap": workloads.cheap,
}


def plain_pymc(name: str, *, bernoulli: bool = False) -> Any:
    """Return what PyMC's own sampler calls, for the model without `map_rect`, and a point."""
    inputs, total = alternatives.graph(name)
    point, data = alternatives.inputs_of(name)
    with pm.Model() as model:
        variables = [pm.Flat(v.name, shape=p.shape) for v, p in zip(inputs, point, strict=True)]
        if bernoulli:
            x = data["X"].reshape(-1, 20)
            eta = variables[0][0] + x @ variables[0][1:]
            pm.Bernoulli("y", logit_p=eta, observed=data["y"].ravel())
        else:
            pm.Potential("lik", graph_replace(total, dict(zip(inputs, variables, strict=True))))
    function = model.logp_dlogp_function(ravel_inputs=True)
    function.set_extra_values({})
    return function, [np.concatenate([p.ravel() for p in point])]


def same(name: str, results: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for found, wanted in zip(results, expected, strict=True):
        scale = np.max(np.abs(wanted))
        assert np.max(np.abs(found - np.reshape(wanted, np.shape(found)))) < 1e-9 * scale, name


def compete(name: str, pool: mpimap.MPIPool, together: Together, effort: Effort) -> list[Timing]:
    """Let all that can be had take turns with one workload."""
    workload, point = BUILD[name](), alternatives.inputs_of(name)[0]
    expected = workload.function(*point)
    contestants: dict[str, Contestant] = {}
    for bernoulli in (False, True) if name == "w1" else (False,):
        function, flat = plain_pymc(name, bernoulli=bernoulli)
        value, gradient = function(*flat)
        wanted = np.concatenate([np.ravel(part) for part in expected[1:]])
        same("plain PyMC", [value, gradient], [expected[0], wanted])
        label = "plain PyMC, Bernoulli" if bernoulli else "plain PyMC"
        contestants[label] = calls(function, flat)
    contestants[SERIAL] = calls(workload.function, workload.point, mpimap.SerialPool())
    with ExitStack() as stack:
        maps = {"multiprocessing": alternatives.multiprocessing_map(pool.ranks)}
        if importlib.util.find_spec("joblib"):
            maps["joblib"] = alternatives.joblib_map(pool.ranks)
        if importlib.util.find_spec("pytensor_federated"):
            maps["pytensor-federated"] = alternatives.federated_map(name, pool.ranks)
        if pool.ranks > 1:
            contestants[POOL] = calls(workload.function, workload.point)
            by_hand = alternatives.by_hand_task
            contestants["mpi4py by hand"] = alternatives.together_turns(together, by_hand, name)
            down, up = workload.down(pool.ranks), workload.up(pool.ranks)
            contestants[BARE] = floor(together, down, up)
            task = alternatives.futures_task
            contestants["mpi4py.futures"] = alternatives.together_turns(together, task, name)
        for label, opened in maps.items():
            mapped = stack.enter_context(opened)
            results = mapped(alternatives.split(name, point, pool.ranks))
            same(label, alternatives.join(name, results), expected)
            contestants[label] = alternatives.turns(name, point, pool.ranks, mapped)
        return alternate(contestants, effort)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(BUILD))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a turn")
    asked = parser.parse_args()
    effort = Effort(asked.rounds, asked.seconds)
    with mpimap.MPIPool() as pool:
        together, groups = Together(pool.ranks), []
        for name in asked.names or BUILD:
            timings = compete(name, pool, together, effort)
            first = timings[0].median
            print(f"{name}, {pool.ranks} ranks", flush=True)
            for t in timings:
                median, least = 1e6 * t.median, 1e6 * t.minimum
                ratio = t.median / first
                print(f"  {t.name:24}{median:10.1f} us{least:10.1f} us{ratio:8.2f}", flush=True)
            rows = [row(t, timings[0]) for t in timings]
            groups.append({"name": name, "timings": rows})
        keep(asked.json, "contest", pool.report().hosts, groups=groups)


if __name__ == "__main__":
    # Not this module's own: jobs and tasks must be found by their names on other ranks.
    from benchmarks.contest import main as run

    run()
