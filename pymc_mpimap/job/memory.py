"""Results that a rank keeps between messages, so that no job is solved twice.

Looked up by the content of all that it depends on: a result never depends on what is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Memory"]

# One for each chain of a process that takes its turn between a value and its pullback.
KEPT_PER_JOB = 8

_kept: dict[tuple[Any, ...], OrderedDict[tuple[Any, ...], Any]] = {}


@dataclass(frozen=True)
class Memory:
    """By what a kept evaluation is found again.

    Attributes
    ----------
    token : bytes
        The fingerprint of the computation and of the data that it holds.
    supplied : tuple of int
        The inputs that the graph supplies, looked up by content.
    """

    token: bytes
    supplied: tuple[int, ...]

    def recall(self, j: int, values: Sequence[Any]) -> Any:
        """Return what was kept for job `j` with these inputs, or None."""
        of_job = _kept.get((self.token, j))
        return None if of_job is None else of_job.get(self._content(values))

    def keep(self, j: int, values: Sequence[Any], evaluation: Any) -> None:
        """Keep an evaluation, and forget the oldest of the same job."""
        of_job = _kept.setdefault((self.token, j), OrderedDict())
        content = self._content(values)
        of_job[content] = evaluation
        of_job.move_to_end(content)
        while len(of_job) > KEPT_PER_JOB:
            of_job.popitem(last=False)

    def _content(self, values: Sequence[Any]) -> tuple[Any, ...]:
        arrays = (np.asarray(values[i]) for i in self.supplied)
        return tuple((array.shape, array.tobytes()) for array in arrays)
