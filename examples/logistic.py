"""The same logistic regression twice: in plain PyMC and with map_rect, to see that they agree.

    mpiexec -n 2 python examples/logistic.py
    python examples/logistic.py

The lesson: the rows of a data set are split into shards, a job for each, and the sum of the jobs'
log likelihoods is the model's. Log density and gradient agree to a relative 1e-12 and not bit for
bit: the rows are added up in another order, which rounds differently. Among themselves the runs
with map_rect do agree bit for bit, on any number of ranks.
"""

import numpy as np
import pymc as pm

import pymc_mpimap as mpimap

SHARDS, ROWS, COLUMNS = 8, 250, 3


def simulate():
    """Return features, shape (shards, rows, columns), and outcomes, shape (shards, rows)."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(SHARDS, ROWS, COLUMNS))
    probability = 1 / (1 + np.exp(-(0.3 + x @ [1.0, -2.0, 0.5])))
    return x, rng.binomial(1, probability)


def coefficients():
    return {"intercept": pm.Normal("intercept", 0, 2), "slopes": pm.Normal("slopes", shape=COLUMNS)}


def plain_model(x, y):
    with pm.Model() as model:
        beta = coefficients()
        logit = beta["intercept"] + x.reshape(-1, COLUMNS) @ beta["slopes"]
        pm.Bernoulli("y", logit_p=logit, observed=y.ravel())
    return model


def shard(beta, _job, x, y):
    """Return the log likelihood of one shard; its x has shape (rows, columns)."""
    logit = beta["intercept"] + x @ beta["slopes"]
    return pm.logp(pm.Bernoulli.dist(logit_p=logit), y).sum()


def mapped_model(x, y):
    with pm.Model() as model:
        log_likelihood = mpimap.map_rect(shard, theta=coefficients(), jobs=SHARDS, x_r=x, x_i=y)
        pm.Potential("y", log_likelihood.sum())
    return model


def main():
    with mpimap.MPIPool():
        x, y = simulate()
        point = np.array([0.2, 0.5, -1.0, 0.3])  # intercept and slopes
        results = []
        for title, model in (("plain", plain_model(x, y)), ("mapped", mapped_model(x, y))):
            logp, gradient = model.logp_dlogp_function(ravel_inputs=True)(point)
            print(f"{title:6}  logp {logp:.12f}  gradient {gradient}")
            results.append((logp, gradient))
        for plain, mapped in zip(*results, strict=True):
            np.testing.assert_allclose(mapped, plain, rtol=1e-12)
        print("equal to a relative 1e-12")


if __name__ == "__main__":
    main()
