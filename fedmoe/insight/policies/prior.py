"""An empirical-Bayes prior on the clients' linear models, from sufficient statistics alone.

Model: client k's coefficients are theta_k ~ N(mu, tau^2 I), its targets y_k = X_k theta_k + e,
e ~ N(0, sigma^2 I), so that y_k ~ N(X_k mu, sigma^2 (I + rho X_k X_k')) with rho = tau^2 /
sigma^2. Clients send A_k = X'X, c_k = X'Y and Y'Y; these suffice for the likelihood. With mu
and sigma^2 at their maximum for a given rho, one number is left to search. Clients get mu and
sigma^2 / tau^2 = 1 / rho back, and minimise |y - X theta|^2 + |theta - mu|^2 / rho, their
posterior mean: rho = 0 is the pooled model, rho = infinity leaves each to itself.

Type-II maximum likelihood for a random-effects model (Laird and Ware, "Random-effects models
for longitudinal data", Biometrics 1982, section 3); Ditto and pFedMe fix by hand the strength
that is learned here. One rho is shared by all coefficients and outputs.

Clients may lie. Under the model the squared length of r_k = c_k - A_k mu in units of its covariance
sigma^2 (A_k + rho A_k^2), and of the client's own residual y'y - c' A_k^-1 c in units of sigma^2,
are chi-squared. Who is beyond its quantile of one in a thousand federations, measured against the
clients' median, is not heard: the fit is repeated without, until the same are left. The first fit
counts nobody for more samples than the median client has. A client with other coefficients
is told no prior either, since it would be wrong for it; one with other noise is.

Letters: K clients, P coefficients (bias last), O outputs, N samples of all clients.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import NOTHING, Policy
from fedmoe.insight.policies.robust import beyond_chance
from fedmoe.schema import PriorPolicyConfig

Doubles = NDArray[np.float64]

# ln rho is searched between these: tau from 0.1 % to 1000 times sigma.
_LOG_RHO = (2 * np.log(1e-3), 2 * np.log(1e3))
_GRID = 10
_ROUNDING = 1e-6  # of sums that travelled as float32: what is less cannot be told from nothing
_ATTEMPTS = 6  # to find those who are believed


@dataclass(frozen=True)
class EmpiricalBayes:
    """The estimate.

    Attributes:
        mean: (P, O) mu.
        rho: tau^2 / sigma^2.
        noise: sigma^2.
        deviance: -2 log likelihood, up to a constant.
    """

    mean: Doubles
    rho: float
    noise: float
    deviance: float


@dataclass(frozen=True)
class Statistics:
    """All clients' sufficient statistics in each one's own eigenbasis A_k = U diag(s) U'.

    Attributes:
        basis_PX: the eigenvectors U of all clients side by side, X = K P of them.
        scale_KP: s.
        projected_KPO: U'c.
        squares: the sum of all Y'Y.
        samples: N.
    """

    basis_PX: Doubles
    scale_KP: Doubles
    projected_KPO: Doubles
    squares: float
    samples: float

    @classmethod
    def of(cls, xx_KPP: Doubles, xy_KPO: Doubles, yy_KO: Doubles, samples: float) -> "Statistics":
        """Decompose; eigenvalues at rounding level are set to zero (fewer samples than P)."""
        scale_KP, basis_KPP = np.linalg.eigh(xx_KPP)
        floor = scale_KP.max(axis=1, keepdims=True) * _ROUNDING
        scale_KP = np.where(scale_KP > floor, scale_KP, 0.0)
        projected = np.swapaxes(basis_KPP, 1, 2) @ xy_KPO
        projected *= (scale_KP > 0)[:, :, None]
        basis_PX = np.swapaxes(basis_KPP, 0, 1).reshape(scale_KP.shape[1], -1)
        return cls(basis_PX, scale_KP, projected, float(yy_KO.sum()), samples)

    def estimate(self, rho: float) -> EmpiricalBayes:
        """Best mean and noise for a given rho."""
        shrunk_KP = 1 / (1 + rho * self.scale_KP)
        weight_KP = self.scale_KP * shrunk_KP
        # Sums over clients and eigenvectors at once, as one product of matrices each.
        shrunk_KPO = shrunk_KP[:, :, None] * self.projected_KPO
        scaled_PX = self.basis_PX * np.sqrt(weight_KP).ravel()
        precision_PP = scaled_PX @ scaled_PX.T  # a matrix by itself: half the work
        right_PO = self.basis_PX @ shrunk_KPO.reshape(-1, shrunk_KPO.shape[2])
        mean_PO = np.linalg.lstsq(precision_PP, right_PO, rcond=None)[0]
        # y' V^-1 y = y'y - rho sum (U'c)^2 / (1 + rho s), by Woodbury's identity.
        squares = self.squares - rho * float((shrunk_KPO * self.projected_KPO).sum())
        residual = squares - float((right_PO * mean_PO).sum())
        residual = max(residual, _ROUNDING * self.squares, np.finfo(np.float64).tiny)
        outputs = right_PO.shape[1]
        noise = residual / (self.samples * outputs)
        log_determinant = -outputs * float(np.log(shrunk_KP).sum())
        deviance = self.samples * outputs * np.log(noise) + log_determinant
        return EmpiricalBayes(np.asarray(mean_PO, np.float64), rho, noise, float(deviance))


def fit(statistics: Statistics) -> EmpiricalBayes:
    """Maximum likelihood over rho: a coarse grid, then Brent's method around its best point."""
    from scipy.optimize import minimize_scalar

    grid = np.linspace(*_LOG_RHO, _GRID)
    values = [statistics.estimate(float(np.exp(log_rho))).deviance for log_rho in grid]
    best = int(np.argmin(values))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    found = minimize_scalar(
        lambda log_rho: statistics.estimate(float(np.exp(log_rho))).deviance,
        bounds=bounds,
        method="bounded",
    )
    return statistics.estimate(float(np.exp(found.x)))


