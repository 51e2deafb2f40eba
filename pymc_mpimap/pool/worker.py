"""The worker's side: receive a command, obey, answer, until told to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from pymc_mpimap.errors import Incident, JobError, JobFailure, PoolError
from pymc_mpimap.native.compiling import starting_with_callees
from pymc_mpimap.pool.alarm import Alarm
from pymc_mpimap.pool.failures import describe
from pymc_mpimap.pool.head import Head
from pymc_mpimap.pool.inbox import Inbox
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.loss import Loss, Lost
from pymc_mpimap.pool.mailbox import Mailbox
from pymc_mpimap.pool.mpi_errors import says_that_it_is_gone
from pymc_mpimap.pool.parcel import Key, unpack, with_sources
from pymc_mpimap.pool.part import Part
from pymc_mpimap.pool.protocol import (
    PAYLOAD,
    Command,
    Define,
    Layout,
    Packing,
    Status,
    Transfer,
)
from pymc_mpimap.pool.reply import Reply
from pymc_mpimap.pool.said import encode
from pymc_mpimap.pool.wait import Patience, wait_until
from pymc_mpimap.tally import TALLY

__all__ = ["serve"]

Ending = Callable[[int], Callable[[], bool] | None]
"""Returns what tells whether a rank's process has ended; None where that is not known."""


