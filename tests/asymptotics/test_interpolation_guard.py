"""The interpolation guard (H1)."""

import numpy as np
import pytest

from eestim.asymptotics import interpolation_guard, interpolation_ratio
from eestim.errors import InterpolationError


def test_minimum_norm_interpolator_is_refused_and_ridge_is_not():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 50)), rng.standard_normal(20)
    start = X * y[:, None]
    exact = X * (y - X @ np.linalg.pinv(X) @ y)[:, None]
    assert np.abs(exact).max() < 1e-13
    with pytest.raises(InterpolationError, match="standard errors of zero"):
        interpolation_guard(exact, start)
    inner = np.linalg.inv(X.T @ X + 20 * np.eye(50))
    interpolation_guard(X * (y - X @ inner @ X.T @ y)[:, None], start)


@pytest.mark.parametrize(("df", "refused"), [(8.5, False), (9.0, True), (12.0, True)])
def test_degrees_of_freedom_near_n_are_refused(df, refused):
    psi = np.ones((10, 1))
    if refused:
        with pytest.raises(InterpolationError, match="`df` is"):
            interpolation_guard(psi, df=df)
    else:
        interpolation_guard(psi, df=df)


def test_ratio_is_free_of_the_scale_of_psi():
    rng = np.random.default_rng(1)
    psi, start = rng.standard_normal((30, 2)), rng.standard_normal((30, 2))
    assert interpolation_ratio(1e-9 * psi, 1e-9 * start) == pytest.approx(
        interpolation_ratio(psi, start), rel=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]],), "no scale"),
        (([[1.0]], [[1.0], [2.0]]), "same units"),
        (([[1.0]], [[0.0]]), "`psi_start` vanishes"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        interpolation_guard(*arguments)
