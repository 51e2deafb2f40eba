"""A short chain on disk, what is read of it, and going on from it: for tests that spoil files."""

import copy
import warnings

import numpy as np
import pymc as pm
import pytensor
import pytest

import pymc_mpimap as mpimap
from pymc_mpimap.draws import writer

TUNE, DRAWS = 3, 9
N = TUNE + DRAWS


def sample(path, draws=DRAWS, *, chains=1, callback=None, **options):
    """Sample a model that compiles quickly, by a method that never stays where it is."""
    with pytensor.config.change_flags(mode="FAST_COMPILE"), pm.Model():
        x = pm.Normal("x", shape=2)
        pm.Deterministic("total", x.sum())
        return pm.sample(
            draws,
            tune=TUNE,
            chains=chains,
            cores=1,
            step=pm.Slice([x]),
            random_seed=1,
            trace=mpimap.disk_trace(path, **options),
            callback=callback,
            progressbar=False,
            quiet=True,
            compute_convergence_checks=False,
            discard_tuned_samples=False,
        )


class Kept:
    """A folder with one chain.

    Attributes
    ----------
    folder, path : Path
        The folder, and the chain's log.
    files : dict of Path to bytes
        What is in them.
    data : bytes
        What is in the log.
    ends : list of int
        Where each draw's record ends.
    values : array of shape (N, 2)
        The draws of the variable x.
    """

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "chain-0.draws"
        self.ends = []
        with pytest.MonkeyPatch.context() as patch:
            # After the first draw only, however long the others take: its state stays.
            patch.setattr(writer, "_SYNC", float("inf"))
            sample(folder, callback=lambda **_: self.ends.append(self.path.stat().st_size))
        self.files = contents(folder)
        self.data = self.files[self.path]
        self.values = mpimap.read_draws(folder, warmup=True)[0]["x"]
        with pytensor.config.change_flags(mode="FAST_COMPILE"), pm.Model():
            x = pm.Normal("x", shape=2)
            pm.Deterministic("total", x.sum())
            self._step = pm.Slice([x])
            self._trace = mpimap.disk_trace(folder)

    def start(self, k):
        """Return where the record of a draw begins, the first excepted."""
        assert k > 0
        return self.ends[k - 1]

    def draw(self, k):
        """Return the bytes of a draw's record."""
        return self.data[self.start(k) : self.ends[k]]

    def read(self):
        """Return what `read_draws` gives, and what it warns of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = mpimap.read_draws(self.folder, warmup=True)
        return found[0].get("x", np.empty((0, 2))), " ".join(str(w.message) for w in caught)

    def go_on(self):
        """Do what `pymc.sample` does before it makes a draw, but compile nothing."""
        trace = copy.copy(self._trace)
        trace.setup(N + 5, 0, self._step.stats_dtypes)
        try:
            trace.link_stepper(self._step)
        finally:
            trace.close()

    def restore(self):
        """Have all files as they were."""
        for path in contents(self.folder):
            if path not in self.files:
                path.unlink()
        for path, data in self.files.items():
            with path.open("r+b" if path.exists() else "wb") as file:
                file.write(data)
                file.truncate()


def contents(folder):
    """Return what is in all files of a folder."""
    return {p: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
