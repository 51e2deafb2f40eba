"""Sample a small model with its draws on disk, and report each; see tests/draws/test_programs.py.

Arguments: the path, how many draws, how many chains, and the sampler.
"""

import hashlib
import os
import sys
import threading
import time
import warnings

import numpy as np
import pymc as pm
import pytensor

import pymc_mpimap

pytensor.config.mode = "FAST_COMPILE"
warnings.filterwarnings("ignore", category=pymc_mpimap.MapRectWarning)  # more ranks than cores
path, draws, chains, sampler = sys.argv[1:]
WORKERS = int(os.environ.get("TEST_WORKERS", "0")) or None  # to start without mpiexec


def group(theta, mu, y):
    return (-0.5 * ((y - mu) / theta) ** 2).sum() - y.size * pm.math.log(theta)


def report(trace, draw):
    # By the operating system's own call: it is out before the next draw begins.
    os.write(1, f"DRAW {draw.chain} {draw.draw_idx}\n".encode())


def tell_when_sampling(pool):
    """Stand in for a callback, which nutpie has none of: 3000 gradients are past the warm-up."""
    while pool.report().evaluations < 3000:
        time.sleep(0.02)
    os.write(1, b"SAMPLING\n")


with pymc_mpimap.MPIPool(workers=WORKERS) as pool, pm.Model():
    sigma = pm.HalfNormal("sigma")
    mu = pm.Normal("mu", 0, 5, shape=3)
    y = [np.linspace(j, j + 1, 5) for j in range(3)]
    pm.Potential("lik", pymc_mpimap.map_rect(group, sigma, mu, y))
    os.write(1, f"READY {os.getpid()}\n".encode())
    if sampler == "nutpie":
        threading.Thread(target=tell_when_sampling, args=(pool,), daemon=True).start()
    idata = pm.sample(
        draws=int(draws),
        tune=50,
        chains=int(chains),
        cores=1,
        random_seed=3,
        nuts_sampler=sampler,
        progressbar=False,
        compute_convergence_checks=False,
        callback=report if sampler == "pymc" else None,
        trace=pymc_mpimap.disk_trace(path) if path != "none" else None,
    )
sampled = np.ascontiguousarray(idata.posterior["mu"].values)
digest = hashlib.sha256(sampled.tobytes()).hexdigest()
print("RETURNED", *sampled.shape, digest, flush=True)
