"""Robust regression with p of the order of n: the error of M-estimates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import optimize, special, stats

from eestim._arrays import Vector
from eestim.errors import ConvergenceError

__all__ = [
    "ErrorDensity",
    "HuberLoss",
    "LeastAbsolute",
    "LeastSquares",
    "ProportionalRobust",
    "proportional_robust",
]

_RESIDUAL = 1e-12
_ROUNDING = 1e-15  # of a probability of size kappa, which the equations divide by kappa
_PANEL_NODES = 24
_EVEN_PANELS, _GROWTH = 40, 1.5  # panels of one scale, and the growth of those beyond
_TAIL = 1e-17  # mass left beyond the reach of a law
_FINE_SCALE = 0.25  # of panels, in quartile distances: a density may have inner scales
_SPREADS = (-9.0, -6.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 6.0, 9.0)


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """Squared loss x^2 / 2."""


@dataclass(frozen=True, slots=True)
class LeastAbsolute:
    """Absolute loss ``|x|``, as in median regression."""


@dataclass(frozen=True, slots=True)
class HuberLoss:
    """Huber's loss: x^2 / 2 up to the threshold, linear beyond."""

    threshold: float = 1.345


Loss: TypeAlias = LeastSquares | LeastAbsolute | HuberLoss


@dataclass(frozen=True, slots=True)
class ErrorDensity:
    """A symmetric density of the errors, given by the user.

    Attributes
    ----------
    density : callable
        Vectorised, symmetric about zero, smooth but for `breaks`.
    reach : float
        The density is negligible beyond plus or minus this; beyond 40 `scale` the
        panels of the integration grow by a half each, so that it may be very large.
    breaks : tuple of float
        Points >= 0 where the density or a derivative jumps.
    scale : float
        Length over which the density varies (width of the integration panels).
    variance : float, optional
        Its variance, infinite if it has none; integrated by default.
    """

    density: Callable[[Vector], Vector]
    reach: float = 40.0
    breaks: tuple[float, ...] = (0.0,)
    scale: float = 1.0
    variance: float | None = None


@dataclass(frozen=True, slots=True)
class ProportionalRobust:
    r"""Limit of an M-estimate of regression when p/n tends to kappa.

    Attributes
    ----------
    kappa : float
        Aspect ratio p/n.
    r2 : float
        Limit of :math:`\|\hat\beta - \beta\|^2` for identity covariance:
        :math:`\sqrt p(\hat\beta_j - \beta_j) \to N(0, r^2)`.
    c : float
        Proximal parameter of the system.
    residual : float
        Largest relative residual of the two equations.
    """

    kappa: float
    r2: float
    c: float
    residual: float


@dataclass(frozen=True, slots=True)
class _Noise:
    """Errors as a mixture of points, to which Gaussian noise r Z is added.

    ``spread`` is the standard deviation of a Gaussian part treated exactly.
    """

    density: ErrorDensity | None
    spread: float

    def clipped(self, t: float, r: float) -> tuple[float, float]:
        """Return P(|e + r Z| <= t) and E min((e + r Z)^2, t^2)."""
        scale = float(np.hypot(r, self.spread))
        if self.density is None:
            probability, square = _clipped_normal(np.zeros(1), t, scale)
            return float(probability[0]), float(square[0])
        nodes, weights = _error_nodes(self.density, t, scale)
        mass = weights * self.density.density(nodes)
        probability, square = _clipped_normal(nodes, t, scale)
        return float(mass @ probability), float(mass @ square)


def _clipped_normal(mean: Vector, t: float, r: float) -> tuple[Vector, Vector]:
    """Return P(|G| <= t) and E min(G^2, t^2) for G normal of given means and sd r."""
    upper, lower = (t - mean) / r, (-t - mean) / r
    inside = special.ndtr(upper) - special.ndtr(lower)
    outside = special.ndtr(-upper) + special.ndtr(lower)
    peak_upper = np.exp(-0.5 * upper**2) / np.sqrt(2 * np.pi)
    peak_lower = np.exp(-0.5 * lower**2) / np.sqrt(2 * np.pi)
    moment = (mean**2 + r**2) * inside - r * (
        (t + mean) * peak_upper - (mean - t) * peak_lower
    )
    return inside, moment + t**2 * outside


def _error_nodes(errors: ErrorDensity, t: float, r: float) -> tuple[Vector, Vector]:
    """Return Gauss-Legendre panels on [0, reach], doubled for symmetry.

    Panels end where the density breaks, and refine around the clipping point t,
    where the smoothed clip varies over a length r.
    """
    panels = errors.scale * np.arange(_EVEN_PANELS + 1)
    n_wider = np.log(max(errors.reach / panels[-1], 1.0)) / np.log(_GROWTH)
    wider = panels[-1] * _GROWTH ** np.arange(1, np.ceil(n_wider) + 1)
    panels = np.concatenate([panels, wider])
    near = t + r * np.array(_SPREADS)
    ends = np.unique(
        np.clip(np.concatenate([panels, near, errors.breaks]), 0.0, errors.reach)
    )
    x, w = np.polynomial.legendre.leggauss(_PANEL_NODES)
    half = 0.5 * np.diff(ends)
    nodes = 0.5 * (ends[1:] + ends[:-1])[:, None] + half[:, None] * x
    return nodes.ravel(), 2.0 * (half[:, None] * w).ravel()


