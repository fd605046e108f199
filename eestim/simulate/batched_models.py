"""Batched generalized linear models: one call fits R data sets of one shape."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eestim._arrays import Matrix, Vector, as_float, show_rows
from eestim.errors import DataError, IdentificationError, SeparationError
from eestim.models.families import family_and_link
from eestim.models.separation import check_separation
from eestim.roots import Root, Status
from eestim.simulate._small import Array, Mask, batched_inverse
from eestim.simulate.batched import BatchedFit, batched_estimate

__all__ = ["BatchedGLM", "batched_glm"]

FamilyName = Literal["gaussian", "binomial", "poisson"]

_EXTREME = 12.0  # linear predictor: a fitted probability within 6e-6 of 0 or 1
_INTERPOLATED = 1e-10  # largest residual relative to the largest outcome
_SMALLEST_MEAN = 1e-2  # where fitting of counts begins at the least


def _mean_and_variance(family: FamilyName, eta: Matrix) -> tuple[Matrix, Matrix]:
    """Return the mean and the variance function at the canonical link.

    The derivative of the mean is the variance function there.

    >>> _mean_and_variance("binomial", np.array([[0.0, 700.0]]))
    (array([[0.5, 1. ]]), array([[0.25, 0.  ]]))
    """
    mean = _mean(family, eta)
    if family != "binomial":
        return mean, np.ones_like(eta) if family == "gaussian" else mean
    variance = mean * mean
    np.subtract(mean, variance, out=variance)
    return mean, variance


def _mean(family: FamilyName, eta: Matrix) -> Matrix:
    """Return the mean at the canonical link, in a new array."""
    if family == "gaussian":
        return eta.copy()
    if family == "poisson":
        return np.asarray(np.exp(eta))
    mean = np.negative(eta)  # 1 / (1 + exp(-eta)), in place
    np.exp(mean, out=mean)
    mean += 1.0
    np.reciprocal(mean, out=mean)
    return mean


def _first_step(family: FamilyName, y: Matrix) -> tuple[Matrix | None, Matrix]:
    """Return weights (None where equal) and targets of a first least-squares step."""
    if family == "gaussian":
        return None, y
    if family == "binomial":  # from a linear predictor of zero
        return None, 4.0 * y - 2.0
    mean = np.maximum((y + y.mean(axis=1)[:, None]) / 2.0, _SMALLEST_MEAN)
    return mean, np.log(mean) + (y - mean) / mean


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BatchedGLM:
    r"""R generalized linear models with canonical link.

    .. math:: \psi_{ri} = x_{ri} (y_{ri} - \mu_{ri}), \qquad
              A_r = X_r^\top \mathrm{diag}(V(\mu_r)) X_r / n .

    Made by `batched_glm`, which documents the arguments.

    Attributes
    ----------
    columns : (R, p, n) or (p, n) array
        Designs, transposed: the sums over units then run along memory.
    response : (R, n) array
    names : tuple of p str
    family : {"gaussian", "binomial", "poisson"}
    factor : float
        Of the meat: 1, or n / (n - p) for HC1.
    offset : (R, n) or (n,) array or None
    products : (p (p + 1) / 2, n) array or None
        Products of the columns of a shared design.
    """

    columns: Array
    response: Matrix
    names: tuple[str, ...]
    family: FamilyName
    factor: float = 1.0
    offset: Array | None = None
    products: Matrix | None = None

    @property
    def n_problems(self) -> int:
        """Number of problems, R."""
        return len(self.response)

    @property
    def n_units(self) -> int:
        """Number of units in each, n."""
        return len(self.response.T)

    @property
    def n_entries(self) -> int:
        """Numbers that one problem adds to the cache."""
        return self.n_units if self.is_shared else self.n_units * len(self.names)

    @property
    def is_shared(self) -> bool:
        """Whether all problems have one design."""
        return self.columns.ndim == 2

    def part(self, which: Any) -> "BatchedGLM":
        """Return the problems selected by a slice or an array of numbers."""
        offset = self.offset
        if offset is not None and offset.ndim == 2:
            offset = offset[which]
        columns = self.columns
        if not self.is_shared:
            columns = np.ascontiguousarray(columns[which])
        return replace(
            self, columns=columns, response=self.response[which], offset=offset
        )

    # ------------------------------------------------------------- sums over units

    def _linear(self, theta: Matrix) -> Matrix:
        if self.is_shared:
            eta: Matrix = theta @ self.columns
        else:
            eta = np.matmul(theta[:, None, :], self.columns)[:, 0, :]
        return eta if self.offset is None else eta + self.offset

    def _gradient(self, residual: Matrix) -> Matrix:
        if self.is_shared:
            shared: Matrix = residual @ self.columns.T
            return shared
        own: Matrix = np.matmul(self.columns, residual[:, :, None])[:, :, 0]
        return own

    def _gram(self, weight: Matrix | None) -> Array:
        """Return ``X' diag(weight) X``, (R, p, p), or (1, p, p) if all are equal."""
        if self.products is None:
            # A product of an array with itself takes a slower way through BLAS.
            factor = 1.0 if weight is None else weight[:, None, :]
            weighted = self.columns * factor
            gram: Array = np.matmul(weighted, self.columns.transpose(0, 2, 1))
            return gram
        p, upper = len(self.names), np.triu_indices(len(self.names))
        sums = (
            self.products.sum(axis=1)[None]
            if weight is None
            else (weight @ self.products.T)
        )
        gram = np.empty((len(sums), p, p), dtype=sums.dtype)
        gram[:, upper[0], upper[1]] = sums
        gram[:, upper[1], upper[0]] = sums
        return gram

    # -------------------------------------------------------------------- equation

    def start(self) -> Matrix:
        """Return one step of weighted least squares, (R, p)."""
        weight, target = _first_step(self.family, self.response)
        if self.offset is not None:
            target = target - self.offset
        gram = self._gram(weight)
        right = self._gradient(target if weight is None else weight * target)
        try:
            return np.asarray(np.linalg.solve(gram, right[:, :, None])[:, :, 0])
        except np.linalg.LinAlgError:  # found singular again by the solver
            inverse, singular = batched_inverse(gram)
            inverse[singular] = 0.0
            return np.asarray(np.matmul(inverse, right[:, :, None])[:, :, 0])

    def rough(self) -> "BatchedGLM | None":
        """Return the same problems in single precision, None where one step solves."""
        if self.family == "gaussian":
            return None

        def single(values: Array | None) -> Any:
            return None if values is None else values.astype(np.float32)

        return replace(
            self,
            columns=single(self.columns),
            response=single(self.response),
            offset=single(self.offset),
            products=single(self.products),
        )

    def mean_psi(self, theta: Matrix) -> Matrix:
        """Return mean psi, (R, p)."""
        mean = _mean(self.family, self._linear(theta))
        np.subtract(self.response, mean, out=mean)
        return self._gradient(mean) / self.n_units

    def newton_terms(self, theta: Matrix) -> tuple[Matrix, Matrix, Array]:
        """Return mean psi, its mean square under the model, and A."""
        n = self.n_units
        mean, variance = _mean_and_variance(self.family, self._linear(theta))
        residual = self.response - mean
        sensitivity = self._gram(variance) / n
        square = np.diagonal(sensitivity, axis1=1, axis2=2)
        if self.family == "gaussian":
            square = square * np.square(residual).mean(axis=1)[:, None]
        return self._gradient(residual) / n, square, sensitivity

    def moments(self, theta: Matrix) -> tuple[Matrix, Array, Array]:
        """Return mean psi, M and A."""
        n = self.n_units
        mean, variance = _mean_and_variance(self.family, self._linear(theta))
        residual = self.response - mean
        meat = self._gram(np.square(residual)) * (self.factor / n)
        return self._gradient(residual) / n, meat, self._gram(variance) / n

    # -------------------------------------------------------------------- refusals

    def floor(self) -> Vector:
        """Return the ratio of squared residual to variance that is rounding, (R,)."""
        size: Vector = np.abs(self.response).max(axis=1)
        if self.family == "gaussian":
            return np.square(_INTERPOLATED * size)
        return _INTERPOLATED**2 * np.maximum(size, 1.0)

    def inspect(self, theta: Matrix, status: npt.NDArray[np.str_]) -> dict[str, Mask]:
        """Return which problems are separated."""
        if self.family == "gaussian":
            return {}
        converged = status == "converged"
        eta = self._linear(theta)
        extreme = converged & ~(np.ptp(eta, axis=1) < _EXTREME)
        suspect = extreme | (status == "not converged")
        if not suspect.any():
            return {}
        return {"separated": self._separated(theta, eta, suspect, converged)}

    def _separated(
        self, theta: Matrix, eta: Matrix, suspect: Mask, converged: Mask
    ) -> Mask:
        separated = np.zeros(len(theta), dtype=bool)
        if self.family == "binomial":  # all on the right side: no program is needed
            signed = np.where(self.response > 0.5, 1.0, -1.0)
            is_certain = ((self.response == 0.0) | (self.response == 1.0)).all(axis=1)
            plain = eta if self.offset is None else eta - self.offset
            separated = suspect & is_certain & (signed * plain > 0.0).all(axis=1)
        for r in np.flatnonzero(suspect & ~separated):
            state = Status.CONVERGED if converged[r] else Status.TOO_MANY_STEPS
            point = np.nan_to_num(theta[r], posinf=0.0, neginf=0.0)
            root = Root(point, state, float("nan"), 0)
            design = self.columns.T if self.is_shared else self.columns[r].T
            try:
                check_separation(
                    design, self.response[r], None, self.family, self.names, root
                )
            except SeparationError:
                separated[r] = True
        return separated


