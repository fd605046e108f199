"""A and psi as linear maps, for equations of more parameters than a matrix holds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.func import grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from eestim._arrays import IntVector, Vector
from eestim.asymptotics.operators import EquationOperators
from eestim.autodiff.tensors import Tensors, linear_map, to_float64
from eestim.errors import DataError

__all__ = ["functional_gradient", "surrogate_operators"]

Surrogate = Callable[[Tensors, Tensors, Any], torch.Tensor]
_PROBES = 4  # sign vectors that measure the size of psi in each tensor


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
        linear_map((p, p), maps.apply, maps.apply_transpose),
        linear_map((n_units, p), maps.project, maps.combine),
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
