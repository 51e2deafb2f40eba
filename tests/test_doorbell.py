"""Bells between ranks of one host, here threads with a stand-in for their communicator."""

import tempfile
import threading
from pathlib import Path

import pytest

from pymc_mpimap.pool import doorbell
from pymc_mpimap.pool.doorbell import Doorbell
from pymc_mpimap.pool.wait import Patience, wait_until
from tests.helpers import on_one_host


def hang(ranks, n_ranks):
    """Hang the bells of these ranks of so many."""
    return on_one_host(ranks, lambda node, rank: Doorbell.hang(node, rank, n_ranks))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(doorbell, "_SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_rings_for_those_who_sleep(folder):
    bells = hang([0, 1, 4], 5)
    assert list(Path(folder).iterdir()) == []  # All have opened them.
    assert [bells[0].reaches(rank) for rank in (1, 2, 4)] == [True, False, True]
    assert bells[1].reaches(0)
    assert not bells[1].reaches(4)
    bells[0].ring(4)
    assert not bells[4].sleep(0)  # It was awake: nothing was written.
    bells[4].asleep(True)
    bells[0].ring(1)
    assert not bells[4].sleep(0)
    bells[0].ring(4)
    bells[0].ring(4)
    assert bells[4].sleep(0)
    assert not bells[4].sleep(0)  # Both were heard at once.
    bells[0].asleep(True)
    bells[4].ring(0)
    assert bells[0].sleep(0)


def test_a_full_pipe_does_not_hold_up_who_rings(folder):
    bells = hang([0, 1], 2)
    bells[1].asleep(True)
    for _ in range(100_000):
        bells[0].ring(1)
    assert bells[1].sleep(0)


def test_nobody_to_wake(folder):
    assert hang([0], 3) == {0: None}
    assert hang([1, 2], 3) == {1: None, 2: None}


def test_no_bell_where_files_cannot_be_made(folder, monkeypatch):
    def refused(*_args, **_named):
        raise OSError("no pipes here")

    monkeypatch.setattr(doorbell.os, "mkfifo", refused)
    assert hang([0, 1], 2) == {0: None, 1: None}


def test_a_waiting_rank_is_woken(folder):
    """It would else look up after a minute only."""
    bells, done = hang([0, 1], 2), threading.Event()

    def message():
        asleep.wait(20)
        done.set()
        bells[0].ring(1)

    asleep = threading.Event()
    fall_asleep = bells[1].asleep

    def noting(yes):
        fall_asleep(yes)
        if yes:
            asleep.set()

    bells[1].asleep = noting
    thread = threading.Thread(target=message)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pymc_mpimap.pool.wait._LONGEST_NAP", 60.0)
        assert wait_until(done.is_set, Patience(spin=0.001), timeout=50.0, bell=bells[1])
    thread.join(20)
    assert not bells[1]._asleep[1]
