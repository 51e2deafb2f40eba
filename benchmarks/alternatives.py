"""What a user might reach for instead of `map_rect`: the same work by other means.

Each of them calls `part`, a compiled function of one share of the jobs that holds its own data, so
that only parameters and results travel: the quickest way to use each of these tools.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.graph.replace import vectorize_graph
from threadpoolctl import threadpool_limits

from pymc_mpimap.bench import workloads
from pymc_mpimap.bench.timing import Contestant
from pymc_mpimap.bench.together import Together

Arrays = list[np.ndarray]
WORKLOADS = ("w1", "w3a", "cheap")


def graph(name: str, share: int = 0, shares: int = 1) -> tuple[list[Any], Any]:
    """Return the parameters and the log-likelihood of a share of the jobs, without `map_rect`."""
    cut = {key: np.array_split(values, shares)[share] for key, values in inputs_of(name)[1].items()}
    if name == "w1":
        theta = pt.dvector("theta", shape=(21,))
        rows = {"X": pt.constant(cut["X"].reshape(-1, 20)), "y": pt.constant(cut["y"].ravel())}
        return [theta], workloads.shard(theta, None, rows)
    if name == "cheap":
        jobs = pt.dmatrix("jobs", shape=(len(cut["y"]), 5))
        eta = (pt.constant(cut["X"]) * jobs[:, None, :]).sum(axis=-1)
        return [jobs], (pt.constant(cut["y"]) * eta - pt.softplus(eta)).sum()
    theta, job = pt.dvector("theta", shape=(3,)), pt.dvector("job", shape=(2,))
    jobs = pt.dmatrix("jobs", shape=(len(cut["y"]), 2))
    own = {key: pt.tensor(shape=v.shape[1:], dtype="float64") for key, v in cut.items()}
    each = {job: jobs, **{own[key]: pt.constant(values) for key, values in cut.items()}}
    return [theta, jobs], vectorize_graph(workloads.subject(theta, job, own), each).sum()


@cache
def inputs_of(name: str) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Return where a workload is evaluated, and its data."""
    if name == "w3a":
        return workloads.lotka_volterra_data()
    point, data = workloads.shards_data() if name == "w1" else workloads.cheap_data()
    return [point], data


@cache
def part(name: str, share: int, shares: int) -> Callable[..., Arrays]:
    """Return a compiled function of the parameters: value and gradient of a share of the jobs."""
    return workloads.value_and_gradient(*graph(name, share, shares))


def evaluate(task: tuple[str, int, int, Arrays]) -> Arrays:
    """Evaluate a share: what the other processes are asked to do."""
    name, share, shares, point = task
    return part(name, share, shares)(*point)


def split(name: str, point: Arrays, shares: int) -> list[tuple[str, int, int, Arrays]]:
    """Return the tasks: shared parameters for all, those of the jobs cut up."""
    cut = {"w1": 1, "w3a": 1, "cheap": 0}[name]
    pieces = [np.array_split(values, shares) for values in point[cut:]]
    return [
        (name, i, shares, [*point[:cut], *(piece[i] for piece in pieces)]) for i in range(shares)
    ]


def join(name: str, results: list[Arrays]) -> Arrays:
    """Put the shares' values and gradients together."""
    shared = {"w1": 2, "w3a": 2, "cheap": 1}[name]
    columns = list(zip(*results, strict=True))
    summed = [sum(column[1:], column[0]) for column in columns[:shared]]
    return [*summed, *(np.concatenate(column) for column in columns[shared:])]


Map = Callable[[list[Any]], list[Arrays]]


def turns(name: str, point: Arrays, shares: int, mapped: Map) -> Contestant:
    """Return a contestant from a function that maps `evaluate` over tasks."""

    def turn(count: int) -> float:
        for _ in range(2):
            join(name, mapped(split(name, point, shares)))
        begun = time.perf_counter()
        for _ in range(count):
            point[0].flat[0] += 1e-12
            join(name, mapped(split(name, point, shares)))
        return time.perf_counter() - begun

    return turn


@contextmanager
def multiprocessing_map(shares: int) -> Iterator[Map]:
    """Keep a pool of processes."""
    # Spawned, not forked: children must not share the MPI of their parent.
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(shares, threadpool_limits, (1,)) as pool:
        yield lambda tasks: pool.map(evaluate, tasks, chunksize=1)


