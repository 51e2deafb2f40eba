"""A drug that lowers white blood cells: 60 simulated subjects, each with its own doses and samples.

    mpiexec -n 2 python examples/pkpd.py     # two ranks share the subjects
    python examples/pkpd.py                  # the same without MPI, in one process

The drug goes from the gut to the blood (central) and on to a second compartment (tissue). In the
bone marrow, cells divide (dividing), mature through five stages and enter the blood (cells), where
they die; the drug stops divisions, and a shortage in the blood speeds them up (Friberg et al. 2002,
Journal of Clinical Oncology 20, 4713-4721). That is ten states, and several weeks for each subject.

Clearance (L/h), transit time (h) and the drug's effect (L/mg) differ between subjects. The
population's typical values and spreads are learned, and compared with those of the simulation.

The lessons: `Doses` are data of each job, of any number for each. And cells are counted relative to
the baseline of each subject: then the initial state is a constant, and no sensitivities are spent
on it.
"""

import argparse

import arviz as az
import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap

PARAMETERS = ["clearance", "transit", "effect"]
TYPICAL = np.array([10.0, 125.0, 0.3])
SPREAD = np.array([0.3, 0.15, 0.3])
ERROR = 0.15  # of the logarithm, for concentrations (mg/L) and for counts (1e9/L) alike
# What is taken to be known: volumes (L), flow between them (L/h), absorption (1/h), feedback.
CENTRAL, TISSUE, FLOW, ABSORPTION, FEEDBACK = 35.0, 105.0, 15.0, 2.0, 0.17
STAGES = 5
AT_FIRST = [0.0] * 3 + [1.0] * (STAGES + 2)


def rates(_hours, state, p):
    """Return the time derivatives of amounts (mg) and of cells relative to their baseline."""
    gut, central, tissue, dividing, *maturing, cells = state
    rate = (STAGES + 1) / p["transit"]
    stopped = p["effect"] * central / CENTRAL
    exchange = FLOW * (central / CENTRAL - tissue / TISSUE)
    stages = [dividing, *maturing]
    return [
        -ABSORPTION * gut,
        ABSORPTION * gut - p["clearance"] * central / CENTRAL - exchange,
        exchange,
        rate * dividing * ((1 - stopped) * cells**-FEEDBACK - 1),
        *(rate * (before - stage) for before, stage in zip(stages, maturing, strict=False)),
        rate * (maturing[-1] - cells),
    ]


def predictions(log_parameters, x_r, method="tsit5"):
    """Return the logarithm of what each sample should show."""
    p = {name: pt.exp(log_parameters[i]) for i, name in enumerate(PARAMETERS)}
    doses = mpimap.Doses(x_r["dose_hours"], x_r["dose"])  # mg, into the gut
    state = mpimap.solve_ivp(
        rates, 0.0, AT_FIRST, x_r["hours"], p, method=method, doses=doses, rtol=1e-6, atol=1e-6
    )
    concentration, counts = state[:, 1] / CENTRAL, x_r["baseline"] * state[:, -1]
    # Absolute: where a solve is off by its tolerance, an amount near zero may be below it.
    return pt.log(abs(pt.switch(pt.eq(x_r["kind"], 0), concentration, counts)))


def subject(theta, log_parameters, x_r):
    """Return the log likelihood of one subject's samples."""
    mean = predictions(log_parameters, x_r)
    return pm.logp(pm.Normal.dist(mean, theta), x_r["log_value"]).sum()


def simulate(n_subjects, seed=1):
    """Return doses and samples of some subjects, of each another number."""
    random = np.random.default_rng(seed)
    x_r = {name: [] for name in ("dose_hours", "dose", "hours", "kind", "baseline", "log_value")}
    row = pt.dvector("log_parameters", shape=(3,))
    known = {
        "dose_hours": pt.dvector(),
        "dose": pt.dscalar(),
        "hours": pt.dvector(),
        "kind": pt.dvector(),
        "baseline": pt.dscalar(),
    }
    predict = pytensor.function([row, *known.values()], predictions(row, known))
    for _ in range(n_subjects):
        dose_hours = 168.0 * np.arange(random.integers(1, 4))  # one to three, a week apart
        blood = np.sort(random.uniform(0.5, 24.0, size=random.integers(4, 7)))
        counts = np.sort(random.uniform(48.0, 700.0, size=random.integers(5, 9)))
        case = {
            "dose_hours": dose_hours,
            "dose": random.choice([60.0, 80.0, 100.0]),
            "hours": np.concatenate([blood, counts]),
            "kind": np.repeat([0.0, 1.0], [len(blood), len(counts)]),
            "baseline": random.uniform(4.0, 7.0),
        }
        log_parameters = np.log(TYPICAL) + SPREAD * random.normal(size=3)
        mean = predict(log_parameters, *case.values())
        case["log_value"] = mean + ERROR * random.normal(size=len(mean))
        for name, value in case.items():
            x_r[name].append(value)
    return {**x_r, "dose": np.array(x_r["dose"]), "baseline": np.array(x_r["baseline"])}


def build_model(x_r):
    """Build the hierarchical model, with one job of `map_rect` for each subject."""
    coords = {"subject": np.arange(len(x_r["dose"])), "parameter": PARAMETERS}
    with pm.Model(coords=coords) as model:
        typical = pm.LogNormal("typical", np.log([8.0, 100.0, 0.2]), 0.5, dims="parameter")
        spread = pm.HalfNormal("spread", 0.4, dims="parameter")
        offset = pm.Normal("offset", dims=("subject", "parameter"))
        log_parameters = pm.math.log(typical) + spread * offset
        sigma = pm.HalfNormal("sigma", 0.5)
        log_likelihood = mpimap.map_rect(subject, sigma, log_parameters, x_r)
        pm.Potential("log_likelihood", log_likelihood.sum())
    return model


def main():
    """Simulate and fit: rank 0 samples and prints, and all ranks solve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    with mpimap.MPIPool() as pool:  # every rank but 0 serves here and never gets past it
        with build_model(simulate(options.subjects)):
            trace = pm.sample(
                options.draws,
                tune=options.draws,
                chains=2,
                cores=1,
                random_seed=1,
                progressbar=False,
                nuts_sampler="nutpie",
            )
        summary = az.summary(trace, var_names=["typical", "spread", "sigma"], kind="stats")
        print(summary.assign(simulated=[*TYPICAL, *SPREAD, ERROR]))
        print("divergences:", int(trace["sample_stats"]["diverging"].sum()))
        print(pool.report())


if __name__ == "__main__":
    main()
