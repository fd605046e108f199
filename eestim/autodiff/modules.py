"""Estimating equations from the loss of a torch module: psi is minus its gradient."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad, jacfwd, jacrev

from eestim._arrays import Matrix, Vector, check_psi
from eestim.asymptotics.operators import EquationOperators
from eestim.autodiff.surrogates import surrogate_operators
from eestim.autodiff.tensors import Tensors, to_float64
from eestim.errors import DataError
from eestim.moments import Moments

__all__ = ["ModuleEquation", "from_module"]


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
