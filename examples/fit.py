"""A pharmacokinetic model of 12 subjects, each one's ODE solved on some MPI rank, fitted with NUTS.

    mpiexec -n 2 python examples/fit.py     # two ranks share the subjects
    python examples/fit.py                  # the same without MPI, in one process

A dose of theophylline is swallowed, absorbed from the gut into the body and eliminated from it:

    d gut  / dt = -ka gut
    d body / dt =  ka gut - (CL / V) body          concentration = body / V

Every subject has an absorption rate ka (1/h), a clearance CL (L/h/kg) and a volume V (L/kg) of
its own, drawn from a population whose typical values and spreads are to be learned. Given these,
the subjects are independent of each other, so that each is one job of `map_rect`.

The lesson: `solve_ivp` is an expression like any other. The right-hand side is written once, as
above; its derivatives, and those of the solution, are found and compiled, so that no Python runs
while NUTS does. `fit_scipy.py` fits the same model by a solver of SciPy's.

It prints a summary of the posterior and how busy each rank was, and draws theophylline_fit.png.
"""

import csv
from pathlib import Path

import arviz as az
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from matplotlib.figure import Figure

import pymc_mpimap as mpimap

DATA = Path(__file__).with_name("theophylline.csv")
PARAMETERS = ["ka", "CL", "V"]


def load(path=DATA):
    """Read each subject's name, dose (mg/kg), hours of the samples and concentrations (mg/L)."""
    samples = {}
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
        "dose": np.array([dose[0] for dose, _, _ in columns]),
        # Lists of arrays: every subject has its own times, and could have its own number of them.
        "hours": [hours for _, hours, _ in columns],
        "conc": [conc for _, _, conc in columns],
    }


def rates(_hours, amounts, p):
    """Return the time derivatives of the amounts in gut and body (mg/kg)."""
    gut, body = amounts
    absorbed, eliminated = p["ka"] * gut, p["CL"] / p["V"] * body
    return [-absorbed, absorbed - eliminated]


def concentration(log_parameters, dose, hours):
    """Solve the ODE: concentrations (mg/L) at these hours after the dose."""
    p = {name: pt.exp(log_parameters[i]) for i, name in enumerate(PARAMETERS)}
    amounts = mpimap.solve_ivp(rates, 0.0, [dose, 0.0], hours, p)  # at first all is in the gut
    return amounts[:, 1] / p["V"]


def subject(theta, log_parameters, x_r):
    """Return the log likelihood of one subject's samples.

    The measurement error is normal with one sigma: in leave-one-out cross-validation that
    predicts better here than a log-normal error, and as well as one with a proportional part too.
    """
    mean = concentration(log_parameters, x_r["dose"], x_r["hours"])
    return pm.logp(pm.Normal.dist(mean, theta["sigma"]), x_r["conc"]).sum()


def population():
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


def build_model(data, job=subject, **options):
    """Build the hierarchical model, with one job of `map_rect` for each subject.

    `fit_scipy.py` gives another job, and `map_rect`'s options for it.
    """
    with pm.Model(coords={"subject": data["name"], "parameter": PARAMETERS}) as model:
        log_parameters, sigma = population()
        x_r = {key: data[key] for key in ("dose", "hours", "conc")}
        log_likelihood = mpimap.map_rect(job, {"sigma": sigma}, log_parameters, x_r, **options)
        pm.Potential("log_likelihood", log_likelihood.sum())
    return model


def draw_fit(data, posterior, path):
    """Draw a panel a subject: its samples, the posterior of its curve and of new samples."""
    draws = az.extract(posterior, num_samples=200, random_seed=1)
    hours = np.linspace(0, 25, 120)
    # The job's expression again, for one subject at a time and outside of any job.
    row, dose = pt.vector("log_parameters", shape=(3,)), pt.scalar("dose")
    curve = pytensor.function([row, dose], concentration(row, dose, hours))
    # A normal error for each draw, the same at all hours, keeps the band of new samples smooth.
    error = draws["sigma"].values * np.random.default_rng(1).normal(size=draws.sizes["sample"])
    figure = Figure(figsize=(12, 8), layout="constrained")
    for i, panel in enumerate(figure.subplots(3, 4, sharex=True, sharey=True).flat):
        own = draws["log_parameters"].isel(subject=i).transpose("sample", "parameter").values
        curves = np.array([curve(log_parameters, data["dose"][i]) for log_parameters in own])
        for values, colour in ((curves + error[:, None], "#d6e4f0"), (curves, "#7fb0d8")):
            panel.fill_between(hours, *np.quantile(values, [0.05, 0.95], axis=0), color=colour)
        panel.plot(hours, np.median(curves, axis=0), color="#1f4e79")
        panel.plot(data["hours"][i], data["conc"][i], "o", color="black", markersize=4)
        panel.set_title(f"subject {data['name'][i]}", fontsize=10)
    figure.supxlabel("hours since the dose")
    figure.supylabel("theophylline in serum (mg/L)")
    figure.suptitle("Posterior median, 90% of the curves (dark), 90% of new samples (light)")
    figure.savefig(path, dpi=100)


def main(job=subject, **options):
    """Fit the model: rank 0 samples, prints and draws, and all ranks solve."""
    with mpimap.MPIPool() as pool:  # every rank but 0 serves here and never gets past it
        data = load()
        with build_model(data, job, **options):
            # cores=1, one chain after another: what runs in parallel is the subjects of each
            # gradient, and chains in processes of their own could not share the ranks.
            trace = pm.sample(700, tune=250, chains=2, cores=1, random_seed=1, progressbar=False)
        print(az.summary(trace, var_names=["typical", "spread", "sigma"]))
        print("largest r_hat:", float(az.summary(trace, round_to="none")["r_hat"].max()))
        print("divergences:", int(trace["sample_stats"]["diverging"].sum()))
        print(pool.report())
        draw_fit(data, trace, Path("theophylline_fit.png"))
        print("drawn: theophylline_fit.png")


if __name__ == "__main__":
    main()
