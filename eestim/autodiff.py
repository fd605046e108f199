"""Estimating equations written in torch: exact derivatives on any device.

The core sees float64 NumPy arrays only; tensors, devices and precisions stay here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from eestim._arrays import IntVector, Matrix, Vector, check_psi
from eestim.asymptotics.operators import EquationOperators
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

__all__ = [
    "ModuleEquation",
    "TorchEquation",
    "equation",
    "from_module",
    "functional_gradient",
    "surrogate_operators",
    "to_float64",
]

Mode = Literal["forward", "reverse"]
Tensors = dict[str, torch.Tensor]
Surrogate = Callable[[Tensors, Tensors, Any], torch.Tensor]


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
        A = _linear(shape, forward, backward)
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

    def operators(self, theta: Vector) -> EquationOperators:
        """Return A and psi at theta as maps (`surrogate_operators`), for many p."""
        parameters = self._parameters(self._tensor(theta))

        def losses(moving: Tensors, _still: Tensors, batch: Any) -> torch.Tensor:
            return self.loss(_Caller(self.module, moving), batch)  # type: ignore[arg-type]

        return surrogate_operators(losses, parameters, self.batches)

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


# ------------------------------------------------------- A and psi as linear maps

_PROBES = 4  # sign vectors that measure the size of psi in each tensor


@dataclass(frozen=True, slots=True, eq=False)
class _SurrogateMaps:
    """Products with A, A' and psi of a surrogate, batch by batch."""

    surrogate: Surrogate
    point: Tensors
    batches: Callable[[], Iterable[Any]]
    codes: IntVector | None
    n_units: int
    kind: Literal["observed", "expected"]

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return sum(value.numel() for value in self.point.values())

    def split(self, vector: Vector) -> Tensors:
        """Return a vector as tensors of the shapes and types of the parameters."""
        parts, begin = {}, 0
        flat = np.asarray(vector, dtype=np.float64).ravel()
        for name, value in self.point.items():
            piece = flat[begin : begin + value.numel()].reshape(value.shape)
            parts[name] = torch.as_tensor(piece).to(value)
            begin += value.numel()
        return parts

    def add(self, total: Vector, tensors: Iterable[torch.Tensor | None]) -> None:
        """Add tensors to a float64 vector in place; None counts as zero."""
        begin = 0
        for value, found in zip(self.point.values(), tensors, strict=True):
            if found is not None:
                part = to_float64(found).ravel()
                total[begin : begin + value.numel()] += part
            begin += value.numel()

    def leaves(self) -> Tensors:
        """Return a copy of the parameters that records gradients."""
        return {n: v.detach().clone().requires_grad_() for n, v in self.point.items()}

    def each(self) -> Iterator[Any]:
        """Yield the batches, with attention that has second derivatives."""
        for batch in self.batches():
            with sdpa_kernel(SDPBackend.MATH):
                yield batch

    def apply(self, vector: Vector) -> Vector:
        """Return A v = -mean jvp of [t -> grad_u S(u, t) at u = t], psi = -grad_u S."""
        direction, total = self.split(vector), np.zeros(self.size)
        for batch in self.each():

            def slope(still: Tensors, batch: Any = batch) -> Tensors:
                moving = self.point if self.kind == "expected" else still
                made = grad(lambda u: self.surrogate(u, still, batch).sum())(moving)
                return dict(made)

            found = jvp(slope, (self.point,), (direction,))[1]
            self.add(total, found.values())
        return total / self.n_units

    def apply_transpose(self, vector: Vector) -> Vector:
        """Return A'c, the gradient in t of mean c'grad_u S(u, t), u moving with t."""
        weights, total = self.split(vector), np.zeros(self.size)
        for batch in self.each():
            moving, still = self.leaves(), self.leaves()
            value = self.surrogate(moving, still, batch).sum()
            slopes = torch.autograd.grad(
                value, list(moving.values()), create_graph=True, materialize_grads=True
            )
            inner = torch.stack(
                [(s * w).sum() for s, w in zip(slopes, weights.values(), strict=True)]
            ).sum()
            if not inner.requires_grad:  # linear in every parameter
                continue
            copies = [still] if self.kind == "expected" else [moving, still]
            leaves = [leaf for copy in copies for leaf in copy.values()]
            found = torch.autograd.grad(inner, leaves, allow_unused=True)
            for begin in range(0, len(leaves), len(self.point)):
                self.add(total, found[begin : begin + len(self.point)])
        return total / self.n_units

    def project(self, vector: Vector) -> Vector:
        """Return c'psi_i of every unit: one forward-mode pass, t held still."""
        direction, parts = self.split(vector), []
        for batch in self.each():
            slope = jvp(
                lambda u, b=batch: self.surrogate(u, self.point, b),
                (self.point,),
                (direction,),
            )[1]
            parts.append(-to_float64(slope))
        return self.summed(np.concatenate(parts))

    def combine(self, weights: Vector) -> Vector:
        """Return sum_i w_i psi_i, one backward pass."""
        given = np.asarray(weights, dtype=np.float64).ravel()
        by_row = given if self.codes is None else given[self.codes]
        total, begin = np.zeros(self.size), 0
        for batch in self.each():
            moving = self.leaves()
            values = self.surrogate(moving, self.point, batch)
            chunk = by_row[begin : begin + len(values)]
            begin += len(values)
            found = torch.autograd.grad(
                -(values * torch.as_tensor(chunk).to(values)).sum(),
                list(moving.values()),
                allow_unused=True,
            )
            self.add(total, found)
        return total

    def summed(self, rows: Vector) -> Vector:
        """Return rows summed within units."""
        if self.codes is None:
            return rows
        total: Vector = np.zeros(self.n_units)
        np.add.at(total, self.codes, rows)
        return total

    def sizes(self, rng: np.random.Generator) -> Vector:
        r"""Return the inverse root mean square of psi, one number a tensor, (P,).

        :math:`\sum_i\epsilon_i\psi_i` of random signs has the squares of psi as its
        expected square; within a tensor they are averaged.
        """
        square = np.zeros(self.size)
        for _ in range(_PROBES):
            signs: Vector = rng.choice(np.array([-1.0, 1.0]), self.n_units)
            square += self.combine(signs) ** 2 / (_PROBES * self.n_units)
        scale, begin = np.ones(self.size), 0
        for value in self.point.values():
            own = slice(begin, begin + value.numel())
            mean = float(square[own].mean()) if value.numel() else 0.0
            scale[own] = mean**-0.5 if mean > 0 else 1.0
            begin += value.numel()
        return scale


