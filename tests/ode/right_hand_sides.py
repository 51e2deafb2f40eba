"""Right-hand sides written with NumPy's functions, and what traces and evaluates them."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import scipy.special

from pymc_mpimap.ode.trace import trace_system
from pymc_mpimap.structure import flatten

__all__ = [
    "CONSTANT",
    "FUNCTIONS",
    "PARAMS",
    "T",
    "Y",
    "compiled",
    "evaluated",
    "trace",
    "values_of",
]

T = 0.7
Y = np.array([0.3, 1.2, 2.1])
PARAMS = {
    "k": 0.4,
    "v": np.array([0.5, -1.5, 2.5]),
    "K": np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0], [2.0, 0.25, -1.0]]),
    "pair": (1.5, np.array([2.0, 3.0])),
}
CONSTANT = np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.5, 1.0]])


def type_of(value):
    return pt.tensor(dtype="float64", shape=np.shape(value)).type


def trace(rhs, n_states=3, params=PARAMS):
    """Trace with parameters of the types of these values."""
    leaves, structure = flatten(params, "params")
    types = [(name, type_of(value)) for name, value in leaves]
    return trace_system(rhs, n_states, types, structure, getattr(rhs, "__name__", "rhs"))


def compiled(system, outputs):
    inputs = [system.t, *system.states, *(v for leaf in system.leaves for v in leaf)]
    # The cheapest linker: what is compiled here runs once.
    return pytensor.function(inputs, outputs, mode=MODE, on_unused_input="ignore")


MODE = pytensor.compile.mode.Mode(linker="py", optimizer=None)


def values_of(params=PARAMS):
    return [x for _, value in flatten(params, "p")[0] for x in np.ravel(value)]


def evaluated(system, y=Y, params=PARAMS, closure=()):
    f = compiled(system, list(system.derivatives))
    return np.array(f(T, *y, *values_of(params), *closure))


def assign(t, y, p):
    dy = np.zeros_like(y)
    dy[0] = p["k"] * y[1]
    dy[0] += t
    dy[1:] = y[:2] * p["v"][1]
    dy[-1] -= 3
    return dy


def assign_through_views(t, y, p):
    dy = np.zeros_like(y)
    tail = dy[1:]
    tail[0] = y[0]
    dy[2] = 5 * y[1]
    tail *= 2
    tail += tail[::-1]
    dy[0] = tail[1]
    return dy


def local_copies(t, y, p):
    a, b, c = y
    before = a
    a += b
    z = y.copy()
    z[0] = 9.0
    return [a, before, z[0] + c]


def loops(t, y, p):
    dy = []
    for i in range(len(y)):
        total = 0.0
        for j, x in enumerate(y):
            total = total + p["K"][i, j] * x
        dy.append(total)
    return dy


def in_object_array(t, y, p):
    z = np.array([y[0] * p["k"], y[1] + y[2], t * y[2]])
    return CONSTANT @ np.exp(-z) + z**2 + np.sqrt(z) + np.array(y)


def dosing(t, y, p):
    rate = np.where(t < 1.0, 5.0, 0.0) + np.interp(t, [0, 0.5, 0.5, 2], [0, 1, 2, 3])
    return [rate - p["k"] * y[0], np.interp(y[1], [0, 1], p["v"][:2], left=-1, right=7), y[2]]


FUNCTIONS = {
    "index": lambda t, y, p: [y[0], y[-1] * 2, -y[1]],
    "tuple": lambda t, y, p: (y[2], abs(y[1]), y[0] ** 2),
    "mixed": lambda t, y, p: [1, y[0], 2.5],
    "slices": lambda t, y, p: np.concatenate([y[1:], y[:1]]),
    "step": lambda t, y, p: y[::-1],
    "fancy": lambda t, y, p: y[[2, 0, 1]] + y[np.array([True, True, True])],
    "shape": lambda t, y, p: y * y.shape[0] + len(y) * y.ndim * y.size + np.shape(y)[0],
    "operators": lambda t, y, p: 2**y / 3 - 1 / y + y % 0.7 - 5 // y + (y * 2) ** 1.5,
    "numbers left": lambda t, y, p: np.float64(2) * y + np.ones(3) * y - 3 + np.ones(3) / y,
    "matrix @ y": lambda t, y, p: CONSTANT @ y + p["K"] @ y,
    "y @ matrix": lambda t, y, p: y @ CONSTANT - y @ p["K"],
    "inner": lambda t, y, p: y * (y @ p["v"]),
    "matrices": lambda t, y, p: (p["K"] @ CONSTANT @ p["K"].T) @ y,
    "np.dot": lambda t, y, p: np.dot(CONSTANT, y) + np.dot(y, p["v"]) + np.matmul(p["K"], y),
    "outer": lambda t, y, p: np.outer(y, p["v"]).sum(axis=0) + np.einsum("ij,j->i", p["K"], y),
    "sums": lambda t, y, p: [y.sum() + y.prod(), np.sum(p["K"]) * y.mean(), np.prod(y)],
    "axes": lambda t, y, p: np.sum(p["K"] * y, axis=1) + p["K"].max(axis=0) + np.min(p["K"], 1),
    "nested params": lambda t, y, p: y * p["pair"][0] + p["pair"][1][1],
    "time": lambda t, y, p: np.exp(-t) * y,
    "comparison": lambda t, y, p: (y > 1) * y + (y <= p["v"]) - (y == y[0]) + (y != 1.2),
    "where": lambda t, y, p: np.where((y > 1) & ~(y > 5), y, p["v"]),
    "integers": lambda t, y, p: np.where(y > 1, 100, 50) * 100 + ((y > 1) * 100 + 100) * y,
    "logical": lambda t, y, p: np.where(np.logical_or(y > 2, y < 1), 1, 0) + 0 * y,
    "np.maximum": lambda t, y, p: np.maximum(y, 1) + np.minimum(p["v"], y) + np.clip(y, 0.5, 2),
    "np.clip one side": lambda t, y, p: np.clip(y, None, 1.0) + y.clip(0.5, 1.5),
    "np.stack": lambda t, y, p: np.stack([y[0], 2.0, y[1]]) + np.hstack([y[:1], y[1:]]),
    "columns": lambda t, y, p: np.column_stack([y, y])[:, 1] + np.vstack([y, y])[0],
    "cumulative": lambda t, y, p: np.cumsum(y) + np.cumprod(y) + np.cumsum(p["K"], axis=0)[1],
    "differences": lambda t, y, p: np.append(np.diff(y), 0.0) + np.roll(y, 1) + np.flip(y),
    "split": lambda t, y, p: np.concatenate(np.split(y, 3)[::-1]),
    "like": lambda t, y, p: np.ones_like(y) + np.zeros_like(y) + np.full_like(y, 2.0),
    "reshape": lambda t, y, p: p["K"].reshape(9)[:3] + p["K"].reshape(-1)[3:6] * p["K"].ravel()[6:],
    "diagonal": lambda t, y, p: np.diag(y) @ p["v"] + np.diag(p["K"]) + np.trace(p["K"]),
    "triangle": lambda t, y, p: np.tril(p["K"]) @ y,
    "norm": lambda t, y, p: y / np.linalg.norm(y),
    "repeat": lambda t, y, p: np.tile(y[:1], 3) + np.repeat(y[1:2], 3),
    "reduce": lambda t, y, p: [np.add.reduce(y), np.maximum.reduce(y), np.multiply.reduce(y)],
    "any": lambda t, y, p: np.where((y > 2).any(), 1.0, 2.0) + np.where(np.all(y > 0), y, -y),
    "scipy": lambda t, y, p: scipy.special.expit(y) + scipy.special.gammaln(y),
    "new axis": lambda t, y, p: (y[:, None] * p["v"][None, :]).sum(axis=1),
    "object array": lambda t, y, p: np.array([y[0], t * y[1], 3.0]) * p["v"] + y,
    "into numpy": lambda t, y, p: [np.square(y[0]), np.power(y[1], 3), np.hypot(y[0], y[2])],
    **{f.__name__: f for f in (assign, assign_through_views, local_copies, loops, dosing)},
    "in_object_array": in_object_array,
}
