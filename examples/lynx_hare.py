"""Hares and lynxes in Canada, 1900 to 1920: one ODE in an ordinary PyMC model.

    python examples/lynx_hare.py

The hares multiply, the lynxes eat them, multiply on that, and die (Lotka and Volterra):

    d hares  / dt = (growth - predation lynxes) hares
    d lynxes / dt = (gain hares - death) lynxes

The lesson: `solve_ivp` needs neither `map_rect` nor MPI. It is an expression, with derivatives, in
any model: of parameters that have priors, and of initial values that have them too.

The model and its priors are posteriordb's `hudson_lynx_hare-lotka_volterra`, where theta[1..4] are
growth, predation, death and gain, and z_init are the populations of 1900. It prints the posterior.
"""

from pathlib import Path

import arviz as az
import numpy as np
import pymc as pm

import pymc_mpimap as mpimap

DATA = Path(__file__).with_name("lynx_hare.csv")


def load(path=DATA):
    """Return the years, (n_years,), and thousands of pelts of hares and lynxes, (n_years, 2)."""
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    return table[:, 0], table[:, 1:]


def lotka_volterra(_year, population, p):
    hares, lynxes = population
    return [
        (p["growth"] - p["predation"] * lynxes) * hares,
        (p["gain"] * hares - p["death"]) * lynxes,
    ]


def build_model(years, pelts):
    with pm.Model(coords={"year": years, "species": ["hares", "lynxes"]}) as model:
        # Where chains begin matters: cycles of a wrong period can fit in places, and a chain that
        # finds such a fit stays with it. These begin at the ten years that the eye sees in the
        # data, and turn about the mean populations.
        turn, (hares, lynxes) = 2 * np.pi / 10, pelts.mean(axis=0)
        rates = {  # a year; predation and gain also for a thousand animals
            "growth": pm.TruncatedNormal("growth", 1, 0.5, lower=0, initval=turn),
            "predation": pm.TruncatedNormal(
                "predation", 0.05, 0.05, lower=0, initval=turn / lynxes
            ),
            "death": pm.TruncatedNormal("death", 1, 0.5, lower=0, initval=turn),
            "gain": pm.TruncatedNormal("gain", 0.05, 0.05, lower=0, initval=turn / hares),
        }
        initial = pm.LogNormal("initial", np.log(10), 1, shape=2, initval=pelts[0])  # thousands
        population = mpimap.solve_ivp(lotka_volterra, years[0], initial, years, rates)
        sigma = pm.LogNormal("sigma", -1, 1, dims="species")
        mean = pm.math.log(population)
        pm.LogNormal("pelts", mean, sigma, observed=pelts, dims=("year", "species"))
    return model


def sample(model, draws=1000, seed=1):
    # By default, chains would begin up to a factor of e away from `initval` in everything.
    scattered = {model["sigma"]}
    return pm.sample(
        draws,
        tune=1000,
        chains=4,
        random_seed=seed,
        progressbar=False,
        nuts_sampler="nutpie",
        compile_kwargs={"jitter_rvs": scattered},
        model=model,
    )


def main():
    trace = sample(build_model(*load()))
    print(az.summary(trace))
    print("divergences:", int(trace["sample_stats"]["diverging"].sum()))


if __name__ == "__main__":
    main()
