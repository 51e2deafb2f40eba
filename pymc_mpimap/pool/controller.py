"""The controller's side: send each worker what changed, collect the answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.errors import JobError, JobFailure
from pymc_mpimap.pool.assignment import Assignment
from pymc_mpimap.pool.interrupts import Uninterrupted
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.protocol import Layout, Status
from pymc_mpimap.pool.report import Recorder
from pymc_mpimap.pool.wait import Patience
from pymc_mpimap.tally import TALLY

__all__ = ["Controller"]


class Controller:
    """Evaluates programs on all ranks of a communicator, of which this is rank 0.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or None
        The private communicator; None for this process alone.
    hosts : sequence of str
        Where each rank runs.
    patience : Patience
    """

    def __init__(self, comm: Any, hosts: Sequence[str], patience: Patience):
        self.hosts = hosts
        self.links = [Link(comm, rank, patience) for rank in range(1, len(hosts))]
        self._assignments: dict[tuple[Program, str], Assignment] = {}
        self._evaluation = 0

    def evaluate(
        self, program: Program, inputs: Sequence[np.ndarray], recorder: Recorder
    ) -> list[np.ndarray]:
        """Return a program's outputs, and record how it went."""
        # Compiled code belongs to the PyTensor mode that it was compiled in.
        key = program, config.mode
        assignment = self._assignments.get(key)
        if assignment is None:
            program.check(inputs)
            assignment = Assignment(len(self._assignments), program, self.links)
            self._assignments[key] = assignment
        values = [inputs[position] for position in assignment.positions]
        for link in assignment.working:
            link.settle()
        evaluation = self._evaluation = self._evaluation + 1
        if assignment.fits(values):
            assignment.send(evaluation, values)
        else:
            program.check(inputs)
            self._lay_out(assignment, values, recorder)
            assignment.send_all(evaluation)
        return self._finish(assignment, evaluation, recorder)

    def _finish(
        self, assignment: Assignment, evaluation: int, recorder: Recorder
    ) -> list[np.ndarray]:
        """Do this rank's own part, collect the others', and put all together."""
        busy = [0] * len(self.hosts)
        failed: list[JobError] = []
        failures: list[JobFailure] = []
        begun = perf_counter_ns()
        try:
            for work in assignment.works:
                failures += work.evaluate()
        except JobError as error:
            failed.append(error)
        busy[0] = perf_counter_ns() - begun
        moved = False
        for line in assignment.lines:
            answer = line.link.collect(evaluation)
            assert answer is not None  # Without a time limit, there is one.
            busy[line.link.rank] = answer.spent
            moved |= line.answer is not line.link.answer
            if answer.counts is not None:
                recorder.counted(answer.counts)
            if answer.status == Status.FAILED:
                failed.append(JobError(answer.failures[0]))
            else:
                failures += answer.failures
        if failed:
            raise min(failed, key=lambda error: error.failure.job)
        if moved:
            assignment.expect()
        outputs: list[np.ndarray] = []
        for assemble in assignment.assemblies:
            outputs += assemble()
        if failures:
            recorder.rejected(failures)
        recorder.evaluated(busy)
        return outputs

    def _lay_out(
        self, assignment: Assignment, values: Sequence[np.ndarray], recorder: Recorder
    ) -> None:
        """Agree with the workers on the shapes of all that will be sent, either way."""
        assignment.prepare(values)
        if assignment.working and not assignment.defined:
            # Compile before the others do, which then find the code in PyTensor's cache. What is
            # done to compile is no evaluation, and is not counted.
            counted = TALLY.copy()
            for work in assignment.works:
                work.warm()
            recorder.counted(counted - TALLY)
        with Uninterrupted():
            if not assignment.defined:
                for link, definition in assignment.define():
                    link.order(assignment.number, definition)
                assignment.defined = True
            for line in assignment.lines:
                line.link.order(assignment.number, Layout(assignment.number, line.layout))
            assignment.expect()

    def stop(self, timeout: float) -> bool:
        """Tell all workers to stop; say whether all of them answered in time."""
        deadline = time.perf_counter() + timeout

        def left() -> float:
            return max(0.0, deadline - time.perf_counter())

        if not all(link.settle(left()) for link in self.links):
            return False
        with Uninterrupted():
            self._evaluation += 1
            for link in self.links:
                link.stop(self._evaluation)
        return all(link.collect(self._evaluation, left()) is not None for link in self.links)