def _laplace(x: Vector) -> Vector:
    value: Vector = 0.5 * np.exp(-np.abs(x))
    return value


_LAWS: dict[str, Callable[..., Any]] = {
    "logistic": stats.logistic,
    "cauchy": stats.cauchy,
    "uniform": lambda: stats.uniform(-1.0, 2.0),
}


def _as_noise(errors: Any) -> _Noise:
    """Return the errors given by name, as a law of SciPy, or as a density."""
    if isinstance(errors, ErrorDensity):
        return _Noise(_checked(errors), 0.0)
    if isinstance(errors, str):
        return _named(errors.lower())
    if hasattr(errors, "pdf") and hasattr(errors, "isf"):
        return _Noise(_checked(_of_law(errors)), 0.0)
    if callable(errors):
        return _Noise(_checked(ErrorDensity(errors)), 0.0)
    raise ValueError(f"`errors` is {errors!r}; {_CHOICES}")


_CHOICES = (
    "give 'normal', 'laplace', 'logistic', 'cauchy', 'uniform' (on -1 to 1), 't3' (any "
    "degrees of freedom), a frozen law of scipy.stats, an ErrorDensity or a symmetric "
    "density."
)


def _named(name: str) -> _Noise:
    if name in ("normal", "gaussian"):
        return _Noise(None, 1.0)
    if name in ("laplace", "double-exponential"):
        return _Noise(ErrorDensity(_laplace), 0.0)
    if name in _LAWS:
        return _Noise(_checked(_of_law(_LAWS[name]())), 0.0)
    if name[:1] == "t" and name[1:].replace(".", "", 1).isdigit():
        return _Noise(_checked(_of_law(stats.t(float(name[1:])))), 0.0)
    raise ValueError(f"`errors` is {name!r}; {_CHOICES}")


def _of_law(law: Any) -> ErrorDensity:
    """Return the density of a frozen law, with its ends and scale."""
    top = float(law.support()[1]) if hasattr(law, "support") else np.inf
    reach = top if np.isfinite(top) else float(law.isf(_TAIL))
    scale = _FINE_SCALE * float(law.isf(0.25))
    if not (np.isfinite(reach) and scale > 0):
        raise ValueError("`errors` needs a finite quartile above zero; centre it.")
    variance = float(law.var())
    return ErrorDensity(law.pdf, reach, (0.0, reach), scale, variance)


def _checked(errors: ErrorDensity) -> ErrorDensity:
    """Return the density, or raise if it is not symmetric of total mass one."""
    nodes, weights = _error_nodes(errors, 0.0, errors.scale)
    right, left = errors.density(nodes), errors.density(-nodes)
    if np.abs(right - left).max() > 1e-10 * np.abs(right).max():
        raise ValueError(
            "`errors` is not symmetric about zero; centre it, or the M-estimate of the "
            "slopes would need an intercept."
        )
    mass = float(weights @ right)
    if abs(mass - 1.0) > 1e-9:
        raise ValueError(
            f"`errors` integrates to {mass:.10f}, not 1: normalise it, or give "
            "`reach`, `breaks` and `scale` of an ErrorDensity that covers its mass."
        )
    return errors


def _as_loss(loss: Any) -> Loss:
    if isinstance(loss, HuberLoss) and not loss.threshold > 0:
        raise ValueError(f"`loss` has threshold {loss.threshold}; give one > 0.")
    if isinstance(loss, LeastSquares | LeastAbsolute | HuberLoss):
        return loss
    named: dict[str, Loss] = {
        "ols": LeastSquares(),
        "least-squares": LeastSquares(),
        "lad": LeastAbsolute(),
        "least-absolute": LeastAbsolute(),
        "huber": HuberLoss(),
    }
    if str(loss).lower() not in named:
        raise ValueError(
            f"`loss` is {loss!r}; give one of {sorted(named)}, or a HuberLoss."
        )
    return named[str(loss).lower()]


def _shape(loss: Loss, c: float) -> tuple[float, float]:
    r"""Return the slope and clipping point of z - prox_c(z) = slope clip(z, t)."""
    if isinstance(loss, LeastSquares):
        return c / (1.0 + c), np.inf
    if isinstance(loss, LeastAbsolute):
        return 1.0, c
    return c / (1.0 + c), loss.threshold * (1.0 + c)


