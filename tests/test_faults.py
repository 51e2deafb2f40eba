"""Ranks that die, hang and come back: the others go on with the same results, or all end."""

import json
import os
import re
import signal

import pytest

from tests.launchers import MPICH, OPENMPI, launched_by
from tests.programs import Started, run

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(180)]


class Program(Started):
    """One whose ranks are known by their numbers."""

    def __init__(self, losses, how, **options):
        super().__init__("faults.py", str(losses), how, **options)
        self.pids = [int(pid) for pid in self.said(r"RANKS ((?:\d+ ?)+)")[1].split()]

    def strike(self, number, *ranks):
        for rank in ranks:
            os.kill(self.pids[rank], number)


@pytest.mark.parametrize("how", ["flat", "tree", "large"])
def test_the_others_go_on_when_ranks_die(how):
    """One, then two at once, in a tree a rank that others are reached through."""
    program = Program(3, how, ranks=5, launcher=OPENMPI)
    program.strike(signal.SIGKILL, 1)
    program.said(r"rank 1 on \S+ died.*; the 4 ranks that are left do its jobs")
    program.strike(signal.SIGKILL, 2, 4)
    returncode, output = program.end()
    assert returncode == 0, output
    assert output.rstrip().endswith("the end"), output
    for rank in (1, 2, 4):
        # Once as a warning and once in the report.
        assert len(re.findall(rf"rank {rank} on \S+ died", output)) == 2, output


def test_rank_0_goes_on_alone():
    program = Program(2, "flat", launcher=OPENMPI)
    program.strike(signal.SIGKILL, 1, 2)
    returncode, output = program.end()
    assert returncode == 0, output
    assert "this rank does its jobs" in output


@launched_by()
def test_all_end_with_rank_0(launcher):
    program = Program(1, "flat", launcher=launcher)
    program.strike(signal.SIGKILL, 0)
    returncode, output = program.end(timeout=20)
    # Open MPI's mpiexec has been seen to return 0 after the others' abort. MPICH ends the ranks
    # before they can say anything.
    if launcher is OPENMPI:
        assert re.search(r"rank \d on \S+ ends, because rank 0 on \S+ died", output), output
    else:
        assert returncode != 0, output
        assert "KILLED BY SIGNAL" in output or "Killed (signal 9)" in output, output


def test_a_rank_that_dies_ends_all_where_that_is_wanted():
    program = Program(1, "ends", launcher=OPENMPI)
    program.strike(signal.SIGKILL, 2)
    returncode, output = program.end(timeout=20)
    assert returncode == 1, output
    assert re.search(r"RankLostError: rank 2 on \S+ died", output), output


@pytest.mark.parametrize("how", ["limit", "limit, tree"])
def test_a_rank_that_is_stopped_is_named_and_ended(how):
    """In a tree, it is the one that does not answer, and not the one above, which waits for it."""
    program = Program(1, how, ranks=5, launcher=OPENMPI)
    program.strike(signal.SIGSTOP, 4)
    returncode, output = program.end()
    assert returncode == 0, output
    said = r"rank 4 on \S+ did not answer within 3 s, with the jobs \d+ to 11 of job; the 4 ranks"
    assert re.search(said, output), output
    assert output.count(" did not answer") == 2, output


def test_ranks_that_load_data_for_the_jobs_of_another_have_the_time():
    """With a limit of 3 s, and 3.2 s for the data of each job."""
    program = Program(1, "limit, loads", launcher=OPENMPI)
    program.strike(signal.SIGKILL, 2)
    returncode, output = program.end()
    assert returncode == 0, output
    assert "did not answer" not in output, output


def test_a_rank_that_comes_back_is_not_listened_to():
    """MPICH would end all if the rank were: it is left alone, and goes on when it is continued."""
    program = Program(1, "limit, comes back", launcher=MPICH)
    program.strike(signal.SIGSTOP, 1)
    program.said("LOST 1")
    program.strike(signal.SIGCONT, 1)
    program.process.stdin.write("\n")
    program.process.stdin.flush()
    returncode, output = program.end()
    assert "the end" in output, output
    # It was not told to stop, so that all were aborted.
    assert returncode != 0, output


@launched_by()
def test_a_job_that_does_not_return(launcher):
    """After three ranks it is given up, and what is left is sound. Each says where it stands.

    MPICH would end all if they were ended: they are left alone, and all are aborted at the end.
    """
    program = Program(3, "job hangs, limit", ranks=5, launcher=launcher)
    returncode, output = program.end()
    assert "the end" in output, output
    assert (returncode == 0) == (launcher is OPENMPI), output
    given_up = re.search(r"GAVE UP an evaluation is given up.*", output)
    assert given_up, output
    assert len(re.findall(r"within 3 s, with (the jobs \d+ to|job) 11 of job", given_up[0])) == 3
    assert len(re.findall(r"faults.py.*line \d+ in job$", output, re.MULTILINE)) == 3, output


@launched_by()
def test_a_job_of_rank_0_that_does_not_return(launcher):
    """Nobody can go on without rank 0: it says where it stands, and all end."""
    program = Program(0, "first job hangs, limit", ranks=2, launcher=launcher)
    returncode, output = program.end()
    assert launcher is OPENMPI or returncode != 0, output
    assert "the end" not in output, output
    assert re.search(r"faults.py.*line \d+ in job$", output, re.MULTILINE), output


@pytest.mark.parametrize("ranks", [4, 10])
def test_a_job_that_crashes(ranks):
    """After eight ranks, or all but rank 0, it is given up, and what is left is sound."""
    losses = min(ranks - 1, 8)
    program = Program(losses, "job crashes", ranks=ranks, launcher=OPENMPI)
    returncode, output = program.end(timeout=100)
    assert returncode == 0, output
    given_up = re.search(r"GAVE UP an evaluation is given up.*", output)
    assert given_up, output
    assert len(re.findall(r"rank \d died", given_up[0])) == losses


@pytest.mark.parametrize("how", ["job exits", "job exits, tree"])
def test_a_rank_that_ends_by_itself(how):
    """Open MPI does not tell of it where the status is not 0, and passes that status on."""
    program = Program(1, how, ranks=4, launcher=OPENMPI)
    returncode, output = program.end(timeout=100)
    assert "\nthe end\n" in output, output
    assert returncode == 7, output
    assert re.search(r"rank 3 on \S+ died; the 3 ranks that are left do its jobs", output), output


@pytest.mark.parametrize("how", ["two are killed", "job crashes"])
def test_all_end_where_mpi_ends_them(how):
    """MPICH's mpiexec says what ended the ranks; where it was a crash, the rank says where."""
    program = Program(2, how, ranks=4, launcher=MPICH)
    if "killed" in how:
        program.strike(signal.SIGKILL, 1, 3)
    returncode, output = program.end(timeout=20)
    assert returncode != 0, output
    assert "the end" not in output, output
    if "killed" in how:
        assert "KILLED BY SIGNAL: 9" in output or "Killed (signal 9)" in output, output
    else:
        assert re.search(r"faults.py.*line \d+ in job$", output, re.MULTILINE), output


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_chaos(seed):
    """Some of 205 faults: ranks killed and stopped at random, jobs that raise, jobs that dawdle.

    The script compares every draw with those of the same chain without a fault.
    """
    killed, stopped, raised = 5 - seed % 3, seed % 3, 36
    result = run(6, "chaos.py", *map(str, (seed, killed, stopped, raised)), launcher=OPENMPI)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["killed"] + told["stopped"] == len(told["seconds"]) == 5
    assert told["raised"] >= 36
