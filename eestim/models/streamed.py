"""Linear and generalized linear models over block sources, in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import linalg

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim._linalg import equilibrated_factor
from eestim.blocks import (
    Block,
    BlockSource,
    SummedEquation,
    in_block,
    refuse_blocks,
    summed_equation,
    total_moments,
)
from eestim.errors import (
    DataError,
    EestimError,
    IdentificationError,
    InterpolationError,
)
from eestim.models._blocked import linear_predictor
from eestim.models._orthonormal import orthonormal_transform
from eestim.models._prediction import Prediction, predicted
from eestim.models.families import Family, Link, family_and_link
from eestim.models.formula import FormulaDesign, design_from_formula, refuse_stateful
from eestim.models.generalized_linear import GeneralizedLinear
from eestim.models.streamed_separation import check_streamed_separation
from eestim.moments import Moments
from eestim.roots import Root
from eestim.weights import Frequency, Importance, Weights, block_weights, weight_column

__all__ = ["BlockedLinear", "streamed_glm"]

_INTERPOLATED = 1e-10  # residual size relative to the response


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a block becomes rows of a model."""

    formula: str
    family: Family
    link: Link
    na: Literal["raise", "drop"]
    unsafe: bool
    coding: Any
    offset: str | None
    exposure: str | None
    weights: Weights | None

    def build(self, block: Block, scale: float) -> GeneralizedLinear:
        """Return the model of one block.

        Raises
        ------
        DataError
            Naming the block of what cannot be used.
        """
        try:
            return self._built(block, scale)
        except DataError as error:
            raise in_block(block, error) from None

    def _built(self, block: Block, scale: float) -> GeneralizedLinear:
        rows: FormulaDesign = design_from_formula(
            self.formula,
            block.frame,
            na=self.na,
            unsafe=self.unsafe,
            like=self.coding,
        )
        self.family.check_response(rows.response)
        made = GeneralizedLinear(
            rows.design,
            rows.response,
            rows.names,
            self.family,
            self.link,
            specification=rows.specification,
            data=block.frame,
            kept=rows.kept,
            index=block.frame.index,
            n_given=len(block.frame),
        )
        offset = self._offset(made)
        column = weight_column(self.weights)
        if column is None:
            return replace(made, offset=offset)
        values = block_weights(self.weights, made.column(column)) * scale
        kind = type(self.weights)
        return replace(made, offset=offset, row_weights=values, weight_kind=kind)

    def _offset(self, made: GeneralizedLinear) -> Vector | None:
        name = self.offset if self.exposure is None else self.exposure
        if name is None:
            return None
        values = check_finite(as_float(made.column(name), name, 1), name)
        if self.exposure is None:
            return values
        if (values <= 0).any():
            raise DataError("`exposure` must be positive.")
        logged: Vector = np.log(values)
        return logged


