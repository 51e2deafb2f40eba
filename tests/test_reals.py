"""Things that hold numbers, and that mean more than their numbers, wherever they are passed."""

import sys

import numpy as np
import pandas as pd
import polars as pl
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import (
    Doses,
    FiniteDifferences,
    InputError,
    JobError,
    MapRectWarning,
    Steps,
    local,
    map_rect,
    numeric_job,
    solve_ivp,
)
from pymc_mpimap.data import StackedData
from tests.helpers import assert_same_bits
from tests.kinds import (
    AS_THEY_ARE,
    LEFT,
    MASKED,
    REFUSED,
    ROUNDED,
    ROWS,
    TAKEN,
    Measured,
    N,
    Quantity,
)

each_taken = pytest.mark.parametrize("kind", TAKEN)
each_refused = pytest.mark.parametrize("kind", REFUSED)


def affine(theta, _job, x):
    return theta - 2.0 * pt.as_tensor_variable(x).astype("float64").ravel()


def of_theta(theta, _job, x):
    return affine(x, None, theta)


def of_own(theta, own, _x):
    return affine(theta, None, own)


@numeric_job(derivatives=None, length=2)
def numeric(theta, _job, x):
    assert type(x) is np.ndarray
    return theta - 2.0 * x.astype(float)


@each_taken
def test_numbers_arrive(kind):
    """As a job's data, parameters, and shared ones, and as what is loaded."""
    held, numbers = TAKEN[kind]
    theta = pt.dscalar("theta")
    outputs = [
        map_rect(affine, theta, N, held),
        map_rect(lambda t, j, x: affine(t, j, x["y"][0]), theta, N, {"y": (held,)}),
        map_rect(of_own, theta, held, np.zeros(N)),
    ]
    if kind not in AS_THEY_ARE:
        outputs.append(map_rect(numeric, theta, N, held))
    expected = 0.3 - 2.0 * numbers.astype(float).ravel()
    results = pytensor.function([theta], outputs)(0.3)
    for result in results:
        assert_same_bits(result, expected)
    rows = map_rect(lambda _t, _j, x: x.ravel(), None, N, held)
    assert rows.dtype == numbers.dtype
    assert_same_bits(rows.eval(), numbers.ravel())
    shared = map_rect(lambda t, _j: affine(0.3, None, t), held, 1)
    assert_same_bits(shared.eval(), expected)
    loaded = map_rect(affine, 0.3, 1, local(lambda _: held))
    assert_same_bits(loaded.eval(), expected)


@each_taken
def test_numbers_arrive_ragged(kind):
    """Refuse numbers in one job where another has none."""
    held, numbers = TAKEN[kind]
    expected = 0.3 - 2.0 * numbers.astype(float).ravel()
    result = map_rect(affine, 0.3, 2, [held, np.zeros((0, 2), numbers.dtype)])
    assert_same_bits(result.eval(), expected)


def decay(_t, y, p):
    return -p * y


def coupled(_t, y, p):
    return -(p @ y)[:2]


RATES = sorted(set(TAKEN) - {"large unsigned", "integers of Python's own"})


@pytest.mark.parametrize("kind", RATES)
def test_a_solver_takes_them(kind):
    """As parameters: the same bits as for the plain numbers."""
    held, numbers = TAKEN[kind]

    def solution(rates):
        return solve_ivp(coupled, 0.0, [1.0, 2.0], [0.5], rates, method="tsit5").eval()

    assert_same_bits(solution(held), solution(numbers))


def test_a_solver_takes_series():
    """As times, doses, their states and durations, steps, breaks and tolerances."""

    def solution(of):
        doses = Doses(of([0.5, 1.0]), of([1.0, 2.0]), of([1, 0]), of([0.0, 0.25]))
        return solve_ivp(
            lambda t, y, p: -p * y,
            0.0,
            of([1.0, 2.0]),
            of([0.25, 1.0, 3.0]),
            Steps(of([0.75]), of([0.5, 1.5])),
            method="tsit5",
            atol=of([1e-8, 1e-7]),
            doses=doses,
            breaks=of([2.0]),
        ).eval()

    expected = solution(np.array)
    assert_same_bits(solution(pd.Series), expected)
    assert_same_bits(solution(pl.Series), expected)


