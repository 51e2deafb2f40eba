"""The line to one worker, of the controller or of the rank above it in a tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any

import numpy as np

from pymc_mpimap.errors import PoolError
from pymc_mpimap.pool.interrupts import Uninterrupted
from pymc_mpimap.pool.loss import Loss, Lost
from pymc_mpimap.pool.mpi_errors import says_that_it_is_gone
from pymc_mpimap.pool.parcel import Key, pack
from pymc_mpimap.pool.protocol import (
    DOWN,
    HEADER,
    PAYLOAD,
    UP,
    Command,
    Define,
    Layout,
    Transfer,
    new_buffer,
)
from pymc_mpimap.pool.said import decode
from pymc_mpimap.pool.wait import Patience, wait_until

__all__ = ["Answer", "Link"]

_BETWEEN_LOOKS = 1_000_000
"""Nanoseconds between two looks at a process, each of which takes half a microsecond."""


class Answer:
    """A worker's answer without the outputs, which stay in the link's buffer."""

    __slots__ = ("counts", "payload", "spent", "status")

    def __init__(self, status: int, spent: int, counts: Any, payload: list[Any]):
        self.status, self.spent = status, spent
        self.counts, self.payload = counts, payload


class Link:
    """Requests and buffers between one worker and the controller, or a rank above it in a tree.

    Ctrl-C may interrupt the controller anywhere. What is under way is then waited for before the
    next message, and an answer that nobody waits for any more is known by its number.

    All methods raise `Lost` where MPI says that the worker is gone. The link is then of no use, but
    must be kept: MPI may still write to its buffers.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
    rank : int
        How the worker is called.
    patience : Patience
    place : int, optional
        Its rank in `comm`, where that is another one: a spawned worker has a communicator of its
        own.
    seal : int
        What was agreed with the worker at the start: each order carries it.
    near : bool
        Whether the worker can have memory in common with this rank.
    ended : callable, optional
        Whether its process has ended, where that can be known without MPI.

    Attributes
    ----------
    answer : array of uint8
        Where answers arrive. Another one after `reserve` made more room.
    """

    def __init__(
        self,
        comm: Any,
        rank: int,
        patience: Patience,
        place: int | None = None,
        *,
        seal: int = 0,
        near: bool = False,
        ended: Callable[[], bool] | None = None,
    ):
        self.comm, self.rank, self.patience, self.near = comm, rank, patience, near
        self._place = rank if place is None else place
        self.reaches_others = place is None
        self._seal = seal
        self._ended, self._look_at = ended, 0
        self._bell = patience.bell_for(rank)
        self._sending: Any = None
        self._apart: list[Any] = []
        self._receiving = False
        self._orders = new_buffer(8 * HEADER)
        self._order_header = self._orders.view(np.int64)
        self._asking = self.message(self._orders)
        self._answer_into(new_buffer(8 * HEADER))

    def lost(self, error: Exception) -> Exception:
        """Return what an error of MPI means: that the rank is lost."""
        if not says_that_it_is_gone(error):
            return error
        return Lost([Loss(self.rank, f"died (MPI says: {error})")])

    def late(self, seconds: float) -> Lost:
        """Return what it means that the rank did not answer, or take a message, in time."""
        return Lost([Loss(self.rank, f"did not answer within {seconds:g} s", silent=True)])

    def _wait(self, request: Any, timeout: float | None = None, bell: Any = None) -> bool:
        """Wait for a request; without a limit by the caller, for as long as there is patience."""
        limit = self.patience.longest if timeout is None else None
        done = request.Test if self._ended is None else partial(self._arrived, request)
        if wait_until(done, self.patience, timeout if limit is None else limit, bell):
            return True
        if limit is not None:
            raise self.late(limit)
        return False

    def _arrived(self, request: Any) -> bool:
        """Test a request, and look from time to time whether there is still somebody to wait for.

        What the worker sent before its end may have arrived after the first test.
        """
        if request.Test():
            return True
        now = perf_counter_ns()
        if now >= self._look_at:
            self._look_at = now + _BETWEEN_LOOKS
            if self._ended is not None and self._ended():
                if not request.Test():
                    raise Lost([Loss(self.rank, "died")])
                return True
        return False

    def _answer_into(self, buffer: np.ndarray) -> None:
        self.answer = buffer
        self._header = buffer[: 8 * HEADER].view(np.int64)
        self._receive = self.comm.Recv_init(buffer, source=self._place, tag=UP)

    def reserve(self, nbytes: int) -> None:
        """Make room for answers of this size; nothing may be under way."""
        if nbytes > len(self.answer):
            self._answer_into(new_buffer(nbytes))

    def message(self, buffer: np.ndarray, tag: int = DOWN) -> Any:
        """Return the persistent request that sends this buffer."""
        try:
            return self.comm.Send_init(buffer, dest=self._place, tag=tag)
        except RuntimeError as error:
            raise self.lost(error) from None

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until nothing is under way; an answer to what was interrupted is dropped.

        Returns
        -------
        bool
            Whether that was so in time.
        """
        try:
            if self._receiving:
                if not self._wait(self._receive, timeout, self._bell):
                    return False
                self._payload()
                self._receiving = False
            if self._sending is not None:
                if not self._wait(self._sending, timeout):
                    return False
                self._sending = None
            while self._apart:
                if not self._wait(self._apart[-1], timeout):
                    return False
                self._apart.pop()
        except RuntimeError as error:
            raise self.lost(error) from None
        return True

    def start(self, message: Any, apart: Sequence[Any] = ()) -> None:
        """Send a message, and what belongs to it, and expect an answer.

        The link must be settled; with something apart, it must not be interrupted.
        """
        try:
            self._sending = message
            message.Start()
            for request in apart:
                self._apart.append(request)
                request.Start()
            self._receiving = True
            self._receive.Start()
        except RuntimeError as error:
            raise self.lost(error) from None
        if self._bell is not None:
            self._bell.ring(self.rank)

    def sent(self) -> None:
        """Wait until the message that was started last has left."""
        if self._sending is not None:
            try:
                self._wait(self._sending)
            except RuntimeError as error:
                raise self.lost(error) from None
            self._sending = None

    def order(
        self, number: int, order: Define | Layout | Transfer, known: set[Key] | None = None
    ) -> None:
        """Send what is not on the hot path. It must not be interrupted.

        Parameters
        ----------
        known : set, optional
            By what data are called that the worker has.
        """
        pickled, buffers = pack(order, known or set())
        sizes = np.array([len(buffer) for buffer in buffers], dtype=np.int64)
        content = (Command.CONTROL, 0, number, len(pickled), len(buffers), self._seal)
        self._order_header[: len(content)] = content
        messages = [pickled, *([sizes] if buffers else []), *buffers]
        try:
            requests = [
                self.comm.Isend(self._orders, dest=self._place, tag=DOWN),
                *(self.comm.Isend(part, dest=self._place, tag=PAYLOAD) for part in messages),
            ]
            if self._bell is not None:
                self._bell.ring(self.rank)
            for request in requests:
                self._wait(request)
        except RuntimeError as error:
            raise self.lost(error) from None

    def ask(self, command: Command, evaluation: int, number: int = 0) -> None:
        """Send a command that is answered like an evaluation. The link must be settled."""
        self._order_header[:4] = (command, evaluation, number, 0)
        self.start(self._asking)

    def collect(self, evaluation: int, timeout: float | None = None) -> Answer | None:
        """Wait for the answer to an evaluation; None if out of time.

        Can be interrupted while it waits.
        """
        try:
            while True:
                if not self._receive.Test():
                    if self._sending is not None and self._sending.Test():
                        self._sending = None  # Found out while there is time.
                    if not self._wait(self._receive, timeout, self._bell):
                        return None
                number, status, spent, size, solves = self._header[:5].tolist()
                if number >= evaluation:
                    break
                # The answer to an evaluation that was interrupted before it could be expected.
                self._payload()
                self._receive.Start()
            payload = self._payload() if size else []
        except RuntimeError as error:
            raise self.lost(error) from None
        self._receiving = False
        if number > evaluation:
            raise PoolError(
                f"rank {self.rank} answered evaluation {number} where {evaluation} was asked for; "
                "please report this"
            )
        return Answer(status, spent, self._header[4:] if solves else None, payload)

    def _payload(self) -> list[Any]:
        """Receive what follows an answer, once."""
        with Uninterrupted():
            size = int(self._header[3])
            if not size:
                return []
            payload = np.empty(size, dtype=np.uint8)
            request = self.comm.Irecv(payload, source=self._place, tag=PAYLOAD)
            self._wait(request)
            self._header[3] = 0
        return decode(payload.tobytes())
