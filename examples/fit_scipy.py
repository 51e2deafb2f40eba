"""The model of fit.py, its ODE solved by SciPy in a job that gives its own derivatives.

    mpiexec -n 2 python examples/fit_scipy.py
    python examples/fit_scipy.py

The lesson: a job may be any NumPy code. `numeric_job` marks it; it returns its value and its
derivatives, which come here from the ODE's forward sensitivities, written out by hand. Where a
right-hand side can be written for `solve_ivp`, as in fit.py, that is shorter and several times as
fast; this is the way for code that cannot be traced.

It prints and draws what fit.py does.
"""

import math
import warnings

import fit
import numpy as np
from scipy.integrate import ODEintWarning, odeint

import pymc_mpimap as mpimap

warnings.filterwarnings("ignore", category=ODEintWarning)  # concentration() raises instead


def rate_matrix(ka, ke):
    """Return the matrix that, times the ODE's state, gives the state's time derivative.

    The state is the two amounts and their derivatives by log ka, log CL and log V, whose equations
    are those of the amounts differentiated by that parameter (the forward sensitivities). The gut
    does not depend on CL and V: its derivatives by these are 0 and left out.
    """
    rows = [
        [-ka, 0, 0, 0, 0, 0],  # gut
        [ka, -ke, 0, 0, 0, 0],  # body
        [-ka, 0, -ka, 0, 0, 0],  # gut by log ka
        [ka, 0, ka, -ke, 0, 0],  # body by log ka
        [0, -ke, 0, 0, -ke, 0],  # body by log CL
        [0, ke, 0, 0, 0, -ke],  # body by log V
    ]
    return np.array(rows)


def concentration(log_parameters, dose, hours):
    """Solve the ODE: concentrations at `hours`, and their derivatives by the log parameters."""
    ka, clearance, volume = map(math.exp, log_parameters)  # an overflow raises
    rates = rate_matrix(ka, clearance / volume).dot
    # `odeint` was the fastest of SciPy's solvers here: three times as fast as SciPy's `solve_ivp`,
    # whose steps are taken in Python. Its LSODA also copes with the stiff systems that NUTS tries
    # while it tunes. The derivatives are states too: the tolerances hold for them as well.
    start, times = [dose, 0.0, 0.0, 0.0, 0.0, 0.0], np.concatenate([[0.0], hours])
    with np.errstate(over="ignore"):  # NUTS's first proposals may be far out
        state, info = odeint(
            lambda y, _hours: rates(y), start, times, rtol=1e-6, atol=1e-6, full_output=True
        )
    if info["message"] != "Integration successful.":
        raise ArithmeticError(f"{info['message']} ka, CL, V = {ka}, {clearance}, {volume}")
    conc = state[1:, 1] / volume
    by_log_parameters = state[1:, 3:] / volume
    by_log_parameters[:, 2] -= conc  # V also divides the amount
    return conc, by_log_parameters


@mpimap.numeric_job
def subject(theta, log_parameters, x_r):
    """Log likelihood of one subject's samples, and its derivatives by theta and the job's own."""
    sigma = float(theta["sigma"])
    conc, by_log_parameters = concentration(log_parameters, float(x_r["dose"]), x_r["hours"])
    z = (x_r["conc"] - conc) / sigma
    value = -0.5 * z @ z - len(z) * np.log(sigma * np.sqrt(2 * np.pi))
    return value, {"sigma": (z @ z - len(z)) / sigma}, z @ by_log_parameters / sigma


if __name__ == "__main__":
    fit.main(subject, on_error="reject")  # where the solver gives up, NUTS turns back