class Fitted(NamedTuple):
    """An estimate from the clients that are believed.

    Attributes:
        estimate: `None` if fewer than two are.
        suspects: why a client is not believed, by place.
        strangers: places of those that have other coefficients.
    """

    estimate: EmpiricalBayes | None
    suspects: dict[int, str]
    strangers: list[int]


def fit_believed(xx_KPP: Doubles, xy_KPO: Doubles, yy_KO: Doubles) -> Fitted:
    """Fit without those whom the model of the others does not allow."""
    count_K = xx_KPP[:, -1, -1]  # the bias's column of ones
    some = count_K > 0
    if some.sum() < 2:
        return Fitted(None, {}, [])
    share_K = np.minimum(1.0, np.median(count_K[some]) / np.maximum(count_K, 1e-12))
    kept_K, reasons = some, _Reasons({}, {})
    for attempt in range(_ATTEMPTS):
        heard_K = np.where(kept_K, share_K if attempt == 0 else 1.0, 0.0)[kept_K]
        estimate = fit(
            Statistics.of(
                heard_K[:, None, None] * xx_KPP[kept_K], heard_K[:, None, None] * xy_KPO[kept_K],
                heard_K[:, None] * yy_KO[kept_K], float(heard_K @ count_K[kept_K]),
            )
        )  # fmt: skip
        reasons = _reasons(estimate, xx_KPP, xy_KPO, yy_KO)
        believed_K = some.copy()
        believed_K[[*reasons.coefficients, *reasons.noise]] = False
        if believed_K.sum() < 2 or (attempt and (believed_K == kept_K).all()):
            break
        kept_K = believed_K
    return Fitted(estimate, reasons.noise | reasons.coefficients, sorted(reasons.coefficients))


class _Reasons(NamedTuple):
    """Why clients are not believed, by place."""

    coefficients: dict[int, str]
    noise: dict[int, str]


def _reasons(
    estimate: EmpiricalBayes, xx_KPP: Doubles, xy_KPO: Doubles, yy_KO: Doubles
) -> _Reasons:
    """Whose coefficients, and whose noise, the model of the others does not allow."""
    own = Statistics.of(xx_KPP, xy_KPO, yy_KO, 1.0)
    clients, wide, outputs = own.projected_KPO.shape
    basis_KPP = np.swapaxes(own.basis_PX.reshape(wide, clients, wide), 0, 1)
    known_KP = own.scale_KP > 0
    scale_KP = np.where(known_KP, own.scale_KP, 1.0)
    middle_KPO = np.swapaxes(basis_KPP, 1, 2) @ estimate.mean
    away_KPO = np.where(
        known_KP[..., None], own.projected_KPO - scale_KP[..., None] * middle_KPO, 0
    )
    away_KP = (away_KPO**2).sum(axis=2) / (scale_KP * (1 + estimate.rho * scale_KP))
    rank_K = known_KP.sum(axis=1)
    explained_K = ((own.projected_KPO**2).sum(axis=2) / scale_KP).sum(axis=1)
    left_K = np.maximum(yy_KO.sum(axis=1) - explained_K, 0)
    return _Reasons(
        beyond_chance(away_KP.sum(axis=1), rank_K * outputs, "coefficients off by"),
        beyond_chance(left_K, np.maximum(xx_KPP[:, -1, -1] - rank_K, 0) * outputs, "noise"),
    )


class Prior(Policy):
    """A Gaussian prior for everybody's linear regression."""

    name = "prior"
    reads = ("statistics",)

    def __init__(self, config: PriorPolicyConfig) -> None:
        super().__init__()
        del config  # nothing to choose: the strength is learned
        self._advice = Guidance()
        self._strangers: set[int] = set()
        self._learned: tuple[object, ...] = ()

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Estimate, if at least two clients have told statistics."""
        names = ("statistics_xx", "statistics_xy", "statistics_yy")
        if self._learned == (revision := memory.revision(*names)):
            return
        self._learned = revision
        clients, told = memory.collect(*names)
        if len(clients) < 2:
            return
        xx_KPP, xy_KPO, yy_KO = (array.astype(np.float64) for array in told.values())
        found = fit_believed(xx_KPP, xy_KPO, yy_KO)
        if (estimate := found.estimate) is None:
            return
        ids = clients.tolist()
        self.suspects = {ids[place]: found.suspects[place] for place in sorted(found.suspects)}
        self._strangers = {ids[place] for place in found.strangers}
        self._advice = self._advice.with_parts(
            {
                "prior_mean": estimate.mean.astype(np.float32),
                "prior_ratio": np.array(1 / estimate.rho, dtype=np.float32),
            }
        )
        self.decisions = {
            "clients": len(clients), "tau2_over_sigma2": estimate.rho, "sigma2": estimate.noise,
        }  # fmt: skip

    @override
    def advise(self, client_id: int) -> Guidance:
        return NOTHING if client_id in self._strangers else self._advice
