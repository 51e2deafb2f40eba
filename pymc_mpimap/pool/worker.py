"""The worker's side: receive a command, obey, answer, until told to stop."""

from __future__ import annotations

import pickle
import socket
import time
import traceback
from collections.abc import Sequence
from typing import Any

import cloudpickle
import numpy as np
from pytensor.configdefaults import config

from pymc_mpimap.errors import JobError, JobFailure
from pymc_mpimap.pool.protocol import (
    DOWN,
    HEADER,
    PAYLOAD,
    UP,
    Command,
    Define,
    Layout,
    Packing,
    Status,
    new_buffer,
)
from pymc_mpimap.pool.share import Share, ShareResult
from pymc_mpimap.pool.wait import Patience, wait_until
from pymc_mpimap.tally import TALLY

__all__ = ["apply_settings", "serve"]


def apply_settings(settings: dict[str, Any]) -> None:
    """Configure PyTensor (and JAX, where it is in use) as on the controller."""
    for name, value in settings.items():
        if name == "jax_enable_x64":
            import jax

            jax.config.update(name, value)
        elif getattr(config, name) != value:
            setattr(config, name, value)


class _Assignment:
    """A program on this rank: its shares, and the inputs as they were last sent."""

    def __init__(self, define: Define, rank: int):
        apply_settings(define.settings)
        self.program = define.program
        self.shares = [
            Share(m, low, high, rank)
            for m, (low, high) in zip(self.program.maps, define.runs, strict=True)
        ]
        self.packing = Packing([], len(self.program.moves))
        self.current: list[np.ndarray] = []
        self._changed: dict[bytes, tuple[int, ...]] = {}

    def lay_out(self, layout: Layout) -> None:
        self.packing = Packing(layout.parts, len(self.program.moves))
        self.current = [np.zeros(shape, dtype) for dtype, shape in self.packing.parts]

    def _update(self, message: np.ndarray) -> None:
        """Take the changed inputs out of a message."""
        start = 8 * HEADER
        flags = message[start : start + self.packing.flags].tobytes()
        changed = self._changed.get(flags)
        if changed is None:
            changed = tuple(i for i, flag in enumerate(flags) if flag)
            self._changed[flags] = changed
        arrays, _ = self.packing.views(message, changed)
        for i, array in zip(changed, arrays, strict=True):
            self.current[i][...] = array

    def evaluate(self, message: np.ndarray) -> list[ShareResult]:
        self._update(message)
        return [
            share.evaluate([self.current[i] for i in used])
            for share, used in zip(self.shares, self.program.uses, strict=True)
        ]


