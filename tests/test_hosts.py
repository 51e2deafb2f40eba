"""Several hosts, of which one is cut off: the others go on with the same results, and all end."""

import os
import re
import signal
import subprocess

import pytest

from tests.hosts import Hosts
from tests.launchers import OPENMPI, launched_by
from tests.programs import Started

pytestmark = [pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(180)]

LIMIT = 4.0
"""Seconds for which rank 0 may be out of reach in the script."""

STRAGGLING = 15.0
"""Seconds within which ranks that are cut off must be gone, once the others are."""

DETECTOR = (
    "--mca mpi_ft_detector 1 --mca mpi_ft_detector_period 0.5 --mca mpi_ft_detector_timeout 2"
)


@pytest.fixture
def hosts():
    hosts = Hosts(3)
    try:
        hosts.__enter__()
    except RuntimeError as error:
        # Not everybody who tests is root, and not every container may make namespaces.
        pytest.skip(f"no hosts can be made here: {error}")
    try:
        yield hosts
    finally:
        hosts.__exit__(None, None, None)


def cut_off(hosts, name, program):
    """Cut a host off in the middle of evaluations; wait for the end and return what was printed."""
    program.process.stdin.write("\n")
    program.process.stdin.flush()
    program.said("EVALUATES")
    hosts.cut_off(name)
    return program.end(straggling=STRAGGLING)[1]


def check_the_others_went_on(output, *lost, by):
    """The script itself compares each result with a serial one."""
    assert "\nthe end\n" in output, output
    for rank in lost:
        # Once as a warning and once in the report.
        assert len(re.findall(rf"rank {rank} on h{rank} {by}", output)) == 2, output
    assert len(re.findall(r"rank [1-9] on h\d di", output)) == 2 * len(lost), output


@launched_by()
def test_a_host_with_workers_is_cut_off(launcher, hosts):
    program = Started("cluster.py", "limit", ranks=1, launcher=launcher, hosts=hosts)
    assert "LOADED ON 0 0 1 1 2 2\n" in program.output
    assert "FAILED ON h2\n" in program.output
    ranks = program.ranks()
    assert [hosts.has(f"h{rank}", ranks[rank]) for rank in range(3)] == [True] * 3

    # That rank 0 says nothing does not mean that it is gone.
    os.kill(ranks[0], signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        program.process.wait(LIMIT + 2)
    os.kill(ranks[0], signal.SIGCONT)
    assert program.ranks() == ranks, program.output

    output = cut_off(hosts, "h2", program)
    check_the_others_went_on(output, 2, by="did not answer within 3 s, with (the jobs|job) ")


@launched_by()
def test_rank_0s_host_is_cut_off(launcher, hosts):
    """It goes on alone, and the others end."""
    program = Started("cluster.py", "limit", ranks=1, launcher=launcher, hosts=hosts)
    output = cut_off(hosts, "h0", program)
    check_the_others_went_on(output, 1, 2, by="did not answer within 3 s")


def test_open_mpi_finds_out_by_itself(hosts):
    program = Started(
        "cluster.py", "detector", ranks=1, launcher=OPENMPI, hosts=hosts, options=DETECTOR.split()
    )
    output = cut_off(hosts, "h2", program)
    check_the_others_went_on(output, 2, by=r"died \(MPI says: ")
