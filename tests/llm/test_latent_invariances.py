"""Rotations of the latent are projected out with and without stored matrices."""

import numpy as np
import pytest
import torch
from tolerances import EXACT

from eestim.errors import IdentificationError
from eestim.llm.averaging import standard_normal
from eestim.llm.functionals import log_loss, probability
from eestim.llm.inference import infer, squared_size
from eestim.llm.invariances import Orbit, operators_across, orbit_of
from eestim.llm.matrix_free import influence, latent_operators
from eestim.llm.perturbations import LowRank
from eestim.llm.synthetic import Pairs

OPTIONS = {"draws": 2, "sets": 2, "batch_size": 300}


class Reader(torch.nn.Module):
    """A frozen softmax that reads x + C Z with C (3, rank)."""

    def __init__(self, rank=3):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        weight = 2.0 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
        self.register_buffer("weight", weight)
        self.perturbation = LowRank(3, rank, size=1.5).double()

    def draw_logits(self, batch, draws, generator):
        x, _ = batch
        rank = self.perturbation.directions.shape[1]
        z = standard_normal((draws, len(x), rank), generator, x)
        return self.perturbation(x, z) @ self.weight.T

    def targets(self, batch):
        return batch[1]


def drawn(n, seed, rank=3):
    """Return covariates with outcomes of the model itself."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(n, dtype=torch.long)
    with torch.no_grad():
        q = Reader(rank).draw_logits((x, nothing), 1, generator)[0].softmax(-1)
    return Pairs(x, torch.multinomial(q, 1, generator=generator).squeeze(1))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("solver", ["lsmr", "minres"])
def test_matrix_free_errors_equal_those_of_the_dense_route_under_rotations(
    rank, solver
):
    model, data = Reader(rank), drawn(300, 1, rank)
    loss = log_loss(drawn(20, 2, rank), draws=200, batch_size=20)
    for functional in (squared_size, loss):
        dense = infer(model, data, functional, method="dense", **OPTIONS)
        free = infer(
            model, data, functional, method="matrix-free", solver=solver, **OPTIONS
        )
        np.testing.assert_allclose(free.se, dense.se, rtol=1e-6)
        assert free.root.residual == pytest.approx(dense.root.residual, rel=1e-5)


def test_without_the_projection_a_sampled_a_gives_other_errors():
    """The control: draws do not rotate, so that A is regular along the orbit.

    Oracle: the stored A solved on a basis of the complement.
    """
    model, data = Reader(), drawn(300, 1)
    orbit = orbit_of(model, "perturbation")
    maps = latent_operators(model, data, parameters="perturbation", **OPTIONS)
    A = maps.sensitivity @ np.eye(9)
    gradient = 2.0 * model.perturbation.directions.detach().numpy().ravel()
    frame = orbit.frame()
    exact = frame @ np.linalg.solve((frame.T @ A @ frame).T, frame.T @ gradient)
    found = influence(operators_across(maps, orbit), gradient, "h", 300, 1e-9)
    right = found.rows.mean(axis=0).std()
    np.testing.assert_allclose(orbit.across(found.coefficients), exact, rtol=1e-6)
    wrong = influence(maps, gradient, "h", 300, 1e-9).rows.mean(axis=0).std()
    assert abs(wrong / right - 1.0) > 0.01


def test_the_orbit_has_the_dimension_of_the_rotations_and_its_complement():
    orbit = orbit_of(Reader(), "all")
    assert orbit.dimension == 3  # rotations of three latent coordinates
    frame, v = orbit.frame(), np.random.default_rng(0).standard_normal((2, 9))
    np.testing.assert_allclose(orbit.across(v), v @ frame @ frame.T, atol=EXACT)
    np.testing.assert_allclose(orbit.along(v) + orbit.across(v), v, atol=EXACT)
    inside = Orbit(9, np.arange(2, 5), np.eye(3)[:, :1]).along(v)
    np.testing.assert_array_equal(np.flatnonzero(inside[0]), [2])  # places shift it


def test_what_draws_of_a_functional_leave_along_rotations_is_stated_as_noise():
    model, data = Reader(), drawn(300, 1)
    at = (torch.full((1, 3), 0.5).double(), torch.zeros(1))

    def share(draws):
        fit = infer(model, data, probability(at, 1, draws=draws), **OPTIONS)
        (finding,) = (f for f in fit.findings if f.name.startswith("gradient noise"))
        return finding

    many, few = share(40_000), share(400)
    assert many.value < 0.5 * few.value  # a tenth in the mean
    assert many.status == "pass"
    with pytest.raises(IdentificationError, match=r"drowned .* Raise its `draws`"):
        infer(model, data, probability(at, 1, draws=2), **OPTIONS)
    with pytest.raises(IdentificationError, match=r"along rotations .* directions"):
        infer(model, data, lambda m: m.perturbation.directions[0, 0], **OPTIONS)
