"""Time one value and gradient of three workloads that Stan's map_rect was timed with.

From a checkout: ``python -m benchmarks.workloads``, and ``mpiexec -n 2 python -m
benchmarks.workloads``; ``--json FILE`` keeps the results. Prints the median and the minimum of
several batches, with and without the ranks, and by how much value and gradient differ from Stan's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from scipy.integrate import odeint

import pymc_mpimap as mpimap
from benchmarks.common import keep, options, row
from pymc_mpimap.bench import workloads as bench
from pymc_mpimap.bench.groups import POOL, SERIAL
from pymc_mpimap.bench.timing import Effort, alternate, calls
from tests import workloads

Built = tuple[Callable[..., list[np.ndarray]], list[np.ndarray], workloads.Workload]


@mpimap.numeric_job
def subject(theta, job, data):
    """Solve a Lotka-Volterra system with its derivatives by the four log rates."""
    (beta, delta, sigma), (alpha, gamma) = np.exp(theta).tolist(), np.exp(job).tolist()

    def rates(state: np.ndarray, _t: float) -> list[float]:
        x, y, x1, y1, x2, y2, x3, y3, x4, y4 = state.tolist()
        a, b, c, d = alpha - beta * y, -beta * x, delta * y, -gamma + delta * x
        return [
            a * x, d * y,
            a * x1 + b * y1 - beta * x * y, c * x1 + d * y1,
            a * x2 + b * y2, c * x2 + d * y2 + delta * x * y,
            a * x3 + b * y3 + alpha * x, c * x3 + d * y3,
            a * x4 + b * y4, c * x4 + d * y4 - gamma * y,
        ]  # fmt: skip

    start, times = [*data["start"], *[0.0] * 8], np.concatenate([[0.0], data["times"]])
    solution = odeint(rates, start, times, rtol=1e-6, atol=1e-6)[1:]
    states, sensitivities = solution[:, :2], solution[:, 2:].reshape(-1, 4, 2)
    residuals = (np.log(data["y"]) - np.log(states)) / sigma
    constant = -np.log(data["y"]).sum() - residuals.size * (np.log(sigma) + 0.5 * np.log(2 * np.pi))
    value = -0.5 * (residuals**2).sum() + constant
    by_rates = np.einsum("tk,tpk->p", residuals / sigma / states, sensitivities)
    return value, np.array([*by_rates[:2], (residuals**2 - 1).sum()]), by_rates[2:]


def build_w1() -> Built:
    """Build a logistic regression: 20 shards of 5,000 observations."""
    w = workloads.w1()
    theta = pt.dvector("theta", shape=(21,))
    total = mpimap.map_rect(bench.shard, theta, len(w.data["y"]), w.data).sum()
    function = pytensor.function([theta], [total, pt.grad(total, theta)], trust_input=True)
    return function, [w.theta0.copy()], w


def build_w3a(subject=subject, grain_size=None) -> Built:
    """Build 64 subjects with an ODE each, solved by SciPy at 1e-6."""
    w = workloads.w3a()
    n_jobs = len(w.data["y"])
    theta, jobs = pt.dvector("theta", shape=(3,)), pt.dmatrix("jobs", shape=(n_jobs, 2))
    data = {**w.data, "times": np.tile(w.data["times"], (n_jobs, 1))}
    total = mpimap.map_rect(subject, theta, jobs, data, grain_size=grain_size).sum()
    gradient = pt.grad(total, [theta, jobs])
    function = pytensor.function([theta, jobs], [total, *gradient], trust_input=True)
    return function, [w.theta0[:3].copy(), w.theta0[3:].reshape(n_jobs, 2).copy()], w


def build_w3a_solved() -> Built:
    """Build the same 64 subjects, solved in compiled code, eight to a block."""
    return build_w3a(bench.subject, grain_size=8)


def build_w4() -> Built:
    """Build two jobs without any work: the cost of the package alone."""
    w = workloads.w4()
    jobs = pt.dmatrix("jobs", shape=w.theta0.shape)
    total = mpimap.map_rect(lambda _theta, job: job[0] + job[1] ** 2, None, jobs, name="w4").sum()
    function = pytensor.function([jobs], [total, pt.grad(total, jobs)], trust_input=True)
    return function, [w.theta0.copy()], w


def measure(name: str, pool: mpimap.MPIPool, effort: Effort) -> dict[str, Any]:
    """Return the times of one value and gradient, and the distance from Stan's."""
    function, point, w = WORKLOADS[name]()
    value, *gradient = function(*point)
    gradient = np.concatenate([np.ravel(part) for part in gradient])
    contestants = {SERIAL: calls(function, point, mpimap.SerialPool())}
    if pool.ranks > 1:
        contestants[POOL] = calls(function, point)
    timings = alternate(contestants, effort)
    return {
        "name": name,
        "timings": [row(timing, timings[0]) for timing in timings],
        "value_differs": abs(float(value) / w.value - 1),
        "gradient_differs": float(
            np.max(np.abs(gradient - w.gradient.ravel())) / np.max(np.abs(w.gradient))
        ),
        "stan_microseconds": STAN[name],
    }


WORKLOADS: dict[str, Callable[[], Built]] = {
    "W1": build_w1,
    "W3a by SciPy": build_w3a,
    "W3a by solve_ivp": build_w3a_solved,
    "W4": build_w4,
}
# Stan 2.35 (Math 4.9), g++ 12 -O3 -march=native, Open MPI 4.1, on 2 cores of an AMD EPYC: median.
_W3A = {
    "plain Stan, serial": 7051.0,
    "map_rect, serial": 6972.0,
    "map_rect, MPI, 2 ranks": 3766.0,
    "map_rect, MPI, 4 ranks on 2 cores": 3793.0,
    "reduce_sum, 2 threads": 3622.0,
}
STAN = {
    "W1": {
        "plain Stan, serial": 2263.0,
        "map_rect, serial": 2181.0,
        "map_rect, MPI, 2 ranks": 1034.0,
        "reduce_sum, 2 threads": 1012.0,
    },
    "W3a by SciPy": _W3A,
    "W3a by solve_ivp": _W3A,
    "W4": {
        "plain Stan, serial": 0.13,
        "map_rect, serial": 0.54,
        "map_rect, MPI, 2 ranks": 3.2,
        "map_rect, MPI, 4 ranks on 2 cores": 13.0,
    },
}


def main() -> None:
    """Measure them on the ranks that there are."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a turn")
    asked = parser.parse_args()
    with mpimap.MPIPool() as pool:
        print(f"{pool.ranks} rank{'s' if pool.ranks > 1 else ''}", flush=True)
        found = []
        for name in WORKLOADS:
            found.append(measure(name, pool, Effort(asked.rounds, asked.seconds)))
            for timing in found[-1]["timings"]:
                median, least = 1e6 * timing["median"], 1e6 * timing["minimum"]
                print(f"{name}, {timing['name']}: median {median:.0f} us, minimum {least:.0f} us")
            value, gradient = found[-1]["value_differs"], found[-1]["gradient_differs"]
            print(
                f"  the value differs from Stan's by {value:.1e}, the gradient by {gradient:.1e} "
                "of its largest",
                flush=True,
            )
        keep(asked.json, "workloads", pool.report().hosts, workloads=found)


if __name__ == "__main__":
    main()
