"""A pharmacokinetic model of 12 subjects, each one's ODE solved on some MPI rank, fitted with NUTS.

    mpiexec -n 2 python examples/fit.py     # two ranks share the subjects
    python examples/fit.py                  # the same without MPI, in one process

A dose of theophylline is swallowed, absorbed from the gut into the body and eliminated from it:

    d gut  / dt = -ka gut
    d body / dt =  ka gut - (CL / V) body          concentration = body / V

Every subject has an absorption rate ka (1/h), a clearance CL (L/h/kg) and a volume V (L/kg) of
its own, drawn from a population whose typical values and spreads are to be learned. Given these,
the subjects are independent of each other, so that each is one job of `map_rect`.

It prints a summary of the posterior and how busy each rank was, and draws theophylline_fit.png.
"""

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pymc as pm
from matplotlib.figure import Figure
from scipy.integrate import ODEintWarning, odeint

import pymc_mpimap as mpimap

warnings.filterwarnings("ignore", category=ODEintWarning)  # concentration() raises instead

Array = np.ndarray
DATA = Path(__file__).with_name("theophylline.csv")
PICTURE = Path("theophylline_fit.png")
PARAMETERS = ["ka", "CL", "V"]


def load(path: Path = DATA) -> dict[str, list[Any]]:
    """Read each subject's name, dose (mg/kg), hours of the samples and concentrations (mg/L)."""
    samples: dict[str, list[list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            # At the time of the dose the model says 0 whatever its parameters are. Most samples
            # taken then are an exact 0: they would only make all the others look more precise.
            if float(row["Time"]) > 0:
                numbers = [float(row[column]) for column in ("Dose", "Time", "conc")]
                samples.setdefault(row["Subject"], []).append(numbers)
    columns = [np.array(numbers).T for numbers in samples.values()]
    return {
        "name": list(samples),
        "dose": [dose[0] for dose, _, _ in columns],
        # Lists of arrays: every subject has its own times, and could have its own number of them.
        "hours": [hours for _, hours, _ in columns],
        "conc": [conc for _, _, conc in columns],
    }


def rate_matrix(ka: float, ke: float) -> Array:
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


def concentration(log_parameters: Array, dose: float, hours: Array) -> tuple[Array, Array]:
    """Solve the ODE: concentrations at `hours`, and their derivatives by the log parameters."""
    ka, clearance, volume = map(math.exp, log_parameters)  # an overflow raises
    rates = rate_matrix(ka, clearance / volume).dot
    # `odeint` was the fastest of SciPy's solvers here: three times as fast as `solve_ivp`, whose
    # steps are taken in Python. Its LSODA also copes with the stiff systems that NUTS tries while
    # it tunes. The derivatives are states too: the tolerances hold for them as for the amounts.
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
def subject(
    theta: dict[str, Array], log_parameters: Array, x_r: dict[str, Array]
) -> tuple[float, dict[str, float], Array]:
    """Log likelihood of one subject's samples, and its derivatives by theta and the job's own.

    The measurement error is normal with one sigma: in leave-one-out cross-validation that
    predicts better here than a log-normal error, and as well as one with a proportional part too.
    """
    sigma = float(theta["sigma"])
    conc, by_log_parameters = concentration(log_parameters, float(x_r["dose"]), x_r["hours"])
    z = (x_r["conc"] - conc) / sigma
    value = -0.5 * z @ z - len(z) * np.log(sigma * np.sqrt(2 * np.pi))
    return value, {"sigma": (z @ z - len(z)) / sigma}, z @ by_log_parameters / sigma


def population() -> tuple[Any, Any]:
    """Add the priors to the model; return the subjects' log parameters (a row each) and sigma."""
    typical = pm.LogNormal("typical", mu=np.log([1.0, 0.05, 0.5]), sigma=1, dims="parameter")
    spread = pm.HalfNormal("spread", sigma=0.5, dims="parameter")
    # Non-centred: a priori a subject's offset does not depend on the spread, which spares NUTS
    # the funnel that opens where the spread is small.
    offset = pm.Normal("offset", dims=("subject", "parameter"))
    log_parameters = pm.Deterministic(
        "log_parameters", pm.math.log(typical) + spread * offset, dims=("subject", "parameter")
    )
    return log_parameters, pm.HalfNormal("sigma", sigma=1)


def build_model(data: dict[str, list[Any]]) -> pm.Model:
    """Build the hierarchical model, with one job of `map_rect` for each subject."""
    with pm.Model(coords={"subject": data["name"], "parameter": PARAMETERS}) as model:
        log_parameters, sigma = population()
        log_likelihood = mpimap.map_rect(
            subject,
            theta={"sigma": sigma},
            jobs=log_parameters,
            x_r={key: data[key] for key in ("dose", "hours", "conc")},
            on_error="reject",  # where the solver gives up, NUTS turns back
        )
        pm.Potential("log_likelihood", log_likelihood.sum())
    return model


def draw_fit(data: dict[str, list[Any]], posterior: Any, path: Path = PICTURE) -> None:
    """Draw a panel a subject: its samples, the posterior of its curve and of new samples."""
    draws = az.extract(posterior, num_samples=200, random_seed=1)
    hours = np.linspace(0.01, 25, 120)
    # A normal error for each draw, the same at all hours, keeps the band of new samples smooth.
    error = draws["sigma"].values * np.random.default_rng(1).normal(size=draws.sizes["sample"])
    figure = Figure(figsize=(12, 8), layout="constrained")
    for i, panel in enumerate(figure.subplots(3, 4, sharex=True, sharey=True).flat):
        own = draws["log_parameters"].isel(subject=i).transpose("sample", "parameter").values
        curves = np.array([concentration(row, data["dose"][i], hours)[0] for row in own])
        for values, colour in ((curves + error[:, None], "#d6e4f0"), (curves, "#7fb0d8")):
            panel.fill_between(hours, *np.quantile(values, [0.05, 0.95], axis=0), color=colour)
        panel.plot(hours, np.median(curves, axis=0), color="#1f4e79")
        panel.plot(data["hours"][i], data["conc"][i], "o", color="black", markersize=4)
        panel.set_title(f"subject {data['name'][i]}", fontsize=10)
    figure.supxlabel("hours since the dose")
    figure.supylabel("theophylline in serum (mg/L)")
    figure.suptitle("Posterior median, 90% of the curves (dark), 90% of new samples (light)")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Fit the model: rank 0 samples, prints and draws, and all ranks solve."""
    with mpimap.MPIPool() as pool:  # every rank but 0 serves here and never gets past it
        data = load()
        with build_model(data):
            # cores=1, one chain after another: what runs in parallel is the subjects of each
            # gradient, and chains in processes of their own could not share the ranks.
            trace = pm.sample(700, tune=250, chains=2, cores=1, random_seed=1, progressbar=False)
        print(az.summary(trace, var_names=["typical", "spread", "sigma"]))
        print("largest r_hat:", float(az.summary(trace, round_to="none")["r_hat"].max()))
        print("divergences:", int(trace["sample_stats"]["diverging"].sum()))
        print(pool.report())
        draw_fit(data, trace)
        print("drawn:", PICTURE)


if __name__ == "__main__":
    main()
