"""Child processes of a controller must not touch its ranks: they are told what to do instead."""

import subprocess
import sys
from pathlib import Path

import pytest

mpiexec = str(Path(sys.executable).parent / "mpiexec")


@pytest.mark.mpi
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_child_process_of_a_controller(method):
    result = subprocess.run(
        [mpiexec, "-n", "2", sys.executable, "-m", "tests.in_children", method],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    answers = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert answers["child"].startswith("ParallelSamplingError: ")
    assert "cores=1" in answers["child"]
    assert "nutpie" in answers["child"]
    assert answers["parent"] == "12.0"  # the parent's ranks are untouched
