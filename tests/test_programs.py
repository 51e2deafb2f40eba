"""Whole programs on MPI ranks: how they start, how they end, and what they leave behind."""

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(240)]

SCRIPTS = Path(__file__).parent / "scripts"
MPIEXEC = Path(sys.executable).parent / "mpiexec"
END = 2.0
"""Seconds within which all ranks must be gone."""


def command(ranks, script, *arguments, module=False):
    launched = [sys.executable, *(["-m", "pymc_mpimap"] if module else []), SCRIPTS / script]
    prefix = [MPIEXEC, "-n", str(ranks)] if ranks else []
    return [str(word) for word in (*prefix, *launched, *arguments)]


def run(ranks, script, *arguments, module=False, **options):
    return subprocess.run(
        command(ranks, script, *arguments, module=module),
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
        check=False,
        **options,
    )


class Started:
    """A program that has reached its pool, and says so."""

    def __init__(self, how, ranks=3):
        self.process = subprocess.Popen(
            command(ranks, "ends.py", how),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A mark that its ranks inherit, to find them by.
            env={**os.environ, "TEST_PROGRAMS_MARK": f"{os.getpid()} {how}"},
            start_new_session=True,
        )
        self.mark = f"TEST_PROGRAMS_MARK={os.getpid()} {how}".encode()
        self.lines = []
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        assert self.ready.wait(120), "".join(self.lines)
        found = re.search(r"READY (\d+)", "".join(self.lines))
        assert found, "".join(self.lines)
        self.controller = int(found[1])

    def read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if "READY" in line:
                self.ready.set()
        self.ready.set()

    def ranks(self):
        """Return the process ids of all ranks that still run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self.mark in (folder / "environ").read_bytes().split(b"\0")
                python = b"ends.py" in (folder / "cmdline").read_bytes()
                launcher = b"mpiexec" in (folder / "cmdline").read_bytes().split(b"\0")[0]
                gone = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if marked and python and not launcher and not gone:
                found.append(int(folder.name))
        return found

    def end(self, timeout=60.0):
        """Wait for the program and all its ranks; return exit status and output."""
        watched = {pid: os.pidfd_open(pid) for pid in self.ranks()}
        try:
            self.process.wait(timeout)
            deadline = time.monotonic() + END
            for descriptor in watched.values():
                select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            left = self.ranks()
            assert not left, "ranks were left running"
        finally:
            for pid in self.ranks():
                os.kill(pid, signal.SIGKILL)
            for descriptor in watched.values():
                os.close(descriptor)
            self.process.kill()
            self.process.wait(timeout)
            self.reader.join(timeout)
            self.process.stdin.close()
            self.process.stdout.close()
        return self.process.returncode, "".join(self.lines)


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("returns", 0, "the end of returns"),
        ("exit 0", 0, "READY"),
        ("exit 3", 3, "READY"),
        ("raises", 1, "ValueError: the user's own error"),
        ("job exits", 0, r"SystemExit: 5\n\[ 0\.  2\.  4\.  6\.  8\. 10\.\]\nthe end"),
        ("vanishes", None, "READY"),  # the status is mpiexec's own
    ],
)
def test_end(how, status, said):
    """All ranks end with the controller, with its exit status."""
    returncode, output = Started(how).end()
    assert returncode == status if status is not None else returncode != 0, output
    assert re.search(said, output), output


def test_ctrl_c_while_evaluating():
    program = Started("evaluates")
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end()
    assert returncode == 130, output
    assert output.count("KeyboardInterrupt\n") == 1, output


def test_ctrl_c_that_is_caught():
    """The pool goes on after an evaluation that was interrupted half-way."""
    program = Started("evaluates and is interrupted")
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end()
    assert returncode == 0, output
    assert "interrupted [ 0.  3.  6.  9. 12. 15.]\nthe end" in output


def test_ctrl_c_in_a_long_job():
    """Ranks that are busy for another minute do not keep the others waiting."""
    program = Started("long job")
    os.killpg(program.process.pid, signal.SIGINT)
    returncode, output = program.end(timeout=20)
    assert returncode != 0, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_all(number):
    program = Started("evaluates")
    os.killpg(program.process.pid, number)
    returncode, output = program.end(timeout=20)
    assert returncode != 0, output


def test_worker_that_dies_ends_all():
    program = Started("evaluates")
    worker = next(pid for pid in program.ranks() if pid != program.controller)
    os.kill(worker, signal.SIGKILL)
    returncode, output = program.end(timeout=20)
    assert returncode != 0, output


def cpu_seconds(pid):
    fields = (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_idle_workers_rest():
    """While the controller waits for its user, workers need next to nothing of a core."""
    program = Started("idle")
    workers = [pid for pid in program.ranks() if pid != program.controller]
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
    """Return what serial sampling gives, for each sampler."""
    return {sampler: drawn(run(0, "sample.py", sampler, "one")) for sampler in ("nutpie", "pymc")}


def drawn(result):
    assert result.returncode == 0, result.stderr
    return re.search(r"DRAWS .*", result.stdout)[0]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["nutpie", "pymc"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_same_draws_on_any_number_of_ranks(draws, sampler, ranks):
    assert drawn(run(ranks, "sample.py", sampler, "one")) == draws[sampler]


@pytest.mark.slow
def test_module_runs_a_script_without_a_pool_of_its_own(draws):
    result = run(3, "forgotten.py", module=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("VALUES [0. 2. 4.]") == 2
    assert "without a pool" not in result.stderr
    assert drawn(run(2, "sample.py", "nutpie", "one", module=True)) == draws["nutpie"]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_chains_in_processes_are_told_the_cure(context):
    result = run(2, "sample.py", "pymc", context)
    assert result.returncode == 1
    assert "ParallelSamplingError" in result.stderr
    assert "pm.sample(cores=1)" in result.stderr


def test_forgotten_pool_is_told_once():
    result = run(3, "forgotten.py")
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


@pytest.mark.parametrize(
    ("mpi", "said"),
    [
        ("started", r"the ranks \[1\] did not enter MPIPool within 3 s"),
        ("not started", r"Timeout[\s\S]*communicator\.py"),  # MPI itself does not say who
    ],
)
def test_rank_that_does_not_come(mpi, said):
    """It is named where that can be known, and nobody waits for it without an end."""
    result = run(3, "absent.py", mpi)
    assert result.returncode != 0
    assert re.search(said, result.stderr), result.stderr
    assert "ENTERED" not in result.stdout


def test_one_rank_of_each_host_compiles_first(tmp_path):
    """The others find the code in the cache."""
    flags = f"{os.environ.get('PYTENSOR_FLAGS', '')},mode=NUMBA,base_compiledir={tmp_path}"
    result = run(6, "hosts.py", env={**os.environ, "PYTENSOR_FLAGS": flags.strip(",")})
    assert "VALUE True" in result.stdout, result.stderr
    lines = re.findall(r"^FIRST (\d) (\d+) (\d+)$", result.stdout, re.MULTILINE)
    spans = {int(rank): (int(begun), int(ended)) for rank, begun, ended in lines}
    assert sorted(spans) == [*range(6)]
    leaders, others = (0, 2, 4), (1, 3, 5)
    assert max(spans[rank][1] for rank in leaders) < min(spans[rank][0] for rank in others)
