"""Put the tables and plots of docs/performance.md in place, from the files in benchmarks/results.

From a checkout: ``python -m benchmarks.report``. A table stands between ``<!-- table: name -->``
and ``<!-- end -->``; one whose results are not there is left as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import draw
from pymc_mpimap.bench.groups import BARE, BY_HAND, PLAIN, POOL, SERIAL

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
PLACE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Found = dict[str, Any]


def read(name: str) -> Found:
    found: Found = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def time_of(seconds: float) -> str:
    """Return a time with its unit, in two or three digits."""
    units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    unit, size = next((u for u in units if seconds >= 0.9995 * u[1]), units[-1])
    value = seconds / size
    digits = 0 if value >= 99.5 else 1 if value >= 0.995 else 2
    return f"{value:.{digits}f} {unit}"


def cell(timing: Found | None) -> str:
    """Return median and minimum."""
    if timing is None:
        return ""
    return f"{time_of(timing['median'])} ({time_of(timing['minimum'])})"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def timings(group: Found) -> dict[str, Found]:
    return {timing["name"]: timing for timing in group["timings"]}


def groups(found: Found) -> dict[str, Found]:
    return {group["name"]: group for group in found["groups"]}


def fact(group: Found, name: str, digits: int = 2) -> str:
    """Return a fact, by the medians and by the minima."""
    found = next(f for f in group["facts"] if f["name"] == name)
    return f"{found['value']:.{digits}f} ({found['at_minimum']:.{digits}f})"


def environment() -> str:
    e = read("bench-2")["environment"]
    return (
        f"{e['cores']} cores ({e['processor']}), {e['mpi']}, Python {e['python']}, PyTensor "
        f"{e['pytensor']}; load of the machine at the end {e['load']}.\n"
    )


def goals() -> str:
    """Return what was aimed at, and what was found."""
    two, four = groups(read("bench-2")), groups(read("bench-4"))
    added, split = "added, all ranks", "efficiency of the best split into runs"
    rows = [
        ["added by dispatch, us, 2 ranks", fact(two["dispatch"], added, 1), "15", "3.2 in all"],
        ["the same, 4 ranks on 2 cores", fact(four["dispatch"], added, 1), "60", "13 in all"],
        ["1,000 cheap jobs, us, 2 ranks", fact(two["cheap"], POOL, 0), "350", "390 to 417"],
    ]
    for name, label in (("big-shared", "shared"), ("big-jobs", "of the jobs")):
        ratio = fact(two[name], "map_rect to bare MPI", 1)
        rows.append([f"100,000 parameters, {label}, to bare MPI", ratio, "1.5", ""])
    for name, label, goal in (("spin-1ms", "1 ms", "0.90"), ("spin-5ms", "5 ms", "0.95")):
        found = fact(two[name], "efficiency")
        rows.append([f"efficiency at {label} a gradient", found, goal, ""])
    for name, label in (("unequal-random", "random"), ("unequal-sorted", "sorted")):
        best = next(f["value"] for f in two[name]["facts"] if f["name"] == split)
        found = fact(two[name], "efficiency")
        rows.append([f"efficiency, unequal jobs, {label}", found, f"0.90 (best: {best:.2f})", ""])
    rows += workload_goals() + start_goals()
    return markdown(["", "by the medians (minima)", "goal", "Stan"], rows)


def workload_goals() -> list[list[str]]:
    rows = []
    found = {w["name"]: w for w in read("workloads-2")["workloads"]}
    for name, way, ranks, goal in (
        ("W1", SERIAL, "serial", "2.0"),
        ("W1", POOL, "MPI, 2 ranks", "1.0"),
        ("W3a by solve_ivp", POOL, "MPI, 2 ranks", "1.5"),
    ):
        timing = timings(found[name])[way]
        stan = found[name]["stan_microseconds"][f"map_rect, {ranks}"] / 1e3
        took = f"{1e3 * timing['median']:.2f} ({1e3 * timing['minimum']:.2f})"
        label = f"{name}, ms, {ranks.removeprefix('MPI, ')}"
        rows.append([label, took, goal, f"{stan:.2f}"])
    return rows


def start_goals() -> list[list[str]]:
    found = {(row["ranks"], row["cache"]): row for row in read("startup")["startup"]}
    first = "first gradient"
    ratio = found[8, "cold"][first] / found[1, "cold"][first]
    return [
        ["first gradient of an ODE, cold, s, 1 rank", f"{found[1, 'cold'][first]:.1f}", "10", ""],
        ["the same, 2 ranks", f"{found[2, 'cold'][first]:.1f}", "10", ""],
        ["the same, warm, 2 ranks", f"{found[2, 'warm'][first]:.1f}", "2", ""],
        ["first gradient, cold, 8 ranks on 2 cores, to 1 rank", f"{ratio:.2f}", "1.5", ""],
        ["the whole program, warm, s, 8 ranks", f"{found[8, 'warm']['ended']:.1f}", "8", ""],
    ]


LABELS = {
    "dispatch": "no work",
    "spin-1ms": "64 equal jobs, 1 ms",
    "spin-5ms": "64 equal jobs, 5 ms",
    "unequal-random": "64 unequal jobs, random order, 20 ms",
    "unequal-sorted": "64 unequal jobs, sorted, 20 ms",
    "cheap": "1,000 cheap jobs",
    "big-shared": "100,000 shared parameters",
    "big-jobs": "100,000 parameters of jobs",
}


def bench(*names: str) -> Callable[[], str]:
    """Return a table of some measurements of the package's own benchmark."""

    def table() -> str:
        found = groups(read("bench-2"))
        present = {timing for name in names for timing in timings(found[name])}
        columns = [name for name in (PLAIN, SERIAL, POOL, BARE, BY_HAND) if name in present]
        rows = [
            [LABELS[name], *(cell(timings(found[name]).get(c)) for c in columns)] for name in names
        ]
        return markdown(["", *columns], rows)

    return table


