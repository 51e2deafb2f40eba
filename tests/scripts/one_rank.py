"""Things that rank 0 alone knows, while the pool is in use; see tests/test_one_rank.py.

Rank 0 prints what came of each: a line with its name.
"""

import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.graph.rewriting.basic import node_rewriter
from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_default_op_cache_key
from pytensor.tensor.rewriting.basic import register_canonicalize

import pymc_mpimap as mpimap

warnings.filterwarnings("ignore", "[0-9]+ ranks share")
sys.path.insert(0, str(Path(__file__).parent / "modules"))
import changing  # noqa: E402 # found through the path above
import constants  # noqa: E402
import threefold  # noqa: E402

X = np.random.default_rng(1).normal(size=(40, 300))


def same_bits(build, *, mode="FAST_COMPILE"):
    """Evaluate on all ranks and on one, and say whether all bits are equal."""
    with pytensor.config.change_flags(mode=mode):
        theta = pt.dscalar("theta")
        values = build(theta)
        function = pytensor.function([theta], [values, pt.grad(values.sum(), theta)])
        everywhere = function(0.7)
        with mpimap.SerialPool():
            here = function(0.7)
    return [np.asarray(v).tobytes() for v in everywhere] == [np.asarray(v).tobytes() for v in here]


@register_canonicalize
@node_rewriter([pt.sinh])
def as_the_hash_seed_says(_fgraph, node):
    """Choose a form, as iterating over a set of strings would: all ranks have this rewrite."""
    x = node.inputs[0]
    if hash("form") % 2:
        return [(pt.exp(x) - pt.exp(-x)) / 2]
    return [pt.tanh(x) * pt.cosh(x)]


def a_hash_seed():
    return same_bits(lambda t: mpimap.map_rect(lambda t, _j, x: pt.sinh(t * x).sum(), t, 40, X))


def a_rewrite():
    @register_canonicalize
    @node_rewriter([pt.tanh])
    def mine(_fgraph, node):
        x = node.inputs[0]
        return [1 - 2 / (pt.exp(2 * x) + 1)]

    return same_bits(lambda t: mpimap.map_rect(lambda t, _j, x: pt.tanh(t * x).sum(), t, 40, X))


def a_rewrite_of_a_scan():
    """Of ragged jobs, the block's graph is a loop; and the job has one of its own."""
    ragged = [X[j, : 3 + j % 5] for j in range(9)]

    def job(t, _j, x):
        step = lambda y, total, t: total + pt.tanh(t * y)  # noqa: E731
        totals = pytensor.scan(
            step, sequences=[x], outputs_info=[pt.zeros(())], non_sequences=[t],
            return_updates=False,
        )  # fmt: skip
        return totals[-1]

    return same_bits(lambda t: mpimap.map_rect(job, t, 9, ragged))


class Doubled(Op):
    """Twice its argument."""

    __props__ = ()

    def make_node(self, x):
        x = pt.as_tensor(x)
        return Apply(self, [x], [x.type()])

    def perform(self, _node, inputs, outputs):
        outputs[0][0] = np.asarray(2 * inputs[0])

    def pullback(self, _inputs, _outputs, cotangents):
        return [2 * cotangents[0]]


class Halved(Doubled):
    """Half its argument."""

    def perform(self, _node, inputs, outputs):
        outputs[0][0] = np.asarray(inputs[0] / 2)

    def pullback(self, _inputs, _outputs, cotangents):
        return [cotangents[0] / 2]


@register_funcify_default_op_cache_key(Halved)
def compute_halved(_op, **_):
    @numba_njit
    def halved(x):
        return np.asarray(np.exp(np.log(0.5) + np.log(np.abs(x))) * np.sign(x))

    return halved


def an_implementation_in_a_module():
    importlib.import_module("threefold_numba")
    op = threefold.Threefold()
    return same_bits(
        lambda t: mpimap.map_rect(lambda t, _j, x: op(t * x).sum(), t, 40, X), mode="NUMBA"
    )