@pytest.mark.parametrize("kind", ROUNDED)
def test_lost_digits_are_a_warning(kind):
    held, numbers = ROUNDED[kind]
    with pytest.warns(MapRectWarning, match="x_r: numbers lose digits as float64, as "):
        output = map_rect(lambda _t, _j, x: x.ravel(), None, N, held)
    assert_same_bits(output.eval(), numbers.ravel())


def test_integers_lose_digits_as_times():
    with pytest.warns(MapRectWarning, match=r"solve_ivp\(decay\): ts: numbers lose digits"):
        solve_ivp(decay, 0.0, [1.0], [1, 2**53 + 1], 1.0)


def refused(kind):
    held, said, job = REFUSED[kind]
    return held, said if said.startswith("[") else f" is {said}", job


@each_refused
def test_refusals_name_argument_key_and_job(kind):
    held, said, job = refused(kind)
    theta = pt.dscalar("theta")
    number = "" if job is None else f" (job {job})"
    calls = {
        "x_r": lambda f: map_rect(f, theta, N, held),
        "x_i['y'][0]": lambda f: map_rect(f, theta, N, None, {"y": (held,)}),
        "jobs['b']": lambda f: map_rect(f, theta, {"a": np.zeros(N), "b": held}),
    }
    for label, call in calls.items():
        for f in (affine, numeric):
            if f is numeric and kind in AS_THEY_ARE:
                continue
            with pytest.raises(InputError) as caught:
                call(f)
            assert f"{label}{said}" in str(caught.value)
            assert number in str(caught.value)
            assert str(caught.value).count(". ") >= 1  # The cure.


@each_refused
def test_refusals_of_what_jobs_share(kind):
    held, said, _ = refused(kind)
    for function in (affine, numeric):
        with pytest.raises(InputError) as caught:
            map_rect(function, {"a": 1.0, "b": (held,)}, N, np.zeros(N))
        assert f"theta['b'][0]{said}" in str(caught.value)
    with pytest.raises(InputError) as caught:
        map_rect(affine, [held, pt.dscalar()], N, np.zeros(N))
    assert f"theta[0]{said}" in str(caught.value)


@each_refused
def test_refusals_of_what_is_loaded(kind):
    held, said, _ = refused(kind)
    with pytest.raises(InputError) as caught:
        map_rect(affine, 1.0, N, local(lambda _: {"y": held}))
    assert f"x_r['y'], as load(job_id) returns it,{said}" in str(caught.value)
    with pytest.raises(JobError) as caught:
        map_rect(affine, 1.0, N, local(lambda _: held, like=np.zeros(0))).eval()
    assert f"x_r, as load(0) returned it,{said}" in str(caught.value)


@each_refused
def test_refusals_of_what_is_solved(kind):
    held, said, _ = refused(kind)
    arguments = {"t0": 0.0, "y0": [1.0], "ts": [1.0], "params": 1.0}
    options = ("breaks", "atol", "rtol", "first_step")
    for label in (*arguments, *options):
        if label == "y0" and isinstance(held, list):
            continue  # A list of states, which are scalars.
        given = arguments | ({label: held} if label in arguments else {})
        with pytest.raises(InputError) as caught:
            solve_ivp(decay, *given.values(), **({label: held} if label in options else {}))
        assert f"solve_ivp(decay): {label}{said}" in str(caught.value)
    doses = {"times": [1.0], "amounts": 1.0, "states": 0, "durations": 0.0}
    for label in doses:
        with pytest.raises(InputError) as caught:
            solve_ivp(decay, 0.0, [1.0], [1.0], 1.0, doses=Doses(**(doses | {label: held})))
        assert f"solve_ivp(decay): doses.{label}{said}" in str(caught.value)
    steps = {"times": [1.0], "values": [1.0, 2.0]}
    for label in steps:
        with pytest.raises(InputError) as caught:
            solve_ivp(decay, 0.0, [1.0], [1.0], {"k": Steps(**(steps | {label: held}))})
        assert f"solve_ivp(decay): params['k'].{label}{said}" in str(caught.value)


