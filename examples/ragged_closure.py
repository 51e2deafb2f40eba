"""Schools of different sizes, each rank reading its own from files, sampled by NUTS.

    mpiexec -n 2 python examples/ragged_closure.py
    python examples/ragged_closure.py

The lesson: nothing has to be packed. Jobs differ in size, parameters come as a dict, the function
uses a variable of the model that was never passed to it, and `local` has each file read on the
rank that works on it, so that the data never pass through rank 0.
"""

import tempfile
from pathlib import Path

import numpy as np
import pymc as pm

import pymc_mpimap as mpimap

SIZES = [5, 40, 12, 3, 25, 18]  # pupils of each school


def write_files(folder):
    """Simulate each school's hours of study and scores, and write them to a file of its own."""
    rng = np.random.default_rng(1)
    for school, size in enumerate(SIZES):
        hours = rng.uniform(0, 10, size)
        scores = 50 + rng.normal(0, 5) + 2 * hours + rng.normal(0, 3, size)
        np.save(folder / f"school_{school}.npy", [hours, scores])


def build_model(folder):
    def load(job_id):  # runs on the rank that works on this school, once
        hours, scores = np.load(folder / f"school_{job_id}.npy")
        return {"hours": hours, "scores": scores}

    with pm.Model() as model:
        slope = pm.Normal("slope", 0, 5)
        population = {"mean": pm.Normal("mean", 50, 20), "sigma": pm.HalfNormal("sigma", 10)}
        effect = pm.Normal("effect", 0, 5, shape=len(SIZES))

        def school(theta, own_effect, x_r):
            expected = theta["mean"] + own_effect + slope * x_r["hours"]  # slope: of the model
            return pm.logp(pm.Normal.dist(expected, theta["sigma"]), x_r["scores"]).sum()

        log_likelihood = mpimap.map_rect(
            school, theta=population, jobs=effect, x_r=mpimap.local(load)
        )
        pm.Potential("scores", log_likelihood.sum())
    return model


def main():
    with mpimap.MPIPool() as pool, tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))  # on several hosts: a folder that all of them see
        with build_model(Path(folder)):
            trace = pm.sample(200, tune=200, chains=2, cores=1, random_seed=1, progressbar=False)
        for name in ("slope", "mean", "sigma"):
            draws = trace["posterior"][name].values
            print(f"{name:6} {draws.mean():7.3f} +- {draws.std():.3f}")
        print(pool.report())


if __name__ == "__main__":
    main()
