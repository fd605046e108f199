"""What rules for dependent rows share: labels of rows, order in time, findings."""

from typing import Any

import numpy as np
import pandas as pd

from eestim._arrays import IntVector, Matrix, show_rows
from eestim.covariance._kernels import is_positive_kernel
from eestim.equations import EstimatingEquation, labels_of, require
from eestim.errors import DataError, InferenceError
from eestim.findings import Finding

__all__ = [
    "bandwidth_finding",
    "degrees_factor",
    "even_spacing_finding",
    "ordered_codes",
    "refuse_negative",
    "refuse_repeated",
    "row_values",
    "semidefinite_finding",
]

_WIDE = 0.1  # share of the sample from which normal quantiles are clearly short
_NEGATIVE = -1e-8  # eigenvalue of V in units of its diagonal


def row_values(
    equation: EstimatingEquation, label: Any, argument: str, n_rows: int
) -> Any:
    """Return the entries of a column name or array, one for each row of psi.

    Raises
    ------
    CapabilityError
        If a name was given and the equation has no data to look it up in.
    DataError
        If there is not one entry a row, or one is missing.
    """
    if isinstance(label, str):
        column = require(
            equation,
            "column",
            f"`{argument}={label!r}`",
            "Pass the labels as an array.",
        )
        values = column(label)
    else:
        align = getattr(equation, "aligned", None)
        values = label if align is None else align(label)
    labels_of(values, argument, n_rows)
    return np.asarray(values)


def ordered_codes(values: Any, argument: str) -> tuple[IntVector, Any]:
    """Return codes 0 .. T - 1 of labels in increasing order, and the T labels.

    Raises
    ------
    DataError
        If the labels cannot be ordered.

    Examples
    --------
    >>> codes, labels = ordered_codes([2003, 2001, 2003], "time")
    >>> codes.tolist(), labels.tolist()
    ([1, 0, 1], [2001, 2003])
    """
    array = np.asarray(values)
    try:
        labels, codes = np.unique(array, return_inverse=True)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in array})
        raise DataError(
            f"`{argument}` has labels of types {kinds} that have no common order; "
            "convert them to numbers or dates."
        ) from None
    return codes.astype(np.intp), labels


def refuse_repeated(codes: IntVector, argument: str, advice: str) -> None:
    """Raise where a code occurs twice.

    Raises
    ------
    DataError
        Naming the rows of the first repeated code.
    """
    counts = np.bincount(codes)
    if counts.max(initial=0) > 1:
        rows = np.flatnonzero(codes == int(np.argmax(counts > 1)))
        raise DataError(f"`{argument}` is repeated in {show_rows(rows)}. {advice}")


def degrees_factor(n: int, k: int, rule: str) -> float:
    """Return n / (n - k).

    Raises
    ------
    InferenceError
        If there are no more rows than parameters.
    """
    if n <= k:
        raise InferenceError(
            f"{rule} with `adjust=True` divides by n - k = {n} - {k}; more rows than "
            "parameters are needed."
        )
    return n / (n - k)


def refuse_negative(
    matrix: Matrix, names: tuple[str, ...], rule: str, advice: str
) -> None:
    """Raise where a variance is negative.

    Raises
    ------
    InferenceError
        Naming the parameters.
    """
    bad = np.flatnonzero(np.diag(matrix) < 0)
    if len(bad):
        listed = ", ".join(repr(names[j]) for j in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise InferenceError(
            f"{rule} gives a negative variance for {listed}{more} "
            f"({matrix[bad[0], bad[0]]:.3g}). {advice}"
        )


def semidefinite_finding(matrix: Matrix, advice: str) -> tuple[Finding, ...]:
    """Return a warning where the variance of some combination is negative."""
    size = np.sqrt(np.abs(np.diag(matrix)))
    size = np.where(size > 0, size, 1.0)
    smallest = float(np.linalg.eigvalsh(matrix / np.outer(size, size))[0])
    if smallest >= _NEGATIVE:
        return ()
    return (
        Finding(
            "positive semidefinite",
            "warn",
            smallest,
            _NEGATIVE,
            "Some linear combination of the parameters has a negative variance, so "
            "joint tests are not defined.",
            advice,
        ),
    )


def bandwidth_finding(kernel: str, bandwidth: float, n_times: int) -> Finding:
    """Return the bandwidth as a share of the sample, a warning where it is wide."""
    share = bandwidth / n_times
    advice = ""
    if share > _WIDE and is_positive_kernel(kernel) and share <= 1:
        advice = (
            f"Normal quantiles are short: interval(method=FixedB({kernel!r}, "
            f"{share:.4g})) allows for the noise of the variance."
        )
    elif share > _WIDE:
        advice = "Normal quantiles are short; a smaller bandwidth is less noisy."
    return Finding(
        "bandwidth share",
        "warn" if share > _WIDE else "pass",
        share,
        _WIDE,
        f"The {kernel} bandwidth of {bandwidth:.4g} is {share:.1%} of {n_times} time "
        "points.",
        advice,
    )


def even_spacing_finding(labels: Any, argument: str) -> tuple[Finding, ...]:
    """Return a warning where numeric or date labels are not evenly spaced."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iufM" or len(array) < 3:
        return ()
    steps = np.diff(pd.to_numeric(pd.Series(array)).to_numpy().astype(np.float64))
    ratio = float(steps.max() / steps.min())
    # months and quarters differ by a few days; a missing one doubles the step
    if ratio < 1.5:
        return ()
    return (
        Finding(
            "even spacing",
            "warn",
            ratio,
            1.5,
            f"`{argument}` has gaps: its largest step is {ratio:.3g} times its "
            "smallest, and neighbouring observed times count as one lag apart.",
            "Add the missing times if lags should count calendar time.",
        ),
    )
