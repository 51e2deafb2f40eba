"""Whole programs on MPI ranks: how they start, how they end, and what they leave behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launchers import MPICH, OPENMPI, SPAWNED_MPICH, SPAWNED_OPENMPI, launched_by
from tests.programs import Started, run

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(240)]


@launched_by()
@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        pytest.param("returns", 0, "the end of returns", id="returns"),
        pytest.param("exit 0", 0, "READY", id="exit 0"),
        pytest.param("exit 3", 3, "READY", id="exit 3"),
        pytest.param("raises", 1, "ValueError: the user's own error", id="raises"),
        pytest.param(
            "job exits",
            0,
            r"SystemExit: 5\n\[ 0\.  2\.  4\.  6\.  8\. 10\.\]\nthe end",
            id="job exits",
        ),
    ],
)
def test_end(launcher, how, status, said):
    """All ranks end with the controller, with its exit status."""
    returncode, output = Started("ends.py", how, launcher=launcher).end()
    assert returncode == status if status is not None else returncode != 0, output
    assert re.search(said, output), output


@launched_by(MPICH)
def test_controller_that_vanishes_ends_all(launcher):
    """Without a word to anybody, as by a crash of the interpreter."""
    returncode, output = Started("ends.py", "vanishes", launcher=launcher).end()
    assert returncode != 0, output  # the status is mpiexec's own


def test_ctrl_c_while_evaluating():
    program = Started("ends.py", "evaluates")
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end()
    assert returncode == 130, output
    assert output.count("KeyboardInterrupt\n") == 1, output


@launched_by(MPICH, SPAWNED_MPICH, SPAWNED_OPENMPI)
def test_ctrl_c_that_is_caught(launcher):
    """It reaches rank 0 alone. The pool goes on after an evaluation that was interrupted."""
    program = Started("ends.py", "evaluates and is interrupted", launcher=launcher)
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end()
    assert returncode == 0, output
    assert "interrupted [ 0.  3.  6.  9. 12. 15.]\nthe end" in output, output
    assert "died" not in output, output


@launched_by(MPICH, SPAWNED_MPICH)
def test_ctrl_c_in_a_long_job(launcher):
    """Ranks that are busy for another minute do not keep the others waiting."""
    program = Started("ends.py", "long job", launcher=launcher)
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end(timeout=20)
    # Without mpiexec, it is that of Python: it ends itself by the signal.
    assert returncode == -signal.SIGINT if launcher is SPAWNED_MPICH else returncode != 0, output


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        pytest.param(MPICH, signal.SIGTERM, id="mpich-SIGTERM"),
        pytest.param(MPICH, signal.SIGHUP, id="mpich-SIGHUP"),
        pytest.param(OPENMPI, signal.SIGTERM, id="openmpi-SIGTERM"),
        pytest.param(OPENMPI, signal.SIGHUP, id="openmpi-SIGHUP"),
        # Open MPI's mpiexec kills the ranks half a second after Ctrl-C, and they cannot know of it.
        pytest.param(OPENMPI, signal.SIGINT, id="openmpi-SIGINT"),
    ],
)
def test_signals_end_all(launcher, number):
    program = Started("ends.py", "evaluates", launcher=launcher)
    os.killpg(program.process.pid, number)
    returncode, output = program.end(timeout=20)
    assert returncode != 0, output


def test_worker_that_dies_ends_all():
    """Under MPICH; under Open MPI the others go on, see test_faults."""
    program = Started("ends.py", "evaluates")
    os.kill(program.workers()[0], signal.SIGKILL)
    returncode, output = program.end(timeout=20)
    assert returncode != 0, output


def cpu_seconds(pid):
    fields = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@launched_by()
def test_idle_workers_rest(launcher):
    """While the controller waits for its user, workers need next to nothing of a core."""
    program = Started("ends.py", "idle", launcher=launcher)
    workers = program.workers()
    assert len(workers) == 2
    before = {pid: cpu_seconds(pid) for pid in workers}
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(timeout=4)  # It waits for a line, and so stays as it is.
    seconds = time.monotonic() - begun
    used = {pid: cpu_seconds(pid) - before[pid] for pid in workers}
    program.process.stdin.write("\n")
    program.process.stdin.flush()
    returncode, output = program.end()
    assert returncode == 0, output
    for pid in workers:
        assert used[pid] / seconds < 0.05, f"worker {pid} used {used[pid]} s of {seconds} s"


@pytest.fixture(scope="module")
def draws():
    """Return what serial sampling gives, by one sampler after the other."""
    return drawn(run(0, "sample.py", "nutpie,pymc", "one"))


def drawn(result):
    assert result.returncode == 0, result.stderr
    return re.findall(r"DRAWS .*", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_same_draws_on_any_number_of_ranks(draws, ranks):
    assert len(draws) == 2
    assert drawn(run(ranks, "sample.py", "nutpie,pymc", "one")) == draws


@pytest.mark.slow
def test_module_runs_a_script_without_a_pool_of_its_own(draws):
    result = run(3, "forgotten.py", module=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("VALUES [0. 2. 4.]") == 2
    assert "without a pool" not in result.stderr
    assert drawn(run(2, "sample.py", "nutpie", "one", module=True)) == draws[:1]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_chains_in_processes_are_told_the_cure(context):
    result = run(2, "sample.py", "pymc", context)
    assert result.returncode == 1
    assert "ParallelSamplingError" in result.stderr
    assert "pm.sample(cores=1)" in result.stderr


@launched_by()
def test_forgotten_pool_is_told_once(launcher):
    result = run(3, "forgotten.py", launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("VALUES [0. 2. 4.]") == 6
    assert result.stderr.count("mpiexec started 3 ranks") == 1, result.stderr


def test_one_process_needs_no_mpi(tmp_path):
    """The same script runs where mpi4py cannot be imported."""
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no MPI library')")
    path = os.pathsep.join([str(tmp_path), *sys.path[1:]])
    result = run(0, "ends.py", "returns", env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 0, result.stderr
    assert "the end of returns" in result.stdout


def test_module_names_a_missing_script():
    result = subprocess.run(
        [sys.executable, "-m", "pymc_mpimap", "missing.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "there is no script missing.py" in result.stderr


def test_one_thread_a_rank():
    """Unless the user says otherwise, in the script or by the environment."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    chosen = {**environment, "OPENBLAS_NUM_THREADS": "2"}
    for argument, env, threads in (("one", environment, 1), ("one", chosen, 2)):
        result = run(3, "threads.py", argument, env=env)
        assert f"THREADS {[threads] * 3}" in result.stdout, result.stdout + result.stderr
    # What is left alone is as many as there are cores, on this machine more than one.
    result = run(2, "threads.py", "left", env=environment)
    assert f"THREADS {[min(os.cpu_count(), 64)] * 2}" in result.stdout, result.stderr


