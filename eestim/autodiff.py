"""Estimating equations written in torch: exact derivatives on any device.

The core sees float64 NumPy arrays only; tensors, devices and precisions stay here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch.func import functional_call, grad, jacfwd, jacrev

from eestim._arrays import IntVector, Matrix, Vector, check_psi
from eestim.equations import (
    Blocks,
    checked_data,
    column_of,
    labels_of,
    named_blocks,
)
from eestim.errors import DataError
from eestim.moments import Moments
from eestim.weights import Frequency, Weights, aligned_weights

__all__ = ["ModuleEquation", "TorchEquation", "equation", "from_module", "to_float64"]

Mode = Literal["forward", "reverse"]


def to_float64(tensor: torch.Tensor) -> Matrix:
    """Return a tensor of any device and precision as a float64 array."""
    array: Matrix = tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
    return array


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
    if isinstance(data, Mapping):
        data = {
            name: np.asarray(value) if isinstance(value, list | tuple) else value
            for name, value in data.items()
        }
    n_rows = checked_data(data)
    vector, places, labels = named_blocks(start, names)
    codes = None
    if units is not None:
        given = column_of(data, units) if isinstance(units, str) else units
        codes, _ = labels_of(given, "units", n_rows)
    values = aligned_weights(weights, data, n_rows)
    place = torch.device(device)
    tensors = _tensors(data, dtype, place)
    named = torch.as_tensor(vector, dtype=dtype, device=place)
    first = psi(_Named(named, places) if places else named, tensors)
    if not isinstance(first, torch.Tensor):
        raise DataError(
            f"`psi` returned {type(first).__name__}; a torch tensor was expected (for "
            "NumPy functions use eestim.equation)."
        )
    rows = check_psi(to_float64(first), n_rows)
    repeated = _repeated(values, weights)
    if repeated is not None:
        return equation(
            psi,
            _rows_of(data, repeated),
            start,
            names=names,
            units=None if codes is None else codes[repeated],
            mode=mode,
            dtype=dtype,
            device=device,
        )
    if values is not None:
        values = values * (n_rows / values.sum())
    chosen = mode if mode != "auto" else _cheaper_mode(len(vector), rows.shape[1])
    return TorchEquation(
        psi,
        tensors,
        data,
        vector,
        labels,
        places,
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


# ------------------------------------------------------------------ torch modules


@dataclass(frozen=True, slots=True, eq=False)
class ModuleEquation:
    """Per-unit gradients of a loss of a torch module; made by `from_module`."""

    module: torch.nn.Module
    loss: Callable[[torch.nn.Module, Any], torch.Tensor]
    batches: Sequence[Any]
    names: tuple[str, ...]
    start: Vector
    n_units: int

    def _parameters(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        parts, position = {}, 0
        for name, value in self.module.named_parameters():
            if value.requires_grad:
                parts[name] = theta[position : position + value.numel()].view_as(value)
                position += value.numel()
        return parts

    def _losses(self, theta: torch.Tensor, batch: Any) -> torch.Tensor:
        caller = _Caller(self.module, self._parameters(theta))
        return self.loss(caller, batch)  # type: ignore[arg-type]

    def _tensor(self, theta: Vector) -> torch.Tensor:
        first = next(self.module.parameters())
        return torch.as_tensor(np.array(theta), dtype=first.dtype, device=first.device)

    def psi(self, theta: Vector) -> Matrix:
        """Return minus the gradient of each unit's loss, (n, p)."""
        point = self._tensor(theta)
        rows = [
            -to_float64(jacrev(lambda t, b=batch: self._losses(t, b))(point))
            for batch in self.batches
        ]
        return check_psi(np.concatenate(rows), self.n_units, self.names)

    def _hessian(self, point: torch.Tensor, batch: Any) -> Matrix:
        total = grad(lambda t: self._losses(t, batch).sum())
        return to_float64(jacfwd(total)(point))

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, the mean Hessian of the loss, (p, p)."""
        point = self._tensor(theta)
        total = sum(self._hessian(point, batch) for batch in self.batches)
        return np.asarray(total) / self.n_units

    def moments(self, theta: Vector) -> Moments:
        """Return the moments of psi, batch by batch: no (n, p) array is kept."""
        point, merged = self._tensor(theta), None
        for batch in self.batches:
            psi = -to_float64(jacrev(lambda t, b=batch: self._losses(t, b))(point))
            size = len(psi)
            part = Moments(
                size,
                psi.mean(axis=0),
                psi.T @ psi / size,
                self._hessian(point, batch) / size,
            )
            merged = part if merged is None else merged + part
        if merged is None:
            raise DataError("`batches` is empty.")
        return merged


class _Caller:
    """A module called with given parameters, as `loss` sees it."""

    def __init__(
        self, module: torch.nn.Module, parameters: dict[str, torch.Tensor]
    ) -> None:
        self.module, self.parameters_by_name = module, parameters

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return functional_call(self.module, self.parameters_by_name, arguments, options)


def from_module(
    module: torch.nn.Module,
    loss: Callable[[Any, Any], torch.Tensor],
    batches: Iterable[Any],
) -> ModuleEquation:
    r"""Return the equation :math:`\psi_i = -\nabla_\theta \ell_i(\theta)` of a module.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters that require gradients are theta; use float64 and
        ``attn_implementation="eager"`` for exact second derivatives.
    loss : callable
        ``loss(module, batch) -> (B,)``, the loss of each independent unit of a batch;
        it calls the module it is given.
    batches : iterable
        Batches of units; kept in memory.

    Raises
    ------
    DataError
        If there is no parameter or no batch, or the loss is not one number a unit.

    Examples
    --------
    >>> import torch, eestim as ee
    >>> line = torch.nn.Linear(1, 1).double()
    >>> x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    >>> y = 1 + 2 * x[:, 0] + torch.sin(40 * x[:, 0])
    >>> def loss(module, batch):
    ...     return (batch[1] - module(batch[0])[:, 0]) ** 2 / 2
    >>> fit = ee.estimate(from_module(line, loss, [(x, y)]))
    >>> fit.names
    ('weight[0,0]', 'bias[0]')
    """
    kept = list(batches)
    labels: list[str] = []
    values: list[Vector] = []
    for name, value in module.named_parameters():
        if value.requires_grad:
            places = np.ndindex(*value.shape)
            labels += [f"{name}[{','.join(map(str, at))}]" for at in places]
            values.append(to_float64(value).ravel())
    if not labels or not kept:
        raise DataError("`module` needs parameters to estimate and `batches` a batch.")
    count = 0
    for batch in kept:
        with torch.no_grad():
            losses = loss(module, batch)
        if losses.ndim != 1:
            raise DataError(
                f"`loss` returned shape {tuple(losses.shape)}; one number for each "
                'unit was expected (reduction="none", summed within units).'
            )
        count += len(losses)
    return ModuleEquation(
        module, loss, kept, tuple(labels), np.concatenate(values), count
    )
