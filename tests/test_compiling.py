"""What is done around compiling: its order, and that garbage collection is as it was."""

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytensor.tensor as pt
import pytest

from pymc_mpimap import map_rect, solve_ivp
from pymc_mpimap.job.linker import compile_for
from pymc_mpimap.native.compiling import (
    compiling,
    postponing,
    soon,
    starting_with_callees,
    with_callees_first,
)
from tests.helpers import assert_same_bits, in_modes


class Code:
    """What numba makes of a function, as far as it is of interest here."""

    def __init__(self, done):
        self.done, self.signatures = done, []
        self.callees = [lambda: done.append("first"), lambda: done.append("second")]

    def compile(self, signature):
        assert not gc.isenabled()
        self.done.append("code")
        self.signatures = [signature]


def test_soon_is_now_unless_postponed():
    done = []
    soon(lambda: done.append(1))
    with postponing() as outer:
        soon(lambda: done.append(2))
        with postponing() as inner:
            soon(lambda: done.append(3))
        soon(lambda: done.append(4))
        other = threading.Thread(target=soon, args=(lambda: done.append(5),))
        other.start()
        other.join()
    soon(lambda: done.append(6))
    assert done == [1, 5, 6]
    for work in (*outer, *inner):
        work()
    assert done == [1, 5, 6, 2, 4, 3]


def test_the_order_in_which_a_block_and_what_it_calls_are_compiled():
    done = []
    code = Code(done)
    compile_for(code, [np.zeros(2)])
    assert done == ["code", "first", "second"]
    done.clear()
    # Another call: the code is there, and each callee knows that it is.
    compile_for(code, [np.zeros(2)])
    assert done == ["first", "second"]
    done.clear()
    with starting_with_callees():
        assert with_callees_first()
        compile_for(Code(done), [np.zeros(2)])
    assert done[:3] == ["first", "second", "code"]
    assert not with_callees_first()
    compile_for(lambda: None, [np.zeros(2)])  # Not numba's.


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_afterwards(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with compiling():
            assert not gc.isenabled()
            with compiling():
                pass
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError), compiling():
            _ = 1 / 0
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.slow
def test_a_solve_is_complete_for_whoever_else_needs_it():
    """Though somebody has put off compiling it, and never came to it."""
    from pymc_mpimap.ode.kernel import compiled, solve_kernel
    from pymc_mpimap.ode.request import DRIVER
    from pymc_mpimap.ode.table import table_of

    k = pt.dscalar("k")
    op = solve_ivp(lambda t, y, k: -k * y * 0.123, 0.0, [1.0], [1.0], k, max_steps=321).owner.op
    with postponing() as callees:
        solve_kernel(op.solve)
    words = table_of(op.solve).buffer.words
    assert len(callees) == 1
    assert words[DRIVER] == 0
    inputs = [np.array(0.0), np.ones(1), np.ones(1), np.empty(0), np.array(2.0)]
    value = compiled(op.solve)(*inputs)
    assert words[DRIVER] != 0
    np.testing.assert_allclose(value, [[np.exp(-0.246)]], rtol=1e-6)
    before = list(words)
    callees[0]()
    assert list(words) == before
    assert_same_bits(compiled(op.solve)(*inputs), value)
    # Whoever calls at once has it compiled at once.
    other = solve_ivp(lambda t, y, k: -k * y * 0.123, 0.0, [1.0], [1.0], k, max_steps=322)
    with postponing() as callees:
        assert_same_bits(compiled(other.owner.op.solve)(*inputs), value)


@pytest.mark.slow
@in_modes("NUMBA")
def test_a_solve_of_constants_in_a_job(mode):
    """PyTensor evaluates it while the block is being made."""

    def job(theta, own):
        constant = solve_ivp(lambda t, y: -y * 0.321, 0.0, [1.0], [1.0])
        inner = solve_ivp(lambda t, y, k: -k * y * 0.321, 0.0, [1.0], [1.0], theta)
        return (constant * own + inner).sum()

    theta = pt.dscalar("theta")
    total = map_rect(job, theta, np.arange(3.0)).sum()
    value = total.eval({theta: 1.0})
    np.testing.assert_allclose(value, (0 + 1 + 2 + 3) * np.exp(-0.321), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Numba will use object mode")
@in_modes("FAST_COMPILE", "NUMBA")
def test_right_hand_sides_that_differ_in_what_has_no_key(mode):
    """PyTensor has no numba code for the Op, nor a name for what it does."""
    values = [
        solve_ivp(lambda t, y, order=order: pt.polygamma(order, y + 1.0), 0.0, [1.0], [1e-3]).eval()
        for order in (1, 3)
    ]
    # The first and third derivatives of the digamma function at 2.
    np.testing.assert_allclose(values[0], [[1.0 + 0.644934e-3]], rtol=1e-6)
    np.testing.assert_allclose(values[1], [[1.0 + 0.493939e-3]], rtol=1e-6)


def test_threads_that_are_the_first_to_need_sums(tmp_path):
    script = """
import sys, threading
sys.setswitchinterval(1e-6)
import numba, numpy as np
from pymc_mpimap.vectormath import lanes

begin = threading.Barrier(3)
def work():
    begin.wait()
    sums = lanes.sum_of_rows(0)
    code = numba.njit(lambda x: sums(x))
    assert code(np.ones(70)) == 70.0
    done.append(1)

done = []
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == 3
"""
    flags = {"PYTENSOR_FLAGS": f"base_compiledir={tmp_path}"}
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **flags}, check=True, timeout=120
    )
