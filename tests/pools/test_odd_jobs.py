"""Jobs that raise or return what no job should: what is said, what is counted, what goes on."""

import traceback
import warnings

import numba
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import JobError, SerialPool, current_pool, map_rect, numeric_job
from tests.helpers import assert_same_bits, in_modes, ranks, rejects

pytestmark = rejects

N = 7


class OwnError(BaseException):
    """Not an `Exception`."""


class SpeechlessError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class UntouchableError(Exception):
    """Whatever is asked of it, it raises."""

    def __getattribute__(self, name):
        raise RuntimeError(name)

    def __str__(self):
        raise KeyboardInterrupt

    __repr__ = __reduce__ = __reduce_ex__ = __str__


class UnshowableError(Exception):
    @property
    def __cause__(self):
        raise SystemExit(1)

    __context__ = __cause__


def down(n):
    return up(n + 1)


def up(n):
    return down(n + 1)


@numba.njit
def compiled(x):
    if x > 0:
        raise ValueError("from machine code")
    return x


def warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.warn("taken seriously", stacklevel=1)


def raises(error):
    raise error


def chained():
    try:
        raises(KeyError("first"))
    except KeyError as error:
        raise ValueError("then") from error


def nameless():
    """Of a class that could not be sent to another rank."""

    class Kind(type):
        @property
        def __name__(cls):
            raise RuntimeError("no name")

        def __getattribute__(cls, name):
            raise RuntimeError(name)

    class NamelessError(Exception, metaclass=Kind):
        @property
        def __class__(self):
            raise SystemExit(7)

    raise NamelessError("why")


def divides():
    with np.errstate(all="raise"):
        return np.array(1.0) / np.array(0.0)


ODD = {
    "generator exit": (lambda: raises(GeneratorExit("stop")), "GeneratorExit: stop"),
    "own": (lambda: raises(OwnError("odd")), "OwnError: odd"),
    "speechless": (
        lambda: raises(SpeechlessError()),
        "SpeechlessError, whose text could not be had: its __str__ raised RuntimeError",
    ),
    "untouchable": (
        lambda: raises(UntouchableError()),
        "UntouchableError, whose text could not be had: its __str__ raised KeyboardInterrupt",
    ),
    "nameless": (nameless, "NamelessError: why"),
    "unshowable": (lambda: raises(UnshowableError("why")), "UnshowableError: why"),
    "recursion": (lambda: down(0), "RecursionError: maximum recursion depth exceeded"),
    "numba": (lambda: compiled(1.0), "ValueError: from machine code"),
    "warning": (warns, "UserWarning: taken seriously"),
    "floating point": (divides, "FloatingPointError: divide by zero encountered"),
    "huge": (lambda: raises(ValueError("x" * 10**6)), "ValueError: xxxxx"),
    "chained": (chained, "ValueError: then"),
}


def build(bad_job, *, on_error="raise", name="odd"):
    """Return a function of the jobs that are bad: values, and the gradient by theta."""

    @numeric_job
    def job(theta, own, bad):
        if bad:
            return bad_job(), own
        return theta * own, own

    theta, flags = pt.dscalar("theta"), pt.lvector("bad", shape=(N,))
    values = map_rect(job, theta, np.arange(1.0, N + 1), flags, on_error=on_error, name=name)
    function = pytensor.function([theta, flags], [values, pt.grad(values.sum(), theta)])
    return lambda bad: function(2.0, np.isin(np.arange(N), bad).astype(int))


GOOD = [2 * np.arange(1.0, N + 1), np.array(28.0)]


@pytest.mark.parametrize("odd", ODD)
def test_whatever_is_raised_is_reported(odd):
    bad_job, said = ODD[odd]
    function = build(bad_job)
    for bad in (0, N - 1):
        with pytest.raises(JobError) as caught:
            function([bad])
        failure = caught.value.failure
        assert failure.job == bad
        assert failure.rank == (0 if bad == 0 else ranks() - 1)
        assert failure.exception.startswith(said)
        assert failure.traceback.startswith("Traceback (most recent call last):\n")
        assert "test_odd_jobs.py" in failure.traceback
        assert len(failure.exception) < 600
        assert len(failure.traceback) < 21_000
        assert "JobError" in "".join(traceback.format_exception(caught.value))
    assert_same_bits(function([]), GOOD)
    rejecting = build(bad_job, on_error="reject", name=f"odd {odd}")
    values, gradient = rejecting([2, N - 1])
    assert np.flatnonzero(np.isneginf(values)).tolist() == [2, N - 1]
    assert gradient == 28.0 - 3 - N
    assert_same_bits(rejecting([]), GOOD)
    report = current_pool().report()
    assert report.rejected[f"job 2 of odd {odd}"] == 1
    (reason,) = (reason for reason in report.reasons if reason.function == f"odd {odd}")
    assert reason.text.startswith(said)
    assert reason.jobs == {2: 1, N - 1: 1}


