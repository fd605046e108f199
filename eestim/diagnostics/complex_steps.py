r"""Derivatives of psi by complex steps, where psi is shown to be analytic.

The imaginary part of :math:`\psi(\theta + i h v)` is :math:`h \psi'(\theta) v`, without
the cancellation of a difference, so that h can be far below rounding. It is a
derivative only where psi is analytic: an absolute value, a real part or a conjugate
inside psi gives a wrong number and no error. Therefore psi is also looked at on a
circle around theta, whose Fourier terms of negative order vanish for an analytic psi
and for no other, and the first of which is its derivative a second time.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from eestim._arrays import Matrix, Vector
from eestim._differentiate import response_steps
from eestim.equations import EstimatingEquation, UserEquation
from eestim.errors import CapabilityError

__all__ = ["complex_step_sensitivity", "complex_steps_along"]

_Complex: TypeAlias = npt.NDArray[np.complex128]
_Rows: TypeAlias = Callable[[npt.NDArray[Any]], Any]

_TINY = 2.0**-66  # of a step: its square is far below rounding
_NODES = np.exp(2j * np.pi * np.arange(8) / 8)  # terms of order r^7 are folded on -1
_VANISHING = (-1, -2, -3)  # orders of an analytic function's Fourier terms that vanish
_LEAK = 1e-8  # of the slope: what of these terms passes as rounding
_AGREE = 1e-6  # of the slope: the circle and the complex step
_SAME = 1e-10  # of psi: its values at real and at complex theta
_ROUNDING = 64 * np.finfo(np.float64).eps
_SHRINKINGS = 5  # by 8, where a kink lies within the circle


def complex_step_sensitivity(equation: EstimatingEquation, theta: Any) -> Matrix:
    r"""Return A by complex steps, (q, p), exact to rounding.

    .. math:: A_{kj} = - \mathrm{Im}\, \bar\psi_k(\theta + i h e_j) / h

    For psi written in NumPy operations that take complex numbers. Along every axis psi
    must be analytic at theta, which is checked for each unit: the terms of order -1,
    -2 and -3 of psi on a circle around theta must be below 1e-8 of the slope, and its
    term of order 1 must agree with the complex step.

    Parameters
    ----------
    equation : EstimatingEquation
    theta : (p,) array

    Raises
    ------
    CapabilityError
        If psi refuses complex numbers, loses their imaginary part, is not analytic
        (``abs``, ``.real``, ``conj``, a kink at theta) or jumps. Use central
        differences or automatic differentiation there.

    References
    ----------
    Squire and Trapp (1998), SIAM Review 40, 110-112; Martins, Sturdza and Alonso
    (2003), ACM Trans. Math. Softw. 29, 245-262.

    Examples
    --------
    >>> import eestim as ee
    >>> eq = ee.equation(lambda t, d: d["y"][:, None] - np.exp(t), {"y": [1.0, 2]}, [0])
    >>> complex_step_sensitivity(eq, [0.5]) == np.exp([[0.5]])
    array([[ True]])
    """
    at = np.asarray(theta, dtype=np.float64)
    steps = response_steps(equation.psi, at)
    if (steps < 0).any():
        raise CapabilityError("psi jumps near theta, so it has no complex step.")
    slopes = complex_steps_along(equation, at, np.diag(steps))
    return -slopes / steps


def complex_steps_along(
    equation: EstimatingEquation, theta: Vector, directions: Matrix
) -> Matrix:
    """Return the derivative of mean psi along each column of directions, (q, m).

    Directions are as long as a step that moves psi by about a thousandth. Errors are
    those of `complex_step_sensitivity`.
    """
    rows, weights = _rows_of(equation), _mean_weights(equation)
    base = _evaluated(rows, theta.astype(np.complex128))
    _check_base(base, np.asarray(rows(theta), dtype=np.float64))
    slopes = [_slope(rows, theta, way, base) for way in np.asarray(directions).T]
    return np.stack([weights @ slope for slope in slopes], axis=1)


def _rows_of(equation: EstimatingEquation) -> _Rows:
    """Return psi of rows as a function of real or complex theta."""
    if not isinstance(equation, UserEquation):
        return equation.psi
    function, data, places = equation.function, equation.data, equation.block_places
    return lambda theta: function(_NamedParameters.of(theta, places), data)


def _mean_weights(equation: EstimatingEquation) -> Vector:
    """Return what rows are multiplied by before they are added to mean psi."""
    if not isinstance(equation, UserEquation):
        return np.full(equation.n_units, 1.0 / equation.n_units)
    given = equation.row_weights
    weights = np.ones(equation.n_rows) if given is None else given
    scaled: Vector = weights / equation.n_units
    return scaled


class _NamedParameters(np.ndarray[Any, np.dtype[Any]]):
    """Parameters read by name, like those of `ee.equation`, real or complex."""

    blocks: Mapping[str, tuple[slice, tuple[int, ...]]]

    @classmethod
    def of(
        cls,
        theta: npt.NDArray[Any],
        blocks: Mapping[str, tuple[slice, tuple[int, ...]]],
    ) -> Any:
        """Return theta itself where it has no named blocks."""
        if not blocks:
            return theta
        view = theta.view(cls)
        view.blocks = blocks
        return view

    def __array_finalize__(self, source: Any) -> None:
        self.blocks = getattr(source, "blocks", {})

    def __getitem__(self, key: Any) -> Any:
        values = np.asarray(self)
        if not isinstance(key, str):
            return values[key]
        where, shape = self.blocks[key]
        return values[where].reshape(shape) if shape else values[where][0].item()


def _evaluated(rows: _Rows, theta: npt.NDArray[Any]) -> _Complex:
    """Return psi at complex theta; what drops an imaginary part is an error."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            values = np.asarray(rows(theta))
    except Exception as error:  # of whatever kind the user's function raises
        said = (str(error).splitlines() or [""])[0]
        raise CapabilityError(
            f"psi does not take complex theta ({type(error).__name__}: {said})."
        ) from error
    if values.dtype.kind != "c":
        raise CapabilityError(
            "psi returns real numbers at complex theta: it takes absolute values or "
            "real parts, or converts to float."
        )
    return values.astype(np.complex128)