@contextmanager
def joblib_map(shares: int) -> Iterator[Map]:
    """Keep joblib's workers (loky)."""
    import joblib

    # loky's workers hold BLAS to one thread by themselves where there are as many as cores.
    with joblib.Parallel(n_jobs=shares) as parallel:
        yield lambda tasks: parallel(joblib.delayed(evaluate)(task) for task in tasks)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def federated_map(name: str, shares: int) -> Iterator[Map]:
    """Keep servers of pytensor-federated, one a share, and ask all of them at once."""
    from pytensor_federated import ArraysToArraysServiceClient
    from pytensor_federated.utils import get_useful_event_loop

    ports = [free_port() for _ in range(shares)]
    with ExitStack() as stack:
        for share, port in enumerate(ports):
            words = [name, str(share), str(shares), str(port)]
            command = [sys.executable, "-m", "benchmarks.alternatives", *words]
            server = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
            stack.callback(server.terminate)
        for port in ports:
            wait_for(port)
        clients = [ArraysToArraysServiceClient("127.0.0.1", port) for port in ports]
        loop = get_useful_event_loop()

        async def ask(tasks: list[Any]) -> list[Arrays]:
            asked = [
                client.evaluate_async(*task[3]) for client, task in zip(clients, tasks, strict=True)
            ]
            return list(await asyncio.gather(*asked))

        yield lambda tasks: loop.run_until_complete(ask(tasks))


def wait_for(port: int, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"no server of pytensor-federated answered within {seconds:.0f} s")


def serve(name: str, share: int, shares: int, port: int) -> None:
    """Be one of the servers of pytensor-federated."""
    from grpclib.server import Server
    from pytensor_federated import ArraysToArraysService

    threadpool_limits(1)
    compiled = part(name, share, shares)

    def compute(*inputs: np.ndarray) -> Arrays:
        # What arrives is read-only and may be a view.
        return compiled(*(np.array(value) for value in inputs))

    async def run() -> None:
        server = Server([ArraysToArraysService(compute)])
        await server.start("127.0.0.1", port)
        await server.wait_closed()

    asyncio.run(run())


def futures_task(comm: Any, index: float, count: float) -> float:
    """Take part in an executor over all ranks, whose client, rank 0, takes a share as well."""
    from mpi4py.futures import MPICommExecutor

    name = WORKLOADS[int(index)]
    with MPICommExecutor(comm, root=0) as executor:
        if executor is None:
            return 0.0

        def mapped(tasks: list[Any]) -> list[Arrays]:
            asked = [executor.submit(evaluate, task) for task in tasks[1:]]
            return [evaluate(tasks[0]), *(future.result() for future in asked)]

        return turns(name, inputs_of(name)[0], comm.size, mapped)(int(count))


def by_hand_task(comm: Any, index: float, count: float) -> float:
    """Do what one would write with mpi4py for this one model: a message down, a message up."""
    name = WORKLOADS[int(index)]
    tasks = split(name, inputs_of(name)[0], comm.size)
    mine = tasks[comm.rank]
    compiled = part(*mine[:3])
    answer = evaluate(mine)
    if comm.rank > 0:
        for _ in range(int(count)):
            for values in mine[3]:
                comm.Recv(values, 0)
            for values in compiled(*mine[3]):
                comm.Send(np.ascontiguousarray(values), 0)
        return 0.0
    results = [answer, *([np.empty_like(a) for a in evaluate_shapes(t)] for t in tasks[1:])]
    begun = time.perf_counter()
    for _ in range(int(count)):
        mine[3][0].flat[0] += 1e-12
        for rank, task in enumerate(tasks[1:], start=1):
            for values in task[3]:
                comm.Send(np.ascontiguousarray(values), rank)
        results[0] = compiled(*mine[3])
        for rank in range(1, comm.size):
            for values in results[rank]:
                comm.Recv(values, rank)
        join(name, results)
    return time.perf_counter() - begun


def evaluate_shapes(task: tuple[str, int, int, Arrays]) -> Arrays:
    """Return arrays like a share's results: a value, and gradients shaped as the parameters."""
    return [np.zeros(()), *(np.zeros(values.shape) for values in task[3])]


def together_turns(together: Together, task: Any, name: str) -> Contestant:
    """Return a contestant from a task that all ranks have a part in."""
    return lambda count: together(task, float(WORKLOADS.index(name)), float(count))


if __name__ == "__main__":
    asked, *numbers = sys.argv[1:]
    serve(asked, *map(int, numbers))
