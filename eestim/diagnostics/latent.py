r"""How much of a variance is the noise of simulated latent variables."""

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._linalg import symmetric_power
from eestim.covariance.base import sensitivity_factor
from eestim.diagnostics._verdicts import chi2_finding
from eestim.errors import DataError
from eestim.findings import Finding

__all__ = ["latent_noise", "latent_shares", "shared_draws"]

_SHARE = 0.1  # of a variance; more draws a unit are cheap below
_SHARED = 1e-6  # level: a false alarm is worse than a fault of that size


def _pair(first: Matrix, second: Matrix) -> tuple[Matrix, Matrix]:
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 2 or one.shape != two.shape:
        raise DataError(
            f"`first` and `second` have shapes {one.shape} and {two.shape}; give psi "
            "of the same units twice, (n, q) each, with independent draws."
        )
    return one, two


def latent_shares(first: Matrix, second: Matrix, slope: Matrix | None = None) -> Vector:
    r"""Return the share of each variance that is simulation noise, (p,).

    .. math:: \hat B_{MC} = \tfrac{1}{2n} \sum_i
              (\psi_i^{(1)} - \psi_i^{(2)})(\psi_i^{(1)} - \psi_i^{(2)})^\top,
              \qquad \mathrm{share}_j = \frac{[A^{-1} \hat B_{MC} A^{-\top}]_{jj}}
              {[A^{-1} \hat B A^{-\top}]_{jj}}

    with B the mean of the two outer products, which contains the noise once: do not
    add it again.

    Parameters
    ----------
    first, second : (n, q) arrays
        Contributions of the same units at the same theta, each with its own
        independent latent draws.
    slope : (q, q) array, optional
        A; shares are those of the equations without it.

    Examples
    --------
    Noise of variance 1 beside a signal of variance 3:

    >>> rng = np.random.default_rng(0)
    >>> signal = rng.normal(0, 3**0.5, size=(4000, 1))
    >>> draws = [signal + rng.normal(size=(4000, 1)) for _ in range(2)]
    >>> latent_shares(*draws).round(2)
    array([0.25])
    """
    one, two = _pair(first, second)
    gap = one - two
    noise = gap.T @ gap / (2 * len(gap))
    total = (one.T @ one + two.T @ two) / (2 * len(gap))
    if slope is None:
        shares: Vector = np.diag(noise) / np.diag(total)
        return shares
    factor = sensitivity_factor(slope)

    def spread(meat: Matrix) -> Vector:
        return np.diag(factor.solve(factor.solve(meat).T))

    return spread(noise) / spread(total)


def latent_noise(
    first: Matrix, second: Matrix, slope: Matrix | None = None, draws: int | None = None
) -> Finding:
    r"""Judge the share of the variance that latent draws contribute.

    Own draws for every unit cost a factor :math:`1 + \rho / K`; parameters are those
    of `latent_shares`. Draws shared by all units, whose noise does not average out,
    fail (`shared_draws`).

    Parameters
    ----------
    draws : int, optional
        K, the draws a unit, to say how many would suffice.
    """
    shared = shared_draws(first, second)
    if shared.status == "fail":
        return shared
    shares = latent_shares(first, second, slope)
    worst = int(np.argmax(shares))
    value = float(shares[worst])
    warned = value > _SHARE
    advice = "Use more draws a unit"
    if draws is not None:  # share = a / (a + K) as K grows
        needed = int(np.ceil(draws * value / (1 - value) * (1 - _SHARE) / _SHARE))
        advice += f": about {needed} instead of {draws}"
    return Finding(
        "latent noise",
        "warn" if warned else "pass",
        value,
        _SHARE,
        f"Latent draws make {value:.1%} of the variance of parameter {worst}; the "
        "sandwich of simulated psi already contains it.",
        f"{advice}." if warned else "",
        "The two evaluations have independent draws at the same theta.",
    )


def shared_draws(first: Matrix, second: Matrix, level: float = _SHARED) -> Finding:
    r"""Test that units have latent draws of their own.

    With :math:`d_i = \psi_i^{(1)} - \psi_i^{(2)}`, independent over units,
    :math:`n \bar d^\top \hat C^+ \bar d` is chi-squared; with draws shared by all units
    it is larger by a factor of the order of n.
    """
    one, two = _pair(first, second)
    gap = one - two
    spread = np.sqrt((gap**2).mean(axis=0))
    scale = np.where(spread > 0, spread, 1.0)
    scaled = gap / scale
    half, rank = symmetric_power(scaled.T @ scaled / len(gap), -0.5, rcond=1e-10)
    mean = half @ scaled.mean(axis=0)
    # Uncentred second moments bound the statistic by n: return it to the chi2 scale.
    ratio = float(mean @ mean)
    statistic = len(gap) * ratio / max(1.0 - ratio, 1e-12)
    return chi2_finding(
        "shared draws",
        statistic,
        max(rank, 1),
        level=level,
        says="Noise common to all units",
        advice="Draws are shared between units, and their noise does not average out "
        "over them: draw for every unit, or take many more draws than units.",
        assumptions="The two evaluations have independent draws at the same theta.",
    )
