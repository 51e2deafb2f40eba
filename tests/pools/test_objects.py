"""Python objects as data of numeric jobs, alone and beside arrays."""

from dataclasses import dataclass

import numpy as np
import pytensor.tensor as pt
import pytest

from pymc_mpimap import JobError, map_rect, numeric_job
from tests.helpers import assert_equals_plain, assert_same_bits, evaluate

N = 5
RANDOM = np.random.default_rng(3)


@dataclass(frozen=True)
class Subject:
    name: str
    doses: tuple[float, ...]


@numeric_job
def of_objects(theta, job, x_r, x_i):
    assert isinstance(x_r, Subject)
    return theta * sum(x_r.doses) + len(x_i or ()), sum(x_r.doses)


def test_objects():
    subjects = [Subject(f"s{j}", tuple(range(j))) for j in range(N)]
    notes = [None, "a", {"key": 1}, [1, "b"], ()]
    theta = pt.dscalar("theta")
    output = map_rect(of_objects, theta, N, subjects, notes)
    value, gradient = evaluate([output, pt.grad(output.sum(), theta)], {theta: 2.0})
    assert_same_bits(value, 2.0 * np.array([0, 0, 1, 3, 6]) + [0, 1, 1, 2, 0])
    assert gradient == 10


def test_mixed_data_of_numeric_jobs():
    @numeric_job
    def job(theta, own, x_r, x_i):
        assert (x_r["t"].shape, x_i[0].dtype.kind) == ((len(x_i[1]),), "i")
        return theta @ theta * x_r["t"].sum() + own.sum(), 2 * theta * x_r["t"].sum(), own**0

    times = [np.arange(float(k)) for k in (1, 2, 0, 4, 3)]
    names = ["a", "bc", "", "defg", "hij"]
    theta, own = pt.dvector("theta"), [pt.dvector(f"own_{k}") for k in range(N)]
    output = map_rect(job, theta, own, {"t": times}, (np.arange(N), names))
    plain = pt.stack(
        [(theta**2).sum() * t.sum() + o.sum() for t, o in zip(times, own, strict=True)]
    )
    point = {theta: RANDOM.normal(size=2), **{o: RANDOM.normal(size=k) for k, o in enumerate(own)}}
    assert_equals_plain(output, plain, point)


def test_data_given_to_a_numeric_job_are_read_only():
    @numeric_job(derivatives=None)
    def job(theta, own, x):
        x[0] = 1.0
        return 0.0

    with pytest.raises(JobError, match="read-only"):
        map_rect(job, None, N, np.zeros((N, 2))).eval()
