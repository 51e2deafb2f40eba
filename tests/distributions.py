"""PyMC's distributions, with parameters and values that are valid, on the border and invalid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

NAN, INF = np.nan, np.inf

POSITIVE = (1.3, 0.0, -0.0, 5e-324, -1.0, NAN, INF)
REAL = (0.3, NAN, INF, -INF)
UNIT = (0.4, 0.0, 1.0, -0.1, 1.1, NAN)
COUNT = (5, 0, -1)
CORRELATION = (np.array([[1.0, 0.2], [0.2, 1.0]]), np.eye(2), np.array([[1.0, 2.0], [2.0, 1.0]]))
COVARIANCE = (
    np.array([[1.0, 0.2], [0.2, 2.0]]),
    np.zeros((2, 2)),
    np.array([[1.0, 2.0], [2.0, 1.0]]),
    np.full((2, 2), NAN),
)
VECTOR = (np.array([0.3, -0.2]), np.array([NAN, 0.0]), np.array([INF, 0.0]))
SIMPLEX = (
    np.array([0.2, 0.3, 0.5]),
    np.array([0.0, 0.5, 0.5]),
    np.array([0.2, 0.2, 0.2]),
    np.array([-0.2, 0.7, 0.5]),
    np.array([NAN, 0.5, 0.5]),
)
POSITIVES = (np.array([1.0, 2.0, 0.5]), np.array([0.0, 1.0, 1.0]), np.array([-1.0, 1.0, 1.0]))
COUNTS = (np.array([1, 0, 2]), np.array([3, 0, 0]), np.array([1, 1, 2]), np.array([-1, 2, 2]))

LINE = (0.7, 0.0, -1.0, NAN, INF, -INF)
HALF_LINE = LINE
INTERVAL = (0.6, 0.0, 1.0, -0.5, 1.5, NAN)
NUMBER = (2, 0, -1, 7)


@dataclass(frozen=True)
class Case:
    """A distribution's log-probability, and where it is evaluated.

    The first of each tuple is valid. Each of the others takes its place in turn, the rest of the
    point being valid.
    """

    dist: Callable[..., Any]
    value: tuple[Any, ...]
    parameters: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    has_gradient: bool = True

    def logp(self, values: dict[str, Any]) -> Any:
        """Return the log-probability, summed."""
        values = dict(values)
        value = values.pop("value")
        return pm.logp(self.dist(**values), value).sum()

    def points(self) -> list[dict[str, np.ndarray]]:
        """Return where it is evaluated."""
        choices = {"value": self.value, **self.parameters}
        valid = {name: np.asarray(options[0]) for name, options in choices.items()}
        points = [valid]
        for name, options in choices.items():
            points += [{**valid, name: np.asarray(option)} for option in options[1:]]
        return points


def _mixture(w: Any, mu: Any, sigma: Any) -> Any:
    components = [pm.Normal.dist(mu, sigma), pm.Normal.dist(mu + 1, 2.0), pm.StudentT.dist(4)]
    return pm.Mixture.dist(w=w, comp_dists=components)


def _custom(mu: Any, sigma: Any) -> Any:
    def logp(value: Any, mu: Any, sigma: Any) -> Any:
        return pm.logp(pm.Normal.dist(mu, sigma), value) + pm.logp(pm.Gamma.dist(sigma, 1), sigma)

    return pm.CustomDist.dist(mu, sigma, logp=logp)


def _walk(mu: Any, sigma: Any) -> Any:
    start, step = pm.Normal.dist(0, sigma), pm.Normal.dist(mu, sigma)
    return pm.RandomWalk.dist(init_dist=start, innovation_dist=step, steps=2)


def _gaussian_walk(mu: Any, sigma: Any) -> Any:
    return pm.GaussianRandomWalk.dist(mu, sigma, init_dist=pm.Normal.dist(0, 1), steps=2)


def _ar(rho: Any, sigma: Any) -> Any:
    return pm.AR.dist(rho, sigma, init_dist=pm.Normal.dist(0, 1), steps=3, constant=False)


def _drift(sigma: Any) -> Any:
    return pm.EulerMaruyama.dist(
        dt=0.1, sde_fn=lambda x, s: (-x, s), sde_pars=(sigma,),
        init_dist=pm.Normal.dist(0, 1), steps=3,
    )  # fmt: skip


PATH = (np.array([0.1, 0.3, -0.2, 0.4]), np.array([0.1, NAN, 0.0, 0.0]))
SHORT_PATH = (np.array([0.1, 0.3, -0.2]), np.array([0.1, NAN, 0.0]))
MATRIX = (np.array([[0.1, 0.4], [-0.3, 0.2]]), np.full((2, 2), NAN))
LOCATION = {"mu": REAL, "sigma": POSITIVE}
SHAPE = {"alpha": POSITIVE, "beta": POSITIVE}
NEIGHBOURS = np.array([[0.0, 1.0], [1.0, 0.0]])

CASES: dict[str, Case] = {
    "AR": Case(_ar, PATH, {"rho": REAL, "sigma": POSITIVE}),
    "AsymmetricLaplace": Case(
        pm.AsymmetricLaplace.dist, LINE, {"b": POSITIVE, "kappa": POSITIVE, "mu": REAL}
    ),
    "Bernoulli": Case(pm.Bernoulli.dist, (1, 0, 2, -1), {"p": UNIT}),
    "Bernoulli, by logit": Case(
        lambda x: pm.Bernoulli.dist(logit_p=x), (1, 0, 2), {"x": (*REAL, 800.0, -800.0)}
    ),
    "Beta": Case(pm.Beta.dist, INTERVAL, SHAPE),
    "Beta, by mean": Case(pm.Beta.dist, INTERVAL, {"mu": UNIT, "nu": POSITIVE}),
    "BetaBinomial": Case(pm.BetaBinomial.dist, NUMBER, {**SHAPE, "n": COUNT}),
    "Binomial": Case(pm.Binomial.dist, NUMBER, {"n": COUNT, "p": UNIT}),
    "CAR": Case(
        lambda mu, alpha, tau: pm.CAR.dist(mu, NEIGHBOURS, alpha, tau), VECTOR,
        {"mu": VECTOR, "alpha": UNIT, "tau": POSITIVE},
    ),
    "Categorical": Case(pm.Categorical.dist, (1, 0, 3, -1), {"p": SIMPLEX}),
    "Cauchy": Case(pm.Cauchy.dist, LINE, {"alpha": REAL, "beta": POSITIVE}),
    "Censored": Case(
        lambda mu, sigma: pm.Censored.dist(pm.Normal.dist(mu, sigma), -1.0, 1.0),
        (0.7, 1.0, -1.0, 2.0, NAN), LOCATION,
    ),
    "ChiSquared": Case(pm.ChiSquared.dist, HALF_LINE, {"nu": POSITIVE}),
    "CustomDist": Case(_custom, LINE, LOCATION),
    "DiracDelta": Case(pm.DiracDelta.dist, (0.3, 0.4, NAN), {"c": REAL}),
    "Dirichlet": Case(pm.Dirichlet.dist, SIMPLEX, {"a": POSITIVES}),
    "DirichletMultinomial": Case(
        pm.DirichletMultinomial.dist, COUNTS, {"n": (3, 0, -1), "a": POSITIVES}
    ),
    "DiscreteUniform": Case(
        pm.DiscreteUniform.dist, NUMBER, {"lower": (0, 3), "upper": (5, 0, -2)}
    ),
    "DiscreteWeibull": Case(pm.DiscreteWeibull.dist, NUMBER, {"q": UNIT, "beta": POSITIVE}),
    "EulerMaruyama": Case(_drift, PATH, {"sigma": POSITIVE}),
    "ExGaussian": Case(pm.ExGaussian.dist, LINE, {**LOCATION, "nu": POSITIVE}),
    "Exponential": Case(pm.Exponential.dist, HALF_LINE, {"lam": POSITIVE}),
    "Flat": Case(pm.Flat.dist, LINE),
    "GARCH11": Case(
        lambda **p: pm.GARCH11.dist(**p, steps=3), PATH,
        {"omega": POSITIVE, "alpha_1": UNIT, "beta_1": UNIT, "initial_vol": POSITIVE},
    ),
    "Gamma": Case(pm.Gamma.dist, HALF_LINE, SHAPE),
    "Gamma, by mean": Case(pm.Gamma.dist, HALF_LINE, {"mu": POSITIVE, "sigma": POSITIVE}),
    "GaussianRandomWalk": Case(_gaussian_walk, SHORT_PATH, LOCATION),
    "Geometric": Case(pm.Geometric.dist, NUMBER, {"p": UNIT}),
    "Gumbel": Case(pm.Gumbel.dist, LINE, {"mu": REAL, "beta": POSITIVE}),
    "HalfCauchy": Case(pm.HalfCauchy.dist, HALF_LINE, {"beta": POSITIVE}),
    "HalfFlat": Case(pm.HalfFlat.dist, HALF_LINE),
    "HalfNormal": Case(pm.HalfNormal.dist, HALF_LINE, {"sigma": POSITIVE}),
    "HalfStudentT": Case(pm.HalfStudentT.dist, HALF_LINE, {"nu": POSITIVE, "sigma": POSITIVE}),
    "HurdleGamma": Case(pm.HurdleGamma.dist, HALF_LINE, {"psi": UNIT, **SHAPE}),
    "HurdleLogNormal": Case(pm.HurdleLogNormal.dist, HALF_LINE, {"psi": UNIT, **LOCATION}),
    "HurdleNegativeBinomial": Case(
        pm.HurdleNegativeBinomial.dist, NUMBER, {"psi": UNIT, "mu": POSITIVE, "alpha": POSITIVE}
    ),
    "HurdlePoisson": Case(pm.HurdlePoisson.dist, NUMBER, {"psi": UNIT, "mu": POSITIVE}),
    "HyperGeometric": Case(
        pm.HyperGeometric.dist, NUMBER, {"N": (20, 5, -1), "k": (8, 30, -1), "n": (5, 30, -1)}
    ),
    "ICAR": Case(lambda sigma: pm.ICAR.dist(NEIGHBOURS, sigma), VECTOR, {"sigma": POSITIVE}),
    "Interpolated": Case(
        lambda: pm.Interpolated.dist(np.linspace(0, 1, 9), np.linspace(1, 2, 9)), INTERVAL
    ),
    "InverseGamma": Case(pm.InverseGamma.dist, HALF_LINE, SHAPE),
    "KroneckerNormal": Case(
        lambda mu, a: pm.KroneckerNormal.dist(mu, covs=[a, np.eye(1)]),
        VECTOR, {"mu": VECTOR, "a": COVARIANCE},
    ),
    "Kumaraswamy": Case(pm.Kumaraswamy.dist, INTERVAL, {"a": POSITIVE, "b": POSITIVE}),
    "LKJCholeskyCov": Case(
        lambda eta, sigma: pm.LKJCholeskyCov.dist(
            n=2, eta=eta, sd_dist=pm.HalfNormal.dist(sigma, size=2), compute_corr=False
        ),
        (np.array([1.0, 0.2, 0.9]), np.array([-1.0, 0.2, 0.9])),
        {"eta": POSITIVE, "sigma": POSITIVE},
    ),
    "LKJCorr": Case(
        lambda eta: pm.LKJCorr.dist(n=2, eta=eta), CORRELATION, {"eta": POSITIVE}
    ),
    "Laplace": Case(pm.Laplace.dist, LINE, {"mu": REAL, "b": POSITIVE}),
    "LogNormal": Case(pm.LogNormal.dist, HALF_LINE, LOCATION),
    "Logistic": Case(pm.Logistic.dist, LINE, {"mu": REAL, "s": POSITIVE}),
    "LogitNormal": Case(pm.LogitNormal.dist, INTERVAL, LOCATION),
    "MatrixNormal": Case(
        lambda mu, a, b: pm.MatrixNormal.dist(mu, rowcov=a, colcov=b),
        MATRIX, {"mu": MATRIX, "a": COVARIANCE, "b": COVARIANCE},
    ),
    "Mixture": Case(_mixture, LINE, {"w": SIMPLEX, **LOCATION}),
    "Moyal": Case(pm.Moyal.dist, LINE, LOCATION),
    "Multinomial": Case(pm.Multinomial.dist, COUNTS, {"n": (3, 0, -1), "p": SIMPLEX}),
    "MvNormal": Case(pm.MvNormal.dist, VECTOR, {"mu": VECTOR, "cov": COVARIANCE}),
    "MvStudentT": Case(
        pm.MvStudentT.dist, VECTOR, {"nu": POSITIVE, "mu": VECTOR, "scale": COVARIANCE}
    ),
    "NegativeBinomial": Case(
        pm.NegativeBinomial.dist, NUMBER, {"mu": POSITIVE, "alpha": POSITIVE}
    ),
    "NegativeBinomial, by chance": Case(
        pm.NegativeBinomial.dist, NUMBER, {"n": POSITIVE, "p": UNIT}
    ),
    "Normal": Case(pm.Normal.dist, LINE, LOCATION),
    "Normal, by precision": Case(pm.Normal.dist, LINE, {"mu": REAL, "tau": POSITIVE}),
    "NormalMixture": Case(
        lambda w, mu, sigma: pm.NormalMixture.dist(w, pt.stack([mu, mu + 1, 0.0]), sigma),
        LINE, {"w": SIMPLEX, **LOCATION},
    ),
    "OrderedLogistic": Case(
        lambda eta: pm.OrderedLogistic.dist(eta=eta, cutpoints=[-1.0, 1.0], compute_p=False),
        (1, 0, 3), {"eta": REAL},
    ),
    "OrderedMultinomial": Case(
        lambda eta, n: pm.OrderedMultinomial.dist(
            eta=eta, cutpoints=np.array([-1.0, 1.0]), n=n, compute_p=False
        ),
        COUNTS, {"eta": REAL, "n": (3, 0, -1)},
    ),
    "OrderedProbit": Case(
        lambda eta, sigma: pm.OrderedProbit.dist(
            eta=eta, cutpoints=np.array([-1.0, 1.0]), sigma=sigma, compute_p=False
        ),
        (1, 0, 3), {"eta": REAL, "sigma": POSITIVE},
    ),
    "Pareto": Case(pm.Pareto.dist, (2.0, 0.0, 1.3, NAN, INF), {"alpha": POSITIVE, "m": POSITIVE}),
    "Poisson": Case(pm.Poisson.dist, NUMBER, {"mu": (*POSITIVE, -1e-9)}),
    "PolyaGamma": Case(
        pm.PolyaGamma.dist, HALF_LINE, {"h": POSITIVE, "z": REAL}, has_gradient=False
    ),
    "RandomWalk": Case(_walk, SHORT_PATH, LOCATION),
    "MvGaussianRandomWalk": Case(
        lambda mu, cov: pm.MvGaussianRandomWalk.dist(
            mu=mu, cov=cov, init_dist=pm.MvNormal.dist(np.zeros(2), np.eye(2)), steps=1
        ),
        MATRIX, {"mu": VECTOR, "cov": COVARIANCE},
    ),
    "MvStudentTRandomWalk": Case(
        lambda nu, mu, scale: pm.MvStudentTRandomWalk.dist(
            nu=nu, mu=mu, scale=scale, init_dist=pm.MvNormal.dist(np.zeros(2), np.eye(2)), steps=1
        ),
        MATRIX, {"nu": POSITIVE, "mu": VECTOR, "scale": COVARIANCE},
    ),
    "Rice": Case(pm.Rice.dist, HALF_LINE, {"nu": POSITIVE, "sigma": POSITIVE}),
    "SkewNormal": Case(pm.SkewNormal.dist, LINE, {**LOCATION, "alpha": REAL}),
    "SkewStudentT": Case(
        pm.SkewStudentT.dist, LINE, {"mu": REAL, "sigma": POSITIVE, "a": POSITIVE, "b": POSITIVE}
    ),
    "StickBreakingWeights": Case(
        lambda alpha: pm.StickBreakingWeights.dist(alpha, K=2), SIMPLEX, {"alpha": POSITIVE}
    ),
    "StudentT": Case(pm.StudentT.dist, LINE, {"nu": POSITIVE, **LOCATION}),
    "Triangular": Case(
        pm.Triangular.dist, INTERVAL,
        {"lower": (0.0, 0.5, 2.0, NAN), "c": UNIT, "upper": (1.0, 0.4, -1.0, NAN, INF)},
    ),
    "Truncated": Case(
        lambda mu, sigma: pm.Truncated.dist(pm.Normal.dist(mu, sigma), -1.0, 1.0),
        (0.7, 1.0, 2.0, NAN), LOCATION,
    ),
    "TruncatedNormal": Case(
        lambda mu, sigma, lower: pm.TruncatedNormal.dist(mu, sigma, lower=lower, upper=2.0),
        LINE, {**LOCATION, "lower": (-1.0, 0.7, 3.0, NAN, -INF)},
    ),
    "Uniform": Case(
        pm.Uniform.dist, LINE, {"lower": (0.0, 0.7, 2.0, NAN), "upper": (1.0, 0.0, -1.0, NAN, INF)}
    ),
    "VonMises": Case(pm.VonMises.dist, (*LINE, 4.0), {"mu": REAL, "kappa": POSITIVE}),
    "Wald": Case(pm.Wald.dist, HALF_LINE, {"mu": POSITIVE, "lam": POSITIVE}),
    "Weibull": Case(pm.Weibull.dist, HALF_LINE, SHAPE),
    "Wishart": Case(pm.Wishart.dist, COVARIANCE, {"nu": (3.0, 1.0, NAN), "V": COVARIANCE}),
    "ZeroInflatedBinomial": Case(
        pm.ZeroInflatedBinomial.dist, NUMBER, {"psi": UNIT, "n": COUNT, "p": UNIT}
    ),
    "ZeroInflatedNegativeBinomial": Case(
        pm.ZeroInflatedNegativeBinomial.dist, NUMBER,
        {"psi": UNIT, "mu": POSITIVE, "alpha": POSITIVE},
    ),
    "ZeroInflatedPoisson": Case(pm.ZeroInflatedPoisson.dist, NUMBER, {"psi": UNIT, "mu": POSITIVE}),
    "ZeroSumNormal": Case(
        lambda sigma: pm.ZeroSumNormal.dist(sigma, shape=2),
        (np.array([0.5, -0.5]), np.array([0.5, 0.5]), np.array([NAN, 0.0])), {"sigma": POSITIVE},
    ),
}  # fmt: skip

WITHOUT_LOGP = {
    "Continuous": "a base class",
    "DensityDist": "another name of CustomDist",
    "Discrete": "a base class",
    "Distribution": "a base class",
    "Lognormal": "another name of LogNormal",
    "Simulator": "has no log-probability, only one that is simulated",
    "SymbolicRandomVariable": "a base class",
    "WishartBartlett": "a prior that is made of others, within a model",
}
