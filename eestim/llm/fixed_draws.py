r"""A latent model's equation at fixed draws: an ordinary one, with its score intervals.

With its draws fixed psi is a function of the parameters, so solvers, covariance rules
and diagnostics of the core meet a latent model as they meet a regression. Draws belong
to units: psi of independent units stays independent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import optimize, stats
from torch import nn
from torch.nn.utils import vector_to_parameters

from eestim.covariance.base import sensitivity_factor
from eestim.errors import DataError, InferenceError
from eestim.inference._crossing import checked_level, crossing, wanted_places
from eestim.llm.parameters import Which, chosen, parameter_names
from eestim.llm.scores import independent_units, score_sets
from eestim.llm.sensitivities import check_dense, sensitivity
from eestim.llm.surrogates import LatentEquation, check_draws

__all__ = ["FixedDraws"]

Array = npt.NDArray[np.float64]
Whitened = Callable[[Array], tuple[Array, Array]]
_FAR = 100.0  # Wald half widths, beyond which a set counts as unbounded


class FixedDraws:
    r"""psi of a latent model as a function of its parameters, its draws held fixed.

    .. math:: \psi_i(\theta) = \frac1E \sum_{e \le E} \psi_i(\theta; Z_{ie}), \qquad
              \operatorname{var} = M_\infty + (M_1 - M_\infty) / E

    Its root has the first-order law of training that met every unit E times with fresh
    draws, its iterates averaged. Where E is small, roots are spread widely and their
    law is not yet normal; `score_interval` covers there too, because the mean of psi at
    one parameter is nearly normal long before the root is
    (``theory_checks/latent_one_pass.py``). More `passes` make it shorter, whatever
    training did.

    Parameters
    ----------
    model : module
        Where the search starts; it is copied and stays as it is.
    documents : Units, or list of str
    equation : LatentEquation, optional
        `Brier` by default.
    draws : int
        K.
    passes : int
        E, sets of draws that psi is averaged over.
    parameters : {"perturbation", "all"}
        The others stay at their values.
    batch_size, seed : int

    Raises
    ------
    DataError
        If there are more parameters than a dense A is meant for, or they are not
        float64: differences of psi across parameters would be rounding.
    ValueError
        If the equation needs more draws.

    Examples
    --------
    >>> import eestim as ee
    >>> from eestim.llm.synthetic import BinaryModel, binary_data
    >>> data = binary_data(500, seed=2)
    >>> drawn = FixedDraws(BinaryModel(), data, passes=8, parameters="all")
    >>> drawn.n_units, drawn.names
    (500, ('a', 'b', 'log_scale[0]'))
    """

    def __init__(
        self,
        model: nn.Module,
        documents: Any,
        equation: LatentEquation | None = None,
        *,
        draws: int = 8,
        passes: int = 1,
        parameters: Which = "perturbation",
        batch_size: int = 1024,
        seed: int = 0,
    ) -> None:
        if equation is not None:
            check_draws(equation, draws)
        if passes < 1:
            raise ValueError(f"`passes` is {passes}; psi is averaged over 1 or more.")
        self._model, self._which = copy.deepcopy(model), parameters
        found = list(chosen(self._model, parameters).values())
        check_dense(sum(p.numel() for p in found))
        if any(p.dtype != torch.float64 for p in found):
            raise DataError(
                f"`model` has parameters of type {found[0].dtype}; psi is compared "
                "across nearby parameters here, which takes float64. Call "
                "`model.double()`, or use `infer`."
            )
        self._units = independent_units(self._model, documents)
        self._equation = equation
        self._options: dict[str, Any] = {
            "draws": draws,
            "passes": passes,
            "parameters": parameters,
            "batch_size": batch_size,
            "seed": seed,
        }
        self.names: tuple[str, ...] = parameter_names(self._model, parameters)
        self.start: Array = self._theta()

    @property
    def n_units(self) -> int:
        """Number of independent units."""
        return int(self._units.n_units)

    def _parameters(self) -> list[nn.Parameter]:
        return list(chosen(self._model, self._which).values())

    def _theta(self) -> Array:
        rows = [p.detach().flatten() for p in self._parameters()]
        theta: Array = torch.cat(rows).numpy().copy()
        return theta

    def _at(self, theta: Any) -> nn.Module:
        """Return the private copy of the model, moved to theta."""
        with torch.no_grad():
            vector = torch.as_tensor(np.array(theta, dtype=np.float64))
            vector_to_parameters(vector, self._parameters())
        return self._model

    def psi(self, theta: Any) -> Array:
        """Return the contributions of the units, (n, P)."""
        sets = score_sets(self._at(theta), self._units, self._equation, **self._options)
        total = np.zeros((self.n_units, len(self.names)))
        for psi in sets:
            total += psi
        return total / float(self._options["passes"])

    def sensitivity(self, theta: Any) -> Array:
        """Return A at the same draws, through every factor, (P, P)."""
        return sensitivity(
            self._at(theta), self._units, self._equation, **self._options
        )

    def score_interval(
        self,
        theta: Any,
        names: tuple[str, ...] | None = None,
        level: float = 0.95,
    ) -> pd.DataFrame:
        r"""Return the values that a score test does not reject, one row a parameter.

        .. math:: \{c : \min_{\theta_j = c} n \bar\psi(\theta)^\top
                  M(\theta)^{-1} \bar\psi(\theta) \le \chi^2_{1, level}\}

        As `eestim.ScoreInverted`, with M about the mean of psi and steps of Gauss and
        Newton by A: psi of a latent model is costly, and these need a tenth of its
        evaluations. No root is needed. A bound is infinite where no value on that side
        is rejected, as happens to the scale of a weakly identified latent.

        Parameters
        ----------
        theta : (P,) array
            Where the search starts: a trained model's parameters, such as `start`.
        names : tuple of str, optional
            Parameters whose intervals are wanted; all by default.
        level : float

        Returns
        -------
        DataFrame
            Columns estimate (what `theta` says), lower, upper.

        Raises
        ------
        IdentificationError
            If A is singular at `theta`: there is no scale for the first step.
        InferenceError
            If even at `theta`, with the other parameters free, the value itself is
            rejected: these draws have no root near it. Raise `passes`.
        """
        critical = float(stats.chi2.ppf(checked_level(level), 1))
        begin: Array = np.array(theta, dtype=np.float64)
        places = wanted_places(names, self.names, "score_interval")
        psi = self.psi(begin)
        factor = sensitivity_factor(self.sensitivity(begin), self.names)
        inverse = factor.solve(np.eye(len(begin)))
        errors = (np.diag(inverse @ np.cov(psi.T) @ inverse.T) / len(psi)) ** 0.5
        rows = []
        for j in places:
            bounds = [
                self._bound(begin, j, sign * errors[j], critical) for sign in (-1, 1)
            ]
            rows.append((begin[j], *bounds))
        labels = [self.names[j] for j in places]
        return pd.DataFrame(rows, labels, ["estimate", "lower", "upper"])

    def _bound(self, begin: Array, j: int, error: float, critical: float) -> float:
        """Return where the profiled statistic passes its critical value, one side."""
        found: dict[float, tuple[float, Array]] = {}

        def statistic(value: float) -> float:
            if value not in found:
                near = min(found, key=lambda known: abs(known - value), default=None)
                start = begin if near is None else found[near][1]
                found[value] = self._profiled(start, j, value)
            return found[value][0]

        if statistic(float(begin[j])) > critical:
            raise InferenceError(
                f"`theta` has {self.names[j]} = {begin[j]:.4g}, which the score test "
                "itself rejects: psi at these draws has no root near it. Raise "
                "`passes`, or start from the root of this equation."
            )
        step = critical**0.5 * float(error)
        return crossing(statistic, float(begin[j]), step, critical, farthest=_FAR)

    def _profiled(self, begin: Array, j: int, value: float) -> tuple[float, Array]:
        """Return the least statistic with parameter j at a value, and where."""
        free = np.delete(np.arange(len(begin)), j)
        known: dict[bytes, tuple[Array, Array]] = {}

        def whitened(inner: Array) -> tuple[Array, Array]:
            key = np.asarray(inner).tobytes()
            if key not in known:
                theta = begin.copy()
                theta[j], theta[free] = value, inner
                psi = self.psi(theta)
                spread = np.cov(psi.T, bias=True).reshape(len(theta), -1)
                factor = np.linalg.cholesky(spread)
                root_n = len(psi) ** 0.5
                slope = -self.sensitivity(theta)[:, free]
                known[key] = (
                    np.linalg.solve(factor, psi.mean(0)) * root_n,
                    np.linalg.solve(factor, slope) * root_n,
                )
            return known[key]

        try:
            return self._least(begin, j, value, whitened)
        except (np.linalg.LinAlgError, ValueError):  # psi constant or not finite
            return np.nan, begin

    def _least(
        self, begin: Array, j: int, value: float, whitened: Whitened
    ) -> tuple[float, Array]:
        free = np.delete(np.arange(len(begin)), j)
        theta = begin.copy()
        theta[j] = value
        if len(free):
            found = optimize.least_squares(
                lambda v: whitened(v)[0],
                begin[free],
                lambda v: whitened(v)[1],
                method="lm",
                xtol=1e-6,
                ftol=1e-8,
                max_nfev=60,
            )
            theta[free] = found.x
        return float((whitened(theta[free])[0] ** 2).sum()), theta