def _equations(
    loss: Loss, noise: _Noise, kappa: float, r: float, c: float
) -> tuple[float, float]:
    """Return both equations, E(z - prox)' = kappa and E(z - prox)^2 = kappa r^2."""
    slope, t = _shape(loss, c)
    probability, square = noise.clipped(t, r)
    return slope * probability / kappa - 1.0, slope**2 * square / (kappa * r**2) - 1.0


def _prox_parameter(loss: Loss, noise: _Noise, kappa: float, r: float) -> float:
    """Return c solving the first equation at r; its left side increases with c."""
    upper = 1.0
    while _equations(loss, noise, kappa, r, upper)[0] < 0:
        upper *= 2.0
    lower = upper
    while _equations(loss, noise, kappa, r, lower)[0] > 0:
        lower *= 0.5
    return float(
        optimize.brentq(
            lambda c: _equations(loss, noise, kappa, r, c)[0],
            lower,
            upper,
            xtol=1e-300,
            rtol=1e-15,
        )
    )


def _variance(noise: _Noise) -> float:
    """Return the variance, or raise where there is none or the reach cuts it off."""
    law = noise.density
    if law is None:
        return noise.spread**2
    if law.variance is not None:
        total, is_known = law.variance, np.isfinite(law.variance)
    else:
        nodes, weights = _error_nodes(law, 0.0, law.scale)
        parts = weights * law.density(nodes) * nodes**2
        total = float(parts.sum())
        far = float(parts[nodes > 0.9 * law.reach].sum())
        is_known = law.reach < _EVEN_PANELS * law.scale or far <= 1e-9 * total
    if not is_known:
        raise ValueError(
            "`errors` has no finite variance, or its tail still adds to it at `reach`, "
            "so least squares has no limit error. Use a robust loss, raise `reach`, or "
            "give `variance`."
        )
    return total


def proportional_robust(
    kappa: float, loss: Any = "huber", errors: Any = "normal"
) -> ProportionalRobust:
    r"""Return the limit error of an M-estimate of regression as p/n tends to kappa.

    With :math:`\hat z = \epsilon + rZ`,

    .. math:: E[\mathrm{prox}_c'(\hat z)] = 1 - \kappa, \quad
       E[\hat z - \mathrm{prox}_c(\hat z)]^2 = \kappa r^2.

    The first equation gives c for each r, the second is then bracketed in r, so that
    every kappa in (0, 1) is solved without a starting value.

    Parameters
    ----------
    kappa : float
        Aspect ratio p/n.
    loss : {"ols", "lad", "huber"} or a loss value
        "huber" has threshold 1.345; errors have the scale stated below.
    errors : str, frozen law of scipy.stats, ErrorDensity or callable
        "normal" is N(0, 1), "laplace" the density ``exp(-|x|) / 2`` of variance 2,
        "logistic", "cauchy" and "t3" (any degrees of freedom) the standard laws,
        "uniform" that on (-1, 1); other scales as ``scipy.stats.norm(0, 2)``, or a
        symmetric density.

    Raises
    ------
    ValueError
        If kappa, the loss or the errors are outside their domain.
    ConvergenceError
        If the equations cannot be solved to a relative residual of 1e-12.

    References
    ----------
    El Karoui, Bean, Bickel, Lim and Yu (2013), PNAS 110, 14557-14562, result 1.

    Examples
    --------
    >>> round(proportional_robust(0.2, "lad", "normal").r2, 5)
    0.38495
    """
    if not 0 < kappa < 1:
        raise ValueError(
            f"`kappa` is {kappa}; p/n of an unpenalised M-estimate lies inside (0, 1)."
        )
    rule, noise = _as_loss(loss), _as_noise(errors)
    if isinstance(rule, LeastSquares):
        r2 = kappa * _variance(noise) / (1.0 - kappa)
        return ProportionalRobust(float(kappa), r2, kappa / (1.0 - kappa), 0.0)

    def excess(log_r: float) -> float:
        r = float(np.exp(log_r))
        c = _prox_parameter(rule, noise, kappa, r)
        return _equations(rule, noise, kappa, r, c)[1]

    middle = 0.5 * np.log(kappa / (1.0 - kappa))
    lower, upper = middle, middle
    while excess(lower) < 0:
        lower -= 1.0
    while excess(upper) > 0:
        upper += 1.0
    log_r = float(optimize.brentq(excess, lower, upper, xtol=1e-16, rtol=1e-15))
    r = float(np.exp(log_r))
    c = _prox_parameter(rule, noise, kappa, r)
    residual = max(abs(value) for value in _equations(rule, noise, kappa, r, c))
    if residual > max(_RESIDUAL, _ROUNDING / kappa):
        raise ConvergenceError(
            f"`kappa` is {kappa}: the system was solved to {residual:.1e} only (needed "
            f"{_RESIDUAL:.0e}). Give a smoother or better scaled `errors`."
        )
    return ProportionalRobust(float(kappa), r**2, c, residual)