def test_more_ranks_than_cores_are_told_once():
    ranks = len(os.sched_getaffinity(0)) + 1
    result = run(ranks, "threads.py", "one")
    told = f"{ranks} ranks share the {ranks - 1} cores"
    assert result.stderr.count(told) == 1, result.stderr
    result = run(ranks - 1, "threads.py", "one")
    assert "ranks share" not in result.stderr


@launched_by()
def test_what_open_mpi_does_at_ctrl_c_is_told_once(launcher):
    result = run(2, "threads.py", "one", launcher=launcher)
    told = result.stderr.count("Open MPI's mpiexec ends all ranks as soon as you press Ctrl-C")
    assert told == (launcher is OPENMPI), result.stderr
    assert result.stderr.count("disk_trace(path)") == told


@launched_by()
@pytest.mark.parametrize(
    ("mpi", "said"),
    [
        pytest.param("started", r"the ranks \[1\] did not enter MPIPool within 3 s", id="started"),
        # MPI itself does not say who.
        pytest.param("not started", r"Timeout[\s\S]*communicator\.py", id="not started"),
    ],
)
def test_rank_that_does_not_come(launcher, mpi, said):
    """It is named where that can be known, and nobody waits for it without an end."""
    result = run(3, "absent.py", mpi, launcher=launcher)
    assert result.returncode != 0
    assert re.search(said, result.stderr), result.stderr
    assert "ENTERED" not in result.stdout


def test_few_ranks_of_each_host_compile_first(tmp_path):
    """One, and another beside rank 0. The others find the code in the cache."""
    flags = f"{os.environ.get('PYTENSOR_FLAGS', '')},mode=NUMBA,base_compiledir={tmp_path}"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    result = run(6, "hosts.py", str(pipe), env={**os.environ, "PYTENSOR_FLAGS": flags.strip(",")})
    assert "VALUE True" in result.stdout, result.stderr
    lines = re.findall(r"^FIRST (\d) (\d+) (\d+)$", result.stdout, re.MULTILINE)
    spans = {int(rank): (int(begun), int(ended)) for rank, begun, ended in lines}
    assert sorted(spans) == [*range(6)]
    leaders, others = (0, 1, 2, 4), (3, 5)
    assert max(spans[rank][1] for rank in leaders) < min(spans[rank][0] for rank in others)
    assert spans[1][0] < spans[0][1]