def batched_glm(
    y: Any,
    X: Any,
    family: FamilyName,
    *,
    kind: Literal[0, 1] = 0,
    offset: Any = None,
    names: Sequence[str] | None = None,
    jobs: int | None = None,
) -> BatchedFit:
    """Fit R generalized linear models of one shape, with their HC covariances.

    The same estimates as ``ee.estimate(ee.glm(y[r], X[r], family=...))`` for each r.

    Parameters
    ----------
    y : (R, n) array
        Outcomes.
    X : (R, n, p) or (n, p) array
        Designs (no intercept is added); one for all problems is faster still.
    family : {"gaussian", "binomial", "poisson"}
        With its canonical link.
    kind : {0, 1}
        HC0 with normal intervals, or HC1 with n - p degrees of freedom.
    offset : (R, n) or (n,) array, optional
        Added to the linear predictor.
    names : sequence of p str, optional
    jobs : int, optional
        Threads; by default as many as BLAS uses (OMP_NUM_THREADS), which is one
        within a study. Results do not depend on their number.

    Returns
    -------
    BatchedFit
        With a status for each problem; a problem without a root has NaN.

    Raises
    ------
    DataError
        If values are not finite, shapes disagree or an outcome is out of range.
    IdentificationError
        If there are fewer units than parameters.

    Examples
    --------
    Two proportions, one of them 0, whose logit is minus infinity:

    >>> fit = batched_glm([[0, 1, 1, 1], [0, 0, 0, 0]], np.ones((4, 1)), "binomial")
    >>> fit.theta.ravel().round(4), fit.status.tolist()
    (array([1.0986,    nan]), ['converged', 'separated'])
    """
    chosen, _ = family_and_link(family, None)
    if kind not in (0, 1):
        raise ValueError(f"`kind` must be 0 or 1; got {kind!r}.")
    response, design = as_float(y, "y", 2), as_float(X, "X")
    n, p = _checked_shapes(response, design)
    _refuse_infinite(response, "y")
    bad = ((response < chosen.lowest) | (response > chosen.highest)).any(axis=1)
    if bad.any():
        raise DataError(
            f"`y` is out of the range of the {family} family in "
            f"{show_rows(np.flatnonzero(bad))}."
        )
    if n - kind < p:
        raise IdentificationError(
            f"`X` has {p} columns for {n} units; HC{kind} needs at least {p + kind}."
        )
    labels = tuple(names) if names is not None else tuple(f"x{j}" for j in range(p))
    if len(labels) != p:
        raise DataError(f"`names` has {len(labels)} entries for {p} columns.")
    shift = None if offset is None else _checked_offset(offset, response.shape)
    equation = BatchedGLM(
        design.swapaxes(-1, -2),
        response,
        labels,
        family,
        factor=n / (n - p) if kind == 1 else 1.0,
        offset=shift,
        products=_products(design) if design.ndim == 2 else None,
    )
    dof = float(n - p) if kind == 1 else np.inf
    fit = batched_estimate(equation, dof=dof, jobs=jobs)
    if not fit.is_converged.all():  # values that are not finite never converge
        _refuse_infinite(design, "X")
    return fit


def _products(design: Matrix) -> Matrix:
    first, second = np.triu_indices(design.shape[1])
    return np.ascontiguousarray((design[:, first] * design[:, second]).T)


def _checked_shapes(response: Matrix, design: Array) -> tuple[int, int]:
    problems, n = response.shape
    expected = (problems, n) if design.ndim == 3 else (n,)
    if design.ndim not in (2, 3) or design.shape[:-1] != expected or not problems:
        raise DataError(
            f"`X` has shape {design.shape} for `y` of shape {response.shape}; expected "
            f"(R, n, p) = ({problems}, {n}, p) or one design ({n}, p)."
        )
    return n, design.shape[-1]


def _refuse_infinite(values: Array, argument: str) -> None:
    if not np.isfinite(values).all():
        bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        raise DataError(
            f"`{argument}` has missing or infinite values in "
            f"{show_rows(np.flatnonzero(bad))}; every problem needs complete data."
        )


def _checked_offset(offset: Any, shape: tuple[int, ...]) -> Vector:
    values = as_float(offset, "offset")
    if values.shape not in (shape, shape[1:]):
        raise DataError(
            f"`offset` has shape {values.shape}; expected {shape} or {shape[1:]}."
        )
    _refuse_infinite(values, "offset")
    return values
