"""Evaluate a map in a child process of the controller: ``python -m tests.in_children METHOD``.

Prints what the child met, and then what the parent still evaluates on its ranks.
"""

import multiprocessing
import sys

import cloudpickle
import numpy as np
import pytensor
import pytensor.tensor as pt

from pymc_mpimap import MPIPool, map_rect


def child(connection, pickled):
    pytensor.config.mode = "FAST_COMPILE"
    try:
        inputs, output = cloudpickle.loads(pickled)
        connection.send(str(pytensor.function(inputs, output)(1.0)))
    except Exception as error:  # whatever it is: the test reads it
        connection.send(f"{type(error).__name__}: {error}")


def main():
    pytensor.config.mode = "FAST_COMPILE"
    with MPIPool():
        theta = pt.dscalar("theta")
        output = map_rect(lambda theta, job: theta * job, theta, np.arange(4.0)).sum()
        function = pytensor.function([theta], output)
        function(1.0)
        context = multiprocessing.get_context(sys.argv[1])
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(there, cloudpickle.dumps(([theta], output))))
        process.start()
        there.close()  # a child that dies without a word ends the wait
        print("child:", here.recv().replace("\n", " "), flush=True)
        process.join()
        print("parent:", float(function(2.0)), flush=True)


if __name__ == "__main__":
    main()
