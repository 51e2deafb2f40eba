"""Solves that fail: NaN, counted by reason, silent, and of no consequence to any other solve."""

import subprocess
import sys
import threading
from itertools import permutations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.replace import vectorize_graph

from pymc_mpimap import Doses, SerialPool, solve_ivp
from pymc_mpimap.ode.system import LEAVES, Y0
from pymc_mpimap.tally import REASONS
from tests.helpers import assert_same_bits, in_modes
from tests.ode.helpers import compiled, failures, node_of, vector, with_derivatives

# Each compiles a problem of its own: a second or two, the first time.
pytestmark = pytest.mark.slow

TOO_MANY, ACCURACY = 1, 2
TS = [0.5, 1.0, 2.0]
METHODS = ["dopri5", "tsit5", "bdf", "auto"]
each_method = pytest.mark.parametrize("method", METHODS)


def growth(t, y, k):
    """It ends at t = 1 / (k y0)."""
    return k * y**2


# A right-hand side, a parameter that works, and one that does not.
WAYS = {
    "overflow": (lambda t, y, k: k * np.exp(y * y), 1e-3, 50.0),
    "blow-up": (growth, 0.1, 1.0),
    "NaN parameter": (growth, 0.1, np.nan),
    "infinite parameter": (growth, 0.1, np.inf),
    "division by zero": (lambda t, y, k: -y / k, 2.0, 0.0),
    "logarithm": (lambda t, y, k: np.log(k * y), 1.5, -1.0),
    "later logarithm": (lambda t, y, k: np.log(1.5 - k * t) - y, 0.1, 1.0),
    "later division": (lambda t, y, k: 1 / (k - t) ** 2, 9.0, 0.75),
}
CASES = [(way, method) for way in WAYS for method in ("tsit5", "bdf")]
CASES += [
    (way, method)
    for way in ("blow-up", "NaN parameter", "later logarithm")
    for method in ("dopri5", "auto", "scipy-RK45", "scipy-LSODA", "scipy-BDF")
]


def release(op):
    """Free the solver memory of an Op's problem; return how many blocks there were."""
    from pymc_mpimap.ode.problem import problem_of  # The library has to be loaded before.

    return problem_of(op.solve).release()


def problem(rhs, method="tsit5", *, gradient=True, **options):
    """Return a function of the parameter, and the inner solves' Op."""
    k, y0 = pt.dscalar("k"), vector("y0", 1)
    y = solve_ivp(rhs, 0.0, y0, TS, k, method=method, **options)
    outputs = [y, *pt.grad(y.sum(), [k, y0])] if gradient else [y]
    f = compiled([k, y0], outputs)
    return lambda k, y0=1.0: f(k, [y0])


@pytest.mark.parametrize(("way", "method"), CASES)
def test_failing(way, method, capfd):
    """All is NaN, the reason is counted, and the next solve is as if there had been no failure."""
    rhs, good, bad = WAYS[way]
    f = problem(rhs, method, max_steps=300)  # SciPy takes long to do more of them.
    before = f(good)
    assert all(np.isfinite(part).all() for part in before)
    results = []
    why = failures(lambda: results.append(f(bad)))
    assert all(np.isnan(part).all() for part in results[0])
    assert sum(why.values()) == 1
    assert set(why) <= set(REASONS), "a reason that the report cannot tell"
    assert_same_bits(f(good), before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["tsit5", "bdf"])
def test_failing_without_derivatives(method, capfd):
    for way in ("blow-up", "NaN parameter", "logarithm"):
        rhs, good, bad = WAYS[way]
        f = problem(rhs, method, gradient=False)
        before = f(good)
        results = []
        assert failures(lambda f=f, bad=bad, results=results: results.append(f(bad))) != {}
        assert np.isnan(results[0][0]).all()
        assert_same_bits(f(good), before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "method"),
    [("FAST_COMPILE", "tsit5"), ("FAST_COMPILE", "bdf"), ("NUMBA", "auto")],
    indirect=["mode"],
)
def test_too_many_steps(method, mode, capfd):
    def rhs(t, y, k):
        return -k * (y - np.cos(30 * t))

    f = problem(rhs, method, max_steps=5)
    assert failures(lambda: f(300.0)) == {TOO_MANY: 1}
    value, *gradients = f(300.0)
    assert np.isnan(value).all()
    assert np.isnan(np.concatenate([np.atleast_1d(g) for g in gradients])).all()
    assert np.isfinite(problem(rhs, method)(300.0)[0]).all()
    assert capfd.readouterr() == ("", "")