def _linear(
    shape: tuple[int, int],
    forward: Callable[[Vector], Vector],
    backward: Callable[[Vector], Vector],
) -> LinearOperator:
    return LinearOperator(shape, matvec=forward, rmatvec=backward, dtype=np.float64)


def surrogate_operators(
    surrogate: Surrogate,
    parameters: Mapping[str, torch.Tensor],
    batches: Sequence[Any] | Callable[[], Iterable[Any]],
    *,
    units: Any = None,
    kind: Literal["observed", "expected"] = "observed",
    balance: bool = True,
    seed: int = 0,
) -> EquationOperators:
    r"""Return A and psi as maps, for an equation given by its surrogate S(u, t).

    .. math:: \psi_i(\theta) = -\partial_u S_i(u, t)|_{u=t=\theta}, \quad
       A = -\frac1n\sum_i \frac{d\psi_i}{d\theta'}

    u is the copy that the equation differentiates, t the copy that it holds still (what
    `detach` or a stopped gradient would mark). A moves both: the second derivative of
    S with t detached is another matrix. Each product is one pass over the batches:

    ================================  ===========================================
    ``.sensitivity.matvec(v)``        A v, forward over reverse
    ``.sensitivity.rmatvec(c)``       A'c, reverse over reverse
    ``.psi.matvec(c)``                c'psi_i of every unit, forward mode
    ``.psi.rmatvec(w)``               :math:`\sum_i w_i\psi_i`, reverse mode
    ``.functional(gradient)``         A'c = g by LSMR, then the standard error
    ================================  ===========================================

    No array of n by P or P by P is formed: memory is that of one batch and a dozen
    vectors of length P, summed in float64.

    Parameters
    ----------
    surrogate : callable
        ``surrogate(u, t, batch) -> (B,)``, one value a row. u and t are dicts of
        tensors as `parameters`; nothing may be detached inside, and repeated calls
        with one batch must give one value (fix the seed of its draws). For a plain
        loss ignore t.
    parameters : mapping of str to tensor
        Theta, a flat dict; vectors are its tensors in order, each flattened.
    batches : sequence, or callable returning an iterable
        Batches of rows; a callable is asked again for every pass.
    units : (n_rows,) integer array, optional
        Unit of each row, 0 to n - 1, in the order of the batches; by default each row
        is one unit.
    kind : {"observed", "expected"}
        "expected" differentiates through t only, which drops the curvature weighted
        by residuals: right at a correct model, where it has less noise.
    balance : bool
        Measure one scale for each tensor, so that the solve does not depend on the
        size of parameters (four backward passes).
    seed : int
        Of the random signs of `balance`.

    Raises
    ------
    DataError
        If there is no parameter or no batch, the surrogate is not one number a row,
        or `units` does not fit.

    References
    ----------
    Pearlmutter (1994), Neural Computation 6, 147-160, for products with second
    derivatives; Fong and Saunders (2011), SIAM J. Sci. Comput. 33, for LSMR.

    Examples
    --------
    >>> import torch
    >>> y = torch.tensor([1.0, 2.0, 6.0, 7.0], dtype=torch.float64)
    >>> def squares(u, t, batch):
    ...     return (batch - u["mean"]) ** 2 / 2
    >>> at = {"mean": torch.tensor(4.0, dtype=torch.float64)}
    >>> maps = surrogate_operators(squares, at, [y[:2], y[2:]])
    >>> round(maps.functional([1.0]).se ** 2, 12)  # variance 6.5 over n = 4
    1.625
    """
    if kind not in ("observed", "expected"):
        raise ValueError(f"`kind` is {kind!r}; expected 'observed' or 'expected'.")
    point = {str(name): value.detach() for name, value in parameters.items()}
    again = batches if callable(batches) else lambda: batches
    if not point:
        raise DataError("`parameters` is empty; give the tensors to estimate.")
    n_rows = _count_rows(surrogate, point, again)
    codes, n_units = _unit_codes(units, n_rows)
    maps = _SurrogateMaps(surrogate, point, again, codes, n_units, kind)
    p = maps.size
    return EquationOperators(
        _linear((p, p), maps.apply, maps.apply_transpose),
        _linear((n_units, p), maps.project, maps.combine),
        _TensorNames({name: tuple(value.shape) for name, value in point.items()}),
        maps.sizes(np.random.default_rng(seed)) if balance else None,
    )