def test_a_closure_does_not_lose_its_unit():
    """PyTensor takes such an array for its numbers."""
    theta, held = pt.dscalar("theta"), ROWS.view(Measured)
    with pytest.raises(InputError, match="an array that f uses is Measured with the unit mm"):
        map_rect(lambda theta, _j: (theta * held).sum(), theta, N, name="f")
    with pytest.raises(InputError, match="the array that it uses is Measured with the unit mm"):
        solve_ivp(lambda t, y: y * held[0], 0.0, [1.0, 2.0], [1.0])


@pytest.mark.parametrize("kind", ["pandas", "big-endian", "long double", "polars"])
def test_a_right_hand_side_may_use_them(kind):
    held = {
        "pandas": pd.Series(LEFT, index=[2, 0, 1]),
        "big-endian": LEFT.astype(">f8"),
        "long double": LEFT.astype(np.longdouble),
        "polars": pl.Series(LEFT),
    }[kind]

    def solution(rates):
        return solve_ivp(lambda _t, y: -y * rates, 0.0, [1.0] * N, [0.5], method="tsit5").eval()

    assert_same_bits(solution(held), solution(LEFT))


def test_masks_travel_with_objects():
    """A numeric job that takes any object gets a mask with its array, and nothing converted."""

    @numeric_job(derivatives=None)
    def count(_theta, _job, held):
        array = held["y"] if isinstance(held, dict) else held
        assert isinstance(array, np.ma.MaskedArray), type(array)
        return float(array.sum()) + 100 * array.count()

    rows = list(MASKED)
    expected = [float(row.sum()) + 100 * row.count() for row in rows]
    assert expected != [float(row.data.sum()) + 200 for row in rows]
    for held in (rows, [{"y": row} for row in rows]):
        assert map_rect(count, None, N, held).eval().tolist() == expected


def test_objects_stay_what_they_are():
    @numeric_job(derivatives=None)
    def same(_theta, _job, held, kind):
        return float(type(held).__name__ == kind)

    for held in ([Measured((2,))] * N, [Quantity(LEFT)] * N, [1j] * N, [None, 1.0, 2], [*"abc"]):
        kinds = [type(item).__name__ for item in held]
        assert map_rect(same, None, N, held, kinds).eval().tolist() == [1.0] * N


class Shy:
    """An object with attributes of arrays' that does not want to be asked."""

    def __repr__(self):
        raise AssertionError("of no concern")

    mask = unit = property(__repr__)


def test_objects_are_not_asked():
    kind = numeric_job(derivatives=None)(lambda _t, _j, x: float(type(x).__name__ == "Shy"))
    assert map_rect(kind, None, N, [Shy(), 1.0, Shy()]).eval().tolist() == [1.0, 0.0, 1.0]


class Letters:
    """A sequence by its methods alone."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_sequences_by_their_methods():
    assert map_rect(affine, 0.0, N, Letters([1.0, 2.0, 3])).eval().tolist() == [-2.0, -4.0, -6.0]
    with pytest.raises(InputError, match=r"x_r\[1\] is MaskedConstant masked \(job 1\)"):
        map_rect(affine, 0.0, N, Letters([1.0, np.ma.masked, 3.0]))


def test_one_missing_value_does_not_change_what_jobs_get():
    """Sums of pandas' own leave NA out: a group with one would count as if it were smaller."""

    @numeric_job(derivatives=None)
    def total(_theta, _job, y):
        return float(y.sum())

    groups = [pd.Series([1, 2]), pd.Series([3, 4, 5])]
    assert map_rect(total, None, 2, groups).eval().tolist() == [3.0, 12.0]
    with pytest.raises(InputError, match=r"x_r\[1\] is a series with 1 of 2 values missing.*job 1"):
        map_rect(total, None, 2, [groups[0], pd.Series([3, None], dtype="Int64")])