def _check_base(base: _Complex, real: Matrix) -> None:
    """Raise where psi is another function of complex than of real numbers."""
    if base.shape != real.shape:
        raise CapabilityError(
            f"psi has shape {base.shape} at complex theta and {real.shape} at real."
        )
    size = np.abs(real) + _rms(real)
    if not (np.abs(base - real) <= _SAME * size).all():
        raise CapabilityError("psi takes other values at complex theta than at real.")


def _rms(values: npt.NDArray[Any]) -> Vector:
    size: Vector = np.sqrt(np.mean(np.abs(values) ** 2, axis=0))
    return size


def _slope(rows: _Rows, theta: Vector, way: Vector, base: _Complex) -> Matrix:
    """Return the derivative of each row along a direction, (n, q)."""
    rounding = _ROUNDING * (np.abs(base) + _rms(base))
    length = 1.0
    for _ in range(_SHRINKINGS):
        first, leak = _circle(rows, theta, length * way, base)
        size = _rms(first)
        if (leak <= _LEAK * size + rounding).all():
            break
        length /= 8.0
    else:
        raise CapabilityError(
            f"psi is not analytic in equation {_worst(leak, size)}: it takes absolute "
            "values, real parts or conjugates, has a kink at theta, or is rounded."
        )
    slope = _evaluated(rows, theta + 1j * _TINY * way).imag / _TINY
    gap = np.abs(length * slope - first)
    if not (gap <= _AGREE * size + rounding).all():
        raise CapabilityError(
            f"psi has a kink at theta in equation {_worst(gap, size)}: its complex "
            "step differs from its values around theta."
        )
    return slope


def _circle(
    rows: _Rows, theta: Vector, way: Vector, base: _Complex
) -> tuple[_Complex, Matrix]:
    """Return the Fourier term of order 1 on a circle, and the largest that vanish."""
    orders = (1, *_VANISHING)
    terms = [np.zeros_like(base) for _ in orders]
    for node in _NODES:
        change = _evaluated(rows, theta + node * way) - base
        for term, order in zip(terms, orders, strict=True):
            term += change * (node**-order / len(_NODES))
    return terms[0], np.max(np.abs(terms[1:]), axis=0)


def _worst(leak: Matrix, size: Vector) -> int:
    """Return the column in which most is left, relative to its slope."""
    left = np.where(np.isfinite(leak), leak, np.inf).max(axis=0)
    return int(np.argmax(left / np.maximum(size, np.finfo(np.float64).tiny)))
