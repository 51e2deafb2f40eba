"""Data that each rank loads for its own jobs."""

import numpy as np
import pytensor.tensor as pt
import pytest

from pymc_mpimap import JobError, local, map_rect, numeric_job
from tests.helpers import (
    CALLS,
    assert_equals_plain,
    assert_same_bits,
    evaluate,
    serial,
    without_map_rect,
)

N = 5
RANDOM = np.random.default_rng(3)


def load(job_id):
    CALLS[f"load {job_id}"] += 1
    return {"t": np.arange(job_id + 1.0), "y": np.full((job_id % 3, 2), job_id)}


@pytest.mark.parametrize("like", [None, {"t": np.empty(0), "y": np.empty((0, 0), int)}])
def test_local_data_of_traced_jobs(like):
    CALLS.clear()

    def job(theta, own, x):
        return (theta * x["t"]).sum() * own + x["y"].sum()

    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    output = map_rect(job, theta, own, local(load, like=like))
    assert sum(CALLS.values()) == (0 if like else 1)
    loaded = [load(j) for j in range(N)]
    data = {key: [part[key] for part in loaded] for key in ("t", "y")}
    CALLS.clear()
    plain = without_map_rect(job, theta, own, data)
    assert_equals_plain(output, plain, {theta: 0.3, own: RANDOM.normal(size=N)}, hessian=True)
    if serial():
        assert max(CALLS.values()) == 1  # not once an evaluation


def test_local_data_of_numeric_jobs():
    CALLS.clear()

    @numeric_job
    def job(theta, own, x):
        return theta * x["t"].sum() + x["y"].sum(), x["t"].sum()

    theta = pt.dscalar("theta")
    output = map_rect(job, theta, N, local(load))
    assert not CALLS
    value, gradient = evaluate([output, pt.grad(output.sum(), theta)], {theta: 2.0})
    triangular = np.arange(N) * (np.arange(N) + 1) / 2
    assert_same_bits(value, 2.0 * triangular + 2 * np.arange(N) * (np.arange(N) % 3))
    assert gradient == triangular.sum()
    if serial():
        assert dict(CALLS) == {f"load {j}": 1 for j in range(N)}


def test_local_data_that_are_not_like_those_of_the_first_job():
    def odd(job_id):
        return np.zeros((2, 2)) if job_id == 3 else np.zeros(2)

    output = map_rect(lambda theta, job, x: x.sum(), None, N, local(odd))
    with pytest.raises(JobError, match=r"x_r: load\(3\) returned float64 of 2 dimensions"):
        output.eval()


def test_local_data_that_cannot_be_loaded():
    def load(job_id):
        if job_id == 2:
            raise FileNotFoundError("subject 2 has no file")
        return np.zeros(2)

    output = map_rect(lambda theta, job, x: x.sum(), None, N, local(load))
    for _ in range(2):
        with pytest.raises(JobError, match="subject 2 has no file"):
            output.eval()
    assert_same_bits(evaluate(map_rect(lambda t, j, x: x, None, N, np.ones(N)), {}), np.ones(N))


@pytest.mark.parametrize("n_jobs", [0, 1, 2, 7])
def test_local_data_of_a_traced_job_on_ranks_without_jobs(n_jobs):
    theta = pt.dscalar("theta")
    data = local(lambda job: np.arange(job + 1.0), like=np.empty(0))
    output = map_rect(lambda theta, job, x: theta * x.sum(), theta, n_jobs, data)
    expected = np.array([sum(range(j + 1)) for j in range(n_jobs)], dtype=float)
    assert_same_bits(evaluate(output, {theta: 1.0}), expected)
