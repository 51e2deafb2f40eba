"""What a pool's report says."""

from itertools import product

import numpy as np

from pymc_mpimap.errors import JobFailure, NotFinite
from pymc_mpimap.pool.report import Recorder
from pymc_mpimap.tally import N_COUNTS, REASONS


def failure(job, exception="ValueError: no", function="f"):
    return JobFailure(function, job, 1, "there", exception, "")


def lines(*incidents):
    recorder = Recorder(["here", "there"])
    recorder.noted(incidents)
    return str(recorder.report()).splitlines()[3:]


def test_report_names_the_jobs_that_were_rejected_most():
    recorder = Recorder(["here", "there"])
    for job, times in enumerate([3, 1, 5, 1, 1]):
        recorder.noted([failure(job, "ValueError")] * times)
    recorder.noted([failure(7, function="g")])
    said = str(recorder.report()).splitlines()
    assert said[0] == "0 evaluations on 2 ranks, 0.0 a second"
    assert said[3:] == [
        "  rejected 11 times: jobs 2 (5 times), 0 (3 times), 1 (once) and 2 more of f: ValueError",
        "  rejected once: job 7 of g: ValueError: no",
    ]
    assert recorder.report().rejected["job 4 of f"] == 1


def test_a_rare_reason_is_not_hidden_by_a_usual_one():
    usual, rare = failure(2, "ZeroDivisionError: division by zero"), failure(2, "MemoryError")
    assert lines(usual, usual, rare, usual) == [
        "  rejected 3 times: job 2 of f: ZeroDivisionError: division by zero",
        "  rejected once: job 2 of f: MemoryError",
    ]
    # Nor by one of the same class.
    assert lines(failure(2), failure(2, "ValueError: yes"), failure(2))[1:] == [
        "  rejected once: job 2 of f: ValueError: yes"
    ]


def test_texts_that_differ_in_numbers_are_one_reason():
    texts = ("-1.5e-3", "2", ".5 at 0x7f3a", "1.0")
    assert lines(*(failure(0, f"ValueError: no root: {text}") for text in texts)) == [
        "  rejected 3 times: job 0 of f: ValueError: no root: -1.5e-3 (the first of several texts)",
        "  rejected once: job 0 of f: ValueError: no root: .5 at 0x7f3a",
    ]


def test_the_report_stays_small_whatever_is_raised():
    words = ["".join(word) for word in product("abcdefghij", repeat=3)]
    many = [failure(j, f"ValueError: {word}") for j, word in enumerate(words)]
    many += [failure(j, f"Error{word}: text") for j, word in enumerate(words)]
    rare = failure(5, "MemoryError")
    recorder = Recorder(["here", "there"])
    recorder.noted([rare, *many])
    report = recorder.report()
    assert sum(reason.times for reason in report.reasons) == 2001
    assert len(report.reasons) == 11 + 1 + 48 + 11
    said = str(report).splitlines()[3:]
    assert len(said) == 21
    assert said[0].startswith("  rejected 990 times: jobs 10 (once), 11 (once), 12 (once) and 987 ")
    assert said[0].endswith(": ValueError: aba (the first of several texts)")
    assert "  rejected once: job 5 of f: MemoryError" in said
    assert said[-1] == "  rejected 51 times: for 51 more reasons, which are in the report"


def test_values_that_are_not_finite_are_told_by_value():
    odd = [NotFinite("f", job, "-inf") for job in range(9)] + [NotFinite("f", 3, "nan")]
    assert lines(*odd) == [
        "  not finite 9 times: jobs 0 (once), 1 (once), 2 (once) and 6 more of f: -inf",
        "  not finite once: job 3 of f: nan",
    ]


def test_a_model_without_maps_says_nothing_of_evaluations(caplog):
    recorder = Recorder(["here"])
    recorder.counted([4, 3] + [0] * (N_COUNTS - 2))
    recorder.tell()
    (said,) = caplog.messages
    assert said.splitlines() == [
        "Of 4 solves of ODEs, some gave no valid value:",
        "  3 of 4 solves failed:",
        f"    3 times {REASONS[1]}",
    ]


def test_report_leaves_the_first_evaluation_out():
    """It compiles: its time says nothing about the others."""
    recorder = Recorder(["here", "there"])
    recorder.evaluated([10**11, 10**11], 10**11)
    recorder.evaluated([250_000_000, 500_000_000], 10**11 + 10**9)
    report = recorder.report()
    assert report.evaluations == 2
    assert np.array_equal(report.busy, [0.25, 0.5])
    assert report.per_second == 1 / report.seconds