def an_implementation_of_the_script():
    @register_funcify_default_op_cache_key(Doubled)
    def compute(_op, **_):
        @numba_njit
        def doubled(x):
            return np.asarray(x * 2)

        return doubled

    return same_bits(
        lambda t: mpimap.map_rect(lambda t, _j, x: Doubled()(t * x).sum(), t, 40, X), mode="NUMBA"
    )


def an_implementation_from_before():
    return same_bits(
        lambda t: mpimap.map_rect(lambda t, _j, x: Halved()(t * x).sum(), t, 40, X), mode="NUMBA"
    )


def a_variable():
    constants.SCALE = 3.0
    return same_bits(lambda t: mpimap.map_rect(constants.scaled, t, 8))


def a_variable_by_its_module():
    constants.OFFSET = 1.0

    @mpimap.numeric_job
    def shifted(t, _j):
        return constants.OFFSET + t, 1.0

    return same_bits(lambda t: mpimap.map_rect(shifted, t, 8))


def an_array():
    constants.WEIGHTS[0] = 5.0
    return same_bits(lambda t: mpimap.map_rect(constants.weighted, t, 8))


def a_counter():
    for _ in range(2):
        again = same_bits(lambda t: mpimap.map_rect(constants.counting, t, 8))
        constants.CALLS += 100
    return again


def reading(reader):
    """Return a job that calls a function, which it has in its closure."""

    @mpimap.numeric_job
    def job(t, _j):
        return reader() * t, reader()

    return job


def all_that_differed_before():
    """The number of its process, the time at which it began, a count: each rank has its own."""
    build = lambda t: mpimap.map_rect(reading(changing.of_rank), t, 8)  # noqa: E731
    return same_bits(build) and same_bits(build)


def all_that_was_changed():
    """Return the readers for which the program is refused; of the others there are warnings."""
    changing.change()
    changing.helper = lambda: 2.0
    changing.PARTIAL = changing.functools.partial(changing.same, 2.0)
    refused = []
    for reader in changing.READERS:
        try:
            same_bits(lambda t, reader=reader: mpimap.map_rect(reading(reader), t, 8))
        except mpimap.PoolError:
            refused.append(reader.__name__)
    return sorted(refused)


def a_refusal():
    """The next program gets the data that came with the one that was refused."""
    x = np.arange(8.0).reshape(8, 1)

    @mpimap.numeric_job
    def bad(t, _j, x):
        return constants.OFFSET * t * x[0], constants.OFFSET * x[0]

    @mpimap.numeric_job
    def good(t, _j, x):
        return t * x[0], x[0]

    try:
        same_bits(lambda t: mpimap.map_rect(bad, t, 8, x))
    except mpimap.PoolError:
        return same_bits(lambda t: mpimap.map_rect(good, t, 8, x))
    return "not refused"


def errors_of_numpy():
    """A job that overflows: it raises on all ranks, or on none."""

    @mpimap.numeric_job(derivatives=None)
    def overflows(t, own):
        return float(np.multiply(t, own))

    theta = pt.dscalar()
    with pytensor.config.change_flags(mode="FAST_COMPILE"), np.errstate(over="raise"):
        own = np.array([1.0, 1.0, 1.0, 1e300])
        function = pytensor.function([theta], mpimap.map_rect(overflows, theta, own))
        return function(1e300)


def tell(name, call):
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            said = call()
        except Exception as error:  # whatever it is: the test reads it
            said = f"{type(error).__name__}: {error}"
    print(name, "|", " ".join(str(said).split()), flush=True)


CASES = (
    a_variable,
    a_variable_by_its_module,
    an_array,
    a_counter,
    all_that_differed_before,
    all_that_was_changed,
    a_refusal,
    errors_of_numpy,
    a_hash_seed,
    an_implementation_from_before,
    an_implementation_in_a_module,
    an_implementation_of_the_script,
    a_rewrite,
    a_rewrite_of_a_scan,
)

with mpimap.MPIPool():
    for case in CASES:
        tell(case.__name__, case)
