"""Uses of pools that are odd or wrong, one after the other; see tests/test_misuse.py.

Rank 0 prints what came of each: a line with its name.
"""

import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import mpi4py.MPI
import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap

pytensor.config.mode = "FAST_COMPILE"
warnings.filterwarnings("ignore", "[0-9]+ ranks share")
theta = pt.dscalar("theta")


@mpimap.numeric_job(derivatives=None)
def times(theta, own):
    return theta * own


@mpimap.numeric_job(derivatives=None)
def enters(theta, own):
    if own == theta:
        with mpimap.MPIPool():
            pass
    return own


def build(job, n_jobs=6):
    return pytensor.function([theta], mpimap.map_rect(job, theta, np.arange(float(n_jobs))))


def tell(name, call):
    try:
        said = call()
    except Exception as error:  # whatever it is: the test reads it
        said = f"{type(error).__name__}: {error}"
    print(name, "|", " ".join(str(said).split()), flush=True)


def right(theta, n_jobs=6):
    return np.array_equal(function(theta), theta * np.arange(float(n_jobs)))


def twice():
    with mpimap.MPIPool():
        first = right(2.0)
    with mpimap.MPIPool() as pool:
        return first, right(3.0), pool.report().evaluations


def nested():
    with mpimap.MPIPool() as outer, mpimap.MPIPool() as inner:
        in_both = right(2.0)
        counts = outer.report().evaluations, inner.report().evaluations
    return in_both, counts


def in_a_serial_pool():
    with mpimap.SerialPool() as outer, mpimap.MPIPool() as inner, mpimap.SerialPool() as innermost:
        values = right(2.0)
        return values, [pool.report().evaluations for pool in (outer, inner, innermost)]


def entered_while_in_use():
    """A thread evaluates on all ranks, while this one enters and leaves pools of its own."""
    wrong, stop, begun = [], threading.Event(), threading.Event()

    def evaluate():
        own = build(times, 5)
        while not stop.is_set():
            if not np.array_equal(own(3.0), 3.0 * np.arange(5.0)):
                wrong.append("value")
            begun.set()

    with mpimap.MPIPool():
        thread = threading.Thread(target=evaluate)
        thread.start()
        begun.wait(60)
        for k in range(300):
            with mpimap.MPIPool():
                if not right(float(k)):
                    wrong.append(k)
        stop.set()
        thread.join(60)
    return wrong, thread.is_alive()


def left_while_in_use():
    """What is under way when a pool is left is finished on all ranks."""
    values = []
    begun, go_on = threading.Event(), threading.Event()
    threading.test_events = begun, go_on  # where pickling does not find them

    @mpimap.numeric_job(derivatives=None)
    def waits(theta, own):
        if own == 0:  # on rank 0
            begun, go_on = threading.test_events
            begun.set()
            go_on.wait(60)
        return theta * own

    slow = build(waits)
    thread = threading.Thread(target=lambda: values.append(slow(2.0)))
    with mpimap.MPIPool() as pool:
        thread.start()
        begun.wait(60)
    go_on.set()
    thread.join(60)
    return values[0].tolist(), pool.report().evaluations


def after():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = right(2.0), right(3.0)
    return values, [str(warning.message) for warning in caught]


def same_again():
    pool = mpimap.MPIPool()
    with pool:
        pass
    with pool:
        pass


def directly_after():
    with mpimap.MPIPool() as pool:
        function(1.0)
    op = next(node.op for node in function.maker.fgraph.apply_nodes if hasattr(node.op, "program"))
    return pool.evaluate(op.program, [np.array(1.0)])


def in_a_job(job):
    def call():
        with mpimap.MPIPool():
            return build(enters)(float(job))

    return call


def overlapping():
    with mpimap.MPIPool(), mpimap.MPIPool(two, start_timeout=5):
        return "entered"


def in_a_fork(call):
    """Return what a child says that was forked without multiprocessing's knowledge."""

    def forked():
        with mpimap.MPIPool():
            here, there = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    said = str(call())
                except Exception as error:  # whatever it is: the test reads it
                    said = f"{type(error).__name__}: {error}"
                os.write(there, said.encode())
                os._exit(0)
            os.close(there)
            with os.fdopen(here) as pipe:
                said = pipe.read()
            os.waitpid(child, 0)
            return said, right(4.0)

    return forked


def enter():
    with mpimap.MPIPool(start_timeout=5):
        return function(2.0)


def forked_and_terminated():
    """A child ends alone, though it has inherited what a rank does on SIGTERM."""
    with mpimap.MPIPool():
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(there, b"!")
            signal.pause()
        os.read(here, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), right(4.0)


def sockets_open_to_others():
    """Return the inodes of this process's sockets that others may connect or send to."""
    own = {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    found = set()
    for table, state, inode in (("tcp", 3, 9), ("tcp6", 3, 9), ("udp", 3, 9), ("unix", 3, 6)):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if f"socket:[{words[inode]}]" in own and words[state] in ("0A", "07", "00010000"):
                found.add(words[inode])
    return found


@mpimap.numeric_job(derivatives=None)
def opened(theta, own):
    return len(threading.test_opened() - threading.test_opened_before)


def listening():
    """Return how many sockets each rank has opened since it started MPI."""
    with mpimap.MPIPool():
        return build(opened, 3)(1.0).tolist()


@mpimap.numeric_job(derivatives=None)
def fails(theta, own):
    if own == theta:
        raise ValueError("no")
    return np.inf if own == 2 else own


def rejecting():
    values = mpimap.map_rect(fails, theta, np.arange(6.0), on_error="reject")
    function = pytensor.function([theta], values)
    with mpimap.MPIPool():
        return function(0.0).tolist(), function(5.0).tolist(), function(5.0).tolist()


def few_jobs():
    with mpimap.MPIPool():
        return [build(times, n)(2.0).tolist() for n in (0, 1, 2)]


CASES = {
    "twice": twice,
    "nested": nested,
    "in a serial pool": in_a_serial_pool,
    "entered while in use": entered_while_in_use,
    "left while in use": left_while_in_use,
    "after": after,
    "same again": same_again,
    "directly after": directly_after,
    "in a job of rank 0": in_a_job(0),
    "in a job of a worker": in_a_job(5),
    "overlapping": overlapping,
    "forked": in_a_fork(lambda: function(2.0)),
    "forked and entered": in_a_fork(enter),
    "forked and terminated": forked_and_terminated,
    "few jobs": few_jobs,
    "listening": listening,
    "rejecting": rejecting,
}
threading.test_opened = sockets_open_to_others
threading.test_opened_before = sockets_open_to_others()
world = mpi4py.MPI.COMM_WORLD
two = world.Split(int(world.rank > 1))
with mpimap.MPIPool():
    function = build(times)
for name in sys.argv[1:] or CASES:
    tell(name, CASES[name])
