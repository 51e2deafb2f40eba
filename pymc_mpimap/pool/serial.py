"""The reference pool: a for-loop in this process. Every other pool agrees with it bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from multiprocessing.util import Finalize
from types import TracebackType
from typing import override

import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.errors import Incident, JobFailure, MapRectWarning, ParallelSamplingError
from pymc_mpimap.map import Map
from pymc_mpimap.pool.assembly import Assembly, assemblies
from pymc_mpimap.pool.base import Pool
from pymc_mpimap.pool.finite import not_finite
from pymc_mpimap.pool.launch import POOL_OWNER, launched_ranks
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.report import PoolReport, Recorder
from pymc_mpimap.pool.share import Share
from pymc_mpimap.pool.work import Work, hand_out, inside_job

__all__ = ["SerialPool", "default_pool", "note_left"]

_MOST_REMEMBERED = 256

_COPIED = 1 << 16
"""Bytes up to which an input is copied; larger ones are used where they are."""


class SerialPool(Pool):
    """Evaluates all jobs in this process, in order.

    It is in force where no other pool is, and needs no MPI.

    Examples
    --------
    >>> import numpy as np
    >>> import pytensor.tensor as pt
    >>> import pymc_mpimap as mpimap
    >>> theta = pt.dvector("theta")
    >>> with mpimap.SerialPool() as pool:
    ...     squares = mpimap.map_rect(lambda theta, job: theta.sum() * job, theta, np.arange(3.0))
    ...     values = squares.eval({theta: [1.0, 2.0]})
    >>> values
    array([0., 3., 6.])
    >>> pool.report().evaluations
    1
    """

    def __init__(self) -> None:
        self._shares: OrderedDict[Map, Share] = OrderedDict()
        self._plans: OrderedDict[tuple[Program, str], _Plan] = OrderedDict()
        self._lock = threading.RLock()
        self._recorder = Recorder([socket.gethostname()])

    @override
    def evaluate(self, program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        # A call and nothing else: Python 3.13 forgets to release a lock where Ctrl-C strikes at the
        # end of a round of `while` inside of `with`.
        with self._lock:
            return self._evaluated(program, inputs)

    def _evaluated(self, program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        begun = time.perf_counter_ns()
        # Compiled code belongs to the PyTensor mode that it was compiled in.
        key = program, config.mode
        plan = self._plans.get(key)
        if plan is None or not plan.takes(inputs):
            program.check(inputs)
            shares = [self._share(m) for m in program.maps]
            plan = self._plans[key] = _Plan(program, shares, inputs)
            while len(self._plans) > _MOST_REMEMBERED:
                self._plans.popitem(last=False)
        outputs: list[np.ndarray] = []
        failures: list[Incident] = []
        for work, outcomes in plan.steps:
            failures += work.evaluate()
            outputs += [outcome() for outcome in outcomes]
        self._record(program, inputs, outputs, failures, begun)
        return outputs

    def _record(
        self,
        program: Program,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        failures: Sequence[Incident],
        begun: int,
    ) -> None:
        ended = time.perf_counter_ns()
        self._recorder.evaluated([ended - begun], ended)
        if failures:
            self._recorder.noted(failures)
        self._recorder.gave(program, inputs, outputs)

    @override
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._recorder.tell()
        super().__exit__(kind, error, trace)

    def _share(self, m: Map) -> Share:
        """Return the whole of a map, its held data prepared once for all programs."""
        share = self._shares.get(m)
        if share is None:
            share = self._shares[m] = Share(m, 0, m.blocks.count)
            while len(self._shares) > _MOST_REMEMBERED:
                self._shares.popitem(last=False)
        return share

    def report(self) -> PoolReport:
        """Return what the pool has done so far."""
        return self._recorder.report()


class _Plan:
    """A program on inputs of certain shapes: all that can be prepared."""

    def __init__(self, program: Program, shares: Sequence[Share], inputs: Sequence[np.ndarray]):
        self._shapes = [value.shape for value in inputs]
        self._holding_shapes = {
            position: inputs[position].tobytes()
            for position in (program.moves[i].position for i in program.shape_moves)
        }
        self._held = [np.array(v) if v.nbytes <= _COPIED else v for v in inputs]
        self._takers: list[list[tuple[Work, int]]] = [[] for _ in inputs]
        self.steps: list[tuple[Work, list[Assembly]]] = []
        for share, route in zip(shares, program.routes, strict=True):
            work = Work(share, [self._held[position] for position in route])
            for i, position in enumerate(route):
                self._takers[position].append((work, i))
            self.steps.append((work, assemblies(share.map, [share], [work.outputs])))

    def takes(self, inputs: Sequence[np.ndarray]) -> bool:
        """Take these inputs over, unless their shapes are others."""
        if [value.shape for value in inputs] != self._shapes:
            return False
        for position, content in self._holding_shapes.items():
            if inputs[position].tobytes() != content:
                return False
        for position, value in enumerate(inputs):
            held = self._held[position]
            if value.nbytes <= _COPIED:
                held[...] = value
            elif value.ctypes.data != held.ctypes.data:
                self._held[position] = value
                for work, i in self._takers[position]:
                    work.replace(i, value)
        return True


class _DefaultPool(SerialPool):
    """The pool in force where the user asked for none: it says what was forgotten.

    Nobody leaves it. So it tells of rejections when there is the first, and at the process's end.
    Within a job it is in force on each rank: what happens there is that job's evaluation's to tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self._recorder.from_the_beginning()
        self._warned: set[str] = set()
        self._untold: list[JobFailure] = []
        self._tells_at_exit = False

    def begin_in_a_child(self) -> None:
        """Count anew in a forked process: what came before is its parent's to tell."""
        self._recorder = Recorder(self._recorder.hosts)
        self._tells_at_exit = False

    def evaluate(self, program: Program, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        _refuse_child_of_a_pool()
        _warn_of_a_forgotten_pool()
        if _LEFT and not inside_job():
            _warn_of_a_pool_that_was_left(_LEFT.pop())
        outputs = super().evaluate(program, inputs)
        if self._untold:
            with self._lock:
                untold, self._untold = self._untold, []
            for failure in untold:
                _warn_of_a_rejection(failure)
        return outputs

    @override
    def _record(
        self,
        program: Program,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        failures: Sequence[Incident],
        begun: int,
    ) -> None:
        rejected = [failure for failure in failures if isinstance(failure, JobFailure)]
        if inside_job():
            jobs = {f"job {failure.job} of {failure.function}" for failure in rejected}
            hand_out([*failures, *not_finite(program, inputs, outputs, jobs)])
            return
        super()._record(program, inputs, outputs, failures, begun)
        if rejected and not self._tells_at_exit:
            self._tells_at_exit = True
            # Not atexit, which processes of multiprocessing pass over: PyMC's chains are such.
            Finalize(None, self._tell, exitpriority=0)
        for failure in rejected:
            if failure.function not in self._warned:
                self._warned.add(failure.function)
                self._untold.append(failure)

    def _tell(self) -> None:
        self._recorder.tell("without a pool")


def _warn_of_a_rejection(failure: JobFailure) -> None:
    warnings.warn(
        f"job {failure.job} of {failure.function} raised {failure.exception}, and its proposal is "
        "rejected, as on_error='reject' says. Where many are, the posterior is cut off. This is "
        "said once for each function; how often, which jobs and why is in print(pool.report()) of "
        "a pool: 'with pymc_mpimap.SerialPool() as pool:', and logged when this process ends",
        MapRectWarning,
        stacklevel=2,
    )


def _refuse_child_of_a_pool() -> None:
    owner = os.environ.get(POOL_OWNER)
    if owner and owner != str(os.getpid()) and multiprocessing.parent_process() is not None:
        raise ParallelSamplingError(
            f"process {os.getpid()} was spawned by process {owner}, whose MPIPool it cannot use. "
            "Sample in one process: pm.sample(cores=1), or nuts_sampler='nutpie', whose chains "
            "are threads and take turns on the pool"
        )


@cache
def _warn_of_a_forgotten_pool() -> None:
    ranks, rank = launched_ranks()
    if ranks > 1 and rank == 0:
        warnings.warn(
            f"mpiexec started {ranks} ranks, but map_rect is evaluated without a pool: each rank "
            "does all the work alone. Put the model and pm.sample inside 'with "
            "pymc_mpimap.MPIPool():', or start the script with 'mpiexec -n "
            f"{ranks} python -m pymc_mpimap script.py'",
            MapRectWarning,
            stacklevel=2,
        )


_LEFT: list[int] = []
"""The ranks of the pool that was left last, until it is said that they are not used any more."""


def note_left(ranks: int) -> None:
    """Note that a pool of several ranks is not in force any more."""
    _LEFT[:] = [ranks]


def _warn_of_a_pool_that_was_left(ranks: int) -> None:
    warnings.warn(
        f"map_rect is evaluated after 'with MPIPool():' was left: this process does all the work "
        f"alone, while {ranks - 1} other rank{'s' if ranks > 2 else ''} of it "
        f"wait{'' if ranks > 2 else 's'}. Move it into the block, or put it into another one",
        MapRectWarning,
        stacklevel=2,
    )


# Made on import: of several threads that ask for it at the same time, each would make its own.
_DEFAULT = _DefaultPool()
os.register_at_fork(after_in_child=_DEFAULT.begin_in_a_child)


def default_pool() -> SerialPool:
    """Return the pool of those who asked for none."""
    return _DEFAULT
