"""Whether rank 0 is still there: with processes and connections of this machine."""

import itertools
import os
import socket
import subprocess
import sys

import pytest

from pymc_mpimap.pool import watchdog
from pymc_mpimap.pool.watchdog import Watchdog, addresses, connected

LOOPBACK = frozenset({"127.0.0.1"})


class Watched:
    """A watchdog, and what it says."""

    def __init__(self, pid=None, peers=LOOPBACK, limit=0.4):
        self.said = []
        self.watchdog = Watchdog(pid, peers, limit, lambda *said: self.said.append(said))
        self.thread = self.watchdog._thread

    def end(self, seconds=30.0):
        """Wait until it does not watch any more; return what it said."""
        self.thread.join(seconds)
        assert not self.thread.is_alive()
        return self.said


@pytest.fixture
def connection():
    """Return both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        with near, far:
            yield near, far


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_process_that_ends(process):
    watched = Watched(process.pid)
    process.kill()
    assert watched.end() == [("is gone", False)]


def test_process_that_was_gone_before(process):
    process.kill()
    process.wait()
    assert Watched(process.pid).end() == [("is gone", False)]


def test_process_that_says_that_it_ends(process):
    watched = Watched(process.pid)
    watched.watchdog.call_off()
    process.kill()
    assert watched.end() == []


@pytest.mark.parametrize("error", [AttributeError, PermissionError])
def test_system_that_does_not_tell(process, monkeypatch, error):
    def pidfd_open(pid):
        raise error

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    assert Watched(process.pid).end() == []


def test_host_that_is_silent(connection, monkeypatch):
    """Nothing answers here, as nobody asks."""
    monkeypatch.setattr(watchdog, "_probe", lambda *_: None)
    ((how, cut_off),) = Watched().end()
    assert how.startswith("was out of reach for ")
    assert cut_off


@pytest.mark.slow
def test_idle_host_answers_for_its_processes(connection):
    """None of them says a word, for longer than the limit."""
    watched = Watched(limit=4.0)
    watched.thread.join(6.0)
    assert watched.thread.is_alive()
    watched.watchdog.call_off()
    assert watched.end() == []


def test_without_connections_nothing_is_known():
    watched = Watched(limit=0.1)
    watched.thread.join(0.5)
    watched.watchdog.call_off()
    assert watched.end() == []


def test_this_process_was_stopped_itself(connection, monkeypatch):
    """When it goes on, what it sees is old."""
    silences = iter([0.0, 100.0, 0.0, 0.0])
    jumps = iter([0.0, 0.0, 100.0])
    time = itertools.count(step=0.05)

    class Clock:
        passed = 0.0

        @classmethod
        def monotonic(cls):
            cls.passed += next(jumps, 0.0)
            return next(time) + cls.passed

    def silence(_):
        seconds = next(silences, None)
        if seconds is None:
            watched.watchdog.call_off()
            return 0.0
        return seconds

    monkeypatch.setattr(watchdog, "time", Clock)
    monkeypatch.setattr(watchdog, "_silence", silence)
    watched = Watched(limit=0.2)
    assert watched.end() == []


def test_connections_are_left_as_they_were(connection):
    near, far = connection
    assert connected(LOOPBACK)
    assert not connected(frozenset({"192.0.2.1"}))
    assert not addresses() & LOOPBACK
    near.sendall(b"still open")
    assert far.recv(100) == b"still open"


def test_mpi_may_ask_more_often(connection):
    near, far = connection
    near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    for end in connection:
        watchdog._probe(end, 225.0)
    assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
    assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 225
