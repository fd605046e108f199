"""A against two separate copies of the model and differences of the expectation."""

import itertools

import numpy as np
import pytest
import torch
from test_latent_equations import MASSES, OUTCOMES, POINTS, start, table
from test_latent_matrix_free import documents, small
from test_latent_sequences import EVERY, chain, law
from tolerances import DERIVATIVE

from eestim.errors import CapabilityError
from eestim.llm.contrasts import Contrast, TokenKernel
from eestim.llm.equations import (
    IWAE,
    Brier,
    CentredIWAE,
    NoiseAveraged,
    Power,
    ScoreWeighted,
    Split,
)
from eestim.llm.levels import MLMC
from eestim.llm.matrix_free import latent_operators
from eestim.llm.scores import chosen, logits_at, scores, unit_batches
from eestim.llm.sensitivities import plain_attention, sensitivity
from eestim.llm.sequences import SequenceCentred, SequenceContrast, SequenceIWAE

KERNEL = TokenKernel(torch.eye(OUTCOMES, 2, dtype=torch.float64), ridge=0.3)
DENSE = [
    (Brier(), 3),
    (Power(0.5), 3),
    (CentredIWAE(group=2), 3),
    (ScoreWeighted(floor=0.01), 4),
    (Contrast(), 3),
    (NoiseAveraged(), 2),
]


def two_copies(model, data, equation, draws, kind):
    """A by a graph of the whole model for each copy, one backward pass a row."""
    total, wanted = 0.0, chosen(model, "perturbation")
    for batch, _, generator in unit_batches(data, 15, 0, 0):
        state = generator.get_state()
        copies = []
        for _ in range(2):
            generator.set_state(state)
            copy = {n: p.detach().clone().requires_grad_() for n, p in wanted.items()}
            copies.append((copy, logits_at(model, copy, batch, draws, generator)))
        (moving, u), (still, t) = copies
        value = equation.surrogate(u, t, model.targets(batch)).sum()
        found = torch.autograd.grad(value, list(moving.values()), create_graph=True)
        flat = torch.cat([f.flatten() for f in found])
        rows = []
        for entry in flat:
            sides = [still] if kind == "expected" else [moving, still]
            both = [
                torch.autograd.grad(
                    entry,
                    list(side.values()),
                    retain_graph=True,
                    materialize_grads=True,
                )
                for side in sides
            ]
            rows.append(sum(torch.cat([f.flatten() for f in one]) for one in both))
        total = total + torch.stack(rows)
    return (total / data.n_units).detach().numpy()


@pytest.mark.parametrize(("equation", "draws"), DENSE)
def test_stored_sensitivity_equals_two_copies_of_the_model(equation, draws):
    model, data = small(), documents()
    for kind in ("observed", "expected"):
        if kind == "expected" and not equation.is_unbiased:
            continue
        found = sensitivity(
            model, data, equation, draws=draws, kind=kind, batch_size=15
        )
        with plain_attention(model):
            oracle = two_copies(model, data, equation, draws, kind)
        np.testing.assert_allclose(
            found, oracle, rtol=0, atol=1e-9 * np.abs(oracle).max()
        )
    other = sensitivity(model, data, equation, draws=draws, batch_size=15, seed=1)
    assert np.abs(other - oracle).max() > 1e-3 * np.abs(oracle).max()  # the control


def through(equation, logits_of, cases, copies):
    """Mean over cases of minus the derivative of psi, by chosen copies, and of psi.

    `cases` holds (probability, targets); `logits_of(theta)` gives all of them.
    """
    chance, targets = cases
    moving, still = start().requires_grad_(), start().requires_grad_()
    value = equation.surrogate(logits_of(moving), logits_of(still), targets)
    total = (chance * value.reshape(len(chance), -1).sum(1)).sum()
    (slope,) = torch.autograd.grad(total, moving, create_graph=True)
    leaves = {"still": [still], "both": [moving, still]}[copies]
    rows = [
        sum(torch.autograd.grad(s, leaves, retain_graph=True, materialize_grads=True))
        for s in slope
    ]
    return torch.stack(rows)


