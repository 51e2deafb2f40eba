"""Inputs on their way to one worker for one program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pymc_mpimap.pool.commons import Commons
from pymc_mpimap.pool.interrupts import Uninterrupted
from pymc_mpimap.pool.link import Link
from pymc_mpimap.pool.protocol import (
    APART,
    HEADER,
    LARGE,
    Command,
    Layout,
    Packing,
    Parts,
    Place,
    new_buffer,
)

__all__ = ["Line"]

_Message = tuple[np.ndarray, Any, list[tuple[np.ndarray, np.ndarray]], list[Any]]
"""Flags, the request that sends, what is copied before, and the requests for large inputs."""


class Line:
    """The inputs that one worker is sent for a program, and the place of its answer.

    Parameters
    ----------
    link : Link
    number : int
        What the worker calls the program.
    parts : sequence of array
        The worker's parts of the inputs as they are held here.
    apart : bool
        Whether large inputs are sent apart. Down a tree they are not: who hands them on does it
        with the rest.
    commons : Commons, optional
        Where the worker finds large inputs, and puts large outputs, instead.
    answer_parts : sequence of (dtype, shape)
        What it answers.

    Attributes
    ----------
    places : dict of int to array
        The arrays of the answer that are not sent.
    layout : Layout
        What the worker must be told of what will be sent to it.
    answer : array of uint8
        Where the answer is looked for; another one than the link's after it made more room.
    """

    def __init__(
        self,
        link: Link,
        number: int,
        parts: Sequence[np.ndarray],
        *,
        apart: bool = True,
        commons: Commons | None = None,
        answer_parts: Parts = (),
    ):
        self.link = link
        self.places: dict[int, np.ndarray] = {}
        inputs: tuple[Place, ...] = ()
        outputs: tuple[Place, ...] = ()
        if commons is not None:
            inputs = commons.inputs(parts)
            self.places, outputs = commons.answer(answer_parts)
        self._common = {place.number for place in inputs}
        self._parts = parts
        layout: Parts = tuple((part.dtype.str, part.shape) for part in parts)
        self._packing = Packing(layout, len(parts))
        self._buffer = new_buffer(self._packing.nbytes)
        self._header = self._buffer[: 8 * HEADER].view(np.int64)
        self._header[:] = 0
        self._header[2] = number
        self._flags = self._buffer[8 * HEADER : 8 * HEADER + len(parts)]
        self._large = {
            i: link.message(part.reshape(-1).view(np.uint8), APART + i)
            for i, part in enumerate(parts)
            if apart and part.nbytes >= LARGE and i not in self._common
        }
        self.layout = Layout(number, layout, tuple(self._large), inputs=inputs, outputs=outputs)
        self._messages: dict[tuple[int, ...], _Message] = {}
        self._flagged: tuple[int, ...] | None = None
        self.answer = link.answer

    def send(
        self,
        evaluation: int,
        changed: tuple[int, ...],
        command: Command = Command.EVALUATE,
    ) -> None:
        """Send these of the inputs, for an evaluation or to compile for one."""
        message = self._messages.get(changed)
        if message is None:
            message = self._messages[changed] = self._message(changed)
        flags, request, pairs, apart = message
        self._header[0], self._header[1] = command, evaluation
        if changed != self._flagged:
            self._flagged = None  # if it is interrupted
            self._flags[:] = flags
            self._flagged = changed
        for place, part in pairs:
            place[...] = part
        if not apart:
            self.link.start(request)
            return
        # All or none, or the next message would be answered with what was meant for this one.
        with Uninterrupted():
            self.link.start(request, apart)

    def _message(self, changed: tuple[int, ...]) -> _Message:
        changed = tuple(i for i in changed if i not in self._common)
        flags = np.zeros(len(self._parts), dtype=np.uint8)
        flags[list(changed)] = 1
        packed = tuple(i for i in changed if i not in self._large)
        places, size = self._packing.views(self._buffer, packed)
        pairs = [(place, self._parts[i]) for i, place in zip(packed, places, strict=True)]
        apart = [self._large[i] for i in changed if i in self._large]
        return flags, self.link.message(self._buffer[:size]), pairs, apart
