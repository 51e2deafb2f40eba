"""Time one value and gradient of three workloads that Stan's map_rect was timed with.

From a checkout: ``python -m benchmarks.workloads``, and ``mpiexec -n 2 python -m
benchmarks.workloads``. Prints the median and the minimum of several batches, and by how much the
value and the gradient differ from Stan's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytensor
import pytensor.tensor as pt
from scipy.integrate import odeint

import pymc_mpimap as mpimap
from tests import workloads

Built = tuple[Callable[..., list[np.ndarray]], list[np.ndarray], workloads.Workload]


def shard(theta, _job, data):
    eta = theta[0] + data["X"] @ theta[1:]
    return (data["y"] * eta - pt.softplus(eta)).sum()


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
    total = mpimap.map_rect(shard, theta, len(w.data["y"]), w.data).sum()
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


def solved_subject(theta, job, data):
    """Solve the same system in compiled code; its derivatives are PyTensor's business."""
    beta, delta, sigma = pt.exp(theta[0]), pt.exp(theta[1]), pt.exp(theta[2])
    rates = {"alpha": pt.exp(job[0]), "beta": beta, "gamma": pt.exp(job[1]), "delta": delta}

    def rhs(_t, y, p):
        return [
            (p["alpha"] - p["beta"] * y[1]) * y[0],
            (-p["gamma"] + p["delta"] * y[0]) * y[1],
        ]

    states = mpimap.solve_ivp(
        rhs, 0.0, data["start"], data["times"], rates, method="tsit5", rtol=1e-6, atol=1e-6
    )
    residuals = (pt.log(data["y"]) - pt.log(states)) / sigma
    constant = -pt.log(data["y"]).sum() - residuals.size * (theta[2] + 0.5 * np.log(2 * np.pi))
    return -0.5 * (residuals**2).sum() + constant


def build_w3a_solved() -> Built:
    """Build the same 64 subjects, solved in compiled code, eight to a block."""
    return build_w3a(solved_subject, grain_size=8)


def build_w4() -> Built:
    """Build two jobs without any work: the cost of the package alone."""
    w = workloads.w4()
    jobs = pt.dmatrix("jobs", shape=w.theta0.shape)
    total = mpimap.map_rect(lambda _theta, job: job[0] + job[1] ** 2, None, jobs, name="w4").sum()
    function = pytensor.function([jobs], [total, pt.grad(total, jobs)], trust_input=True)
    return function, [w.theta0.copy()], w


def measure(name: str, built: Built, batches: int = 15) -> None:
    """Print the time of one value and gradient, and the distance from Stan's."""
    function, point, w = built
    value, *gradient = function(*point)
    gradient = np.concatenate([np.ravel(part) for part in gradient])
    error = np.max(np.abs(gradient - w.gradient.ravel())) / np.max(np.abs(w.gradient))
    begun = time.perf_counter()
    function(*point)
    once = time.perf_counter() - begun
    count = max(1, int(0.2 / once))
    times = []
    for _ in range(batches):
        begun = time.perf_counter()
        for _ in range(count):
            point[0].flat[0] += 1e-12  # a sampler never asks for the same point twice
            function(*point)
        times.append((time.perf_counter() - begun) / count)
    print(
        f"{name}: median {np.median(times) * 1e6:.0f} us, minimum {min(times) * 1e6:.0f} us; "
        f"value differs by {abs(value / w.value - 1):.1e}, gradient by {error:.1e} of its largest",
        flush=True,
    )


WORKLOADS = {
    "W1": build_w1,
    "W3a by SciPy": build_w3a,
    "W3a by solve_ivp": build_w3a_solved,
    "W4": build_w4,
}


def main() -> None:
    """Measure all three on the ranks that there are."""
    with mpimap.MPIPool() as pool:
        print(f"{pool.ranks} rank{'s' if pool.ranks > 1 else ''}", flush=True)
        for name, build in WORKLOADS.items():
            measure(name, build())


if __name__ == "__main__":
    main()
