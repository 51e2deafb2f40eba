"""Rejections where there is no pool: a posterior is not cut off without a word."""

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from pymc_mpimap import MapRectWarning, SerialPool, map_rect, numeric_job
from tests.programs import run


def rejecting(name):
    @numeric_job(derivatives=None)
    def fails(theta, job):
        if job > theta:
            raise ZeroDivisionError(f"no root of {job}")
        return theta

    theta = pt.dscalar("theta")
    output = map_rect(fails, theta, np.arange(4.0), on_error="reject", name=name)
    return pytensor.function([theta], output.sum())


def test_the_first_rejection_of_each_function_is_warned_of():
    function, another = rejecting("told once"), rejecting("told, too")
    function(3.0)
    with pytest.warns(MapRectWarning) as caught:
        values = [f(theta) for f in (function, another) for theta in (1.0, 0.0, 1.0)]
    assert values == [-np.inf] * 6
    first, second = (str(warning.message) for warning in caught)
    assert first.startswith("job 2 of told once raised ZeroDivisionError: no root of 2.0, and its ")
    assert "print(pool.report())" in first
    assert "with pymc_mpimap.SerialPool() as pool:" in first
    assert second.startswith("job 2 of told, too raised ")


def test_a_pool_tells_by_itself():
    """By its report and when it is left; it warns of nothing."""
    with SerialPool() as pool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rejecting("told by the pool")(1.0)
    assert caught == []
    assert pool.report().rejected["job 2 of told by the pool"] == 1


def test_a_rejection_in_another_thread_is_warned_of():
    function = rejecting("told in a thread")
    with (
        ThreadPoolExecutor() as threads,
        pytest.warns(MapRectWarning, match="job 1 of told in a thread"),
    ):
        assert threads.submit(function, 0.0).result() == -np.inf


def test_threads_that_ask_first_at_the_same_time_get_one_pool():
    """Else each would count, warn and tell for itself."""
    code = """
import socket, threading
from pymc_mpimap import current_pool
together, pools = threading.Barrier(2, timeout=20), set()
socket.gethostname = lambda: f"host {together.wait()}"  # Until another makes a pool, too.
threads = [threading.Thread(target=lambda: pools.add(current_pool())) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(pools))
"""
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    assert said.stdout == "1\n"


def test_a_warning_that_is_made_an_error_is_raised():
    """Once: what was counted is not lost, and the next evaluation is one like others."""
    function = rejecting("told as an error")
    with pytest.raises(MapRectWarning, match="job 1 of told as an error"):
        function(0.0)
    assert function(0.0) == -np.inf


def test_each_process_tells_of_its_own_rejections_at_its_end():
    result = run(0, "rejects.py", env={**os.environ, "PYTHONWARNINGS": "default"})
    assert result.returncode == 0
    assert result.stderr.count("MapRectWarning: job 0 of fit raised ZeroDivisionError") == 1
    said = [line for line in result.stderr.splitlines() if "valid value" in line or "times" in line]
    assert said == [
        "Of 5 evaluations without a pool, some gave no valid value:",
        "  rejected 10 times: jobs 0 (5 times) and 1 (5 times) of fit: ZeroDivisionError: no root",
        "Of 3 evaluations without a pool, some gave no valid value:",
        "  rejected 6 times: jobs 0 (3 times) and 1 (3 times) of fit: ZeroDivisionError: no root",
    ]
