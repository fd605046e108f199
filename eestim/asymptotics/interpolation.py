"""Refusal of a sandwich whose contributions all vanish."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.errors import InterpolationError

__all__ = ["interpolation_guard", "interpolation_ratio", "vanishes_to_rounding"]

_RATIO = 1e-6
_WOBBLE = 8.0 * float(np.finfo(np.float64).eps)
_ROUNDINGS = 20.0


def interpolation_ratio(psi: Any, psi_start: Any) -> float:
    r"""Return how small the contributions became, largest over typical.

    .. math:: \max_i\|\psi_i(\hat\theta)\| /
       \mathrm{median}_i\|\psi_i(\theta_{start})\|

    Parameters
    ----------
    psi : (n, q) array
        Contributions at the root.
    psi_start : (n, q) array
        Contributions before fitting, which give the scale.

    Raises
    ------
    ValueError
        If the shapes differ, or the contributions already vanish at the start.

    Examples
    --------
    >>> interpolation_ratio([[0.0], [1e-9]], [[1.0], [1.0]])
    1e-09
    """
    at_root = check_finite(as_float(psi, "psi", ndim=2), "psi")
    at_start = check_finite(as_float(psi_start, "psi_start", ndim=2), "psi_start")
    if at_root.shape != at_start.shape:
        raise ValueError(
            f"`psi` is {at_root.shape} and `psi_start` {at_start.shape}; give the "
            "contributions of the same units."
        )
    scale = float(np.median(np.linalg.norm(at_start, axis=1)))
    if scale == 0.0:
        raise ValueError(
            "`psi_start` vanishes for half of the units, so it gives no scale; start "
            "from another theta."
        )
    return float(np.linalg.norm(at_root, axis=1).max()) / scale


def vanishes_to_rounding(psi: Callable[[Vector], Matrix], theta: Vector) -> bool:
    """Return whether psi at theta is no larger than the rounding of theta makes it.

    This needs no start: theta is moved by a few units of rounding, and psi compared
    with its change.

    Parameters
    ----------
    psi : callable
        From theta to the contributions (n, q).
    theta : (P,) array
        The root.

    Examples
    --------
    >>> X = np.array([[1.0, 2.0, 3.0]])
    >>> theta = np.linalg.pinv(X) @ np.array([0.7])
    >>> vanishes_to_rounding(lambda t: X * (0.7 - X @ t)[:, None], theta)
    True
    """
    values = psi(theta)
    moved = psi(theta + _WOBBLE * np.maximum(np.abs(theta), 1e-300))
    rounding = float(np.abs(moved - values).max(initial=0.0))
    return bool(np.abs(values).max(initial=0.0) <= _ROUNDINGS * rounding)


def interpolation_guard(
    psi: Any, psi_start: Any = None, *, df: float | None = None
) -> None:
    r"""Raise if a fit interpolates, so that a sandwich from it would be zero.

    At an interpolating root every :math:`\psi_i(\hat\theta) = 0`: the meat, and with
    it every standard error, is zero although the estimate is not exact.

    Parameters
    ----------
    psi : (n, q) array
        Contributions at the root.
    psi_start : (n, q) array, optional
        Contributions before fitting; refused if the largest at the root is below a
        millionth of their median.
    df : float, optional
        Degrees of freedom of the fit; refused if at least n - 1.

    Raises
    ------
    InterpolationError
        If the fit interpolates.
    ValueError
        If neither `psi_start` nor `df` is given.

    Examples
    --------
    >>> interpolation_guard(np.ones((5, 1)), np.ones((5, 1)), df=2)
    """
    if psi_start is None and df is None:
        raise ValueError("give `psi_start` or `df`: psi alone has no scale.")
    n = len(np.asarray(psi))
    reason = ""
    if df is not None and df >= n - 1:
        reason = f"`df` is {df:.6g} for {n} units"
    elif psi_start is not None:
        ratio = interpolation_ratio(psi, psi_start)
        if ratio < _RATIO:
            reason = (
                f"`psi` is at most {ratio:.1e} of its size before fitting "
                f"(limit {_RATIO:.0e})"
            )
    if reason:
        raise InterpolationError(
            f"{reason}: the fit interpolates, and a sandwich from these contributions "
            "would report standard errors of zero. Use a degrees-of-freedom adjusted "
            "interval (`df_debiased`), cross-fitting, or psi of held-out units."
        )
