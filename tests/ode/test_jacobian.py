"""The Jacobian of a traced system: against differences, and with no entry that is zero."""

import numpy as np
import pytest

from pymc_mpimap.ode.jacobian import jacobian
from pymc_mpimap.structure import flatten
from tests.ode.problems import friberg
from tests.ode.right_hand_sides import FUNCTIONS, PARAMS, T, Y, compiled, trace, values_of


class TestJacobian:
    @staticmethod
    def check(rhs, y, params):
        """Compare with central differences of the function on floats."""
        system = trace(rhs, len(y), params)
        wrt = [*system.states, *(v for leaf in system.leaves for v in leaf)]
        entries = jacobian(system, wrt)
        made = np.zeros((len(y), len(wrt)))
        made[tuple(zip(*entries, strict=True))] = compiled(system, list(entries.values()))(
            T, *y, *values_of(params)
        )
        leaves, structure = flatten(params, "p")

        def f(x):
            parts = iter(x[len(y) :])
            values = [
                np.reshape([next(parts) for _ in np.ravel(v)], np.shape(v)) for _, v in leaves
            ]
            return np.asarray(rhs(T, x[: len(y)], structure.rebuild(values)), float)

        x = np.array([*y, *values_of(params)], float)
        steps = np.diag(1e-6 * np.maximum(1, abs(x)))
        expected = np.array([(f(x + h) - f(x - h)) / (2 * h.max()) for h in steps]).T
        np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6 * abs(expected).max())
        return entries

    @pytest.mark.parametrize(
        "name",
        [
            *("matrices", "np.maximum", "where", "in_object_array", "loops", "dosing", "inner"),
            *("np.clip one side", "integers", "any"),
        ],
    )
    def test_is_exact(self, name):
        self.check(FUNCTIONS[name], Y, PARAMS)

    def test_of_friberg_is_sparse(self):
        p = np.array([10, 15, 35, 105, 2.0, 125, 5, 0.17, 3e-4, 0.048])
        y = np.array([80.0, 3, 2, 5, 4, 5.5, 5, 6, 5, 4.5])
        system = trace(friberg, 10, p)
        entries = jacobian(system, [*system.states, *system.leaves[0]])
        assert len(entries) == 42
        assert len(self.check(friberg, y, p)) == 42

    def test_zeros_are_left_out(self):
        system = trace(
            lambda t, y, p: [y[0] - y[0] + y[1] * 0, y[1] * t / t - y[1] + y[0], y[2] ** 2]
        )
        assert sorted(jacobian(system, system.states)) == [(1, 0), (2, 2)]

    def test_of_a_long_chain_has_its_bands_alone(self):
        n = 50
        chain = np.diag(np.full(n, -2.0)) + np.diag(np.ones(n - 1), -1)
        system = trace(lambda t, y, p: p * (chain @ y), n, np.ones(n))
        entries = jacobian(system, [*system.states, *system.leaves[0]])
        assert len(entries) == n + (n - 1) + n