def test_the_number_of_steps_is_counted_between_outputs():
    """Ten outputs may have ten times the steps that one has."""
    k = pt.dscalar("k")

    def steps_suffice(n_times):
        ts = np.linspace(0.0, 10.0, n_times + 1)[1:]
        y = solve_ivp(
            lambda t, y, k: -k * y, 0.0, [1.0], ts, k, method="tsit5", rtol=1e-9, max_steps=40
        )
        return np.isfinite(pytensor.function([k], y)(10.0)).all()

    assert not steps_suffice(1)
    assert steps_suffice(10)


def test_more_accuracy_than_there_is(capfd):
    f = problem(lambda t, y, k: -k * y, "bdf", rtol=1e-17, atol=1e-30)
    assert failures(lambda: f(1.0)) == {ACCURACY: 1}
    assert np.isnan(f(1.0)[0]).all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", [*METHODS, "scipy-RK45", "scipy-LSODA", "scipy-BDF"])
def test_a_state_that_is_not_finite_is_told(method):
    """No derivative depends on it, and so nothing but the solver itself stumbles over it."""
    y0 = vector("y0", 2)

    def sinking(t, y):
        source, _sink = y
        return [-source, source + 0.0 * t]

    f = pytensor.function([y0], solve_ivp(sinking, 0.5, y0, [0.5, 1.0], method=method))
    with SerialPool() as pool:
        assert np.isnan(f([1.0, np.nan])).all()
    [reason] = pool.report().failed_solves
    assert reason.endswith("where state sink is nan (sinking, near t = 0.5)")


@each_method
def test_all_of_a_failed_solution_is_nan(method):
    """The times before the failure too: half a solution is none."""
    f = problem(growth, method)
    value, by_k, by_y0 = f(0.6)
    assert np.isnan(value).all()
    assert np.isnan(by_k).all()
    assert np.isnan(by_y0).all()


def test_derivatives_by_times_of_a_failed_solve():
    t0, ts = pt.dscalar("t0"), vector("ts")
    y = solve_ivp(lambda t, y: y**2, t0, [1.0], ts)
    f = pytensor.function([t0, ts], [y, *pt.grad(y.sum(), [t0, ts])])
    assert np.isfinite(np.concatenate([np.ravel(part) for part in f(0.0, [0.25, 0.5])])).all()
    assert np.isnan(np.concatenate([np.ravel(part) for part in f(0.0, [0.5, 2.0])])).all()


@in_modes("FAST_COMPILE", "NUMBA")
def test_a_failure_within_a_batch(mode, capfd):
    """The rows beside it are what they are alone."""
    k, ks = pt.dscalar("k"), vector("ks")
    y = solve_ivp(growth, 0.0, [1.0], TS, k)
    outputs = with_derivatives(y, (LEAVES,))
    alone = pytensor.function([k], outputs)
    batch = pytensor.function([ks], vectorize_graph(outputs, {k: ks}))
    rows = np.array([0.1, 2.0, 0.2, np.nan, 0.3])
    results = []
    why = failures(lambda: results.append(batch(rows)))
    assert sum(why.values()) == 2
    for part, single in zip(results[0], zip(*map(alone, rows), strict=True), strict=True):
        assert_same_bits(part, np.stack(single))
    assert np.isnan(results[0][0][[1, 3]]).all()
    assert np.isfinite(results[0][0][[0, 2, 4]]).all()
    assert capfd.readouterr() == ("", "")


@each_method
def test_order_is_of_no_account(method):
    """The memory of a solver keeps nothing of the solves before."""
    f = problem(lambda t, y, k: -k * (y - np.cos(t)), method)
    points = [0.1, 2000.0, np.nan, 3.0]
    expected = {}
    for k in points:
        # What a fresh problem gives.
        expected[k] = problem(lambda t, y, k: -k * (y - np.cos(t)), method)(k)
    for order in permutations(points):
        for k in order:
            assert_same_bits(f(k), expected[k])


@each_method
def test_fresh_memory_gives_the_same(method):
    k = pt.dscalar("k")
    y = solve_ivp(lambda t, y, k: -k * (y - np.cos(t)), 0.0, [1.0], TS, k, method=method)
    f = pytensor.function([k], y)
    first = f(3.0)
    f(np.nan)
    op = node_of(y).op
    assert release(op) == 1
    assert release(op) == 0
    assert_same_bits(f(3.0), first)
    f(5.0)
    assert release(op) == 1


