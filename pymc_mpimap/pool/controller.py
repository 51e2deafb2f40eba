"""The controller's side: send each worker what changed, collect the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter_ns
from typing import Any

import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.errors import Incident, JobError, PoolError
from pymc_mpimap.pool.assignment import Assignment
from pymc_mpimap.pool.deal import Block
from pymc_mpimap.pool.interrupts import Uninterrupted
from pymc_mpimap.pool.line import Line
from pymc_mpimap.pool.link import Answer
from pymc_mpimap.pool.loss import Loss, Lost
from pymc_mpimap.pool.parcel import Key
from pymc_mpimap.pool.program import Program
from pymc_mpimap.pool.protocol import Command, Define, Status
from pymc_mpimap.pool.report import Recorder
from pymc_mpimap.pool.schedule import Step
from pymc_mpimap.pool.staff import Countdown, Staff, countdown
from pymc_mpimap.tally import TALLY

__all__ = ["Controller"]

_BETWEEN_LOOKS = 200_000
"""Nanoseconds between two looks at the balance, each of which takes one microsecond."""

_MOST_TRIES = 8
"""The most tries of an evaluation during which ranks are lost: a job that ends its process, by a
segmentation fault for example, would otherwise end one rank after the other, and this one too."""

_MOST_HANGING = 3
"""The same for ranks that do not answer: a job that does not return stops one after the other."""

_CHANCE = 2
"""The losses with the same job after which rank 0 does not do it: it would be lost next."""

_PATIENCE = 100
"""The least time between two rebalancings, as a multiple of the time that the last one took."""


class Controller:
    """Evaluates programs on this rank, which is rank 0, and on those that it has links to.

    When a rank is lost, its jobs are dealt to those that are left, and what was being evaluated is
    evaluated again. As no bit depends on who has which jobs, nobody can tell from the outputs.

    Parameters
    ----------
    staff : Staff
        The others.
    """

    def __init__(self, staff: Staff):
        self.staff, self._schedule = staff, staff.schedule
        self._assignments: dict[tuple[Program, str], Assignment] = {}
        self._latest: Any = (None, "", None)
        # The nanoseconds that workers lose, compared with rank 0, to the messages.
        self._lag = math.inf

    def evaluate(
        self, program: Program, inputs: Sequence[np.ndarray], recorder: Recorder
    ) -> list[np.ndarray]:
        """Return a program's outputs, and record how it went.

        Raises
        ------
        JobError
            If a job raised.
        RankLostError
            If a rank was lost, and the pool does not go on without it.
        PoolError
            If ranks are lost again and again.
        """
        mode = config.mode
        if program is not self._latest[0] or mode != self._latest[1]:
            self._latest = program, mode, self._assignment(program, mode, inputs)
        assignment = self._latest[2]
        values = [inputs[position] for position in assignment.positions]
        schedule = self._schedule
        begun, hanging = len(schedule.losses), 0
        suspects: set[Block] | None = None
        for tries in range(_MOST_TRIES):
            before, losses = schedule.staff, len(schedule.losses)
            try:
                if schedule.next() is not Step.SEND:
                    self.staff.get_ready(self._forget, recorder)
                if tries >= _CHANCE and suspects and not schedule.staff:
                    break
                if assignment.deal.staff is not schedule.staff:
                    assignment.give(schedule.staff)
                evaluation = self._send(assignment, values, program, inputs, recorder)
                outputs = self._finish(assignment, evaluation, recorder)
                if outputs is not None:
                    return outputs
            except Lost as lost:
                self._note(assignment, lost.losses)
                if schedule.staff is before:
                    raise PoolError(f"{lost}, but was lost before; please report this") from lost
            lost_now = schedule.losses[losses:]
            hanging += any(loss.silent for loss in lost_now)
            if hanging == _MOST_HANGING:
                break
            theirs = assignment.deal.blocks_of(loss.rank for loss in lost_now)
            suspects = theirs if suspects is None else suspects & theirs
        lost_here = schedule.losses[begun:]
        raise PoolError(
            "an evaluation is given up, because ranks were lost each time that it was tried: "
            + "; ".join(f"rank {loss.rank} {loss.how}" for loss in lost_here)
            + ". Probably a job does not return, or ends its process, at these parameters"
        )

    def _note(self, assignment: Assignment, losses: Sequence[Loss]) -> None:
        """Note that ranks are lost, and with which jobs where they may be why."""
        self.staff.note(
            [
                replace(loss, how=f"{loss.how}, with {assignment.deal.jobs_of(loss.rank)}")
                if loss.silent and "jobs" not in loss.how
                else loss
                for loss in losses
            ]
        )

    def _send(
        self,
        assignment: Assignment,
        values: Sequence[np.ndarray],
        program: Program,
        inputs: Sequence[np.ndarray],
        recorder: Recorder,
    ) -> int:
        """Send an evaluation, and whatever must come before; return its number."""
        self._set_limit(assignment)
        self.staff.settle(assignment.heads)
        if assignment.fits(values):
            evaluation = self._schedule.begin(assignment.asked)
            assignment.send(evaluation, values)
        else:
            self.staff.settle(self.staff.present())
            program.check(inputs)
            self._lay_out(assignment, values, recorder)
            evaluation = self._schedule.begin(assignment.asked)
            assignment.send_all(evaluation)
        return evaluation

    def _set_limit(self, assignment: Assignment) -> None:
        """Say how long may be waited for what is asked next."""
        patience = self.staff.patience
        if patience.limit is not None:
            warm = assignment.warm
            self.staff.limit = patience.late_at(assignment.height) if warm else patience.longest

    def _forget(self, rank: int) -> None:
        """Take it that a rank has been told nothing."""
        for assignment in self._assignments.values():
            assignment.deal.forget(rank)

    def _assignment(self, program: Program, mode: str, inputs: Sequence[np.ndarray]) -> Assignment:
        # Compiled code belongs to the PyTensor mode that it was compiled in.
        key = program, mode
        if key not in self._assignments:
            program.check(inputs)
            self._assignments[key] = Assignment(
                len(self._assignments),
                program,
                self.staff.links,
                self._schedule.staff,
                self.staff.start,
            )
        return self._assignments[key]

    def _finish(
        self, assignment: Assignment, evaluation: int, recorder: Recorder
    ) -> list[np.ndarray] | None:
        """Do this rank's own part, collect the others', and put all together.

        None if a rank was lost meanwhile.
        """
        busy = [0] * len(self.staff.hosts)
        begun = perf_counter_ns()
        failures, failed = self._own_part(assignment)
        busy[0] = perf_counter_ns() - begun
        slowest = 0
        moved = False
        left = countdown(self.staff.limit)
        for line in assignment.lines:
            answer = self._collect(assignment, line, evaluation, recorder, left)
            if answer is None:
                continue
            moved |= line.answer is not line.link.answer
            busy[line.link.rank] = answer.spent
            slowest = max(slowest, answer.spent)
            if answer.status == Status.FAILED:
                failed.append(_error(assignment, line, answer))
            else:
                failures += answer.payload
        if self._schedule.over() is not Step.RETURN:
            return None
        if failed:
            raise _first(failed)
        assignment.warm = True
        if moved or assignment.branches:
            assignment.received(busy)
        outputs = [assemble() for assemble in assignment.assemblies]
        if failures:
            recorder.noted(failures)
        now = perf_counter_ns()
        recorder.evaluated(busy, now)
        if assignment.lines:
            # Longer where rank 0 itself was slower: hence the least of late.
            self._lag = max(0.0, min(1.01 * self._lag + 10, now - begun - slowest))
            if now >= assignment.look_at:
                assignment.look_at = now + _BETWEEN_LOOKS
                self._look(assignment, busy, recorder)
        return outputs

    def _own_part(self, assignment: Assignment) -> tuple[list[Incident], list[JobError]]:
        """Do what is this rank's; return the jobs that were rejected, and what was raised."""
        failures: list[Incident] = []
        limit = self.staff.limit
        if limit is not None:
            self.staff.alarm.set(limit)
        try:
            for work in assignment.works:
                failures += work.evaluate()
        except JobError as error:
            return failures, [error]
        finally:
            if limit is not None:
                self.staff.alarm.off()
        return failures, []

    def _collect(
        self,
        assignment: Assignment,
        line: Line,
        evaluation: int,
        recorder: Recorder,
        left: Countdown,
    ) -> Answer | None:
        """Wait for an answer; None if the rank is lost, or one below it in a tree."""
        link = line.link
        try:
            answer = link.collect(evaluation, left())
            if answer is None:
                raise link.late(self.staff.limit or 0.0)
        except Lost as lost:
            self._note(assignment, lost.losses)
            return None
        self._schedule.answered(link.rank, evaluation)
        if answer.counts is not None:
            recorder.counted(answer.counts)
        if answer.status == Status.LOST:
            self._note(assignment, answer.payload)
            return None
        return answer

    def _look(self, assignment: Assignment, busy: Sequence[int], recorder: Recorder) -> None:
        """Rebalance if it is time to."""
        begun = perf_counter_ns()
        if assignment.deal.wants_costs(busy, -self._lag) and begun >= assignment.ask_at:
            try:
                self._rebalance(assignment, recorder)
            except Lost as lost:
                self._note(assignment, lost.losses)  # Seen to before the next evaluation.
            ended = perf_counter_ns()
            assignment.ask_at = ended + _PATIENCE * (ended - begun)

    def _rebalance(self, assignment: Assignment, recorder: Recorder) -> None:
        """Ask all ranks what their blocks cost, and move blocks between them where that pays."""
        evaluation = self._schedule.begin(assignment.deal.working)
        self.staff.settle(line.link for line in assignment.direct)
        for line in assignment.direct:
            line.link.ask(Command.COSTS, evaluation, assignment.number)
        costs = [[work.costs()] for work in assignment.works]
        left = countdown(self.staff.limit)
        for line in assignment.direct:
            answer = self._collect(assignment, line, evaluation, recorder, left)
            if answer is not None:
                for column, own in zip(costs, answer.payload, strict=True):
                    column.append(own)
        if self._schedule.over() is Step.RETURN and assignment.deal.rebalance(
            [np.concatenate(column) for column in costs]
        ):
            assignment.in_force = False

    def _lay_out(
        self, assignment: Assignment, values: Sequence[np.ndarray], recorder: Recorder
    ) -> None:
        """Agree with the workers on the shapes of all that will be sent, either way."""
        assignment.prepare(values)
        self._schedule.begin(())  # From here on, Ctrl-C leaves ranks at work.
        if assignment.direct and assignment.deal.undefined:
            self._compile(assignment, recorder)
        with Uninterrupted():
            self._tell(assignment)
            self._set_limit(assignment)
            self._announce(assignment, assignment.direct)
            assignment.expect()
        if assignment.branches:
            self._hand_out(assignment, assignment.direct, Command.TAKE, recorder)

    def _tell(self, assignment: Assignment, ranks: Sequence[int] | None = None) -> None:
        """Tell ranks which jobs are theirs, without the data that they have for other programs."""
        others = [other for other in self._assignments.values() if other is not assignment]
        for rank, order in assignment.deal.orders(ranks):
            if isinstance(order, Define) or (assignment.deal.loads and any(order.gained)):
                assignment.warm = False
            known = set[Key]().union(*(other.deal.known(rank) for other in others))
            self.staff.links[rank - 1].order(assignment.number, order, known)

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
        evaluation = self._schedule.begin(line.link.rank for line in lines)
        for line in lines:
            line.send(evaluation, assignment.everything, command)
        meanwhile()
        left = countdown(self.staff.limit)
        for line in lines:
            if self._collect(assignment, line, evaluation, recorder, left) is not None:
                line.link.settle()
        if self._schedule.over() is not Step.RETURN:
            raise Lost([])  # They are noted already.

    def _compile(self, assignment: Assignment, recorder: Recorder) -> None:
        """Compile on one rank of each host; the others then find the code in PyTensor's cache.

        On this host on two, which begin at different ends and find each other's code there.
        """
        leaders = assignment.leaders(self.staff.hosts)
        with Uninterrupted():
            self._tell(assignment, [line.link.rank for line in leaders])
            self._announce(assignment, leaders)

        def warm() -> None:
            # What is done to compile is no evaluation, and is not counted.
            counted = TALLY.copy()
            for work in assignment.works:
                work.warm()
            recorder.counted(counted - TALLY)

        self._hand_out(assignment, leaders, Command.COMPILE, recorder, warm)


def _error(assignment: Assignment, line: Line, answer: Answer) -> JobError:
    """Return the error that a rank answers with."""
    error = JobError(answer.payload[0])
    if error.failure.job < 0:
        # It has not taken over the program, nor the data that came with it.
        assignment.deal.forget(line.link.rank)
    return error


def _first(failed: Sequence[JobError]) -> JobError | PoolError:
    """Return the error of the lowest job, or for which a rank refuses the program."""
    error = min(failed, key=lambda error: error.failure.job)
    failure = error.failure
    if failure.job < 0 and failure.kind == PoolError.__name__:
        return PoolError(failure.exception.partition(": ")[2])
    return error
