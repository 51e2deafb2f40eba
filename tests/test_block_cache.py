"""The compiled code of a block is kept on disk, and found there by another process."""

import os
import subprocess
import sys

SCRIPT = """
import numpy as np, pytensor.tensor as pt
from tests.helpers import quiet_function

x = pt.dmatrix("x")
code = quiet_function([x], [pt.exp(x).sum(axis=1), x.sum(axis=0)]).vm.jit_fn
rows, columns = code(np.zeros((3, 2)))
assert rows.tolist() == [2.0] * 3 and columns.tolist() == [0.0] * 2
print(sum(code.stats.cache_hits.values()), sum(code.stats.cache_misses.values()))
"""


def hits_and_misses(flags):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTENSOR_FLAGS": f"mode=NUMBA,{flags}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    return [int(number) for number in done.stdout.split()]


def test_another_process_compiles_nothing(tmp_path):
    cache = f"base_compiledir={tmp_path}"
    assert hits_and_misses(cache) == [0, 1]
    assert hits_and_misses(cache) == [1, 0]
    assert hits_and_misses(f"{cache},numba__cache=False") == [0, 1]