class _Totals(NamedTuple):
    """What one pass over the source counts."""

    n_read: int
    n_rows: int
    n_units: int
    weight_sum: float
    weight_squares: float
    largest: float


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BlockedLinear:
    """A linear or generalized linear model whose rows are read block by block.

    Made by `ols` and `glm` for a block source. It gives what is a sum over units:
    moments, sums within clusters, expected information.

    Attributes
    ----------
    source : BlockSource
    recipe
        How a block becomes rows.
    names : tuple of p str
    specification : formulaic.ModelSpec
        Rebuilds the design for new data.
    columns : tuple of str
        What is read of the source.
    totals
        Counts over the source.
    transform : (p, p) array or None
        Each row x of the design is read as ``x @ transform``.
    """

    source: BlockSource
    recipe: _Recipe
    names: tuple[str, ...]
    specification: Any
    columns: tuple[str, ...]
    totals: _Totals
    transform: Matrix | None = None
    _last: dict[bytes, Moments] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        return (
            f"BlockedLinear({self.recipe.family.name}, {self.recipe.link.name} link; "
            f"{self.n_units} units read from {self.source.name})"
        )

    # ----------------------------------------------------------------- what it is

    @property
    def n_units(self) -> int:
        """Number of independent units: rows, or the sum of frequencies."""
        return self.totals.n_units

    @property
    def n_effective(self) -> float:
        """Kish's effective n under importance weights, else n."""
        if isinstance(self.recipe.weights, Importance):
            return self.totals.weight_sum**2 / self.totals.weight_squares
        return float(self.n_units)

    @property
    def family(self) -> Family:
        """The family of the outcome."""
        return self.recipe.family

    @property
    def link(self) -> Link:
        """The link function."""
        return self.recipe.link

    @property
    def is_canonical(self) -> bool:
        """Whether observed and expected information agree."""
        return self.link.name == self.family.canonical

    @property
    def is_newton_exact(self) -> bool:
        """Whether a Newton step uses the exact derivative (else Fisher scoring)."""
        return self.is_canonical

    @property
    def has_dispersion(self) -> bool:
        """Whether the family has a dispersion to estimate."""
        return self.family.has_dispersion

    @property
    def is_sampling_weighted(self) -> bool:
        """Whether weights stand outside the model."""
        weights = self.recipe.weights
        return weights is not None and not isinstance(weights, Frequency)

    @property
    def is_score(self) -> bool:
        """Whether psi is the score of a likelihood with known dispersion."""
        return not self.has_dispersion and not self.is_sampling_weighted

    @property
    def _scale(self) -> float:
        if not self.is_sampling_weighted:
            return 1.0
        return self.totals.n_rows / self.totals.weight_sum

    # -------------------------------------------------------------------- passes

    def blocks(self, columns: Sequence[str] = ()) -> Iterator[GeneralizedLinear]:
        """Yield the model of each block, reading further columns for its labels."""
        wanted = dict.fromkeys([*self.columns, *columns])
        for block in self.source.blocks(list(wanted), self.totals.n_read):
            made = self.recipe.build(block, self._scale)
            if self.transform is not None:
                made = replace(made, design=made.design @ self.transform)
            yield made

    def moments(self, theta: Vector) -> Moments:
        """Return the moments of psi over units, in one pass."""
        key = theta.tobytes()
        if key not in self._last:  # the solver's check and the rule meet at the root
            self._last.clear()
            self._last[key] = total_moments(self.blocks(), theta)
        return self._last[key]

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi (observed), (p, p)."""
        return self.moments(theta).sensitivity

    def newton_terms(self, theta: Vector) -> tuple[Vector, Vector, Matrix]:
        """Return the mean of psi, its squared size and A (expected), in one pass."""
        p, n = len(self.names), self.n_units
        mean, square, slope = np.zeros(p), np.zeros(p), np.zeros((p, p))
        for part in self.blocks():
            if not part.n_units:
                continue
            own = part.newton_terms(theta)
            share = part.n_units / n
            mean, square = mean + share * own[0], square + share * own[1]
            slope = slope + share * own[2]
        return mean, square, slope

    def expected_information(self, theta: Vector) -> tuple[Matrix, float]:
        """Return X'WX and the dispersion (not adjusted), in one pass."""
        p = len(self.names)
        information, dispersion = np.zeros((p, p)), 0.0
        for part in self.blocks():
            if not part.n_units:
                continue
            working = part.working(theta)
            scaled = working.design * working.weight[:, None]
            information = information + working.design.T @ scaled
            dispersion += part.n_units / self.n_units * working.dispersion
        return information, dispersion

    def summed_within(self, labels: Sequence[Any], theta: Vector) -> SummedEquation:
        """Return sums of psi within groups of rows, labelled by columns."""
        read = [label for label in labels if isinstance(label, str)]
        return summed_equation(self, self.blocks(read), labels, theta)

    def predict(self, theta: Vector, new_data: Any) -> Prediction:
        """Return the linear predictor and its derivative at new rows in memory."""
        return predicted(self.specification, self.names, self.link, theta, new_data)

    # ------------------------------------------------------------------- solving

    @property
    def start(self) -> Vector:
        """Where the solver begins: zero, or a step of scoring on the first block."""
        zero = np.zeros(len(self.names))
        if self.family.name == "gaussian" and self.link.name == "identity":
            return zero
        try:
            with np.errstate(all="ignore"):
                first: Vector = next(self.blocks()).start
        except EestimError:  # the first block alone identifies less
            return zero
        return first if np.isfinite(first).all() else zero

    def reparameterised(
        self, threshold: float
    ) -> tuple["BlockedLinear", Matrix] | None:
        """Return an orthonormal form ``(equation, L)``, or None if it is not needed.

        The triangular factor of the design is updated block by block, so that nothing
        is squared.

        Raises
        ------
        IdentificationError
            If columns are collinear, naming them.
        """
        p = len(self.names)
        gram, size = np.zeros((p, p)), np.zeros(p)
        for part in self.blocks():
            gram = gram + part.design.T @ part.design
        factor = equilibrated_factor(gram)
        if factor.rank == p and factor.rcond >= threshold:
            return None
        size = np.sqrt(np.diag(gram))
        size = np.where(size > 0, size, 1.0)
        stacked = np.empty((0, p))
        for part in self.blocks():
            rows = np.vstack([stacked, part.design / size])
            stacked = np.asarray(np.linalg.qr(rows, mode="r"), dtype=np.float64)
        _, triangular, order = linalg.qr(stacked, mode="economic", pivoting=True)
        transform = orthonormal_transform(
            triangular, order, size, self.totals.n_rows, self.names
        )
        return replace(self, transform=transform), transform

    def check_root(self, root: Root) -> None:
        """Raise where the fit is separated or interpolates.

        Raises
        ------
        SeparationError
            If a linear combination of the covariates predicts the outcome perfectly.
        InterpolationError
            If every residual is zero to rounding.
        """
        check_streamed_separation(self, root)
        largest = 0.0
        for part in self.blocks():
            eta = linear_predictor(part.design, root.theta, part.offset)
            residual = part.response - self.link.inverse(eta)
            used = slice(None) if part.row_weights is None else part.row_weights > 0
            largest = max(largest, float(np.abs(residual[used]).max(initial=0.0)))
            if largest > _INTERPOLATED * self.totals.largest:
                return
        raise InterpolationError(
            f"the fit reproduces all {self.totals.n_rows} outcomes exactly (largest "
            f"residual {largest:.1e}), so every sandwich is zero whatever the noise. "
            "Use fewer covariates or more rows."
        )

    # -------------------------------------------------------------- what needs rows

    def psi(self, theta: Vector) -> Matrix:  # noqa: ARG002 - the protocol's argument
        """Refuse: contributions of all units are not held in memory."""
        refuse_blocks("psi of every unit")

    def working(self, theta: Vector) -> Any:  # noqa: ARG002
        """Refuse: leverages need every row of the design."""
        refuse_blocks("`working`, the linear form with its leverages,")

    def unit_sensitivity(self, theta: Vector) -> Matrix:  # noqa: ARG002
        """Refuse: derivatives of all units are not held in memory."""
        refuse_blocks("the derivative of every unit")

    def reweighted(self, weights: Vector) -> Any:  # noqa: ARG002
        """Refuse: refits need a weight for every unit."""
        refuse_blocks("a refit under other weights (bootstrap, jackknife, halves)")

    def column(self, name: str) -> Any:
        """Refuse: a column of the source is not held in memory."""
        refuse_blocks(f"the column {name!r}")