def test_each_reason_is_counted_on_whatever_rank():
    """Three times the usual one and once a rare one, of one job and of the last."""
    errors = [ZeroDivisionError("division by zero"), MemoryError(), ValueError("at 1.5")]

    @numeric_job(derivatives=None)
    def fails(theta, job, which):
        if which:
            raise errors[which - 1]
        return theta

    which = pt.lvector("which", shape=(N,))
    name = f"fails by reason on {ranks()}"
    total = map_rect(fails, 1.0, N, which, on_error="reject", name=name).sum()
    function = pytensor.function([which], total)
    for k in (1, 1, 2, 1):
        assert function(np.where(np.isin(np.arange(N), [0, N - 1]), k, 0)) == -np.inf
    function(np.eye(N, dtype=int)[3] * 3)
    mine = [reason for reason in current_pool().report().reasons if reason.function == name]
    assert [(reason.text, reason.times, reason.jobs) for reason in mine] == [
        ("ZeroDivisionError: division by zero", 6, {0: 3, N - 1: 3}),
        ("MemoryError", 2, {0: 1, N - 1: 1}),
        ("ValueError: at 1.5", 1, {3: 1}),
    ]


def test_a_traceback_shows_its_causes():
    function = build(chained)
    with pytest.raises(JobError, match=r"KeyError: 'first'[\s\S]*direct cause[\s\S]*in chained"):
        function([1])


def test_interrupt_is_raised_and_not_rejected():
    """On rank 0 it is the user's Ctrl-C; other ranks hear of none: there it is the job's own."""
    function = build(lambda: raises(KeyboardInterrupt()), on_error="reject", name="interrupted")
    with pytest.raises(KeyboardInterrupt if ranks() == 1 else JobError) as caught:
        function([N - 1])
    if ranks() > 1:
        assert caught.value.failure.job == N - 1
        assert caught.value.failure.exception == "KeyboardInterrupt"
    with pytest.raises(KeyboardInterrupt):
        function([0])
    assert_same_bits(function([]), GOOD)
    assert "job 0 of interrupted" not in current_pool().report().rejected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "TypeError: odd returned None as its value; it should be a real number"),
        ("1.5", "TypeError: odd returned str '1.5' as its value"),
        (1.5 + 2j, r"TypeError: odd returned complex \(1.5\+2j\) as its value"),
        (np.ones(2), r"ValueError: odd returned a value of shape \(2,\)"),
        ([1.0, [2.0]], "TypeError: odd returned a list of entries of the shapes"),
    ],
    ids=["none", "text", "complex", "shape", "ragged"],
)
def test_wrong_values_are_refused(value, said):
    function = build(lambda: value)
    with pytest.raises(JobError, match=rf"job 4 of odd, on rank \d+ \(.*\): {said}"):
        function([4])
    assert_same_bits(function([]), GOOD)


@pytest.mark.parametrize(
    ("derivative", "said"),
    [
        (1j, "TypeError: odd returned complex 1j as the derivative with respect to theta"),
        ("1.0", "TypeError: odd returned str '1.0' as the derivative with respect to theta"),
        (np.ones(3), r"ValueError: odd returned a derivative .* of shape \(3,\)"),
    ],
    ids=["complex", "text", "shape"],
)
def test_wrong_derivatives_are_refused(derivative, said):
    @numeric_job
    def odd(theta, own):
        return theta * own, derivative

    theta = pt.dscalar("theta")
    function = pytensor.function([theta], pt.grad(map_rect(odd, theta, np.ones(N)).sum(), theta))
    with pytest.raises(JobError, match=said):
        function(1.0)


def counted(before):
    """Return what was not finite since this report."""
    now = current_pool().report().not_finite
    return {k: n - before.get(k, 0) for k, n in now.items() if n > before.get(k, 0)}


