"""Knowledge of one rank alone: all compute the same, or an error says what differs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

MPIEXEC = str(Path(sys.executable).parent / "mpiexec")
SCRIPT = Path(__file__).parent / "scripts" / "one_rank.py"

EXPECTED = {
    "a_variable": r"PoolError: rank 1 on .* another constants\.SCALE than",
    "a_variable_by_its_module": r"PoolError: rank 1 on .* another constants\.OFFSET than",
    # Jobs may write to an array: there is a warning, on the rank that has the other one.
    "an_array": "False",
    "a_counter": "True",
    "errors_of_numpy": r"JobError: job 3 of overflows, on rank 1 .*FloatingPointError: overflow",
    "a_hash_seed": "True",
    "an_implementation_from_before": "True",
    "an_implementation_in_a_module": "True",
    "an_implementation_of_the_script": (
        r"PoolError: __main__\.Doubled is computed by __main__\..*compute on rank 0, "
        r"but by pytensor\..*numba_funcify on rank 1 .*Register the implementation before"
    ),
    "all_that_differed_before": "True",
    "all_that_was_changed": r"\['default', 'nested', 'replaced'\]",
    "a_refusal": "True",
    "a_rewrite": "True",
    "a_rewrite_of_a_scan": "True",
}


@pytest.mark.mpi
def test_what_one_rank_knows_is_said_or_does_not_matter():
    words = [MPIEXEC]
    for seed in ("1", "4"):
        words += ["-env", "PYTHONHASHSEED", seed, "-n", "1", sys.executable, str(SCRIPT), ":"]
    result = subprocess.run(words[:-1], capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stderr
    answers = dict(line.split(" | ", 1) for line in result.stdout.splitlines() if " | " in line)
    assert answers.keys() == EXPECTED.keys()
    for name, pattern in EXPECTED.items():
        assert re.match(pattern, answers[name]), f"{name}: {answers[name]}"
    assert re.search(r"\[rank 1\].*another constants\.WEIGHTS than rank 0", result.stderr)
