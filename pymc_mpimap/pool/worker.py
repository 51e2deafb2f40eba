"""The worker's side: receive a command, obey, answer, until told to stop."""

from __future__ import annotations

import contextlib
import socket
import traceback
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import cloudpickle
import numpy as np

from pymc_mpimap.errors import JobError, JobFailure
from pymc_mpimap.pool.head import Head
from pymc_mpimap.pool.inbox import Inbox
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.mailbox import Mailbox
from pymc_mpimap.pool.parcel import Key, unpack, with_sources
from pymc_mpimap.pool.protocol import (
    HEADER,
    PAYLOAD,
    UP,
    Command,
    Define,
    Layout,
    Packing,
    Status,
    Transfer,
    new_buffer,
)
from pymc_mpimap.pool.settings import apply_settings
from pymc_mpimap.pool.share import Share
from pymc_mpimap.pool.wait import Patience, wait_until
from pymc_mpimap.pool.work import Work
from pymc_mpimap.tally import TALLY

__all__ = ["serve"]


class _Assignment:
    """A program on this rank: its shares, the inputs as they were last sent, and its answer."""

    def __init__(self, define: Define, comm: Any, rank: int):
        apply_settings(define.settings)
        self.comm, self.rank = comm, rank
        self.program = define.program
        self.shares = [
            Share(m, low, high, rank)
            for m, (low, high) in zip(self.program.maps, define.runs, strict=True)
        ]
        self.works: list[Work] | None = None
        self.parent = 0
        self.head: Head | None = None

    def take_over(self, transfer: Transfer) -> None:
        """Work on other jobs, with data of which only those of new jobs were sent."""
        shares = []
        for share, (low, high), gained in zip(
            self.shares, transfer.runs, transfer.gained, strict=True
        ):
            blocks = share.map.blocks
            moved = share.map.moved(blocks.first_job(low), blocks.first_job(high), gained)
            shares.append(Share(moved, low, high, self.rank))
        self.shares = shares

    def costs(self) -> list[np.ndarray]:
        """Return for each map the nanoseconds that each block took since this was asked last."""
        return [work.costs() for work in self.works or ()]

    def lay_out(self, layout: Layout, link_to: Callable[[int], Link], inbox: Inbox) -> None:
        """Take over the place in the tree, and forget what was made for other shapes."""
        self.works = self.head = None
        self.parent = 0 if layout.branch is None else layout.branch.parent
        if layout.branch is not None and layout.branch.children:
            self.head = Head(layout, self.program.maps, link_to)
            inbox.current = self.head.own

    def evaluate(self, inbox: Inbox) -> list[JobFailure]:
        """Evaluate all shares into the answer."""
        failures: list[JobFailure] = []
        for work in self.works or self.prepare(inbox):
            failures += work.evaluate()
        return failures

    def prepare(self, inbox: Inbox) -> list[Work]:
        """Make the answer's buffer, and what computes into it."""
        inputs = [[inbox.current[i] for i in used] for used in self.program.uses]
        if self.head is not None:
            self.works = [Work(share, own) for share, own in zip(self.shares, inputs, strict=True)]
            self.answer = Answer(self.comm, Packing(self.head.branch.answer), self.parent)
            self.head.prepare(self.works, self.answer.places)
            return self.works
        parts = [share.outputs(own) for share, own in zip(self.shares, inputs, strict=True)]
        packing = Packing([part for own in parts for part in own])
        self.answer = Answer(self.comm, packing, self.parent)
        rest = iter(self.answer.places)
        self.works = [
            Work(share, own, [next(rest) for _ in share.map.job.outputs])
            for share, own in zip(self.shares, inputs, strict=True)
        ]
        return self.works


class Answer:
    """A buffer, and the persistent request that sends it."""

    def __init__(self, comm: Any, packing: Packing, dest: int):
        self.dest = dest
        buffer = new_buffer(packing.nbytes)
        self.header = buffer[: 8 * HEADER].view(np.int64)
        self.places, _ = packing.views(buffer, tuple(range(len(packing.parts))))
        self.request = comm.Send_init(buffer[: packing.nbytes], dest=dest, tag=UP)
        # What stands in the header: without need, it is not written again.
        self.status: Status | None = None
        self.counted = True


