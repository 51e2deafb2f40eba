"""Evaluate a map without a pool."""

import os

import numpy as np
import pytensor.tensor as pt

import pymc_mpimap

theta = pt.dscalar("theta")
output = pymc_mpimap.map_rect(lambda theta, own: theta * own, theta, np.arange(3.0))
for _ in range(2):
    values = output.eval({theta: 2.0}, mode="FAST_COMPILE")
    os.write(1, f"VALUES {values}\n".encode())  # In one piece: all ranks print.
