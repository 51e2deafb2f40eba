"""Say hello from every rank: one job a rank, its value and its gradient.

    mpiexec -n 4 python examples/hello.py
    python examples/hello.py                # without MPI: one rank

The lesson: a job is a plain function, and rank 0 alone goes on past the ``with``. Each rank works
out f(theta) = theta[0] + theta[1]**2 and its gradient (1, 2 theta[1]) for a theta of its own, and
since rank 0 does the printing, the lines come whole and in order.
"""

import numpy as np
import pytensor
import pytensor.tensor as pt

import pymc_mpimap as mpimap


def f(_shared, theta):
    return theta[0] + theta[1] ** 2


def main():
    with mpimap.MPIPool() as pool:  # ranks 1, 2, ... serve here until rank 0 is done
        thetas = pt.dmatrix("thetas", shape=(pool.ranks, 2))
        # No shared parameters (None), a row of thetas for each job, and one job in each block, so
        # that as many ranks as jobs get one each.
        values = mpimap.map_rect(f, None, thetas, grain_size=1)
        gradients = pytensor.grad(values.sum(), thetas)
        evaluate = pytensor.function([thetas], [values, gradients])

        points = np.array([[1.0, 2.0 * rank] for rank in range(pool.ranks)])
        results = zip(pool.report().hosts, points, *evaluate(points), strict=True)
        for rank, (host, theta, value, gradient) in enumerate(results):
            print(f"rank {rank} on {host}: f({theta}) = {value}, gradient {gradient}")


if __name__ == "__main__":
    main()
