"""Simulate the scheduler on up to 4,096 ranks: efficiency, moves, bytes, and whether a tree pays.

From a checkout: ``python -m benchmarks.scaling [--json FILE]``. The cut points are those of the
package's own `Balance`; only time is modelled. Rank 0 sends to each worker in turn, then works on
its blocks, then collects the answers in rank order and adds up the partial sums. In a tree of
messages, each rank forwards to its children first and sums their answers up last; children hold
consecutive ranks, so that the sums are added in the same fixed order.

``mpiexec -n 2 python -m benchmarks.scaling`` instead measures what a message costs rank 0.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pymc_mpimap.blocks import subtrees
from pymc_mpimap.pool.balance import Balance, balanced_cuts, even_cuts

RANKS = (2, 3, 4, 8, 16, 64, 256, 1024, 4096)
EVALUATIONS, SEEDS, NOISE = 50, 5, 0.05
DOUBLES = 100  # shared parameters; the answer is their gradient and the value
HEADER = 64


@dataclass(frozen=True)
class Network:
    """Seconds a message and a byte.

    Attributes
    ----------
    send, receive : float
        For how long a message keeps its sender and its receiver busy: MPI and Python.
    latency : float
        From the end of sending until it can be received.
    byte : float
        Added to `send` and to `receive` for each byte.
    add : float
        To add one partial sum to another.
    """

    name: str
    send: float
    receive: float
    latency: float
    byte: float
    add: float = 0.4e-6


# `send`, `receive`, `add` and the first `byte` as measured on one host (see docs/_scaling.md);
# latencies and bandwidths of networks as they are typical.
NETWORKS = (
    Network("cluster", 1.5e-6, 1.5e-6, 2e-6, 1e-10),
    Network("Ethernet", 5e-6, 5e-6, 25e-6, 8e-10),
    Network("2 ms away", 5e-6, 5e-6, 1e-3, 8e-10),
)


def partial_sums(cuts: list[int]) -> np.ndarray:
    """Return how many partial sums each rank has."""
    return np.array([len(list(subtrees(cuts[-1], low, high))) for low, high in pairwise(cuts)])


def down_bytes() -> int:
    return HEADER + 8 * DOUBLES


def up_bytes(sums: Any) -> Any:
    return HEADER + 8 * (DOUBLES + 1) * sums


def flat(busy: np.ndarray, sums: np.ndarray, network: Network) -> float:
    """Return the time of an evaluation in which rank 0 exchanges messages with each worker."""
    sent = np.cumsum(np.full(len(busy) - 1, network.send + network.byte * down_bytes()))
    begun = sent + network.latency + network.receive
    up = network.byte * up_bytes(sums[1:])
    arrived = begun + busy[1:] + network.send + up + network.latency
    takes = network.receive + up
    # Rank 0 takes each answer when it has arrived and the one before is done with.
    ends = np.cumsum(takes)
    last = float(
        np.maximum.accumulate(np.maximum(arrived, sent[-1] + busy[0]) - (ends - takes))[-1]
    )
    return last + float(ends[-1]) + network.add * float(sums.sum() - 1)


def tree(busy: np.ndarray, cuts: list[int], network: Network, children: int) -> float:
    """Return the same where each rank has so many children, each with a run of ranks."""
    n_blocks = cuts[-1]

    def serve(low: int, high: int, begun: float) -> float:
        """Return when the sums of the ranks ``low <= rank < high`` are with rank `low`."""
        edges = [low + 1 + part for part in even_cuts(high - low - 1, children)]
        runs = [run for run in pairwise(edges) if run[0] < run[1]]
        answers, now = [], begun
        for first, last in runs:
            now += network.send + network.byte * down_bytes()
            done = serve(first, last, now + network.latency + network.receive)
            n_sums = len(list(subtrees(n_blocks, cuts[first], cuts[last])))
            up = network.byte * up_bytes(n_sums)
            answers.append((done + network.send + up + network.latency, up, n_sums))
        now += busy[low]
        sums = len(list(subtrees(n_blocks, cuts[low], cuts[low + 1])))
        for arrived, up, n_sums in answers:
            now = max(now, arrived) + network.receive + up
            sums += n_sums
        left = len(list(subtrees(n_blocks, cuts[low], cuts[high])))
        return float(now + network.add * (sums - left))

    return serve(0, len(busy), 0.0)


Costs = Callable[[int], np.ndarray]


def lognormal(n: int, seed: int, sigma: float = 1.5) -> np.ndarray:
    costs = np.random.default_rng(seed).lognormal(0, sigma, n)
    return costs / costs.sum()


def kinds(n: int, seed: int) -> Iterator[tuple[str, Costs]]:
    """Yield what the blocks cost at each evaluation, in parts of all work."""
    equal, first = np.full(n, 1 / n), lognormal(n, seed)
    last, ordered = lognormal(n, seed + 1000), np.sort(first)
    yield "equal", lambda _: equal
    yield "lognormal", lambda _: first
    yield "lognormal, sorted", lambda _: ordered

    def drifting(evaluation: int) -> np.ndarray:
        part = min(evaluation / 500, 1.0)
        costs = first ** (1 - part) * last**part
        return np.asarray(costs / costs.sum())

    yield "lognormal, drifting", drifting


def slowest(costs: np.ndarray, cuts: list[int], head: float) -> float:
    ends = np.concatenate([[0.0], np.cumsum(costs)])
    times = np.diff(ends[cuts])
    times[0] += head
    return float(times.max())


def follow(costs: Costs, n_ranks: int, head: float, evaluations: int, seed: int) -> dict[str, Any]:
    """Let a `Balance` measure and move for some evaluations, and say how it did."""
    rng, n_blocks = np.random.default_rng(seed), len(costs(0))
    balance = Balance(n_blocks, n_ranks)
    spent, counted, seen, early, bests = np.zeros(n_blocks), 0, [], 0, []
    for evaluation in range(1, evaluations + 1):
        now = costs(evaluation)
        took = now * np.exp(NOISE * rng.standard_normal(n_blocks))
        took[0] += 10.0 * (evaluation == 1)  # compiles
        spent += took
        counted += 1
        best = slowest(now, balanced_cuts(now, n_ranks, head), head)
        bests.append((1 + head) / n_ranks / best)
        seen.append(best / slowest(now, balance.cuts, head))
        busy = np.add.reduceat(np.append(took, 0.0), balance.cuts[:-1])
        busy[np.diff(balance.cuts) == 0] = 0.0
        if balance.wants_costs(busy.tolist(), head):
            early += balance.propose(spent / counted) is not None and evaluation <= EVALUATIONS
            spent[:], counted = 0, 0
    after = seen[EVALUATIONS:] or seen[-1:]
    return {
        "even": slowest(now, even_cuts(n_blocks, n_ranks), head),
        "any": min(1.0, 1 / (n_ranks * float(now.max()))),
        "best": bests[-1],
        "of_best": float(np.mean(after)),
        "efficiency": float(np.mean(after)) * bests[-1],
        "early_moves": early,
        "moves": balance.moves,
        "asked": balance.asked,
        "cuts": balance.cuts,
    }


def n_blocks_for(n_ranks: int) -> int:
    return max(64, 16 * n_ranks)


def balancing() -> list[dict[str, Any]]:
    """Return how well costs are followed, whatever the network."""
    rows = []
    for n_ranks in RANKS:
        seeds = SEEDS if n_ranks <= 256 else 1
        for kind, _ in kinds(64, 0):
            runs = []
            for seed in range(seeds):
                costs = dict(kinds(n_blocks_for(n_ranks), seed))[kind]
                drifts = kind.endswith("drifting")
                if drifts and n_ranks > 256:
                    continue
                evaluations = 700 if drifts else EVALUATIONS
                runs.append(follow(costs, n_ranks, 0.0, evaluations, seed))
            if not runs:
                continue
            row: dict[str, Any] = {"ranks": n_ranks, "costs": kind}
            n_blocks = n_blocks_for(n_ranks)
            row["even"] = float(np.median([1 / n_ranks / run["even"] for run in runs]))
            for name in ("any", "best", "efficiency", "of_best"):
                row[name] = float(np.median([run[name] for run in runs]))
            row["worst_of_best"] = min(run["of_best"] for run in runs)
            row["moves"] = max(run["moves"] for run in runs)
            sums = partial_sums(runs[0]["cuts"])
            row |= {"blocks": n_blocks, "down": down_bytes()}
            row |= {
                "up": up_bytes(float(sums[1:].mean())),
                "most_up": up_bytes(int(sums[1:].max())),
            }
            rows.append(row)
    return rows


WORKS = (1e-3, 5e-3, 100e-3, 1.0, 10.0)
FAN_OUTS = (4, 16)


def messages() -> list[dict[str, Any]]:
    """Return times of evaluations of equal costs, flat and with trees, as far as work permits."""
    rows = []
    for network in NETWORKS:
        for work in WORKS:
            for n_ranks in RANKS:
                n_blocks = n_blocks_for(n_ranks)
                costs = np.full(n_blocks, work / n_blocks)
                head = (n_ranks - 1) * (network.send + network.byte * down_bytes())
                # What the workers lose to latency and to the message itself.
                head -= 2 * network.latency + network.receive + network.send
                cuts = balanced_cuts(costs, n_ranks, head)
                even = even_cuts(n_blocks, n_ranks)
                ends = np.concatenate([[0.0], np.cumsum(costs)])
                row: dict[str, Any] = {"network": network.name, "work": work, "ranks": n_ranks}
                row["flat"] = flat(np.diff(ends[cuts]), partial_sums(cuts), network)
                busy = np.diff(ends[even])
                row["even"] = flat(busy, partial_sums(even), network)
                for children in FAN_OUTS:
                    row[f"tree {children}"] = tree(busy, even, network, children)
                rows.append(row)
    return rows


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def percent(part: float) -> str:
    return f"{100 * part:.0f}" if part > 0.095 else f"{100 * part:.1g}"


def report(balanced: list[dict[str, Any]], timed: list[dict[str, Any]]) -> None:
    print("Efficiency after 50 evaluations (drifting: mean over evaluations 51 to 700)\n")
    columns = ["ranks", "blocks", "costs", "even cuts", "any blocks", "best cuts", "here"]
    columns += ["of the best", "worst", "moves"]
    names = ("even", "any", "best", "efficiency", "of_best", "worst_of_best")
    print_table(
        columns,
        [
            [str(row["ranks"]), str(row["blocks"]), row["costs"]]
            + [f"{row[name]:.2f}" for name in names]
            + [str(row["moves"])]
            for row in balanced
        ],
    )
    print("Bytes per gradient and worker, lognormal costs\n")
    print_table(
        ["ranks", "blocks", "down", "up, mean", "up, most"],
        [
            [str(row[name]) for name in ("ranks", "blocks", "down")]
            + [f"{row['up']:.0f}", str(row["most_up"])]
            for row in balanced
            if row["costs"] == "lognormal"
        ],
    )
    ways = ["flat", *(f"tree {children}" for children in FAN_OUTS)]
    found = {(row["network"], row["work"], row["ranks"]): row for row in timed}
    for network in NETWORKS:
        print(f"Efficiency in percent, equal costs, {network.name}: {' / '.join(ways)}\n")
        rows = []
        for work in WORKS:
            rows.append([f"{1e3 * work:g} ms"])
            for n_ranks in RANKS:
                row = found[network.name, work, n_ranks]
                rows[-1].append(" / ".join(percent(work / n_ranks / row[w]) for w in ways))
        print_table(["work", *map(str, RANKS)], rows)


def exchange(lines: list[tuple[Any, Any]], part: np.ndarray, buffers: Any) -> list[float]:
    """Send and receive once as rank 0; return the seconds of each for a message."""
    place, header = buffers[0][HEADER:].view(float), buffers[1][:HEADER].view(np.int64)
    begun = time.perf_counter()
    for send, receive in lines:
        place[...] = part
        send.Start()
        receive.Start()
    sent = time.perf_counter() - begun
    while time.perf_counter() - begun < 2e-3:
        os.sched_yield()  # so that the answers are there
    begun = time.perf_counter()
    for _, receive in lines:
        while not receive.Test():
            pass
        header[:5].tolist()
    received = time.perf_counter() - begun
    for send, _ in lines:
        send.Wait()
    return [sent / len(lines), received / len(lines)]


def measure(comm: Any) -> None:
    """Print what a message costs rank 0, in microseconds; the median and the least."""
    for doubles in (10, 100, 1000, 10_000):
        buffers = [np.zeros(HEADER + 8 * doubles, dtype=np.uint8) for _ in range(2)]
        peers = range(1, comm.size) if comm.rank == 0 else [0]
        lines = [
            (comm.Send_init(buffers[0], peer), comm.Recv_init(buffers[1], peer)) for peer in peers
        ]
        times = []
        for _ in range(500):
            if comm.rank == 0:
                times.append(exchange(lines, np.zeros(doubles), buffers))
                continue
            [(send, receive)] = lines
            receive.Start()
            while not receive.Test():
                os.sched_yield()
            send.Start()
            send.Wait()
        if comm.rank == 0:
            told = [f"{np.median(t):.2f} ({min(t):.2f})" for t in 1e6 * np.array(times).T]
            print(f"{doubles} doubles: send {told[0]}, receive {told[1]}", flush=True)
        for line in lines:
            for request in line:
                request.Free()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    arguments = parser.parse_args()
    balanced, timed = balancing(), messages()
    report(balanced, timed)
    if arguments.json:
        networks = [asdict(network) for network in NETWORKS]
        everything = {"networks": networks, "balance": balanced, "messages": timed}
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from mpi4py import MPI

    if MPI.COMM_WORLD.size > 1:
        measure(MPI.COMM_WORLD)
    else:
        main()