def streamed_glm(
    formula: Any,
    source: BlockSource,
    *,
    family: str,
    link: str | None,
    offset: Any,
    exposure: Any,
    weights: Weights | None,
    na: Literal["raise", "drop"],
    unsafe: bool,
) -> BlockedLinear:
    """Return a generalized linear model over a block source.

    Every row is checked in one pass. Arguments are those of `glm`; offset, exposure
    and weights are names of columns.

    Raises
    ------
    TypeError
        If the formula, or one of those arguments, is an array.
    ValueError
        If the formula has terms that depend on all rows, such as ``center(x)``.
    DataError
        Naming block and rows.
    """
    if not isinstance(formula, str):
        raise TypeError(
            "data read in blocks need a formula, such as 'y ~ x'; an array of outcomes "
            "has no place in the source."
        )
    for name, given in (("offset", offset), ("exposure", exposure)):
        if given is not None and not isinstance(given, str):
            raise TypeError(
                f"`{name}` must be the name of a column where data are read in blocks."
            )
    chosen, used_link = family_and_link(family, link)
    if exposure is not None and (offset is not None or used_link.name != "log"):
        raise ValueError("`exposure` needs the log link and no `offset`.")
    refuse_stateful(formula)
    first = next(source.blocks())
    try:
        rows = design_from_formula(formula, first.frame, na=na, unsafe=unsafe)
    except DataError as error:
        raise in_block(first, error) from None
    weight = weight_column(weights)
    recipe = _Recipe(
        formula,
        chosen,
        used_link,
        na,
        unsafe,
        rows.coding,
        offset,
        exposure,
        weights,
    )
    named = {
        str(variable)
        for part in (rows.coding.lhs, rows.coding.rhs)
        for variable in part.required_variables
    }
    extra = {name for name in (offset, exposure, weight) if name is not None}
    known = {str(column): column for column in first.frame.columns}
    columns = tuple(known.get(name, name) for name in sorted((named | extra) - {"np"}))
    totals = _counted(source, recipe, columns)
    if totals.n_rows < len(rows.names):
        raise IdentificationError(
            f"`design` has {len(rows.names)} columns for {totals.n_rows} rows; at most "
            f"{totals.n_rows} combinations of the parameters are identified."
        )
    return BlockedLinear(
        source, recipe, rows.names, rows.specification, columns, totals
    )


def _counted(source: BlockSource, recipe: _Recipe, columns: Sequence[str]) -> _Totals:
    n_read, n_rows, n_units, total, squares, largest = 0, 0, 0, 0.0, 0.0, 0.0
    for block in source.blocks(columns):
        part = recipe.build(block, 1.0)
        n_read += len(block.frame)
        n_rows, n_units = n_rows + len(part.response), n_units + part.n_units
        largest = max(largest, float(np.abs(part.response).max(initial=0.0)))
        if part.row_weights is not None:
            total += float(part.row_weights.sum())
            squares += float(np.square(part.row_weights).sum())
    if recipe.weights is not None and not total > 0:
        raise DataError("`weights` are all zero.")
    return _Totals(n_read, n_rows, n_units, total, squares, largest)
