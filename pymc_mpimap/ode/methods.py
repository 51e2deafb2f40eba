"""The methods of `solve_ivp`, by the names that users give."""

from __future__ import annotations

from pymc_mpimap.ode import sundials

__all__ = ["AUTO", "BDF", "DOPRI5", "METHODS", "SCIPY", "TSIT5", "in_force"]

DOPRI5, TSIT5, BDF, AUTO = range(4)

METHODS = {"auto": AUTO, "dopri5": DOPRI5, "tsit5": TSIT5, "bdf": BDF}
"""Methods of SUNDIALS."""

SCIPY = {f"scipy-{name}": name for name in ("RK23", "RK45", "DOP853", "Radau", "BDF", "LSODA")}
"""Methods of SciPy, by their names there."""

_INSTEAD = {
    "auto": "scipy-LSODA",
    "dopri5": "scipy-RK45",
    "tsit5": "scipy-RK45",
    "bdf": "scipy-LSODA",
}


def in_force(method: str) -> str:
    """Return the method itself, or the one that does its work where SUNDIALS is not there."""
    return method if method in SCIPY or sundials.unavailable() is None else _INSTEAD[method]
