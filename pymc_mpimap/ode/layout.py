"""Layouts: the columns of a solve, and the vector of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ATOL",
    "FAULT",
    "FAULT_STATE",
    "FAULT_TIME",
    "FAULT_VALUE",
    "FIRST",
    "LAST",
    "N_INPUTS",
    "N_STATES",
    "PARAMETERS",
    "PART",
    "RTOL",
    "WIDTH",
    "Layout",
]

# SUNDIALS hands one pointer on to what it calls: the parameters, a vector of doubles. After the
# numbers here, the last of which are of the latest fault (see `faults`), come the parameters
# themselves from PARAMETERS on, the constant inputs of the states (infusions), the columns of the
# stepped parameters, the absolute tolerance of each state and the scale of each column, and for
# each infusion that has a column its state, column and strength.
FIRST, LAST, N_STATES, WIDTH, RTOL, ATOL, N_INPUTS, PART = range(8)
FAULT, FAULT_STATE, FAULT_TIME, FAULT_VALUE, PARAMETERS = range(8, 13)


@dataclass(frozen=True)
class Layout:
    """The shape of a solve: its states, parameters and sensitivities.

    The states with their sensitivities are a matrix of `n_states` rows. Column 0 has the states;
    the derivatives with respect to parameters follow, then those with respect to the initial
    states, the initial time, the amounts of doses, and the values of stepped parameters.

    Attributes
    ----------
    n_states : int
    columns : tuple of (int or None)
        For each parameter its column, None where no sensitivity is wanted.
    stepped : tuple of (int, int)
        For each parameter, of which stepped one (-1: none) it is which element.
    stepped_wanted : tuple of bool
        For each stepped parameter, whether its values have columns.
    initial_states, initial_time, amounts : bool
        Whether these have columns.
    doses : bool
        Whether there are doses at all.
    slopes : bool
        Whether the derivatives with respect to the output times are wanted.
    """

    n_states: int
    columns: tuple[int | None, ...]
    stepped: tuple[tuple[int, int], ...]
    stepped_wanted: tuple[bool, ...] = ()
    initial_states: bool = False
    initial_time: bool = False
    amounts: bool = False
    doses: bool = False
    slopes: bool = False

    @property
    def fixed_width(self) -> int:
        """The number of columns for any number of doses and steps."""
        wanted = sum(column is not None for column in self.columns)
        return 1 + wanted + self.n_states * self.initial_states + self.initial_time

    @property
    def dynamic(self) -> bool:
        """True if the number of columns depends on the number of doses or steps."""
        return self.amounts or any(self.stepped_wanted)

    @property
    def sensitivities(self) -> bool:
        """True if there is any column but the states'."""
        return self.fixed_width > 1 or self.dynamic

    @property
    def inputs_at(self) -> int:
        """The place at which the constant inputs of the states begin."""
        return PARAMETERS + len(self.columns)

    @property
    def stepped_at(self) -> int:
        """The place at which the columns of the stepped parameters begin."""
        return self.inputs_at + self.n_states

    @property
    def atol_at(self) -> int:
        """The place at which the absolute tolerances begin."""
        return self.stepped_at + len(self.stepped_wanted)