def floors() -> str:
    rows = []
    for name in ("bench-2", "bench-4"):
        found = read(name)
        group = groups(found)["floor"]
        label = f"{found['environment']['ranks']} ranks"
        rows.append([label, *(cell(timing) for timing in group["timings"])])
    sizes = [timing["name"] for timing in group["timings"]]
    return markdown(["", *sizes], rows)


def layers() -> str:
    """Return where the time of a gradient without work goes."""
    found = read("layers-2")["layers"]
    rows = [[row["name"], f"{row['median']:.1f} ({row['minimum']:.1f})"] for row in found]
    return markdown(["", "us"], rows)


def workloads() -> str:
    """Return the workloads that Stan was timed with."""
    rows = []
    for w in read("workloads-2")["workloads"]:
        found, stan = timings(w), w["stan_microseconds"]
        serial, parallel = (
            f"{stan[key]:g} us" for key in ("map_rect, serial", "map_rect, MPI, 2 ranks")
        )
        agreement = f"{w['value_differs']:.0e}, {w['gradient_differs']:.0e}"
        rows.append(
            [w["name"], cell(found[SERIAL]), cell(found[POOL]), serial, parallel, agreement]
        )
    head = ["", "serially", "2 ranks", "Stan, serially", "Stan, 2 ranks", "differs by"]
    return markdown(head, rows)


def contest() -> str:
    found = groups(read("contest-2"))
    tables = {name: timings(group) for name, group in found.items()}
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    rows = [[name, *(cell(table.get(name)) for table in tables.values())] for name in names]
    stan = {"w1": "1034 us", "w3a": "3766 us", "cheap": "390 us"}
    rows.append(["Stan's map_rect, 2 ranks (other machine)", *(stan[name] for name in tables)])
    return markdown(["", *tables], rows)


def waiting() -> str:
    found = read("waiting-2")
    rows = [[time_of(row["gap"]) if row["gap"] else "none", cell(row)] for row in found["latency"]]
    idle = ", ".join(f"{100 * share:.1f} %" for share in found["idle"])
    return (
        markdown(["pause", "evaluation after it"], rows)
        + f"\nIdle, a worker uses {idle} of a core.\n"
    )


def growth() -> str:
    rows = [
        [f"{row['jobs_a_rank']}", f"{row['down']:.0f}", f"{row['up']:.0f}"]
        for row in read("growth-2")["growth"]
    ]
    return markdown(["jobs a rank", "bytes to a worker", "bytes back"], rows)


def startup() -> str:
    steps = ("imported", "in the pool", "model built", "first gradient", "ended")
    rows = [
        [f"{row['ranks']}", row["cache"], *(f"{row[step]:.1f} s" for step in steps)]
        for row in read("startup")["startup"]
    ]
    return markdown(["ranks", "cache", *steps], rows)


def memory() -> str:
    found, rows = read("data-2"), []
    for row in found["memory"]:
        held, peak = ([f"{x:.0f}" for x in row[key]] for key in ("held", "peak"))
        moments = [time_of(row[key]) for key in ("build", "first", "next")]
        rows.append([row["way"], *moments, " / ".join(held), " / ".join(peak)])
    head = ["", "build", "first evaluation", "next", "MB held, rank 0 / 1", "MB at most"]
    return f"{found['megabytes']:g} MB in all.\n\n" + markdown(head, rows)


def prices() -> str:
    rows, head = [], ["bytes"]
    for row in read("data-2")["prices"]:
        head = list(row)
        size = row["bytes"] // 1024
        label = f"{size} KB" if size < 1024 else f"{size // 1024} MB"
        rows.append([label, *(time_of(row[key]) for key in head[1:])])
    return markdown(["", *head[1:]], rows)


TABLES: dict[str, Callable[[], str]] = {
    "environment": environment,
    "goals": goals,
    "floor": floors,
    "dispatch": bench("dispatch"),
    "layers": layers,
    "efficiency": bench("spin-1ms", "spin-5ms", "unequal-random", "unequal-sorted"),
    "cheap": bench("cheap"),
    "big": bench("big-shared", "big-jobs"),
    "growth": growth,
    "workloads": workloads,
    "contest": contest,
    "waiting": waiting,
    "startup": startup,
    "memory": memory,
    "prices": prices,
}


def main() -> None:
    """Replace the tables, and draw the plots."""

    def replaced(place: re.Match[str]) -> str:
        start, name, before, end = place.groups()
        try:
            text = TABLES[name]()
        except FileNotFoundError as missing:
            print(f"{name}: left as it was, as there is no {missing.filename}", file=sys.stderr)
            text = before.strip("\n") + "\n"
        return f"{start}\n{text}\n{end}"

    PAGE.write_text(PLACE.sub(replaced, PAGE.read_text()))
    draw(RESULTS, PAGE.with_suffix(""))


if __name__ == "__main__":
    main()
