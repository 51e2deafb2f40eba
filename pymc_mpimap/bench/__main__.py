"""See what `map_rect` can do here.

``python -m pymc_mpimap.bench [--json FILE] [--quick] [name ...]``, under mpiexec or alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pymc_mpimap.bench.groups import GROUPS, Group, Setting
from pymc_mpimap.bench.output import document, heading, table
from pymc_mpimap.bench.timing import Effort
from pymc_mpimap.bench.together import Together
from pymc_mpimap.pool.mpi import MPIPool

QUICK = Effort(rounds=3, seconds=0.005)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m pymc_mpimap.bench",
        description="Time map_rect on the ranks that there are, beside bare MPI and serial "
        "evaluation. Start it by mpiexec, with as many ranks as your program is to have.",
        epilog="names: " + " ".join(GROUPS),
    )
    parser.add_argument("names", nargs="*", metavar="name", help="what to measure (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all timings to a file")
    parser.add_argument("--quick", action="store_true", help="only see whether everything works")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant (15)")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a turn (0.1)")
    found = parser.parse_args(words)
    if unknown := [name for name in found.names if name not in GROUPS]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    return found


def say(text: str) -> None:
    """Print a paragraph at once, so that it is seen while the next is measured."""
    sys.stdout.write(f"{text}\n\n")
    sys.stdout.flush()


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print what was found."""
    options = arguments(words)
    effort = QUICK if options.quick else Effort(options.rounds, options.seconds)
    with MPIPool() as pool:
        say(heading(pool.report().hosts))
        setting = Setting(pool.ranks, effort, options.quick, Together(pool.ranks))
        groups: list[Group] = []
        for name in options.names or GROUPS:
            groups.append(GROUPS[name](setting))
            say(table(groups[-1]))
        if options.json:
            options.json.write_text(document(groups, pool.report().hosts, quick=options.quick))


if __name__ == "__main__":
    main()
