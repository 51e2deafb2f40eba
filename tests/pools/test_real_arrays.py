"""Numbers from other containers than NumPy's, and masks, on whichever rank has the job."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import JobError, local, map_rect, numeric_job
from tests.helpers import assert_same_bits, evaluate
from tests.kinds import MASKED, TAKEN, N

some = pytest.mark.parametrize(
    "kind",
    [
        "big-endian",
        "long double",
        "half precision",
        "masked nowhere",
        "pandas frame of two types",
        "pandas nullable",
        "polars frame",
        "xarray with NaN",
    ],
)


def affine(theta, _job, x):
    return theta - 2.0 * x


@some
def test_numbers_arrive(kind):
    """The value and the gradient are those of NumPy, to the last bit."""
    held, numbers = TAKEN[kind]
    theta = pt.dvector("theta", shape=(2,))
    output = map_rect(affine, theta, N, held)
    gradient = pt.grad((output[: 2 * N] ** 2).sum(), theta)
    point = np.array([0.3, 0.7])
    value, slope = evaluate([output, gradient], {theta: point})
    expected = point - 2.0 * numbers
    assert_same_bits(value, expected.ravel())
    assert np.array_equal(slope, 2 * expected.sum(axis=0), equal_nan=True)


@some
def test_numbers_are_loaded(kind):
    held, numbers = TAKEN[kind]
    rows = held.iloc if kind.startswith("pandas") else held

    def load(job_id):
        return rows[job_id : job_id + 1]

    point = np.array([0.3, 0.7])
    theta = pt.dvector("theta", shape=(2,))
    output = map_rect(lambda t, _j, x: (t - 2.0 * x).ravel(), theta, N, local(load))
    assert_same_bits(evaluate(output, {theta: point}), (point - 2.0 * numbers).ravel())


def test_masks_travel_with_objects():
    @numeric_job(derivatives=None)
    def count(_theta, _job, y, of):
        assert isinstance(y, np.ma.MaskedArray), type(y)
        assert of["y"].mask.tolist() == np.ma.getmaskarray(y).tolist()
        return float(y.sum()) + 100 * y.count()

    rows = list(MASKED)
    output = map_rect(
        count,
        None,
        N,
        rows,
        [{"y": np.ma.array(row, mask=np.ma.getmaskarray(row))} for row in rows],
    )
    expected = np.array([float(row.sum()) + 100 * row.count() for row in rows])
    assert_same_bits(evaluate(output, {}), expected)


def test_a_mask_of_what_is_loaded_is_refused():
    def load(job_id):
        return np.ma.array([1.0, 2.0], mask=[False, job_id == N - 1])

    output = map_rect(lambda _t, _j, x: x.sum(), None, N, local(load))
    with pytest.raises(JobError, match=rf"x_r, as load\({N - 1}\) returned it, is a masked array"):
        output.eval()


@pytest.mark.parametrize("which", ["value", "derivative"])
def test_a_masked_result_is_refused(which):
    @numeric_job
    def f(theta, own):
        result = np.ma.array(theta * own, mask=own == N - 1)
        return (result, own) if which == "value" else (theta * own, result)

    theta = pt.dscalar("theta")
    total = map_rect(f, theta, np.arange(float(N))).sum()
    function = pytensor.function([theta], [total, pt.grad(total, theta)])
    with pytest.raises(JobError, match=rf"job {N - 1} of f.*returned a masked array with 1 of 1"):
        function(1.0)