class _Worker:
    def __init__(self, comm: Any, patience: Patience, rank: int):
        self.comm, self.patience, self.rank = comm, patience, rank
        self._bell = patience.bell_for(0)
        self.assignments: dict[int, _Assignment | JobFailure] = {}
        self.inboxes: dict[int, Inbox] = {}
        self._plain = Answer(comm, Packing([]), 0)
        self._counted = TALLY.copy()
        # By rank: the answers without outputs, and the links, to ranks above and below this one.
        self._plains = {0: self._plain}
        self._links: dict[int, Link] = {}
        self._parents: dict[int, int] = {}
        self._boxes = [Mailbox(comm, 0)]
        self._read(self._boxes[0])

    def _read(self, box: Mailbox) -> None:
        """Let a message, and whose it is, be what this mailbox holds."""
        self.message, self.header, self.source = box.message, box.header, box.source
        self.receive = box.request

    def run(self) -> None:
        while True:
            if len(self._boxes) > 1:
                self._hear()
            else:
                self.receive.Start()
                if not self.receive.Test():
                    wait_until(self.receive.Test, self.patience, bell=self._bell)
            command, evaluation, number, payload = self.header[:4].tolist()
            if command == Command.EVALUATE:
                self._evaluate(evaluation, number)
            elif command == Command.CONTROL:
                self._control(number, self._order(payload, int(self.header[4])))
            elif command == Command.COSTS:
                assignment = self.assignments[number]
                costs = [] if isinstance(assignment, JobFailure) else assignment.costs()
                self._send(self._plain, evaluation, Status.OK, 0, costs)
            else:
                if command == Command.COMPILE:
                    self._compile(number)
                elif command == Command.TAKE:
                    self._take(number)
                # Answered even at the end, so that the controller knows that nobody is in a job.
                self._send(self._plain, evaluation, Status.OK, 0, [])
                if command == Command.STOP:
                    return

    def close(self) -> None:
        """Receive no more."""
        for box in self._boxes:
            box.close()

    def _hear(self) -> None:
        """Wait for a message from any of several ranks."""
        arrived: list[Mailbox] = []

        def any_arrived() -> bool:
            for box in self._boxes:
                if box.arrived():
                    arrived.append(box)
                    return True
            return False

        # No bell: the ranks above, other than rank 0, do not ring.
        wait_until(any_arrived, self.patience)
        self._read(arrived[0])

    def _link_to(self, rank: int) -> Link:
        if rank not in self._links:
            self._links[rank] = Link(self.comm, rank, self.patience)
        return self._links[rank]

    def _order(self, nbytes: int, n_arrays: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Receive an order, and the arrays that belong to it."""
        pickled = self._payload(np.empty(nbytes, dtype=np.uint8))
        if not n_arrays:
            return pickled, []
        sizes = self._payload(np.empty(n_arrays, dtype=np.int64))
        return pickled, [self._payload(np.empty(size, dtype=np.uint8)) for size in sizes.tolist()]

    def _payload(self, buffer: np.ndarray) -> np.ndarray:
        request = self.comm.Irecv(buffer, source=0, tag=PAYLOAD)
        wait_until(request.Test, self.patience)
        return buffer

    def _known(self) -> dict[Key, Any]:
        """Return the data that are here, by what the controller calls them."""
        programs = [a for a in self.assignments.values() if isinstance(a, _Assignment)]
        return with_sources(
            held for program in programs for share in program.shares for held in share.map.data
        )

    def _control(self, number: int, pickled: tuple[np.ndarray, list[np.ndarray]]) -> None:
        try:
            order = unpack(*pickled, self._known())
            if isinstance(order, Define):
                self.assignments[number] = _Assignment(order, self.comm, self.rank)
            elif isinstance(order, Transfer):
                self._assignment(number).take_over(order)
            else:
                self._lay_out(order)
        except JobError:
            pass  # An earlier failure, still to be answered.
        except BaseException as error:  # Answered at the next evaluation, like a job's own.
            self.assignments[number] = self._failure(error, "taking over the jobs")

    def _lay_out(self, layout: Layout) -> None:
        # Messages must fit, whatever fails then, to be answered with the failure.
        parent = 0 if layout.branch is None else layout.branch.parent
        self._parents[layout.number] = parent
        boxes = {box.source: box for box in self._boxes}
        for rank in boxes.keys() - {0, *self._parents.values()}:
            boxes.pop(rank).close()
        if parent not in boxes:
            boxes[parent] = Mailbox(self.comm, parent)
            self._plains.setdefault(parent, Answer(self.comm, Packing([]), parent))
        for rank, parts in ((0, layout.parts), (parent, layout.incoming)):
            boxes[rank].reserve(Packing(parts, len(parts)).nbytes)
        self._boxes = list(boxes.values())
        self._read(self._boxes[0])
        # Also where the program itself is not there: what is sent apart must be received.
        inbox = self.inboxes[layout.number] = Inbox(self.comm, layout, self.patience)
        assignment = self.assignments[layout.number]
        if isinstance(assignment, _Assignment):
            assignment.lay_out(layout, self._link_to, inbox)

    def _evaluate(self, evaluation: int, number: int) -> None:
        begun = perf_counter_ns()
        answer, status = self._plains[self.source], Status.FAILED
        head: Head | None = None
        try:
            inbox, program = self.inboxes[number], self.assignments[number]
            if isinstance(program, JobFailure):
                inbox.drop(self.message)
            elif program.head is None:
                inbox.update(self.message)
            assignment = self._assignment(number)
            if assignment.head is not None:
                self._forward(assignment.head, evaluation, number)
                head = assignment.head
            failures = assignment.evaluate(inbox)
            answer, status = assignment.answer, Status.REJECTED if failures else Status.OK
        except JobError as error:
            failures = [error.failure]
        except BaseException as error:
            failures = [self._failure(error, "evaluating")]
        spent = perf_counter_ns() - begun
        if head is not None:
            status, spent, failures = self._gather(head, evaluation, status, spent, failures)
            answer = self._plains[self.source] if status == Status.FAILED else assignment.answer
        self._send(answer, evaluation, status, spent, failures)

    def _forward(self, head: Head, evaluation: int, number: int) -> None:
        try:
            head.forward(self.message, evaluation)
        except BaseException as error:
            # Those below may have old inputs now: this program will fail until it is laid out anew.
            self.assignments[number] = self._failure(error, "handing inputs on")
            head.settle()
            raise

    def _gather(
        self, head: Head, evaluation: int, status: Status, spent: int, failures: list[JobFailure]
    ) -> tuple[Status, int, list[JobFailure]]:
        try:
            gathered = head.gather(evaluation, status, spent, failures)
            # What has been counted below is to be sent as if it had been counted here.
            self._counted -= head.counts
        except BaseException as error:
            head.settle()
            return Status.FAILED, spent, [self._failure(error, "gathering answers")]
        return gathered

    def _compile(self, number: int) -> None:
        """Compile what the evaluation to come will need; it will also report what fails."""
        counted = TALLY.copy()
        self._take(number)
        with contextlib.suppress(Exception, SystemExit):
            for work in self._assignment(number).prepare(self.inboxes[number]):
                work.warm()
        # What is done to compile is no evaluation, and is not counted.
        self._counted += TALLY - counted

    def _take(self, number: int) -> None:
        """Take this rank's own inputs, for an evaluation to come."""
        try:
            self.inboxes[number].update(self.message)
        except BaseException as error:
            self.assignments[number] = self._failure(error, "taking over inputs")

    def _assignment(self, number: int) -> _Assignment:
        assignment = self.assignments[number]
        if isinstance(assignment, JobFailure):
            raise JobError(assignment)
        return assignment

    def _send(
        self,
        answer: Answer,
        evaluation: int,
        status: Status,
        spent: int,
        said: list[Any],
    ) -> None:
        header = answer.header
        header[0], header[2] = evaluation, spent
        payload = b""
        if status is not answer.status or said:
            payload = cloudpickle.dumps(said) if said else b""
            header[1], header[3] = status, len(payload)
            # So that a payload's length is never taken for the next one's.
            answer.status = Status.OK if status == Status.OK and not payload else None
        if TALLY[0] != self._counted[0]:
            np.subtract(TALLY, self._counted, out=header[4:])
            self._counted[:] = TALLY
            answer.counted = True
        elif answer.counted:
            header[4] = 0
            answer.counted = False
        answer.request.Start()
        if self._bell is not None and not answer.dest:
            self._bell.ring(0)
        if payload:
            wait_until(
                self.comm.Isend(
                    np.frombuffer(payload, np.uint8), dest=answer.dest, tag=PAYLOAD
                ).Test,
                self.patience,
            )
        if not answer.request.Test():
            wait_until(answer.request.Test, self.patience)

    def _failure(self, error: BaseException, doing: str) -> JobFailure:
        return JobFailure(
            function=f"the program, {doing}",
            job=-1,
            rank=self.rank,
            host=socket.gethostname(),
            exception=traceback.format_exception_only(error)[-1].strip(),
            traceback="".join(traceback.format_exception(error)),
        )


def serve(comm: Any, patience: Patience, rank: int) -> None:
    """Obey the controller until it says stop.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The private communicator; rank 0 of it is the controller, of the remote group where it is
        an intercommunicator.
    patience : Patience
    rank : int
        How the controller calls this rank.
    """
    worker = _Worker(comm, patience, rank)
    worker.run()
    worker.close()