WRONG_RESULTS = {
    "masked": np.ma.masked,
    "masked array": np.ma.array(1.0, mask=True),
    "unit": np.float64(1.0) * np.ones(()).view(Measured),
    "NA": pd.NA,
    "complex": np.float64(1.0) + 0j,
    "text": "1.0",
}


@pytest.mark.parametrize(
    ("wrong", "which"),
    [
        (wrong, which)
        for wrong in WRONG_RESULTS
        for which in ("value", "d_theta", "jac", "shifted", "complex-step")
        if (wrong, which) != ("complex", "complex-step")  # That is what is asked for.
    ],
)
def test_results_that_mean_more(wrong, which):
    result = WRONG_RESULTS[wrong]
    theta = pt.dscalar("theta")
    if which == "shifted":
        mark = numeric_job(derivatives=FiniteDifferences(step=1e-5))
        f = mark(lambda theta, _j: theta if theta == 1.0 else result)
    elif which == "complex-step":
        mark = numeric_job(derivatives="complex-step")
        f = mark(lambda theta, _j: result if np.iscomplexobj(theta) else theta)
    elif which == "jac":
        f = numeric_job(derivatives=lambda theta, _j: (result,))(lambda theta, _j: theta)
    else:
        f = numeric_job(lambda theta, _j: (result, 1.0) if which == "value" else (theta, result))
    total = map_rect(f, theta, N, name="f").sum()
    outputs = [total] if which == "value" else [total, pt.grad(total, theta)]
    with pytest.raises(JobError, match="TypeError: f returned "):
        pytensor.function([theta], outputs)(1.0)


def test_results_of_many_kinds():
    """Values and derivatives are real numbers, whatever holds them."""
    theta = pt.dvector("theta", shape=(2,))
    for value, derivative in [
        (np.longdouble(0.5), pd.Series([1.0, 2.0], index=[3, 2])),
        (1, [1, 2.0]),
        (np.ma.array(0.5), np.ma.array([1.0, 2.0])),
        (np.array(0.5, ">f8"), np.array([1, 2], ">i4")),
        (True, (np.float16(1), 2)),
    ]:
        f = numeric_job(lambda _t, _j, v=value, d=derivative: (v, d))
        total = map_rect(f, theta, N).sum()
        both = pytensor.function([theta], [total, pt.grad(total, theta)])(np.zeros(2))
        assert_same_bits(both, [N * float(value), N * np.array([1.0, 2.0])])


@pytest.mark.parametrize("length", [2.5, np.ma.masked, None, "2", -1, np.ones(2)])
def test_lengths_are_whole_numbers(length):
    mark = numeric_job(derivatives=None, length=lambda _x: length)
    output = map_rect(mark(lambda _t, _j, _x: np.ones(2)), None, N, np.zeros(N), name="f")
    with pytest.raises(JobError, match=r"the length= of f returned .* whole number"):
        output.eval()


def test_one_length_is_a_whole_number():
    with pytest.raises(InputError, match=r"length=2\.5"):
        numeric_job(length=2.5)


@pytest.mark.parametrize(
    ("loaded", "like", "said"),
    [
        (np.array([2**40]), np.int32, "int64 with the value 1099511627776, beyond what int32"),
        (np.array([2**63], np.uint64), np.int64, "uint64 with the value 9223372036854775808"),
        (np.array([300]), np.int8, "int64 with the value 300, beyond what int8"),
        (np.array([1e300]), np.float32, "float64 with the value 1e+300, beyond what float32"),
    ],
)
def test_loaded_values_out_of_range(loaded, like, said):
    output = map_rect(affine, 0.0, N, local(lambda _: loaded, like=np.empty(0, like)))
    with pytest.raises(JobError) as caught:
        output.eval()
    assert f"x_r: load(0) returned {said}" in str(caught.value)