def mean_psi_at(equation, logits_of, cases, theta):
    chance, targets = cases
    theta = theta.clone().requires_grad_()
    logits = logits_of(theta)
    value = equation.surrogate(logits, logits.detach(), targets)
    total = (chance * value.reshape(len(chance), -1).sum(1)).sum()
    return -torch.autograd.grad(total, theta)[0]


def tuples_of(draws):
    found = torch.tensor(list(itertools.product(range(3), repeat=draws)))
    return found, MASSES[found].prod(-1)


def tokens(draws):
    """Every tuple of latent points with every outcome, at the true law."""
    points, mass = tuples_of(draws)
    z = POINTS[points].T.repeat_interleave(OUTCOMES, 1)
    truth = MASSES @ table(start(), POINTS).softmax(-1)
    chance = (mass.unsqueeze(1) * truth).flatten()
    targets = torch.arange(OUTCOMES).repeat(len(points))
    return (lambda theta: table(theta, z)), (chance, targets)


def sequences(draws):
    points, mass = tuples_of(draws)
    z = POINTS[points].T.repeat_interleave(len(EVERY), 1)
    y = EVERY.repeat(len(points), 1)
    chance = (mass.unsqueeze(1) * law()).flatten()
    return (lambda theta: chain(theta, z, y)), (chance, y)


EXPECTED = [
    (Brier(), 2, tokens),
    (Power(0.5), 3, tokens),
    (CentredIWAE(group=2), 3, tokens),
    (CentredIWAE(group=1, exact=True), 3, tokens),
    (ScoreWeighted(floor=1e-3), 3, tokens),
    (ScoreWeighted(lag=5), 3, tokens),
    (KERNEL, 2, tokens),
    (SequenceCentred(), 2, sequences),
    (SequenceCentred(), 3, sequences),
]


@pytest.mark.parametrize(("equation", "draws", "cases"), EXPECTED)
def test_expected_sensitivity_is_the_derivative_of_the_mean_at_the_truth(
    equation, draws, cases
):
    """Against central differences of the exact mean of psi, law held at the truth."""
    logits_of, outcomes = cases(draws)
    expected = through(equation, logits_of, outcomes, "still")
    observed = through(equation, logits_of, outcomes, "both")
    columns = []
    for j in range(len(start())):
        step = torch.zeros_like(start())
        step[j] = 1e-5
        ends = [
            mean_psi_at(equation, logits_of, outcomes, start() + s * step)
            for s in (-1.0, 1.0)
        ]
        columns.append((ends[0] - ends[1]) / 2e-5)
    differences = torch.stack(columns, 1)
    size = float(differences.abs().max())
    for found in (observed, expected):
        torch.testing.assert_close(found, differences, rtol=0, atol=DERIVATIVE * size)


@pytest.mark.parametrize("equation", [IWAE(), NoiseAveraged(), SequenceIWAE()])
def test_losses_have_no_expected_form(equation):
    """Through the still copy alone they would give zero."""
    cases = sequences if isinstance(equation, SequenceIWAE) else tokens
    assert not through(equation, *cases(2), "still").any()
    model, data = small(), documents()
    for call in (sensitivity, latent_operators):
        with pytest.raises(CapabilityError, match="slope of a loss"):
            call(model, data, equation, draws=2, kind="expected")


def test_equations_that_are_no_function_of_rows_and_draws_are_refused():
    """Two rows of tokens would have been taken for a row and its replicate."""
    model, data = small(), documents()
    for call in (scores, sensitivity, latent_operators):
        with pytest.raises(CapabilityError, match="one that the model made"):
            call(model, data, SequenceContrast(), draws=2, batch_size=2)
        with pytest.raises(CapabilityError, match=r"IWAE\(\) with draws=8"):
            call(model, data, MLMC(3), draws=8)
    with pytest.raises(CapabilityError, match="slope of a loss"):
        sensitivity(model, data, Split(NoiseAveraged(), Brier()), kind="expected")
