"""What a pool's report says."""

import numpy as np

from pymc_mpimap.errors import JobFailure
from pymc_mpimap.pool.report import Recorder


def failure(job):
    return JobFailure("f", job, 1, "there", f"ValueError: {job}", "")


def test_report_names_the_most_rejected_jobs():
    recorder = Recorder(["here", "there"])
    for job, times in enumerate([3, 1, 5, 1, 1, 1, 1]):
        recorder.noted([failure(job)] * times)
    lines = str(recorder.report()).splitlines()
    assert lines[0] == "0 evaluations on 2 ranks, 0.0 a second"
    assert lines[3:6] == [
        "  rejected 5 times: job 2 of f: ValueError: 2",
        "  rejected 3 times: job 0 of f: ValueError: 0",
        "  rejected once: job 1 of f: ValueError: 1",
    ]
    assert lines[-1] == "  rejected 2 times: 2 more jobs, see report().rejected"
    assert recorder.report().rejected["job 6 of f"] == 1


def test_report_leaves_the_first_evaluation_out():
    """It compiles: its time says nothing about the others."""
    recorder = Recorder(["here", "there"])
    recorder.evaluated([10**11, 10**11], 10**11)
    recorder.evaluated([250_000_000, 500_000_000], 10**11 + 10**9)
    report = recorder.report()
    assert report.evaluations == 2
    assert np.array_equal(report.busy, [0.25, 0.5])
    assert report.per_second == 1 / report.seconds
