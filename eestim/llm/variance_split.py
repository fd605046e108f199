r"""What of the variance comes from the data, and what from the draws of the latent.

On the level of M, psi evaluated with one set of draws has variance
:math:`M_1 = M_\infty + (M_1 - M_\infty)`; half the mean of
:math:`(\psi^{(1)} - \psi^{(2)})(\psi^{(1)} - \psi^{(2)})^\top` over two independent
sets estimates the second part. An estimate that met its data E times with fresh draws,
its iterates averaged, has :math:`M_\infty + (M_1 - M_\infty) / E`; where E is not
whole, units were met unequally often, :math:`c_i` times, and the first part gains the
factor :math:`E[c_i^2] / E^2 = 1 + f (1 - f) / E^2`, f the fraction of E. Below one pass
both together are :math:`M_1 / E`: a share E of the units, used once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eestim.errors import InferenceError
from eestim.findings import Finding

__all__ = ["VarianceSplit", "data_share", "split_variance"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VarianceSplit:
    r"""Variances of an estimate of k functionals, (k, k) each.

    Attributes
    ----------
    data : array
        What stays with the latent averaged out, :math:`c^\top M_\infty c / n`.
    latent : array
        What the draws add after `passes` passes,
        :math:`c^\top (M_1 - M_\infty) c / (n E)`.
    passes : float
        E.
    """

    data: Array
    latent: Array
    passes: float

    @property
    def total(self) -> Array:
        """The variance of the estimate."""
        return self.data + self.latent

    @property
    def share(self) -> float:
        """The largest share of a variance that is noise of the draws."""
        return float(np.max(np.diag(self.latent) / np.diag(self.total)))

    def findings(self, labels: tuple[str, ...]) -> tuple[Finding, ...]:
        """Return V_data and V_latent of each functional, and the largest share."""
        several = len(labels) > 1
        made = []
        for j, label in enumerate(labels):
            total = float(self.total[j, j])
            for name, part in (("V_data", self.data), ("V_latent", self.latent)):
                made.append(
                    _part(f"{name} {label}" if several else name, part[j, j], total)
                )
        is_small = self.share < 0.5
        made.append(
            Finding(
                "latent share",
                "pass" if is_small else "warn",
                self.share,
                0.5,
                f"At most {self.share:.0%} of the variance is noise of the latent "
                f"draws, at {self.passes:g} passes.",
                "" if is_small else "Train for more passes or with more draws.",
            )
        )
        return tuple(made)


def _part(name: str, value: float, total: float) -> Finding:
    """Return one part of a variance; an estimate below zero says so."""
    what = "data" if name.startswith("V_data") else "latent draws"
    hidden = value < 0.0
    return Finding(
        name,
        "warn" if hidden else "pass",
        float(value),
        total,
        f"{value:.3g} of the variance {total:.3g} is noise of the {what}.",
        "The noise of the draws hides it; raise `sets` or `draws`." if hidden else "",
    )


def data_share(passes: float) -> float:
    r"""Return the factor of the noise of the data, :math:`E[c_i^2] / E^2`.

    Units are met :math:`c_i` times, the whole numbers on both sides of E.

    Examples
    --------
    >>> data_share(3), data_share(0.5), round(data_share(1.5), 4)
    (1.0, 2.0, 1.1111)
    """
    if not np.isfinite(passes):
        return 1.0
    part = float(passes) % 1.0
    return 1.0 + part * (1.0 - part) / float(passes) ** 2


def split_variance(rows: Array, passes: float) -> VarianceSplit:
    r"""Return the parts of the variance of functionals of influence `rows`.

    Parameters
    ----------
    rows : (sets, n, k) array
        c'psi of each unit under independent sets of draws, at least two.
    passes : float
        E, the passes over the data with fresh draws that the estimate was averaged
        over: 1 for draws used once, or fixed for each unit; below 1 for a share of
        the units; infinity leaves the noise of the data alone.

    Raises
    ------
    InferenceError
        If the noise of the draws hides that of the data.

    Examples
    --------
    A unit's data and draws of variance 4 and 1, in two sets:

    >>> data, draws = np.array([2.0, -2.0, 2.0, -2.0]), np.array([1.0, 1.0, -1.0, -1.0])
    >>> rows = np.stack([data + draws, data - draws])[:, :, None]
    >>> split = split_variance(rows, passes=1)
    >>> round(3 * split.latent.item(), 12), round(3 * split.data.item(), 12)
    (2.0, 3.0)
    """
    sets, n_units, _ = rows.shape
    if sets < 2 or not passes > 0:
        raise ValueError(
            f"`rows` holds {sets} sets of draws and `passes` is {passes}; at least two "
            "sets tell draws from data, and the data, or a share of them, are met."
        )
    centred = rows - rows.mean(axis=1, keepdims=True)
    mean = centred.mean(axis=0)
    apart = centred - mean
    free = n_units - 1  # rows are centred
    once = np.einsum("sik,sil->kl", apart, apart) / (free * (sets - 1))
    data = (mean.T @ mean / free - once / sets) * data_share(passes)
    if not (np.diag(data + once / passes) > 0).all():
        raise InferenceError(
            f"`sets` is {sets}: the noise of the draws hides that of the data "
            f"(variances {np.diag(once)} of a set against {np.diag(data)}); raise "
            "`sets` or `draws`."
        )
    return VarianceSplit(data / n_units, once / (passes * n_units), float(passes))
