"""The refusal of a value: what was found instead of real numbers, and where in it."""

from __future__ import annotations

from collections.abc import Iterable

from pymc_mpimap.errors import InputError

__all__ = ["NotRealError"]


class NotRealError(Exception):
    """A value is no real numbers, or more than that.

    Attributes
    ----------
    name : str
        How the user wrote the value.
    what : str
        What was found instead.
    cure : str
        How to mend it.
    path : tuple of int
        Where in nested lists it was found.
    at : tuple of int
        Where in an array the first such entry is.
    missing : bool
        Whether it would be numbers if none were missing from a table.
    """

    def __init__(
        self,
        name: str,
        what: str,
        cure: str,
        at: Iterable[int] = (),
        *,
        missing: bool = False,
    ):
        super().__init__(name, what, cure)
        self.name, self.what, self.cure, self.missing = name, what, cure, missing
        self.path: tuple[int, ...] = ()
        self.at = tuple(int(i) for i in at)

    @property
    def found(self) -> str:
        """The value that was found, and its place."""
        return self.what + (f", the first at {list(self.at)}" if self.at else "")

    def refusal(self, *, rows_are_jobs: bool = False) -> InputError:
        """Return the error for the user.

        Parameters
        ----------
        rows_are_jobs : bool
            Whether the first index is the number of a job.
        """
        where = [*self.path, *self.at]
        job = f" (job {where[0]})" if rows_are_jobs and where else ""
        label = self.name + "".join(f"[{i}]" for i in self.path)
        return InputError(f"{label} is {self.found}{job}. {self.cure}")