@in_modes("FAST_COMPILE", "NUMBA")
@pytest.mark.parametrize("grain_size", [1, 3])
@pytest.mark.parametrize("used", ["gathered", "summed"])
@pytest.mark.parametrize("kind", ["traced", "numeric"])
def test_values_that_are_not_finite_are_counted(kind, used, grain_size, mode):
    """For each job, beside those that are rejected; derivatives are not looked at."""
    name = f"{kind} in {mode}, {used} by {grain_size}"

    def job(theta, own):
        return theta / own if kind == "traced" else (theta / own, np.nan)

    theta, own = pt.dscalar("theta"), pt.dvector("own", shape=(N,))
    work = job if kind == "traced" else numeric_job(job)
    values = map_rect(work, theta, own, name=name, grain_size=grain_size)
    outputs = [values if used == "gathered" else values.sum(), pt.grad(values.sum(), theta)]
    function = pytensor.function([theta, own], outputs)
    before = current_pool().report().not_finite
    with np.errstate(all="ignore"):
        for theta_now, third, last in ((1.0, 2.0, 1.0), (1.0, 0.0, np.nan), (-1.0, 0.0, np.nan)):
            given = np.array([1.0, 2.0, third, 1.0, 1.0, 1.0, last])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                result, _ = function(theta_now, given)
                expected = theta_now / given
                assert_same_bits(result, expected if used == "gathered" else expected.sum())
    assert counted(before) == {
        f"job 2 of {name}: inf": 1,
        f"job 2 of {name}: -inf": 1,
        f"job {N - 1} of {name}: nan": 2,
    }


@pytest.mark.parametrize("used", ["gathered", "summed"])
def test_vectors_that_are_not_finite_are_counted(used):
    """Once a job, whatever the number of entries; lengths may be held or given."""

    @numeric_job(length=lambda k: k, derivatives=None)
    def vector(theta, own, k):
        return np.full(k, own)

    own = pt.dvector("own", shape=(4,))
    lengths = np.array([2, 0, 3, 1])
    given = pt.lvector("lengths", shape=(4,))
    held = map_rect(vector, None, own, lengths, name=f"held, {used}")
    asked = map_rect(vector, None, own, given, name=f"given, {used}")
    outputs = [held, asked] if used == "gathered" else [held.sum(), asked.sum()]
    function = pytensor.function([own, given], outputs)
    before = current_pool().report().not_finite
    function(np.array([1.0, np.nan, -np.inf, np.nan]), lengths)
    function(np.array([1.0, np.nan, 1.0, 1.0]), lengths[::-1].copy())
    names = [
        f"job {j} of {name}, {used}: {value}" for name in ("given", "held") for j, value in ODD_ENDS
    ]
    assert counted(before) == {**dict.fromkeys(names, 1), f"job 1 of given, {used}: nan": 1}


ODD_ENDS = ((2, "-inf"), (3, "nan"))


def test_rejected_jobs_are_not_counted_twice():
    function = build(lambda: raises(ValueError("no")), on_error="reject", name="rejected once")
    before = current_pool().report().not_finite
    function([1, 5])
    assert counted(before) == {}


def test_what_kept_proposals_from_being_taken_is_told_at_the_end(caplog):
    function = build(lambda: raises(ValueError("no")), on_error="reject", name="told")
    with SerialPool() as pool:
        function([1])
        function([1, 2])
        assert caplog.messages == []
    told = (
        "Of 2 evaluations of the pool, some gave no valid value:\n"
        "  rejected 3 times: jobs 1 (2 times) and 2 (once) of told: ValueError: no"
    )
    assert caplog.messages == [told]
    with pool:
        function([])
    assert caplog.messages == [told]  # Nothing is told twice.
    with pool:
        function([2])
    assert len(caplog.messages) == 2
    with SerialPool():
        function([])
    assert len(caplog.messages) == 2


def test_a_derivative_that_is_a_python_float_keeps_its_digits():
    @numeric_job
    def tenth(theta, own):
        return float(0.1 * theta), 0.1

    theta = pt.dscalar("theta")
    gradient = pt.grad(map_rect(tenth, theta, 1).sum(), theta)
    assert_same_bits(pytensor.function([theta], gradient)(1.0), np.array(0.1))
