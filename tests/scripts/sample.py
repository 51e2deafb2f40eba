"""Sample a small model on the ranks; print what must not depend on how it is run.

Samplers are named with commas between them."""

import hashlib
import sys
import warnings

import numpy as np
import pymc as pm

import pymc_mpimap

warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=pymc_mpimap.MapRectWarning)  # more ranks than cores
samplers, context = sys.argv[1:3]


def group(theta, mu, y):
    return (-0.5 * ((y - mu) / theta) ** 2).sum() - y.size * pm.math.log(theta)


def main():
    data = np.random.default_rng(0)
    with pymc_mpimap.MPIPool(), pm.Model():
        sigma = pm.HalfNormal("sigma")
        mu = pm.Normal("mu", 0, 5, shape=6)
        y = [data.normal(j, 1, size=5 + j) for j in range(6)]
        pm.Potential("lik", pymc_mpimap.map_rect(group, sigma, mu, y))
        options = {} if context == "one" else {"mp_ctx": context}
        for sampler in samplers.split(","):
            idata = pm.sample(
                draws=30,
                tune=30,
                chains=2,
                cores=1 if context == "one" else 2,
                random_seed=3,
                nuts_sampler=sampler,
                progressbar=False,
                compute_convergence_checks=False,
                **options,
            )
            draws = np.ascontiguousarray(idata.posterior["mu"].values)
            digest = hashlib.sha256(draws.tobytes()).hexdigest()
            print("DRAWS", sampler, draws.shape, digest, flush=True)


if __name__ == "__main__":
    main()