class _Worker:
    def __init__(self, comm: Any, patience: Patience):
        self.comm, self.patience = comm, patience
        self.assignments: dict[int, _Assignment | JobFailure] = {}
        self._packings: dict[Any, Packing] = {}
        self._counted = TALLY.copy()
        self._receive_into(new_buffer(8 * HEADER))
        self._answer_from(new_buffer(8 * HEADER))

    def _receive_into(self, buffer: np.ndarray) -> None:
        self.message = buffer
        self.header = buffer[: 8 * HEADER].view(np.int64)
        self.receive = self.comm.Recv_init(buffer, source=0, tag=DOWN)

    def _answer_from(self, buffer: np.ndarray) -> None:
        self.answer = buffer
        self.answer_header = buffer[: 8 * HEADER].view(np.int64)
        self._sends: dict[int, Any] = {}

    def run(self) -> None:
        while True:
            self.receive.Start()
            wait_until(self.receive.Test, self.patience)
            command, evaluation, number, payload, *_ = self.header.tolist()
            if command == Command.STOP:
                # Answered, so that the controller knows that nobody is still in a job.
                self._send_answer(evaluation, Status.OK, 0, b"", 8 * HEADER)
                return
            if command == Command.CONTROL:
                self._control(number, self._payload(payload))
            else:
                self._evaluate(evaluation, number)

    def _payload(self, nbytes: int) -> bytes:
        buffer = np.empty(nbytes, dtype=np.uint8)
        request = self.comm.Irecv(buffer, source=0, tag=PAYLOAD)
        wait_until(request.Test, self.patience)
        return buffer.tobytes()

    def _control(self, number: int, payload: bytes) -> None:
        try:
            order = pickle.loads(payload)
            if isinstance(order, Define):
                self.assignments[number] = _Assignment(order, self.comm.rank)
            elif isinstance(order, Layout):
                self._lay_out(order)
            else:
                self.assignments.pop(number, None)
        except BaseException as error:  # Answered at the next evaluation, like a job's own.
            self.assignments[number] = self._failure(error, "taking over the jobs")

    def _lay_out(self, layout: Layout) -> None:
        assignment = self.assignments[layout.number]
        if isinstance(assignment, JobFailure):
            # The message must still fit, to be answered with the failure.
            packing = Packing(layout.parts, 8 * len(layout.parts))
        else:
            assignment.lay_out(layout)
            packing = assignment.packing
        if packing.nbytes > len(self.message):
            self._receive_into(new_buffer(packing.nbytes))

    def _evaluate(self, evaluation: int, number: int) -> None:
        begun = time.perf_counter_ns()
        failures: list[JobFailure] = []
        results: list[ShareResult] = []
        status = Status.OK
        try:
            results = self._assignment(number).evaluate(self.message)
            failures = [failure for result in results for failure in result.failures]
            status = Status.REJECTED if failures else Status.OK
        except JobError as error:
            status, failures = Status.FAILED, [error.failure]
        except BaseException as error:
            status, failures = Status.FAILED, [self._failure(error, "evaluating")]
        payload = cloudpickle.dumps(failures) if failures else b""
        size = self._pack(results if status != Status.FAILED else [])
        busy = time.perf_counter_ns() - begun
        self._send_answer(evaluation, status, busy, payload, size)

    def _assignment(self, number: int) -> _Assignment:
        assignment = self.assignments[number]
        if isinstance(assignment, JobFailure):
            raise JobError(assignment)
        return assignment

    def _send_answer(
        self, evaluation: int, status: Status, busy: int, payload: bytes, size: int
    ) -> None:
        self.answer_header[:4] = (evaluation, status, busy, len(payload))
        np.subtract(TALLY, self._counted, out=self.answer_header[4:])
        self._counted[:] = TALLY
        if size not in self._sends:
            self._sends[size] = self.comm.Send_init(self.answer[:size], dest=0, tag=UP)
        send = self._sends[size]
        send.Start()
        if payload:
            wait_until(
                self.comm.Isend(np.frombuffer(payload, np.uint8), dest=0, tag=PAYLOAD).Test,
                self.patience,
            )
        wait_until(send.Test, self.patience)

    def _pack(self, results: Sequence[ShareResult]) -> int:
        """Copy the outputs into the answer; return its size."""
        outputs = [output for result in results for output in result.outputs]
        shapes = tuple((output.dtype, output.shape) for output in outputs)
        packing = self._packings.get(shapes)
        if packing is None:
            packing = self._packings[shapes] = Packing(shapes)
        if packing.nbytes > len(self.answer):
            self._answer_from(new_buffer(packing.nbytes))
        views, size = packing.views(self.answer, tuple(range(len(outputs))))
        for view, output in zip(views, outputs, strict=True):
            view[...] = output
        return size

    def _failure(self, error: BaseException, doing: str) -> JobFailure:
        return JobFailure(
            function=f"the program, {doing}",
            job=-1,
            rank=self.comm.rank,
            host=socket.gethostname(),
            exception=traceback.format_exception_only(error)[-1].strip(),
            traceback="".join(traceback.format_exception(error)),
        )


def serve(comm: Any, patience: Patience) -> None:
    """Obey the controller until it says stop.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        The private communicator; rank 0 is the controller.
    """
    _Worker(comm, patience).run()
