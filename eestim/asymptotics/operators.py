"""Functionals when A is too large to store: least squares with A and A' as maps."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator, lsmr, minres

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.equations import EstimatingEquation
from eestim.errors import (
    ConvergenceError,
    IdentificationError,
    InterpolationError,
)

__all__ = [
    "AdjointSolution",
    "EquationOperators",
    "OperatorFunctional",
    "dense_operators",
    "design_operators",
    "operator_functional",
    "solve_adjoint",
]

_ESTIMABLE = 1e-6
_STOPPED_EARLY = 7
_LARGEST_SHOWN = 3
_MANY = 10_000_000  # parameters: 80 MB a vector in double precision
_COARSEST = 1e-6  # relative accuracy asked of MINRES in single precision
_FINEST = 1e-16  # relative accuracy that MINRES is asked for
_SYMMETRIC = 1e-4  # asymmetry that rounding in single precision explains


@dataclass(frozen=True, slots=True)
class AdjointSolution:
    r"""An iterative least-squares solution of :math:`A'c = g`, with its accuracy.

    Attributes
    ----------
    coefficients : (q,) array
        c, of minimum norm.
    relative_residual : float
        :math:`\|g - A'c\|/\|g\|`: the estimability residual once converged.
    stationarity : float
        :math:`\|A(g - A'c)\|/(\|A\|\|g - A'c\|)`: small at a least-squares
        solution, also if g is not estimable.
    condition : float
        Estimate of the condition number of A on its range; NaN by MINRES.
    n_iterations : int
        Steps: a product with A and one with A' each by LSMR, one with A by MINRES.
    residual : (P,) array
        g - A'c.
    """

    coefficients: Vector
    relative_residual: float
    stationarity: float
    condition: float
    n_iterations: int
    residual: Vector


@dataclass(frozen=True, slots=True)
class OperatorFunctional:
    """Standard error of an estimable functional without storing A.

    Attributes
    ----------
    se : float
        Standard error of h, that is ``sqrt(mean((c'psi_i)**2) / n)``.
    solve_error : float
        Bound on the change of the influence by the residual of the solve, relative
        to the standard error; NaN if no size of the error of theta was given.
    n_units : int
        Number of units.
    solution : AdjointSolution
        The solve and its accuracy.
    """

    se: float
    solve_error: float
    n_units: int
    solution: AdjointSolution


def solve_adjoint(
    A: Any,
    gradient: Any,
    *,
    tolerance: float = 1e-10,
    max_iterations: int | None = None,
    column_scale: Any = None,
    row_scale: Any = None,
    solver: Literal["lsmr", "minres"] = "lsmr",
) -> AdjointSolution:
    r"""Return c with :math:`A'c = g`, for A known through products only.

    LSMR is a least-squares method: unlike conjugate gradients it stays stable when A
    is singular or the system inconsistent, and it returns the minimum-norm solution.
    MINRES minimises the same residual over a Krylov space of a symmetric A, definite
    or not: one product a step, and steps by the condition of A in place of its square.

    Parameters
    ----------
    A : LinearOperator, sparse matrix or (q, P) array
        Sensitivity with products with A and A'.
    gradient : (P,) array
        Gradient of the functional.
    tolerance : float
        Relative accuracy at which iterations stop.
    max_iterations : int, optional
        By default forty times the smaller dimension and 100, at most 10,000: rounding
        costs many more steps than the dimension where A is ill-conditioned.
    column_scale, row_scale : (P,) and (q,) arrays, optional
        Positive factors that bring the columns and rows of A to one size, such as
        inverse root-mean-squares of the entries of psi. Parameters of very different
        size need them: an iterative method cannot tell a badly scaled direction
        from one that A does not see.
    solver : {"lsmr", "minres"}
        "minres" is for a symmetric A, such as that of a loss, with rows and columns
        scaled alike (`row_scale` is that of the columns).

    Raises
    ------
    ConvergenceError
        If the iterations stop before reaching the tolerance.
    ValueError
        If shapes do not fit, the gradient is zero, or "minres" is given an A that is
        not symmetric.

    References
    ----------
    Fong and Saunders (2011), SIAM J. Sci. Comput. 33, 2950-2971, section 2; Paige and
    Saunders (1975), SIAM J. Numer. Anal. 12, 617-629, section 6.

    Examples
    --------
    >>> solution = solve_adjoint(np.ones((2, 2)), [2.0, 2.0])
    >>> bool(np.allclose(solution.coefficients, [1.0, 1.0], rtol=1e-12))
    True
    """
    operator = aslinearoperator(A)
    g = check_finite(as_float(gradient, "gradient", ndim=1), "gradient")
    q, p = operator.shape
    if g.shape != (p,) or not g.any():
        raise ValueError(
            f"`gradient` has shape {g.shape}; give a nonzero vector of {p} entries."
        )
    scale = _factors(column_scale, p, "column_scale")
    limit = (
        min(40 * min(q, p) + 100, 10_000) if max_iterations is None else max_iterations
    )
    if solver == "minres":
        return _symmetric_solution(operator, g, scale, row_scale, tolerance, limit)
    if solver != "lsmr":
        raise ValueError(f"`solver` is {solver!r}; expected 'lsmr' or 'minres'.")
    rows = _factors(row_scale, q, "row_scale")
    adjoint = LinearOperator(
        (p, q),
        matvec=lambda c: scale * operator.rmatvec(rows * c),
        rmatvec=lambda t: rows * operator.matvec(scale * t),
        dtype=np.float64,
    )
    c, stop, n_iterations, _, norm_ar, norm_a, condition, _ = lsmr(
        adjoint, scale * g, atol=tolerance, btol=tolerance, conlim=1e14, maxiter=limit
    )
    residual = scale * g - adjoint.matvec(c)
    size = float(np.linalg.norm(residual))
    relative = size / float(np.linalg.norm(scale * g))
    stationarity = float(norm_ar) / max(float(norm_a) * size, 1e-300)
    if stop == _STOPPED_EARLY and relative > tolerance and stationarity > tolerance:
        raise ConvergenceError(
            f"`A` needs more than {limit} iterations: residual {relative:.1e}, "
            f"stationarity {stationarity:.1e}, condition {condition:.1e} (tolerance "
            f"{tolerance:.0e}). Give `column_scale` and `row_scale`, raise "
            "`max_iterations`, or accept a larger `tolerance`."
        )
    return AdjointSolution(
        coefficients=rows * c,
        relative_residual=relative,
        stationarity=stationarity,
        condition=float(condition),
        n_iterations=int(n_iterations),
        residual=residual / scale,
    )


def _symmetric_solution(
    operator: LinearOperator,
    g: Vector,
    scale: Vector,
    row_scale: Any,
    tolerance: float,
    limit: int,
) -> AdjointSolution:
    """Return the solution of D A D y = D g by MINRES, c = D y.

    SciPy stops relative to the size of A and y, which is looser than relative to g
    where A is ill-conditioned: the residual is made afresh and, where it is too
    large, solved for again. What is left of an inconsistent system is returned.

    The eight vectors of a MINRES step are in single precision where p is so large
    that they would fill a memory (`_MANY`): residuals are made in double, so the
    rounds refine what single precision leaves.
    """
    q, p = operator.shape
    if q != p or not (row_scale is None or np.array_equal(row_scale, scale)):
        raise ValueError(
            f"`solver` is 'minres' for A of shape {operator.shape}; it needs a square "
            "symmetric A, rows scaled as columns. Use 'lsmr'."
        )
    kind: type[np.floating[Any]] = np.float64 if p < _MANY else np.float32
    coarsest = 0.0 if p < _MANY else _COARSEST

    def product(y: Vector) -> Vector:
        found: Vector = operator.matvec(scale * y)
        return (scale * found).astype(kind, copy=False)

    scaled = LinearOperator((p, p), matvec=product, dtype=kind)
    taken = 0

    def count(_: Vector) -> None:
        nonlocal taken
        taken += 1

    residual, y = scale * g, np.zeros(p)
    size = float(np.linalg.norm(residual))
    relative, finer = 1.0, 0.1 * tolerance
    while relative > tolerance and finer > _FINEST and taken < limit:
        step, _ = minres(
            scaled,
            residual.astype(kind, copy=False),
            rtol=max(finer, coarsest),
            maxiter=limit - taken,
            callback=count,
        )
        there = y + step
        left = scale * (g - operator.rmatvec(scale * there))  # A', to be sure
        before, relative = relative, float(np.linalg.norm(left)) / size
        if relative > before:
            relative = before
            break
        y, residual = there, left
        finer *= 1.0 if relative < 0.5 * before else 0.01
    if relative > tolerance:
        _refuse_asymmetric(operator, p)
    if relative > tolerance and taken >= limit:
        raise ConvergenceError(
            f"`A` needs more than {limit} iterations: residual {relative:.1e} "
            f"(tolerance {tolerance:.0e}). Give `column_scale`, raise "
            "`max_iterations`, or accept a larger `tolerance`."
        )
    return AdjointSolution(
        coefficients=scale * y,
        relative_residual=relative,
        stationarity=float("nan"),
        condition=float("nan"),
        n_iterations=taken,
        residual=residual / scale,
    )


def _refuse_asymmetric(operator: LinearOperator, p: int) -> None:
    """Raise where u'Av and v'Au differ for one pair of random vectors."""
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal(p), rng.standard_normal(p)
    ahead, back = operator.matvec(v), operator.matvec(u)
    gap = abs(float(u @ ahead) - float(v @ back))
    size = float(np.linalg.norm(u) * np.linalg.norm(ahead))
    if gap > _SYMMETRIC * size:
        raise ValueError(
            f"`solver` is 'minres', but A is not symmetric (by {gap / size:.1e} of its "
            "size in a random pair of directions). Use 'lsmr'."
        )


def _factors(given: Any, length: int, argument: str) -> Vector:
    if given is None:
        return np.ones(length)
    factors = as_float(given, argument, ndim=1)
    if factors.shape != (length,) or not (factors > 0).all():
        raise ValueError(f"`{argument}` must hold {length} positive factors.")
    return factors


def _refuse(solution: AdjointSolution, names: Sequence[str] | None) -> None:
    size = np.abs(solution.residual)
    largest = np.argsort(-size)[:_LARGEST_SHOWN]
    labels = [names[j] if names is not None else f"theta[{j}]" for j in largest]
    direction = " ".join(
        f"{solution.residual[j] / size.max():+.3g}*{label}"
        for j, label in zip(largest, labels, strict=True)
    )
    raise IdentificationError(
        f"`gradient` is not estimable: {solution.relative_residual:.2e} of it lies "
        f"along directions that A does not see (limit {_ESTIMABLE:.0e}), mostly "
        f"{direction}. Report a functional that is constant along them, or give "
        "`column_scale` and `row_scale` if parameters differ much in size."
    )


def operator_functional(
    A: Any,
    psi_products: Callable[[Vector], Iterable[Vector]],
    gradient: Any,
    *,
    theta_error: float | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> OperatorFunctional:
    r"""Return the standard error of a functional without forming A, M or psi.

    .. math:: se^2 = n^{-2}\sum_i (c'\psi_i)^2, \quad A'c = g

    The solve leaves a residual :math:`r = g - A'c`, which changes the estimation
    error of h by at most :math:`\|r\|\,\|\hat\theta - \theta_0\|` to first order.

    Parameters
    ----------
    A : LinearOperator, sparse matrix or (q, P) array
        Sensitivity.
    psi_products : callable
        ``psi_products(c)`` yields blocks of the n numbers ``psi_i @ c``, for example
        one forward-mode pass over the data.
    gradient : (P,) array
        Gradient of the functional.
    theta_error : float, optional
        A size of the error of theta in the directions that A sees, for `solve_error`.
    names : sequence of str, optional
        Names of the parameters, for messages.
    **options
        Passed to `solve_adjoint`.

    Raises
    ------
    IdentificationError
        If the functional is not estimable; its largest entries are named.
    ConvergenceError
        If the solve does not converge.
    InterpolationError
        If the products vanish for every unit.

    Examples
    --------
    >>> psi = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    >>> operator_functional(np.eye(1), lambda c: [psi @ c], [1.0]).se
    0.5
    """
    solution = solve_adjoint(A, gradient, **options)
    if solution.relative_residual > max(_ESTIMABLE, 10 * options.get("tolerance", 0.0)):
        _refuse(solution, names)
    total, n_units = 0.0, 0
    for block in psi_products(solution.coefficients):
        values: Matrix = check_finite(as_float(block, "psi_products", ndim=1), "psi")
        total += float(values @ values)
        n_units += len(values)
    if n_units == 0:
        raise ValueError("`psi_products` yielded no units.")
    if not total > 0:
        raise InterpolationError(
            "`psi_products` are zero for every unit, so the standard error would be "
            "zero: the fit interpolates. Use psi of held-out units or a penalised fit."
        )
    se = float(np.sqrt(total)) / n_units
    bound = float("nan")
    if theta_error is not None:
        bound = float(np.linalg.norm(solution.residual)) * theta_error / se
    return OperatorFunctional(se, bound, n_units, solution)


# ------------------------------------------------------- A and psi of an equation


@dataclass(frozen=True, slots=True, eq=False)
class EquationOperators:
    r"""A and psi at one theta as linear maps; nothing of size P by P or n by P.

    Made by `design_operators`, `dense_operators`, and for torch by
    ``eestim.autodiff.surrogate_operators``.

    Attributes
    ----------
    sensitivity : LinearOperator, (q, P)
        ``matvec(v)`` is A v, ``rmatvec(c)`` is A'c.
    psi : LinearOperator, (n, q)
        ``matvec(c)`` holds c'psi_i of the n units, ``rmatvec(w)`` is
        :math:`\sum_i w_i\psi_i`.
    names : tuple of str, optional
        Of the P parameters, for messages.
    scale : (P,) array, optional
        Factors that bring the columns of A to one size (its rows too if q = P).
    """

    sensitivity: LinearOperator
    psi: LinearOperator
    names: Sequence[str] | None = None
    scale: Vector | None = None

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return int(self.psi.shape[0])

    def mean_psi(self) -> Vector:
        """Return the mean of psi, (q,)."""
        return np.asarray(self.psi.rmatvec(np.ones(self.n_units))) / self.n_units

    def functional(
        self, gradient: Any, *, theta_error: float | None = None, **options: Any
    ) -> "OperatorFunctional":
        """Return the standard error of a functional of this gradient.

        Parameters
        ----------
        gradient : (P,) array
        theta_error, **options
            See `operator_functional` and `solve_adjoint`.

        Raises
        ------
        IdentificationError, ConvergenceError, InterpolationError
            See `operator_functional`.
        """
        q, p = self.sensitivity.shape
        if self.scale is not None:
            options.setdefault("column_scale", self.scale)
            if q == p:
                options.setdefault("row_scale", self.scale)
        return operator_functional(
            self.sensitivity,
            lambda c: [self.psi.matvec(c)],
            gradient,
            theta_error=theta_error,
            names=self.names,
            **options,
        )


def design_operators(
    X: Any, weight: Any, residual: Any, names: Sequence[str] | None = None
) -> EquationOperators:
    r"""Return A and psi of a regression as maps, for dense or sparse X.

    .. math:: \psi_i = x_i r_i, \quad A = n^{-1} X'\mathrm{diag}(w)X

    Parameters
    ----------
    X : (n, P) array, sparse array or LinearOperator
        Design.
    weight : (n,) array
        Minus the derivative of each residual in the linear predictor.
    residual : (n,) array
        What multiplies the row in psi.
    names : sequence of str, optional

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> maps = design_operators(np.ones((4, 1)), np.ones(4), [1.0, -1.0, 1.0, -1.0])
    >>> maps.functional([1.0]).se
    0.5
    """
    design = aslinearoperator(X)
    w = check_finite(as_float(weight, "weight", ndim=1), "weight")
    r = check_finite(as_float(residual, "residual", ndim=1), "residual")
    n, p = design.shape
    if w.shape != (n,) or r.shape != (n,):
        raise ValueError(
            f"`X` is {design.shape}, `weight` {w.shape}, `residual` {r.shape}; give "
            "one weight and residual for each row."
        )

    def product(v: Vector) -> Vector:
        made: Vector = design.rmatvec(w * design.matvec(v.ravel())) / n
        return made

    return EquationOperators(
        LinearOperator((p, p), matvec=product, rmatvec=product, dtype=np.float64),
        LinearOperator(
            (n, p),
            matvec=lambda c: r * design.matvec(c.ravel()),
            rmatvec=lambda v: design.rmatvec(r * v.ravel()),
            dtype=np.float64,
        ),
        names,
    )


def dense_operators(equation: EstimatingEquation, theta: Any) -> EquationOperators:
    """Return the maps of an equation that has psi and A as arrays.

    The dense twin of the other routes: it stores both, and gives the same numbers.

    Parameters
    ----------
    equation : EstimatingEquation
    theta : (P,) array
        Where to evaluate.

    Examples
    --------
    >>> import eestim as ee
    >>> maps = dense_operators(ee.mean([1.0, 2.0, 6.0]), [3.0])
    >>> maps.mean_psi()
    array([0.])
    """
    at = check_finite(as_float(theta, "theta", ndim=1), "theta")
    return EquationOperators(
        aslinearoperator(equation.sensitivity(at)),
        aslinearoperator(equation.psi(at)),
        tuple(equation.names),
    )
