"""Estimating equations whose psi is a function of torch tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.sparse.linalg import aslinearoperator
from torch.func import jacfwd, jacrev, jvp, vjp

from eestim._arrays import IntVector, Matrix, Vector, check_psi
from eestim.asymptotics.operators import EquationOperators
from eestim.autodiff.tensors import linear_map, to_float64
from eestim.equations import Blocks, column_of
from eestim.equations._inputs import checked_inputs
from eestim.errors import DataError
from eestim.weights import Frequency, Weights

__all__ = ["TorchEquation", "equation"]

Mode = Literal["forward", "reverse"]


class _Named:
    """A tensor of parameters whose blocks are read by name, as in NumPy equations."""

    def __init__(self, theta: torch.Tensor, places: Blocks) -> None:
        self.theta, self.places = theta, places

    def __getitem__(self, key: Any) -> torch.Tensor:
        if not isinstance(key, str):
            return self.theta[key]
        if key not in self.places:
            raise KeyError(
                f"no block {key!r} in theta; blocks are {sorted(self.places)}"
            )
        where, shape = self.places[key]
        return self.theta[where].reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class TorchEquation:
    """An estimating equation whose psi is a torch function; made by `equation`."""

    function: Callable[[Any, Any], torch.Tensor]
    tensors: Mapping[str, torch.Tensor]
    data: Any
    start: Vector
    names: tuple[str, ...]
    block_places: Blocks
    n_rows: int
    mode: Mode
    unit_codes: IntVector | None
    row_weights: Vector | None
    dtype: torch.dtype
    device: torch.device

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return (
            self.n_rows if self.unit_codes is None else int(self.unit_codes.max()) + 1
        )

    def _tensor(self, theta: Vector) -> torch.Tensor:
        return torch.as_tensor(np.array(theta), dtype=self.dtype, device=self.device)

    def _rows(self, theta: torch.Tensor) -> torch.Tensor:
        named = _Named(theta, self.block_places) if self.block_places else theta
        rows = self.function(named, self.tensors)
        if self.row_weights is not None:
            rows = rows * self._tensor(self.row_weights)[:, None]
        return rows

    def _units(self, theta: torch.Tensor) -> torch.Tensor:
        rows = self._rows(theta)
        if self.unit_codes is None:
            return rows
        codes = torch.as_tensor(self.unit_codes, device=self.device)
        empty = torch.zeros(
            (self.n_units, rows.shape[1]), dtype=rows.dtype, device=self.device
        )
        return empty.index_add(0, codes, rows)

    def _mean(self, theta: torch.Tensor) -> torch.Tensor:
        return self._rows(theta).sum(dim=0) / self.n_units

    def psi_rows(self, theta: Vector) -> Matrix:
        """Return contributions before rows are summed within units."""
        return check_psi(to_float64(self._rows(self._tensor(theta))), self.n_rows)

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units, (n, q)."""
        return check_psi(to_float64(self._units(self._tensor(theta))), self.n_units)

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi, exactly, (q, p)."""
        return -to_float64(_jacobian(self._mean, self.mode)(self._tensor(theta)))

    def unit_sensitivity(self, theta: Vector) -> Matrix:
        """Return minus the derivative of each unit's psi, (n, q, p)."""
        return -to_float64(_jacobian(self._units, "forward")(self._tensor(theta)))

    def operators(self, theta: Vector) -> EquationOperators:
        """Return A and psi at theta as maps: A is never formed, psi is."""
        point = self._tensor(theta)
        value = self._mean(point)
        pull: Any = vjp(self._mean, point)[1]
        rows = self.psi(theta)

        def forward(v: Vector) -> Vector:
            along = self._tensor(v).reshape(point.shape)
            return -to_float64(jvp(self._mean, (point,), (along,))[1])

        def backward(c: Vector) -> Vector:
            return -to_float64(pull(self._tensor(c).reshape(value.shape))[0])

        shape = (int(value.numel()), int(point.numel()))
        A = linear_map(shape, forward, backward)
        return EquationOperators(A, aslinearoperator(rows), self.names)

    def column(self, name: str) -> Any:
        """Return a column of the data by name."""
        return column_of(self.data, name)