def _count_rows(
    surrogate: Surrogate, point: Tensors, batches: Callable[[], Iterable[Any]]
) -> int:
    """Return the number of rows of all batches, after checking what S returns."""
    count = 0
    with torch.no_grad():
        for batch in batches():
            values = surrogate(point, point, batch)
            if values.ndim != 1:
                raise DataError(
                    f"`surrogate` returned shape {tuple(values.shape)}; one number for "
                    "each row of the batch was expected (summed over its positions)."
                )
            if not bool(torch.isfinite(values).all()):
                raise DataError("`surrogate` is not finite at these parameters.")
            count += len(values)
    if count == 0:
        raise DataError("`batches` holds no rows.")
    return count


def _unit_codes(units: Any, n_rows: int) -> tuple[IntVector | None, int]:
    if units is None:
        return None, n_rows
    codes = np.asarray(units)
    if codes.shape != (n_rows,) or codes.dtype.kind not in "iu":
        raise DataError(
            f"`units` has shape {codes.shape} and type {codes.dtype}; give one integer "
            f"for each of the {n_rows} rows of the batches."
        )
    n_units = int(codes.max()) + 1
    if codes.min() < 0 or len(np.unique(codes)) != n_units:
        raise DataError("`units` must number the units 0, 1, ... without a gap.")
    return codes.astype(np.intp), n_units


class _TensorNames(Sequence[str]):
    """Names such as ``weight[2,0]``, made when asked for: P may be large."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.ends = np.cumsum([int(np.prod(s)) for s in shapes.values()])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[j] for j in range(*index.indices(len(self)))]
        place = int(np.searchsorted(self.ends, index, side="right"))
        name, shape = list(self.shapes.items())[place]
        inner = int(index) - (int(self.ends[place - 1]) if place else 0)
        at = ",".join(str(j) for j in np.unravel_index(inner, shape))
        return f"{name}[{at}]" if shape else name


def functional_gradient(
    functional: Callable[[Tensors], torch.Tensor],
    parameters: Mapping[str, torch.Tensor],
) -> tuple[float, Vector]:
    """Return the value of a functional and its gradient, flattened as theta.

    Parameters
    ----------
    functional : callable
        From the dict of parameters to a scalar tensor.
    parameters : mapping of str to tensor
        As for `surrogate_operators`.

    Raises
    ------
    DataError
        If the functional is not a scalar.

    Examples
    --------
    >>> at = {"C": torch.tensor([[1.0, 2.0]], dtype=torch.float64)}
    >>> functional_gradient(lambda u: (u["C"] @ u["C"].T).trace(), at)
    (5.0, array([2., 4.]))
    """
    leaves = {
        str(name): value.detach().clone().requires_grad_()
        for name, value in parameters.items()
    }
    with torch.enable_grad():
        value = functional(leaves)
        if value.numel() != 1:
            raise DataError(
                f"`functional` returned shape {tuple(value.shape)}; give one number, "
                "and call once for each."
            )
        slopes = torch.autograd.grad(
            value.reshape(()), list(leaves.values()), materialize_grads=True
        )
    flat = np.concatenate([to_float64(slope).ravel() for slope in slopes])
    return float(value.detach()), flat