@pytest.mark.parametrize(
    ("mode", "method"), [("FAST_COMPILE", "tsit5"), ("NUMBA", "bdf")], indirect=["mode"]
)
def test_threads(mode, method):
    """Three threads on one problem at the same time: memory is never shared."""
    p, ps = vector("p", 2), pt.dmatrix("ps", shape=(None, 2))
    y = solve_ivp(
        lambda t, y, p: [p[0] * y[1], -p[1] * y[0]], 0.0, [1.0, 0.5], TS, p, method=method
    )
    outputs = with_derivatives(y, (Y0, LEAVES))
    if mode == "NUMBA":
        # Compiled code that has let go of Python's lock: it runs at the same time.
        outputs = vectorize_graph(outputs, {p: ps})
    rng = np.random.default_rng(0)
    points = rng.uniform(0.5, 4.0, size=(3, 60, 2))
    functions = [pytensor.function([ps if mode == "NUMBA" else p], outputs) for _ in range(3)]

    def work(f, rows):
        return [f(rows[k : k + 20]) for k in (0, 20, 40)] if mode == "NUMBA" else list(map(f, rows))

    expected = [work(functions[0], rows) for rows in points]
    results = [None] * 3
    begin = threading.Barrier(3)

    def thread(j):
        begin.wait()
        results[j] = [work(functions[j], points[j]) for _ in range(4)]

    threads = [threading.Thread(target=thread, args=(j,)) for j in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for j in range(3):
        for again in results[j]:
            assert_same_bits(again, expected[j])
    op = outputs[0].owner.op
    assert 1 <= release(op.core_op if mode == "NUMBA" else op) <= 3


# Memory: each script prints how much the process has grown over its second half or more, in kB.

GROWTH = """
import sys
import numpy as np, pytensor, pytensor.tensor as pt
from pytensor.graph.replace import vectorize_graph
from pymc_mpimap import Doses, Steps, solve_ivp

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4

def grown(f, arguments, warm, calls):
    for k in range(warm):
        f(*arguments(k))
    before = resident()
    for k in range(calls):
        f(*arguments(k))
    return resident() - before

k, ks = pt.dscalar("k"), pt.dvector("ks")
"""


def growth_of(script):
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GROWTH + script],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert answer.stderr == ""
    assert answer.returncode == 0
    return int(answer.stdout)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("method", ["tsit5", "bdf"])
def test_a_million_solves_do_not_leak(method):
    script = f"""
y = solve_ivp(lambda t, y, k: -k * y, 0.0, [1.0], [0.5], k, method="{method}", rtol=1e-3)
total = vectorize_graph(y, {{k: ks}}).sum()
f = pytensor.function([ks], [total, pt.grad(total, ks)], mode="NUMBA")
rows = np.linspace(0.1, 1.0, 10_000)
print(grown(f, lambda _: (rows,), 10, 100))
"""
    assert growth_of(script) < 2000


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("method", ["tsit5", "bdf"])
def test_failing_solves_do_not_leak(method):
    script = f"""
y = solve_ivp(lambda t, y, k: k * y**2, 0.0, [1.0], [0.5], k, method="{method}", max_steps=30)
total = vectorize_graph(y, {{k: ks}}).sum()
f = pytensor.function([ks], [total, pt.grad(total, ks)], mode="NUMBA")
rows = np.where(np.arange(10_000) % 3, np.nan, 4.0)
assert np.isnan(f(rows)[1]).all()
print(grown(f, lambda _: (rows,), 3, 20))
"""
    assert growth_of(script) < 2000


@linux_only
def test_changing_sizes_do_not_leak():
    """The width of a solve follows the number of doses, and the memory of its solver with it."""
    script = """
times, amounts = pt.dvector("times"), pt.dvector("amounts")
when, values = pt.dvector("when"), pt.dvector("values")
y = solve_ivp(
    lambda t, y, u: u - y, 0.0, [1.0], [0.5, 2.0], Steps(when, values),
    doses=Doses(times, amounts), method="auto",
)
gradients = pt.grad(y.sum(), [amounts, values])
f = pytensor.function([times, amounts, when, values], gradients, mode="NUMBA")

def arguments(k):
    n, m = k % 7, k % 5
    return np.arange(n) / 4, np.ones(n), np.arange(m) / 3, np.ones(m + 1)

print(grown(f, arguments, 500, 30_000))
"""
    assert growth_of(script) < 1000


def test_the_number_of_doses_may_alternate():
    """Memory of another size is made anew, and gives the same as before."""
    times, amounts = vector("times"), vector("amounts")
    y = solve_ivp(lambda t, y: -y, 0.0, [1.0], TS, doses=Doses(times, amounts), method="auto")
    f = compiled([times, amounts], [y, pt.grad(y.sum(), amounts)])
    points = [(np.linspace(0.0, 1.5, n), np.arange(1.0, n + 1)) for n in (1, 4, 0, 9)]
    expected = [f(*point) for point in points]
    for _ in range(3):
        for point, one in zip(reversed(points), reversed(expected), strict=True):
            assert_same_bits(f(*point), one)
