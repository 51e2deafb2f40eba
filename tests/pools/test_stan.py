"""What Stan's own tests of map_rect check, case by case, and what they leave untested.

The functions and inputs are those of stan-dev/math, test/unit/math/rev/functor (map_rect), told in
facts: ``phi`` there is ``theta`` here, and ``theta[n]`` there is row n of ``jobs``.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import pullback
from pytensor.raise_op import Assert

from pymc_mpimap import InputError, JobError, SerialPool, map_rect, numeric_job
from tests.helpers import (
    assert_close,
    assert_equals_plain,
    assert_same_bits,
    compiled,
    evaluate,
    evaluations,
    ranks,
    serial,
    without_map_rect,
)

SIZES = [0, 1, 2, 3, 4, 5, 7, 10, 13, 67, 100]


def hard_work(phi, theta, x_r, x_i):
    first = theta[0] ** 2 + phi[0]
    second = x_r[0] * theta[1] * theta[0] + 2 * phi[0] + phi[1]
    return pt.concatenate([pt.stack([first, second]), pt.zeros(x_i[0])])


@numeric_job(length=lambda x_r, x_i: 2 + x_i[0])
def numeric_hard_work(phi, theta, x_r, x_i):
    value, d_phi, d_theta = np.zeros(2 + x_i[0]), *np.zeros((2, 2 + x_i[0], 2))
    value[0] = theta[0] ** 2 + phi[0]
    value[1] = x_r[0] * theta[1] * theta[0] + 2 * phi[0] + phi[1]
    d_phi[:2] = [[1, 0], [2, 1]]
    d_theta[:2] = [[2 * theta[0], 0], [x_r[0] * theta[1], x_r[0] * theta[0]]]
    return value, d_phi, d_theta


def faulty(phi, theta, x_r, x_i):
    value = pt.stack([theta[0] ** 2, x_r[0] * theta[1] * theta[0]])
    return Assert("faulty: theta[0] is -1")(value, pt.abs(theta[0] + 1) >= 1e-7)


@numeric_job(length=2)
def numeric_faulty(phi, theta, x_r, x_i):
    if abs(theta[0] + 1) < 1e-7:
        raise ValueError("faulty: theta[0] is -1")
    value = np.array([theta[0] ** 2, x_r[0] * theta[1] * theta[0]])
    return value, np.zeros((2, 2)), np.array([[2 * theta[0], 0], [theta[1], theta[0]]]) * x_r[0]


both_kinds = pytest.mark.parametrize(
    "work", [hard_work, numeric_hard_work], ids=["traced", "numeric"]
)
both_faulty = pytest.mark.parametrize("job", [faulty, numeric_faulty], ids=["traced", "numeric"])


def inputs_a(n):
    theta = np.stack([np.zeros(n), np.arange(n) ** 2.0], axis=1)
    return np.array([2.0, 0.0]), theta, np.ones((n, 1)), np.zeros((n, 1), dtype=int)


def inputs_b(n):
    phi, theta, x_r, _ = inputs_a(n)
    theta[:, 0] = np.arange(n) + 1.0
    return phi, theta, x_r, np.arange(n)[:, None]


def variables(n):
    return pt.dvector("phi", shape=(2,)), pt.dmatrix("theta", shape=(n, 2))


@both_kinds
def test_zero_jobs(work):
    phi, theta = variables(0)
    output = map_rect(work, phi, theta, np.empty((0, 1)), np.empty((0, 1), dtype=int))
    gradient = pt.grad(output.sum(), [phi, theta])
    values = evaluate([output, *gradient], {phi: np.array([2.0, 0.0]), theta: np.empty((0, 2))})
    assert_same_bits(values, [np.empty(0), np.zeros(2), np.empty((0, 2))])


@pytest.mark.parametrize("dropped", ["jobs", "x_r", "x_i"])
@both_kinds
def test_a_missing_row_is_an_error_before_any_traffic(work, dropped):
    phi, theta, x_r, x_i = inputs_a(10)
    arguments = {"jobs": theta, "x_r": x_r, "x_i": x_i}
    arguments[dropped] = arguments[dropped][:9]
    before = evaluations()
    with pytest.raises(InputError, match=rf"{dropped}.*\b9\b|\b9\b.*{dropped}"):
        map_rect(work, phi, **arguments)
    assert evaluations() == before


@pytest.mark.parametrize("changed", ["jobs", "x_r", "x_i"])
@both_kinds
def test_a_rectangle_of_another_width_is_an_error_before_any_traffic(work, changed):
    names = {"jobs": pt.dmatrix, "x_r": pt.dmatrix, "x_i": pt.lmatrix}
    phi, theta, x_r, x_i = inputs_a(10)
    arguments = {"jobs": theta, "x_r": x_r, "x_i": x_i}
    variable = names[changed](changed, shape=arguments[changed].shape)
    output = map_rect(work, phi, **{**arguments, changed: variable})
    function = pytensor.function([variable], output)
    before = evaluations()
    wrong = np.zeros((10, 5), dtype=arguments[changed].dtype)
    with pytest.raises((TypeError, ValueError), match="shape"):
        function(wrong)
    assert evaluations() == before
    function(arguments[changed])  # and it is the width alone that was wrong


@pytest.mark.parametrize("changed", ["jobs", "x_r", "x_i"])
@both_kinds
def test_a_longer_row_in_a_list_is_no_error(work, changed):
    """What is an error in Stan is a ragged input here: the job sees its own five entries."""
    phi, theta, x_r, x_i = inputs_b(10)
    arguments = {"jobs": theta, "x_r": x_r, "x_i": x_i}
    expected = evaluate(map_rect(work, phi, **arguments), {})
    rows = list(arguments[changed])
    rows[1] = np.concatenate([rows[1], np.full(5 - len(rows[1]), 99, dtype=rows[1].dtype)])
    output = map_rect(work, phi, **{**arguments, changed: rows})
    assert_same_bits(evaluate(output, {}), expected)


@both_kinds
def test_values(work):
    phi, theta, x_r, x_i = inputs_a(10)
    result = evaluate(map_rect(work, phi, theta, x_r, x_i), {})
    assert_same_bits(result, np.tile([2.0, 4.0], 10))

    x_i[1] = 1
    result = evaluate(map_rect(work, phi, theta, x_r, x_i), {})
    assert_same_bits(result, np.array([2.0, 4.0, 2.0, 4.0, 0.0, *[2.0, 4.0] * 8]))


@pytest.mark.parametrize("variable", ["phi", "theta", "both"])
@both_kinds
def test_gradients(work, variable):
    n = 100
    phi, theta, x_r, x_i = inputs_a(n)
    theta[:, 0] = 0.5  # of Stan's zeros, too many derivatives would be zero
    shared, own = variables(n)
    point = {shared: phi, own: theta}
    if variable == "phi":
        del point[own]
    elif variable == "theta":
        del point[shared]
    output = map_rect(
        work, shared if shared in point else phi, own if own in point else theta, x_r, x_i
    )
    cotangent = pt.dvector("cotangent")
    gradient = compiled(pullback([output], list(point), [cotangent]), [*point, cotangent])
    for j in (0, 1, 57, n - 1):
        for k, (d_phi, d_theta) in enumerate(
            [
                ([1, 0], [2 * theta[j, 0], 0]),
                ([2, 1], [theta[j, 1], theta[j, 0]]),
            ]
        ):
            expected = {shared: np.array(d_phi, dtype=float), own: np.zeros((n, 2))}
            expected[own][j] = d_theta
            result = gradient(*point.values(), np.eye(2 * n)[2 * j + k])
            assert_same_bits(result, [expected[v] for v in point])


@pytest.mark.parametrize("n", SIZES)
@both_kinds
def test_sizes(work, n):
    phi, theta, x_r, x_i = inputs_a(n)
    theta[:, 0] = 1.1
    result = evaluate(map_rect(work, phi, theta, x_r, x_i), {})
    assert result.shape == (2 * n,)
    assert_close(result[0::2], np.full(n, 3.21))
    assert_close(result[1::2], 1.1 * np.arange(n) ** 2 + 4)


@pytest.mark.parametrize("grain_size", [None, 1, 3])
@pytest.mark.parametrize("jobs_for", ["W - 1", "W", "W + 1", "many"])
def test_every_job_is_done_exactly_once(jobs_for, grain_size):
    w = ranks()
    n = {"W - 1": w - 1, "W": w, "W + 1": w + 1, "many": 50}[jobs_for]

    def bit(theta, job, power):
        return theta * power

    theta = pt.dscalar("theta")
    output = map_rect(bit, theta, n, 2.0 ** np.arange(n), grain_size=grain_size)
    values, total = evaluate([output, pt.grad(output.sum(), theta)], {theta: 1.0})
    assert_same_bits(values, 2.0 ** np.arange(n))
    # A sum of powers of two has one bit a job: it is exact, and no other jobs give the same.
    assert total == 2.0**n - 1


@both_faulty
def test_first_evaluation_fails_and_the_next_does_not(job):
    _fails(job, bad_calls=[0])


@both_faulty
def test_later_evaluation_fails_and_the_next_does_not(job):
    _fails(job, bad_calls=[1, 3])


def _fails(job, bad_calls):
    phi, theta, x_r, x_i = inputs_b(10)
    shared, own = variables(10)
    output = map_rect(job, shared, own, x_r, x_i)
    function = pytensor.function(
        [shared, own], [output, pt.grad(output.sum(), own)], on_unused_input="ignore"
    )
    for call in range(5):
        theta[0, 0] = -1.0 if call in bad_calls else 1.0
        if call in bad_calls:
            with pytest.raises(JobError, match=r"faulty: theta\[0\] is -1") as caught:
                function(phi, theta)
            assert caught.value.failure.job == 0
        else:
            value, gradient = function(phi, theta)
            assert_same_bits(
                value, np.stack([theta[:, 0] ** 2, theta[:, 1] * theta[:, 0]], axis=1).ravel()
            )
            assert_same_bits(
                gradient, np.stack([2 * theta[:, 0] + theta[:, 1], theta[:, 0]], axis=1)
            )


@pytest.mark.parametrize("n", ["10", "W - 1"])
def test_parallel_equals_serial_equals_plain(n):
    n = 10 if n == "10" else max(ranks() - 1, 1)
    phi, theta, x_r, x_i = inputs_b(n)
    shared, own = variables(n)
    traced = map_rect(hard_work, shared, own, x_r, x_i)
    plain = without_map_rect(hard_work, shared, own, x_r, x_i)
    result = assert_equals_plain(traced, plain, {shared: phi, own: theta}, hessian=True)
    assert len(result[0]) == sum(2 + x_i[:, 0])

    numeric = map_rect(numeric_hard_work, shared, own, x_r, x_i)
    assert_equals_plain(numeric, plain, {shared: phi, own: theta})


@both_kinds
def test_another_number_of_jobs_in_a_later_call_is_an_error(work):
    phi, theta, x_r, x_i = inputs_b(10)
    own = pt.dmatrix("theta", shape=(None, 2))
    output = map_rect(work, phi, own, x_r, x_i)
    function = pytensor.function([own], output)
    expected = function(theta)
    before = evaluations()
    for n in (9, 11, 0):
        with pytest.raises(InputError, match=rf"job has {n} rows.*10 jobs"):
            function(np.ones((n, 2)))
    assert serial() or evaluations() == before
    assert_same_bits(function(theta), expected)


# What Stan leaves untested.


@both_kinds
def test_changed_data_in_a_later_call(work):
    phi, theta, x_r, x_i = inputs_b(10)
    data = pytensor.shared(x_r.copy(), name="x_r")
    function = compiled(map_rect(work, phi, theta, data, x_i), [])
    first = function()
    data.set_value(3 * x_r)
    second = function()
    at = 1 + np.concatenate([[0], np.cumsum(2 + x_i[:-1, 0])])
    assert_close(second[at] - first[at], 2 * theta[:, 1] * theta[:, 0])
    others = np.delete(np.arange(len(first)), at)
    assert_same_bits(second[others], first[others])
    data.set_value(x_r)
    assert_same_bits(function(), first)


@both_kinds
def test_changed_length_of_outputs(work):
    phi, theta, x_r, x_i = inputs_b(10)
    lengths = pt.lmatrix("x_i", shape=(10, 1))
    function = compiled(map_rect(work, phi, theta, x_r, lengths), [lengths])
    assert function(x_i).shape == (65,)
    assert function(0 * x_i).shape == (20,)
    # The sum stays, the jobs' own lengths change places.
    backwards = function(x_i[::-1].copy())
    starts = np.concatenate([[0], np.cumsum(2 + x_i[::-1, 0])[:-1]])
    assert_close(backwards[starts], theta[:, 0] ** 2 + 2)
    assert backwards.shape == (65,)


@both_kinds
def test_the_number_of_ranks_does_not_matter(work):
    """Sums of numbers of very different size: another order of summation gives other bits."""
    random = np.random.default_rng(1)
    n = 40
    phi, _, x_r, x_i = inputs_a(n)
    theta = random.normal(size=(n, 2)) * 10.0 ** random.integers(-8, 8, size=(n, 2))
    shared, own = variables(n)
    output = map_rect(work, shared, own, x_r, x_i, grain_size=3)
    point = {shared: phi, own: theta}
    # Compared bit for bit in there; the cotangents carry the differences of size into the sum.
    cotangents = pt.constant(theta.ravel())
    value, d_phi = evaluate([output, *pullback([output], [shared], [cotangents])], point)
    assert_close(d_phi, [theta[:, 0].sum() + 2 * theta[:, 1].sum(), theta[:, 1].sum()], rtol=1e-10)
    assert_same_bits(value[0::2], theta[:, 0] ** 2 + 2)


def test_pool_in_force_is_left_as_it_was():
    phi, theta, x_r, x_i = inputs_b(4)
    output = map_rect(hard_work, phi, theta, x_r, x_i)
    before = evaluations()
    with SerialPool() as pool:
        output.eval()
        assert pool.report().evaluations == 1
    assert evaluations() == before
