"""A chain on ranks that are killed and stopped at random, with jobs that raise and slow ones.

``python chaos.py SEED KILLED STOPPED RAISED``: so many ranks of each kind of fault, and at least so
many jobs that raise. The chain is then repeated serially, where every draw must be the same. The
last line is a JSON object of what happened.
"""

import json
import os
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap

pytensor.config.mode, pytensor.config.cxx = "FAST_COMPILE", ""
seed, n_killed, n_stopped, n_raised = map(int, sys.argv[1:])
N_JOBS = 40
AFTER = 30
"""How many evaluations follow the last fault."""


@mpimap.numeric_job
def job(theta, own, x):
    if np.sin(1e5 * theta[0] + own) > 0.9998:
        raise ArithmeticError("the solver gave up")
    if random.random() < 0.003:
        time.sleep(0.01)  # a slow job
    residual = x - theta[0] - own * theta[1]
    return -0.5 * (residual**2).sum(), np.array([residual.sum(), own * residual.sum()])


@mpimap.numeric_job(derivatives=None)
def process(theta, own):
    return float(os.getpid())


reference = mpimap.SerialPool()
theta = pt.dvector("theta", shape=(2,))
x = np.random.default_rng(0).normal(size=(N_JOBS, 5))
own = np.linspace(0, 1, N_JOBS)
value = mpimap.map_rect(job, theta, own, x, on_error="reject").sum()
value_and_gradient = pytensor.function([theta], [value, pt.grad(value, theta)])


def chain():
    """Yield the states of a chain, each of which depends on all values and gradients before."""
    rng = np.random.default_rng(seed)
    state, (here, gradient) = np.zeros(2), value_and_gradient(np.zeros(2))
    while True:
        proposal = state + 1e-4 * gradient + 0.02 * rng.normal(size=2)
        there, ahead = value_and_gradient(proposal)
        if np.log(rng.random()) < there - here:
            state, here, gradient = proposal, there, ahead
        yield np.array([*state, here, *gradient])


class Faults(threading.Thread):
    """Strikes at ranks, one or several together, at random moments."""

    def __init__(self, processes):
        super().__init__(daemon=True)
        self.random = random.Random(seed)
        hit = self.random.sample(sorted(processes), n_killed + n_stopped)
        self.left = [(signal.SIGKILL, processes[rank]) for rank in hit[:n_killed]]
        self.left += [(signal.SIGSTOP, processes[rank]) for rank in hit[n_killed:]]
        self.random.shuffle(self.left)
        self.struck = []
        self.noticed = threading.Event()

    def run(self):
        while self.left:
            self.noticed.wait(self.random.uniform(0, 0.3))
            together = 2 if self.random.random() < 0.2 else 1
            for number, pid in self.left[:together]:
                os.kill(pid, number)
                self.struck.append((number, time.perf_counter()))
            del self.left[:together]


warnings.simplefilter("ignore", mpimap.MapRectWarning)
with mpimap.MPIPool(time_limit=3.0) as pool:
    ranks = pool.ranks
    pids = pytensor.function([], mpimap.map_rect(process, None, np.arange(float(ranks))))()
    print("READY", os.getpid(), flush=True)
    value_and_gradient(np.zeros(2))
    faults = Faults({rank: int(pid) for rank, pid in enumerate(pids) if rank})
    before = sum(pool.report().rejected.values())
    faults.start()
    draws, seen, took, after = [], 0, [], 0
    for draw in chain():
        draws.append(draw)
        report = pool.report()
        now = time.perf_counter()
        for said in report.lost[seen:]:
            kind = signal.SIGSTOP if "did not answer" in said else signal.SIGKILL
            when = next(t for number, t in faults.struck if number == kind)
            faults.struck.remove((kind, when))
            took.append((kind.name, now - when))
        seen = len(report.lost)
        raised = sum(report.rejected.values()) - before
        done = seen == n_killed + n_stopped and raised >= n_raised
        after += done
        if after > AFTER:
            break
with reference:
    value_and_gradient(np.zeros(2))
    before = sum(reference.report().rejected.values())
    for i, (draw, expected) in enumerate(zip(draws, chain(), strict=False)):
        assert np.array_equal(draw, expected), f"draw {i}: {draw} != {expected}"
    raised_serially = sum(reference.report().rejected.values()) - before
assert raised == raised_serially, f"{raised} jobs raised, but serially {raised_serially}"
print(
    json.dumps(
        {
            "draws": len(draws),
            "killed": n_killed,
            "stopped": n_stopped,
            "raised": raised,
            "seconds": took,
        }
    ),
    flush=True,
)