def _jacobian(
    function: Callable[[torch.Tensor], torch.Tensor], mode: Mode
) -> Callable[[torch.Tensor], torch.Tensor]:
    made: Callable[[torch.Tensor], torch.Tensor] = (
        jacfwd(function) if mode == "forward" else jacrev(function)
    )
    return made


def _cheaper_mode(p: int, q: int) -> Mode:
    """Return the mode with fewer passes: one a parameter, or one an equation."""
    return "forward" if p <= q else "reverse"


def _tensors(
    data: Any, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    made = {}
    for name in data:
        array = np.asarray(data[name])
        if array.dtype.kind in "fiub":
            kind = dtype if array.dtype.kind == "f" else None
            made[str(name)] = torch.as_tensor(array.copy(), dtype=kind, device=device)
    return made


def equation(
    psi: Callable[[Any, Any], torch.Tensor],
    data: Mapping[str, Any] | pd.DataFrame,
    start: Any,
    *,
    names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    units: Any = None,
    weights: Weights | None = None,
    mode: Literal["auto", "forward", "reverse"] = "auto",
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> TorchEquation:
    r"""Return the estimating equation of a psi written in torch, with exact A.

    Parameters
    ----------
    psi : callable
        ``psi(theta, data) -> (n, q)`` tensor; ``data`` holds the numeric columns as
        tensors.
    data : mapping of arrays, or DataFrame
    start : vector, number, or mapping of named blocks
    names, units, weights : as in `eestim.equation`
    mode : {"auto", "forward", "reverse"}
        How A is differentiated; "auto" takes forward mode (a pass a parameter) where
        there are no more parameters than equations, else reverse mode.
    dtype : torch dtype
        Of the computation; the results are float64 arrays.
    device : str or torch.device

    Raises
    ------
    DataError
        If the data, the start or the shape of psi cannot be used.

    Examples
    --------
    >>> import torch, eestim as ee
    >>> def psi(theta, data):
    ...     return (torch.exp(theta[0]) - data["y"])[:, None]
    >>> fit = ee.estimate(equation(psi, {"y": [1.0, 2.0, 6.0]}, [0.0]))
    >>> float(fit.params.iloc[0].round(6))  # log of the mean, 3
    1.098612
    """
    given = checked_inputs(data, start, names, units, weights)
    values, n_rows = given.row_weights, given.n_rows
    place = torch.device(device)
    tensors = _tensors(given.data, dtype, place)
    point = torch.as_tensor(given.start, dtype=dtype, device=place)
    first = psi(_Named(point, given.places) if given.places else point, tensors)
    if not isinstance(first, torch.Tensor):
        raise DataError(
            f"`psi` returned {type(first).__name__}; a torch tensor was expected (for "
            "NumPy functions use eestim.equation)."
        )
    rows = check_psi(to_float64(first), n_rows)
    codes, repeated = given.unit_codes, _repeated(values, weights)
    if repeated is not None:
        return equation(
            psi,
            _rows_of(given.data, repeated),
            start,
            names=names,
            units=None if codes is None else codes[repeated],
            mode=mode,
            dtype=dtype,
            device=device,
        )
    if values is not None:
        values = values * (n_rows / values.sum())
    chosen = mode if mode != "auto" else _cheaper_mode(len(given.start), rows.shape[1])
    return TorchEquation(
        psi,
        tensors,
        given.data,
        given.start,
        given.names,
        given.places,
        n_rows,
        chosen,
        codes,
        values,
        dtype,
        place,
    )


def _rows_of(data: Any, rows: IntVector) -> dict[str, Any]:
    return {str(name): np.asarray(data[name])[rows] for name in data}


def _repeated(values: Vector | None, weights: Weights | None) -> IntVector | None:
    """Return the rows written out in full under frequency weights, else None."""
    if values is None or not isinstance(weights, Frequency):
        return None
    return np.repeat(np.arange(len(values)), values.astype(int))