class _Worker:
    def __init__(self, comm: Any, patience: Patience, rank: int, seal: int, ending: Ending):
        self.comm, self.patience, self.rank, self._seal = comm, patience, rank, seal
        self._ending = ending
        self._bell = patience.bell_for(0)
        self._alarm = None if patience.limit is None else Alarm(fatal=False)
        self.parts: dict[int, Part | JobFailure] = {}
        self.inboxes: dict[int, Inbox] = {}
        self._plain = Reply(comm, Packing([]), 0)
        self._counted = TALLY.copy()
        # By rank: the answers without outputs, and the links, to ranks above and below this one.
        self._plains = {0: self._plain}
        self._links: dict[int, Link] = {}
        self._parents: dict[int, int] = {}
        self._boxes = [Mailbox(comm, 0)]
        # Those of ranks that are gone: MPI may still write to them.
        self._lost_boxes: list[Mailbox] = []
        self._read(self._boxes[0])

    def _read(self, box: Mailbox) -> None:
        """Let a message, and whose it is, be what this mailbox holds."""
        self.message, self.header, self.source = box.message, box.header, box.source
        self.receive = box.request

    def run(self) -> bool:
        """Obey until told to stop; say whether ranks were lost."""
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
                n_arrays, seal = self.header[4:6].tolist()
                self._check(seal)
                self._control(number, self._order(payload, n_arrays))
            elif command == Command.COSTS:
                part = self.parts[number]
                costs = [] if isinstance(part, JobFailure) else part.costs()
                self._send(self._plain, evaluation, Status.OK, 0, costs)
            else:
                if command == Command.COMPILE:
                    self._compile(number)
                elif command == Command.TAKE:
                    self._take(number)
                # Answered even at the end, so that the controller knows that nobody is in a job.
                self._send(self._plain, evaluation, Status.OK, 0, [])
                if command == Command.STOP:
                    return bool(number)

    def close(self) -> None:
        """Receive no more, and send no more."""
        for box in self._boxes:
            box.close()
        for part in self.parts.values():
            if isinstance(part, Part):
                part.close()
        for inbox in self.inboxes.values():
            inbox.close()
        self._plain.close()

    def _hear(self) -> None:
        """Wait for a message from any of several ranks."""
        arrived: list[Mailbox] = []

        def any_arrived() -> bool:
            for box in self._boxes:
                try:
                    if box.arrived():
                        arrived.append(box)
                        return True
                except RuntimeError as error:
                    if box.source == 0 or not says_that_it_is_gone(error):
                        raise
                    # A rank above is gone. Rank 0 will lay out another tree, or none.
                    self._boxes = [other for other in self._boxes if other is not box]
                    self._lost_boxes.append(box)
            return False

        # No bell: the ranks above, other than rank 0, do not ring.
        wait_until(any_arrived, self.patience)
        self._read(arrived[0])

    def _link_to(self, rank: int) -> Link:
        if rank not in self._links:
            self._links[rank] = Link(self.comm, rank, self.patience, ended=self._ending(rank))
        return self._links[rank]

    def _check(self, seal: int) -> None:
        """Refuse, before anything is unpickled, an order of others than the rank 0 that was met."""
        if seal != self._seal:
            raise PoolError(
                f"rank {self.rank} was sent an order without the seal that rank 0 agreed upon with "
                "it at the start: it comes from another run"
            )

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
        programs = [a for a in self.parts.values() if isinstance(a, Part)]
        return with_sources(
            held for program in programs for share in program.shares for held in share.map.data
        )

    def _control(self, number: int, pickled: tuple[np.ndarray, list[np.ndarray]]) -> None:
        try:
            order = unpack(*pickled, self._known())
            if isinstance(order, Define):
                self.parts[number] = Part(order, self.comm, self.rank)
            elif isinstance(order, Transfer):
                self._part(number).take_over(order)
            else:
                self._lay_out(order)
        except JobError:
            pass  # An earlier failure, still to be answered.
        except BaseException as error:  # Answered at the next evaluation, like a job's own.
            self.parts[number] = self._failure(error, "taking over the jobs")

    def _lay_out(self, layout: Layout) -> None:
        # Messages must fit, whatever fails then, to be answered with the failure.
        parent = 0 if layout.branch is None else layout.branch.parent
        self._parents[layout.number] = parent
        boxes = {box.source: box for box in self._boxes}
        for rank in boxes.keys() - {0, *self._parents.values()}:
            boxes.pop(rank).close()
        if parent not in boxes:
            boxes[parent] = Mailbox(self.comm, parent)
            self._plains.setdefault(parent, Reply(self.comm, Packing([]), parent))
        for rank, parts in ((0, layout.parts), (parent, layout.incoming)):
            boxes[rank].reserve(Packing(parts, len(parts)).nbytes)
        self._boxes = list(boxes.values())
        self._read(self._boxes[0])
        if layout.number in self.inboxes:
            self.inboxes[layout.number].close()
        # Also where the program itself is not there: what is sent apart must be received.
        inbox = self.inboxes[layout.number] = Inbox(self.comm, layout, self.patience)
        inbox.find()
        part = self.parts[layout.number]
        if isinstance(part, Part):
            part.lay_out(layout, self._link_to, inbox)

    def _evaluate(self, evaluation: int, number: int) -> None:
        begun = perf_counter_ns()
        reply, status = self._plains[self.source], Status.FAILED
        head: Head | None = None
        said: list[Incident] | list[Loss]
        try:
            inbox, program = self.inboxes[number], self.parts[number]
            if isinstance(program, JobFailure):
                inbox.drop(self.message)
            elif program.head is None:
                inbox.update(self.message)
            part = self._part(number)
            if part.head is not None:
                self._forward(part.head, evaluation, number)
                head = part.head
            failures = self._evaluate_own(part, inbox)
            reply, status = part.reply, Status.REJECTED if failures else Status.OK
        except JobError as error:
            failures = [error.failure]
        except BaseException as error:
            failures = [self._failure(error, "evaluating")]
        spent = perf_counter_ns() - begun
        said = failures
        if head is not None:
            status, spent, said = self._gather(head, evaluation, status, spent, failures)
            without = status in {Status.FAILED, Status.LOST}
            reply = self._plains[self.source] if without else part.reply
        self._send(reply, evaluation, status, spent, said)

    def _evaluate_own(self, part: Part, inbox: Inbox) -> list[Incident]:
        """Evaluate this rank's own jobs; print where it stands just before it is given up."""
        if self._alarm is None:
            return part.evaluate(inbox)
        limit = self.patience.limit if part.warm else self.patience.longest
        self._alarm.set(0.9 * (limit or 0.0))
        try:
            return part.evaluate(inbox)
        finally:
            self._alarm.off()

    def _forward(self, head: Head, evaluation: int, number: int) -> None:
        try:
            head.forward(self.message, evaluation)
        except BaseException as error:
            # Those below may have old inputs now: this program will fail until it is laid out anew.
            self.parts[number] = self._failure(error, "handing inputs on")
            head.settle()
            raise

    def _gather(
        self, head: Head, evaluation: int, status: Status, spent: int, failures: list[Incident]
    ) -> tuple[Status, int, list[Incident] | list[Loss]]:
        try:
            gathered = head.gather(evaluation, status, spent, failures)
            # What has been counted below is to be sent as if it had been counted here.
            self._counted -= head.counts
        except BaseException as error:
            head.settle()
            failed: list[Incident] = [self._failure(error, "gathering answers")]
            return Status.FAILED, spent, failed
        return gathered

    def _compile(self, number: int) -> None:
        """Compile what the evaluation to come will need; it will also report what fails."""
        counted = TALLY.copy()
        self._take(number)
        with contextlib.suppress(Exception, SystemExit), starting_with_callees():
            for work in self._part(number).prepare(self.inboxes[number]):
                work.warm()
        # What is done to compile is no evaluation, and is not counted.
        self._counted += TALLY - counted

    def _take(self, number: int) -> None:
        """Take this rank's own inputs, for an evaluation to come."""
        try:
            self.inboxes[number].update(self.message)
        except BaseException as error:
            self.parts[number] = self._failure(error, "taking over inputs")

    def _part(self, number: int) -> Part:
        part = self.parts[number]
        if isinstance(part, JobFailure):
            raise JobError(part)
        return part

    def _send(
        self,
        reply: Reply,
        evaluation: int,
        status: Status,
        spent: int,
        said: Sequence[Any],
    ) -> None:
        try:
            self._reply(reply, evaluation, status, spent, said)
        except RuntimeError as error:
            if reply.dest == 0 or not says_that_it_is_gone(error):
                raise
            # The rank above is gone, and rank 0 knows, or will know. What that rank was to be
            # told goes with it.

    def _reply(
        self,
        reply: Reply,
        evaluation: int,
        status: Status,
        spent: int,
        said: Sequence[Any],
    ) -> None:
        header = reply.header
        header[0], header[2] = evaluation, spent
        payload = b""
        if status is not reply.status or said:
            payload = encode(said)
            header[1], header[3] = status, len(payload)
            # So that a payload's length is never taken for the next one's.
            reply.status = Status.OK if status == Status.OK and not payload else None
        if TALLY[0] != self._counted[0]:
            np.subtract(TALLY, self._counted, out=header[4:])
            self._counted[:] = TALLY
            reply.counted = True
        elif reply.counted:
            header[4] = 0
            reply.counted = False
        reply.request.Start()
        if self._bell is not None and not reply.dest:
            self._bell.ring(0)
        # A rank above that hangs must not hold this one up. Rank 0 does not wait longer for it.
        limit = self.patience.limit if reply.dest else None
        if payload:
            buffer = np.frombuffer(payload, np.uint8)
            sending = self.comm.Isend(buffer, dest=reply.dest, tag=PAYLOAD)
            wait_until(sending.Test, self.patience, limit)
        if not reply.request.Test():
            wait_until(reply.request.Test, self.patience, limit)

    def _failure(self, error: BaseException, doing: str) -> JobFailure:
        return describe(error, f"the program, {doing}", -1, self.rank)


def serve(
    comm: Any, patience: Patience, rank: int, seal: int, ending: Ending = lambda _: None
) -> bool:
    """Obey the controller until it says stop.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The private communicator; rank 0 of it is the controller, of the remote group where it is
        an intercommunicator.
    patience : Patience
    rank : int
        How the controller calls this rank.
    seal : int
        What was agreed with the controller at the start.
    ending : callable, optional
        Returns for another rank what tells whether its process has ended, or None.

    Returns
    -------
    bool
        Whether ranks were lost meanwhile.

    Raises
    ------
    Lost
        If the controller is gone.
    """
    worker = _Worker(comm, patience, rank, seal, ending)
    try:
        lost = worker.run()
    except RuntimeError as error:
        if not says_that_it_is_gone(error):
            raise
        raise Lost([Loss(0, f"died (MPI says: {error})")]) from None
    worker.close()
    return lost