def test_loaded_values_lose_digits():
    x_r = local(lambda _: np.array([0.1]), like=np.empty(0, np.float32))
    output = map_rect(lambda _t, _j, x: x, None, 1, x_r)
    with pytest.warns(MapRectWarning, match="x_r.* lose digits as float32"):
        assert_same_bits(output.eval(), np.array([0.1], np.float32))


def test_a_comparison_of_variables_is_no_number():
    theta = pt.dscalar("theta")
    with pytest.raises(InputError, match=r"it is False.*pytensor\.tensor\.eq"):
        map_rect(lambda theta, _j: theta == 0.0, theta, N)
    with pytest.raises(InputError, match=r"params\['on'\] is False.*pytensor\.tensor\.eq"):
        solve_ivp(lambda t, y, p: -p["on"] * y, 0.0, [1.0], [1.0], {"on": theta == 0.0})


def test_lists_of_lists_of_variables():
    a, b = pt.dscalar("a"), pt.dscalar("b")
    output = map_rect(lambda _t, own: 2.0 * own, None, [[a, 1.5, b], [b]])
    assert output.eval({a: 1.0, b: 3.0}).tolist() == [2.0, 3.0, 6.0, 6.0]
    with pytest.raises(
        InputError, match=r"jobs\[0\]\[1\] is a masked array|jobs\[0\]\[1\] is Masked"
    ):
        map_rect(lambda _t, own: own, None, [[a, np.ma.masked], [b]])


def test_masks_do_not_come_in_later():
    """By `set_data`, which makes a mask of NaN, or by an argument of a compiled function."""
    with pm.Model() as model:
        y = pm.Data("y", np.ones(N))
        mu = pm.Normal("mu")
        pm.Potential("p", map_rect(lambda mu, _j, y: -((y - mu) ** 2), mu, N, y).sum())
    logp = model.compile_logp()
    logp({"mu": 0.0})
    pm.set_data({"y": np.array([1.0, np.nan, 2.0])}, model=model)
    with pytest.raises(InputError, match="value of x_r is a masked array with 1 of 3"):
        logp({"mu": 0.0})
    p = pt.dvector("p", shape=(2,))
    solve = pytensor.function([p], solve_ivp(decay, 0.0, [1.0, 2.0], [1.0], p))
    with pytest.raises(InputError, match=r"solve_ivp\(decay\).* is a masked array with 1 of 2"):
        solve(MASKED[1])


def test_large_arrays_are_not_copied():
    values = np.zeros((N, 1000))
    values.flags.writeable = False
    output = map_rect(lambda theta, _j, x: theta * x.sum(), 0.0, N, values)
    held = output.owner.op.maps[0].data
    assert any(isinstance(d, StackedData) and np.shares_memory(d.values, values) for d in held)


def test_arrow_arrays_by_a_module_of_the_same_names(monkeypatch):
    class Array:
        def __init__(self, values):
            self.values, self.type = values, None
            self.null_count = sum(v is None for v in values)

        def is_null(self):
            return Array([v is None for v in self.values])

        def to_pylist(self):
            return list(self.values)

        def __array__(self, dtype=None, copy=None):
            return np.array([np.nan if v is None else v for v in self.values], dtype=dtype)

    module = type(sys)("pyarrow")
    module.Array = Array
    monkeypatch.setitem(sys.modules, "pyarrow", module)
    assert map_rect(affine, 0.0, N, Array([1.0, 2.0, 3.0])).eval().tolist() == [-2.0, -4.0, -6.0]
    with pytest.raises(InputError, match="x_r is a series with 1 of 3 values missing"):
        map_rect(affine, 0.0, N, Array([1.0, None, 3.0]))
