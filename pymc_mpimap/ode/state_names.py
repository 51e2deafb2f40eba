"""The names that a right-hand side gives to its states, for messages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from pytensor.graph.basic import Constant
from pytensor.tensor.subtensor import Subtensor

from pymc_mpimap.ode.traced_array import TracedArray

__all__ = ["StateNames"]


class StateNames:
    """Notes, while a function is called, which of its local variables are states.

    Both ``gut, central = y`` and ``gut = y[0]`` name a state. Of several names it is the first one
    of the outermost function.

    Parameters
    ----------
    states : TensorVariable
        The vector of states that the function is called with.
    is_users : callable
        Says of the name of a file whether functions in it are the user's.
    """

    def __init__(self, states: Any, is_users: Callable[[str], bool]):
        self._states, self._is_users = states, is_users
        self._n_states = int(states.type.shape[0])
        self._names: dict[int, str] = {}

    def __enter__(self) -> Self:
        # Where somebody else looks on, names are not worth a disturbance.
        self._is_on = sys.getprofile() is None
        if self._is_on:
            sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_on:
            sys.setprofile(None)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each state; ``y[i]`` where it has none."""
        return tuple(self._names.get(i, f"y[{i}]") for i in range(self._n_states))

    def _look(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "return" or not self._is_users(frame.f_code.co_filename):
            return
        found: dict[int, str] = {}
        for name, value in frame.f_locals.items():
            told = name.strip("_")  # which only says that the state is not used
            if not told or not isinstance(value, TracedArray):
                continue
            if (i := self._index(value.variable)) is not None:
                found.setdefault(i, told)
        # Functions return before those that call them.
        self._names |= found

    def _index(self, variable: Any) -> int | None:
        """Return which of the states a variable is."""
        node = variable.owner
        of_states = node is not None and isinstance(node.op, Subtensor)
        if not of_states or node.inputs[0] is not self._states or variable.type.ndim:
            return None
        index = node.inputs[1]
        return int(index.data) % self._n_states if isinstance(index, Constant) else None
