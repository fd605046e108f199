"""Whether a design looks Gaussian enough for proportional asymptotics."""

from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.findings import Finding

__all__ = ["constant_column", "design_findings"]

_KURTOSIS = 3.0  # excess; that of a double-exponential column
_LEVERAGE_SPREAD = 2.0  # times the spread of leverages of a Gaussian design


def constant_column(X: Matrix) -> int | None:
    """Return the first constant, nonzero column, or None.

    >>> constant_column(np.array([[0.5, 1.0], [2.0, 1.0]]))
    1
    """
    constant = (X[0] == X).all(axis=0) & (X[0] != 0)
    places = np.flatnonzero(constant)
    return int(places[0]) if len(places) else None


def _leverages(X: Matrix) -> Vector:
    basis = np.linalg.qr(X)[0]
    return np.asarray(np.sum(basis**2, axis=1), dtype=np.float64)


def design_findings(X: Any) -> tuple[Finding, ...]:
    r"""Return findings on the kurtosis of columns and the spread of leverages.

    For Gaussian rows with p/n = kappa the leverages are within
    :math:`\kappa(1 \pm \sqrt{2(1-\kappa)/p})` of one another; rows of unequal length
    (elliptical designs, embeddings) spread them more, and the limits then change.

    Parameters
    ----------
    X : (n, p) array
        Design with p < n; a constant column is left out.

    Raises
    ------
    ValueError
        If p >= n, or no column varies.

    References
    ----------
    El Karoui (2018), Probab. Theory Relat. Fields 170, 95-175, on designs whose rows
    have unequal lengths.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((500, 50))
    >>> [finding.status for finding in design_findings(X)]
    ['pass', 'pass']
    """
    design = check_finite(as_float(X, "X", ndim=2), "X")
    n, _ = design.shape
    centred = design - design.mean(axis=0)
    spread = np.sqrt(np.mean(centred**2, axis=0))
    varies = spread > 1e-12 * np.abs(design).max(axis=0)
    p = int(varies.sum())
    if not 0 < p < n - 1:
        raise ValueError(
            f"`X` has {p} varying columns for {n} rows; give 0 < p < n - 1."
        )
    z = centred[:, varies] / spread[varies]
    return _kurtosis_finding(z), _leverage_finding(z)


def _kurtosis_finding(z: Matrix) -> Finding:
    excess = np.mean(z**4, axis=0) - 3.0
    worst = float(excess.max())
    is_good = worst <= _KURTOSIS
    return Finding(
        "kurtosis of the covariates",
        "pass" if is_good else "warn",
        worst,
        _KURTOSIS,
        f"The largest excess kurtosis of a covariate is {worst:.2f}.",
        ""
        if is_good
        else "Proportional limits assume Gaussian-like covariates: transform heavy "
        "tails, merge rare categories, or read adjusted intervals with caution.",
    )


def _leverage_finding(z: Matrix) -> Finding:
    n, p = z.shape
    leverage = _leverages(z)
    kappa = float(leverage.mean())
    expected = np.sqrt(2.0 * max(1.0 - kappa, 1.0 / n) / p)
    ratio = float(leverage.std() / kappa / expected)
    is_good = ratio <= _LEVERAGE_SPREAD
    return Finding(
        "spread of leverages",
        "pass" if is_good else "warn",
        ratio,
        _LEVERAGE_SPREAD,
        f"Leverages spread {ratio:.2f} times as much as those of a Gaussian design.",
        ""
        if is_good
        else "Rows have unequal lengths, for which proportional limits differ: look at "
        "the rows of largest leverage, or validate by simulation on this design.",
    )
