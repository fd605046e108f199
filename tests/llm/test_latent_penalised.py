"""The penalised root against a general solver, and what it means for intervals."""

import copy

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from tolerances import REFERENCE
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from eestim.errors import ConvergenceError
from eestim.llm import Brier, NoiseAveraged, Split, infer, scores, solve_penalised
from eestim.llm.synthetic import BinaryModel, Pairs, binary_data

OPTIONS = {"draws": 3, "parameters": "all", "batch_size": 32, "seed": 5}


def vector(model):
    return parameters_to_vector(model.parameters()).detach().numpy()


@pytest.mark.parametrize(
    "equation", [Brier(), NoiseAveraged(), Split(NoiseAveraged(), Brier())]
)
def test_it_is_the_root_that_a_general_solver_finds(equation):
    start, data = BinaryModel(), binary_data(60, seed=0)
    model = copy.deepcopy(start)
    found = solve_penalised(
        model, data, equation, ridge=0.5, reference=start, sets=2, tolerance=1e-11,
        **OPTIONS,
    )  # fmt: skip
    other = copy.deepcopy(start)

    def penalised(theta):
        vector_to_parameters(torch.as_tensor(theta), other.parameters())
        psi = scores(other, data, equation, passes=2, **OPTIONS)
        return psi.mean(0) - 0.5 * (theta - vector(start))

    exact = optimize.root(penalised, vector(start), tol=1e-13)
    assert exact.success
    np.testing.assert_allclose(vector(model), exact.x, rtol=0, atol=REFERENCE)
    assert found.moved == pytest.approx(np.linalg.norm(exact.x - vector(start)))
    assert found.moved > 0.01  # the penalty does not hold it where it was


def test_infer_meets_the_same_draws():
    """At the root the residual in units of noise is that of the search, not of psi."""
    start, data = BinaryModel(), binary_data(60, seed=0)
    model = copy.deepcopy(start)
    shared = {"ridge": 0.5, "reference": start, "sets": 2, **OPTIONS}
    solve_penalised(model, data, Brier(), tolerance=1e-8, **shared)

    def first(m):
        return next(m.parameters()).sum()

    at_root = infer(model, data, first, Brier(), method="dense", **shared)
    elsewhere = infer(start, data, first, Brier(), method="dense", **shared)
    assert at_root.root.residual < 1e-6
    assert elsewhere.root.residual > 0.1


def test_it_starts_at_the_reference_and_keeps_what_may_train():
    start, data = BinaryModel(), binary_data(60, seed=0)
    model = copy.deepcopy(start)
    for p in model.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        next(model.parameters()).add_(3.0)
    solve_penalised(model, data, ridge=1e6, reference=start, **OPTIONS)
    np.testing.assert_allclose(vector(model), vector(start), atol=1e-4)
    assert not any(p.requires_grad for p in model.parameters())


def test_steps_that_run_out_are_an_error():
    start, data = BinaryModel(), binary_data(60, seed=0)
    with pytest.raises(ConvergenceError, match="Raise `ridge`"):
        solve_penalised(
            copy.deepcopy(start), data, ridge=1e-3, reference=start, max_steps=2,
            tolerance=1e-10, **OPTIONS,
        )  # fmt: skip


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_penalty_is_needed(ridge):
    start = BinaryModel()
    with pytest.raises(ValueError, match="`ridge` is"):
        solve_penalised(
            copy.deepcopy(start), binary_data(9, seed=0), ridge=ridge, reference=start
        )


def test_the_model_itself_is_no_reference():
    model = BinaryModel()
    with pytest.raises(ValueError, match="shares its parameters"):
        solve_penalised(model, binary_data(9, seed=0), ridge=1.0, reference=model)


def test_a_field_that_is_not_finite_is_no_root():
    start = BinaryModel()
    data = binary_data(9, seed=0)
    with torch.no_grad():
        next(start.parameters()).fill_(float("nan"))
    with pytest.raises(ConvergenceError, match="nan"):
        solve_penalised(
            copy.deepcopy(start), data, NoiseAveraged(), ridge=1.0, reference=start,
            parameters="all",
        )  # fmt: skip


def test_a_reference_of_another_shape_is_refused():
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.perturbation = torch.nn.Linear(2, 2)

        def draw_logits(self, *_):
            raise AssertionError

        def targets(self, *_):
            raise AssertionError

    with pytest.raises(ValueError, match="`reference` has other parameters"):
        solve_penalised(
            BinaryModel(), binary_data(9, seed=0), ridge=1.0, reference=Other(),
            parameters="all",
        )  # fmt: skip


def test_a_dozen_units_have_an_interval_by_t():
    """The mean of normal rows: psi = x - theta, whose t interval is exact."""

    class Mean(torch.nn.Module):
        def __init__(self, at):
            super().__init__()
            self.at = torch.nn.Parameter(torch.tensor([at], dtype=torch.float64))
            self.has_latent = False

        def draw_logits(self, batch, draws, generator):
            x, _ = batch
            apart = -0.5 * (x - self.at).square()
            return torch.stack([apart, (-apart.exp()).log1p()], -1).unsqueeze(0)

        def targets(self, batch):
            return batch[1]

    x = torch.randn(12, generator=torch.Generator().manual_seed(3)).double()
    data = Pairs(x, torch.zeros(12, dtype=torch.long))
    model = Mean(x.mean().item())
    found = infer(
        model, data, lambda m: m.at, NoiseAveraged(), draws=1, parameters="all"
    )
    exact = stats.ttest_1samp(x.numpy(), 0.0).confidence_interval()
    assert found.se.iloc[0] == pytest.approx(x.numpy().std(ddof=1) / 12**0.5)
    lower, upper = found.table()[["lower", "upper"]].to_numpy()[0]
    np.testing.assert_allclose([lower, upper], [exact.low, exact.high], atol=REFERENCE)
