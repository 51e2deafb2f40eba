"""The controller's side: send each worker what changed, collect the answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.errors import JobError, JobFailure
from pymc_mpimap.pool.assignment import Assignment
from pymc_mpimap.pool.interrupts import Uninterrupted
from pymc_mpimap.pool.line import Line
from pymc_mpimap.pool.link import Answer, Link
from pymc_mpimap.pool.parcel import Key
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.protocol import Command, Define, Status, Transfer
from pymc_mpimap.pool.report import Recorder
from pymc_mpimap.tally import TALLY

__all__ = ["Controller"]

_BETWEEN_LOOKS = 200_000
"""Nanoseconds between two looks at the balance, each of which takes one microsecond."""

_PATIENCE = 100
"""How many times longer than it took to ask for costs, and to move jobs, it is not done again."""


class Controller:
    """Evaluates programs on this rank, which is rank 0, and on those that it has links to.

    Parameters
    ----------
    links : sequence of Link
        To the ranks 1, 2, ...
    hosts : sequence of str
        Where each rank runs.
    """

    def __init__(self, links: Sequence[Link], hosts: Sequence[str]):
        self.hosts = hosts
        self.links = list(links)
        self._assignments: dict[tuple[Program, str], Assignment] = {}
        self._latest: Any = (None, "", None)
        self._evaluation = 0
        # Whether an evaluation did not end as it should: ranks may still be at it.
        self._broken_off = False
        # The nanoseconds that workers lose, compared with rank 0, to the messages.
        self._loss = math.inf

    def evaluate(
        self, program: Program, inputs: Sequence[np.ndarray], recorder: Recorder
    ) -> list[np.ndarray]:
        """Return a program's outputs, and record how it went."""
        mode = config.mode
        if program is not self._latest[0] or mode != self._latest[1]:
            self._latest = program, mode, self._assignment(program, mode, inputs)
        assignment = self._latest[2]
        values = [inputs[position] for position in assignment.positions]
        if self._broken_off:
            self._quiet()
        for link in assignment.heads:
            link.settle()
        if assignment.fits(values):
            self._broken_off = True
            evaluation = self._evaluation = self._evaluation + 1
            assignment.send(evaluation, values)
        else:
            for link in assignment.working:
                link.settle()
            program.check(inputs)
            self._lay_out(assignment, values, recorder)
            evaluation = self._evaluation = self._evaluation + 1
            assignment.send_all(evaluation)
        try:
            outputs = self._finish(assignment, evaluation, recorder)
        except JobError:
            self._broken_off = False  # All ranks have answered.
            raise
        self._broken_off = False
        return outputs

    def _quiet(self, timeout: float | None = None) -> bool:
        """Wait until no rank is at anything any more; say whether that was so in time.

        In a tree, what rank 0 sends to a rank could otherwise overtake what another rank does.
        """
        deadline = None if timeout is None else time.perf_counter() + timeout

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.perf_counter())

        if not all(link.settle(left()) for link in self.links):
            return False
        # An evaluation may have been sent, and Ctrl-C have struck before that was noted. Who
        # answers this has done all that was sent before, and so have those below it.
        evaluation = self._evaluation = self._evaluation + 1
        for link in self.links:
            link.ask(Command.PING, evaluation)
        done = all(link.collect(evaluation, left()) is not None for link in self.links)
        self._broken_off = not done
        return done

    def _assignment(self, program: Program, mode: str, inputs: Sequence[np.ndarray]) -> Assignment:
        # Compiled code belongs to the PyTensor mode that it was compiled in.
        key = program, mode
        if key not in self._assignments:
            program.check(inputs)
            self._assignments[key] = Assignment(len(self._assignments), program, self.links)
        return self._assignments[key]

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
        slowest = 0
        moved = False
        for line in assignment.lines:
            answer = self._collect(line, evaluation, recorder)
            moved |= line.answer is not line.link.answer
            busy[line.link.rank] = answer.spent
            slowest = max(slowest, answer.spent)
            if answer.status == Status.FAILED:
                failed.append(JobError(answer.payload[0]))
            else:
                failures += answer.payload
        if failed:
            raise min(failed, key=lambda error: error.failure.job)
        if moved or assignment.branches:
            assignment.received(busy)
        outputs = [assemble() for assemble in assignment.assemblies]
        if failures:
            recorder.rejected(failures)
        now = perf_counter_ns()
        recorder.evaluated(busy, now)
        if assignment.lines:
            # Longer where rank 0 itself was slower: hence the least of late.
            self._loss = max(0.0, min(1.01 * self._loss + 10, now - begun - slowest))
            if now >= assignment.look_at:
                assignment.look_at = now + _BETWEEN_LOOKS
                self._look(assignment, busy, recorder)
        return outputs

    @staticmethod
    def _collect(line: Line, evaluation: int, recorder: Recorder) -> Answer:
        answer = line.link.collect(evaluation)
        assert answer is not None  # Without a time limit, there is one.
        if answer.counts is not None:
            recorder.counted(answer.counts)
        return answer

    def _look(self, assignment: Assignment, busy: Sequence[int], recorder: Recorder) -> None:
        """Rebalance if it is time to."""
        begun = perf_counter_ns()
        if assignment.wants_costs(busy, -self._loss) and begun >= assignment.ask_at:
            self._rebalance(assignment, recorder)
            ended = perf_counter_ns()
            assignment.ask_at = ended + _PATIENCE * (ended - begun)

    def _rebalance(self, assignment: Assignment, recorder: Recorder) -> None:
        """Ask all ranks what their blocks cost, and move blocks between them where that pays."""
        evaluation = self._evaluation = self._evaluation + 1
        for line in assignment.direct:
            line.link.settle()
            line.link.ask(Command.COSTS, evaluation, assignment.number)
        costs = [[work.costs()] for work in assignment.works]
        for line in assignment.direct:
            answer = self._collect(line, evaluation, recorder)
            for column, own in zip(costs, answer.payload, strict=True):
                column.append(own)
        with Uninterrupted():
            for link, order in assignment.rebalance([np.concatenate(column) for column in costs]):
                link.settle()
                self._tell(assignment, link, order)

    def _lay_out(
        self, assignment: Assignment, values: Sequence[np.ndarray], recorder: Recorder
    ) -> None:
        """Agree with the workers on the shapes of all that will be sent, either way."""
        assignment.prepare(values)
        self._broken_off = True
        if assignment.working and assignment.undefined:
            self._compile(assignment, recorder)
        with Uninterrupted():
            for link, definition in assignment.define():
                self._tell(assignment, link, definition)
            self._announce(assignment, assignment.direct)
            assignment.expect()
        if assignment.branches:
            self._hand_out(assignment, assignment.direct, Command.TAKE, recorder)

    def _tell(self, assignment: Assignment, link: Link, order: Define | Transfer) -> None:
        """Send an order, without the data that the worker has for other programs."""
        others = (other for other in self._assignments.values() if other is not assignment)
        known = set[Key]().union(*(other.known(link.rank) for other in others))
        link.order(assignment.number, order, known)

    @staticmethod
    def _announce(assignment: Assignment, lines: Sequence[Line]) -> None:
        for link, layout in assignment.layouts(lines):
            link.order(assignment.number, layout)

    def _hand_out(
        self,
        assignment: Assignment,
        lines: Sequence[Line],
        command: Command,
        recorder: Recorder,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Send ranks all of their inputs, whatever the tree, and wait until they have them.

        Without that, an evaluation that comes down a tree could overtake its layout.
        """
        evaluation = self._evaluation = self._evaluation + 1
        for line in lines:
            line.send(evaluation, assignment.everything, command)
        meanwhile()
        for line in lines:
            self._collect(line, evaluation, recorder)
            line.link.settle()

    def _compile(self, assignment: Assignment, recorder: Recorder) -> None:
        """Compile on one rank of each host; the others then find the code in PyTensor's cache."""
        leaders = assignment.leaders(self.hosts)
        with Uninterrupted():
            for link, definition in assignment.define([line.link for line in leaders]):
                self._tell(assignment, link, definition)
            self._announce(assignment, leaders)

        def warm() -> None:
            # What is done to compile is no evaluation, and is not counted.
            counted = TALLY.copy()
            for work in assignment.works:
                work.warm()
            recorder.counted(counted - TALLY)

        self._hand_out(assignment, leaders, Command.COMPILE, recorder, warm)

    def stop(self, timeout: float) -> bool:
        """Tell all workers to stop; say whether all of them answered in time."""
        deadline = time.perf_counter() + timeout

        def left() -> float:
            return max(0.0, deadline - time.perf_counter())

        if self._broken_off and not self._quiet(left()):
            return False
        if not all(link.settle(left()) for link in self.links):
            return False
        with Uninterrupted():
            self._evaluation += 1
            for link in self.links:
                link.ask(Command.STOP, self._evaluation)
        return all(link.collect(self._evaluation, left()) is not None for link in self.links)
