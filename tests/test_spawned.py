"""Workers that rank 0 starts itself, where there is no mpiexec: ``MPIPool(workers=2)``."""

import os
import re
import signal
import subprocess
from types import SimpleNamespace

import pytest

from pymc_mpimap import InputError, MPIPool, PoolError
from pymc_mpimap.pool.mpi_library import Library
from tests.launchers import MPICH, SPAWNED_MPICH, SPAWNED_OPENMPI, launched_by
from tests.programs import SCRIPTS, Started, run, send
from tests.test_faults import Program

spawned_by_each = launched_by(SPAWNED_MPICH, SPAWNED_OPENMPI)


@pytest.mark.mpi
@spawned_by_each
def test_pools_without_mpiexec(launcher):
    """One after the other; with the bits, the output and the exit status of a serial program."""
    if launcher is SPAWNED_MPICH:
        result = run(1, "without_mpiexec.py", "child", launcher=launcher)
        assert result.stdout.count("CHILD refused, with MPI: False") == 2, result.stdout
    else:  # as in a notebook, there is no file
        result = subprocess.run(
            [launcher.python, "-"],
            input=(SCRIPTS / "without_mpiexec.py").read_text(),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert result.returncode == 3, result.stdout + result.stderr
    assert "ADDED []" in result.stdout, result.stdout
    said = re.findall(r"^(?:\[rank (\d)\] )?job (\d)\.0$", result.stdout, re.MULTILINE)
    assert sorted(number for _, number in said) == list("0123456"), result.stdout
    assert {rank for rank, _ in said} == {"", "1", "2"}, result.stdout


@pytest.mark.mpi
@spawned_by_each
def test_a_worker_that_dies(launcher):
    """Open MPI starts another in its place. MPICH ends the other workers too: rank 0 goes on."""
    program = Program(1, "flat", ranks=3, launcher=launcher)
    program.strike(signal.SIGKILL, 1)
    returncode, output = program.end()
    assert returncode == 0, output
    assert output.count("rank 1 on") == 3, output  # busy, and twice what became of it
    if launcher is SPAWNED_OPENMPI:
        assert re.search(r"rank 1 on \S+ died.*; another worker has taken its place", output)
        assert len(re.findall(r"rank 2 on \S+ died", output)) == 0, output
    else:
        assert re.search(r"rank 2 on \S+ died; this rank does its jobs", output), output


@pytest.mark.mpi
@spawned_by_each
def test_a_worker_that_is_stopped(launcher):
    """Open MPI ends it. MPICH would end the other worker too: it is left alone until the end."""
    program = Program(1, "limit, large, comes back", ranks=3, launcher=launcher)
    program.strike(signal.SIGSTOP, 2)
    program.said("LOST 1")
    workers = program.workers()
    assert program.pids[1] in workers, program.output
    assert (program.pids[2] in workers) == (launcher is SPAWNED_MPICH), program.output
    program.process.stdin.write("\n")
    program.process.stdin.flush()
    returncode, output = program.end()
    assert returncode == 0, output
    assert "died" not in output, output
    follows = (
        "another worker has taken its place"
        if launcher is SPAWNED_OPENMPI
        else "the 2 ranks that are left do its jobs"
    )
    said = rf"rank 2 on \S+ did not answer within 3 s, with the jobs \d+ to 11 of job; {follows}"
    assert re.search(said, output), output


@pytest.mark.mpi
@spawned_by_each
def test_a_job_that_ends_its_process(launcher):
    """Who takes the place of the worker dies of it too, and rank 0 would be the next.

    Under MPICH nobody takes it. That a worker has died once may be chance: rank 0 does the job.
    """
    program = Program(1, "job crashes", ranks=2, launcher=launcher)
    returncode, output = program.end()
    given_up = "GAVE UP an evaluation is given up" in output
    assert given_up == (launcher is SPAWNED_OPENMPI), output
    assert returncode == (0 if given_up else -signal.SIGSEGV), output
    assert ("another worker has taken its place" in output) == given_up, output
    assert "this rank does its jobs" in output, output


@pytest.mark.mpi
def test_ctrl_c_returns_the_draws_so_far():
    """Under Open MPI too: there is no mpiexec that would kill the ranks."""
    program = Started("keeps_draws.py", "none", "100000", "1", "pymc", launcher=SPAWNED_OPENMPI)
    program.said("DRAW 0 60\n")
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end()
    assert returncode == 0, output
    assert re.search(r"^RETURNED 1 \d\d+ 3 ", output, re.MULTILINE), output


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        pytest.param(SPAWNED_MPICH, signal.SIGKILL, id="mpich-SIGKILL"),
        pytest.param(SPAWNED_OPENMPI, signal.SIGKILL, id="openmpi-SIGKILL"),
        pytest.param(SPAWNED_MPICH, signal.SIGHUP, id="mpich-SIGHUP"),
        pytest.param(SPAWNED_OPENMPI, signal.SIGTERM, id="openmpi-SIGTERM"),
    ],
)
def test_nothing_is_left_of_workers_when_rank_0_vanishes(launcher, number):
    program = Started("ends.py", "evaluates", launcher=launcher)
    assert len(program.workers()) == 2
    os.kill(program.process.pid, number)
    returncode, output = program.end(timeout=20)
    assert returncode == -number, output


@pytest.mark.mpi
@spawned_by_each
def test_workers_end_though_all_else_vanishes(launcher):
    """MPI's daemon too, which would otherwise end them when rank 0 does."""
    program = Started("ends.py", "evaluates", launcher=launcher)
    others = set(program.processes()) - set(program.workers())
    for number in (signal.SIGSTOP, signal.SIGKILL):  # None of them sees another one end.
        send(number, others)
    returncode, output = program.end(timeout=20)
    assert returncode == -signal.SIGKILL, output


@pytest.mark.mpi
def test_mpiexec_has_started_the_ranks():
    result = subprocess.run(
        MPICH.command(1, "-c", "import pymc_mpimap as m; m.MPIPool(workers=2).__enter__()"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 1
    assert "PoolError: MPIPool(workers=2) starts its workers itself, but mpiexec" in result.stderr


@pytest.mark.mpi
def test_mpi_was_started_already():
    result = subprocess.run(
        [
            MPICH.python,
            "-c",
            "import mpi4py.MPI, pymc_mpimap as m; m.MPIPool(workers=2).__enter__()",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 1
    assert "PoolError: MPICH was started before, by an import of mpi4py.MPI" in result.stderr


@pytest.mark.parametrize("workers", [0, -1, 2.0, True, "2"])
def test_a_number_of_workers(workers):
    with pytest.raises(InputError, match="at least one"):
        MPIPool(workers=workers)


def test_workers_or_a_communicator():
    with pytest.raises(InputError, match="either the ranks of a communicator"):
        MPIPool(SimpleNamespace(), workers=2)


def test_a_library_that_cannot_start_workers():
    intel = SimpleNamespace(Get_library_version=lambda: "Intel(R) MPI Library 2021.19 for Linux")
    with pytest.raises(PoolError, match=r"start the script by mpiexec.*pymc_mpimap\[mpich\]"):
        Library(intel)


def test_a_daemon_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    openmpi = SimpleNamespace(Get_library_version=lambda: "Open MPI v5.0.11, package: ...")
    with pytest.raises(PoolError, match="its program prte, which is neither in"):
        Library(openmpi)
