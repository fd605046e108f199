"""Products with A and psi against stored ones; matrix-free intervals against dense."""

import numpy as np
import pytest
import torch
from tolerances import REFERENCE
from transformers import GPT2Config, GPT2LMHeadModel

from eestim.errors import ConvergenceError, IdentificationError
from eestim.llm.averaging import standard_normal
from eestim.llm.documents import Documents
from eestim.llm.equations import Brier, CentredIWAE, NoiseAveraged, Split
from eestim.llm.functionals import log_loss, probability
from eestim.llm.inference import infer, squared_size
from eestim.llm.matrix_free import latent_operators
from eestim.llm.perturbations import Additive, Gated
from eestim.llm.prefix import LatentPrefixLM
from eestim.llm.scores import score_sets
from eestim.llm.sensitivities import sensitivity
from eestim.llm.synthetic import BinaryModel, Pairs, binary_data

NAMES = ("wild foxes", "quiet owls", "a big dog", "ten grey mice", "one old cat")
TEXTS = [f"{who} {what}" for who in NAMES for what in ("ran far", "sat here", "ate")]


class Letters:
    """A tokenizer of ten symbols, so that A of every parameter can be stored."""

    bos_token_id, eos_token_id = 0, 0

    def __call__(self, texts, **_):
        ids = [[1 + (ord(c) - 97) % 9 for c in text] for text in texts]
        return {"input_ids": ids}

    def __len__(self):
        return 10


def documents(texts=TEXTS, context=8):
    return Documents.from_texts(texts, Letters(), context)


def small(width=4, rank=1):
    """GPT-2 in float64, whose norms stay there, of about 200 parameters."""
    config = GPT2Config(
        vocab_size=10, n_positions=8, n_embd=width, n_inner=4, n_layer=1,
        n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        base = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(4.0)
    return LatentPrefixLM(base.double(), Gated(width, rank, size=0.7).double())


def gap(found, exact):
    return np.abs(found - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize(
    ("equation", "kind"),
    [
        (Brier(), "observed"),
        (Brier(), "expected"),
        (CentredIWAE(group=2), "observed"),
        (Split(NoiseAveraged(), Brier()), "observed"),
    ],
)
def test_products_equal_those_of_stored_matrices(equation, kind):
    model, data = small(), documents()
    options = {"draws": 3, "parameters": "all", "batch_size": 15}
    sets = 2 if kind == "expected" else 1
    maps = latent_operators(model, data, equation, sets=sets, kind=kind, **options)
    A = sensitivity(model, data, equation, passes=sets, kind=kind, **options)
    psi = np.concatenate(
        list(score_sets(model, data, equation, passes=sets, **options))
    )
    v = np.random.default_rng(0).standard_normal(len(A))
    assert gap(maps.sensitivity.matvec(v), A @ v) < REFERENCE
    assert gap(maps.sensitivity.rmatvec(v), A.T @ v) < REFERENCE
    assert gap(maps.psi.matvec(v), psi @ v) < REFERENCE
    assert gap(A.T @ v, A @ v) > 0.01 or equation == Brier()  # it is not symmetric
    ridged = latent_operators(
        model, data, equation, sets=sets, kind=kind, ridge=0.3, **options
    )
    assert gap(ridged.sensitivity.matvec(v), A @ v + 0.3 * v) < REFERENCE


class Classifier(torch.nn.Module):
    """A small network on perturbed covariates, 35 parameters in float64."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape):
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            return torch.nn.Parameter(value)

        self.first, self.offset = drawn(4, 2), drawn(4)
        self.second, self.level = drawn(3, 4), drawn(3)
        self.idle = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.perturbation = Additive(2, size=0.7).double()

    def draw_logits(self, batch, draws, generator):
        x, _ = batch
        moved = self.perturbation(x, standard_normal((draws, *x.shape), generator, x))
        return (
            torch.tanh(moved @ self.first.T + self.offset) @ self.second.T + self.level
        )

    def targets(self, batch):
        return batch[1]


def classified(n, seed, at=0.0):
    """Return covariates around a point with outcomes of the network itself."""
    generator = torch.Generator().manual_seed(seed)
    x = at + torch.randn(n, 2, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(n, dtype=torch.long)
    with torch.no_grad():
        q = Classifier().draw_logits((x, nothing), 1, generator)[0].softmax(-1)
    return Pairs(x, torch.multinomial(q, 1, generator=generator).squeeze(1))


WHOLE = {"draws": 3, "sets": 2, "parameters": "all", "batch_size": 200, "ridge": 0.02}


def test_functionals_of_the_whole_model_equal_the_dense_route():
    """An out-of-domain loss difference and a prediction, both routes to 1e-6."""
    model, data, other = Classifier(), classified(200, 1), classified(30, 2, at=2.0)
    loss = log_loss(other, Classifier(seed=1), draws=4, batch_size=20)
    at = probability((torch.full((1, 2), 2.0).double(), torch.zeros(1)), 2, draws=4)

    def both(m):
        return torch.stack([loss(m), at(m)])

    options = WHOLE | {"names": ("loss difference", "p")}
    dense = infer(model, data, both, method="dense", **options)
    free = infer(model, data, both, method="matrix-free", **options)
    np.testing.assert_allclose(free.theta, dense.theta, rtol=REFERENCE)
    np.testing.assert_allclose(free.se, dense.se, rtol=1e-6)
    size = np.sqrt(np.outer(*[np.diag(dense.covariance)] * 2))
    np.testing.assert_allclose(
        free.covariance / size, dense.covariance / size, atol=2e-6
    )
    found = {f.name: f for f in free.findings}
    assert found["solve accuracy"].status == "pass"
    assert found["solve accuracy"].value < 1e-6
    parts = [found[f"{name} loss difference"].value for name in ("V_data", "V_latent")]
    assert free.se.iloc[0] ** 2 == pytest.approx(sum(parts), rel=1e-12)
    rough = infer(model, data, at, method="matrix-free", tolerance=0.1, **WHOLE)
    stated = {f.name: f for f in rough.findings}["solve accuracy"].value
    assert stated > 1e-3  # the control: a coarse solve says that it is coarse


def test_a_solve_that_is_not_finished_or_not_possible_is_refused():
    model, data = Classifier(), classified(200, 1)
    options = WHOLE | {"method": "matrix-free"}
    loss = log_loss(classified(30, 2, at=2.0), draws=4, batch_size=30)
    with pytest.raises(ConvergenceError, match="needs more than 3 iterations"):
        infer(model, data, loss, max_iterations=3, **options)
    options |= {"ridge": 0.0}
    with pytest.raises(IdentificationError, match=r"not estimable: .* most at idle"):
        infer(model, data, lambda m: 3 * m.idle + m.level[0], **options)


def test_passes_assemble_the_noise_of_the_draws():
    data = binary_data(4000, 0)
    options = {"kind": "expected", "parameters": "all", "batch_size": 4000}

    def log_s(m):
        return m.perturbation.log_scale

    def variance(passes):
        fit = infer(BinaryModel(), data, log_s, passes=passes, draws=2, **options)
        return fit.se.iloc[0] ** 2, {f.name: f.value for f in fit.findings}

    once, parts = variance(1)
    four, _ = variance(4)
    never, none = variance(np.inf)
    assert four == pytest.approx(parts["V_data"] + parts["V_latent"] / 4, rel=1e-9)
    assert never == pytest.approx(parts["V_data"], rel=1e-9)
    assert none["V_latent"] == 0.0
    assert once > 3 * never  # K = 2 draws used once: 17.81 against 6.01


def test_a_perturbation_of_size_zero_is_refused_with_the_score_test():
    model = small()
    torch.nn.init.zeros_(model.perturbation.directions)
    with pytest.raises(IdentificationError, match=r"size zero.*no_perturbation"):
        infer(model, documents(), squared_size, draws=3)


def test_jackknifed_loss_has_less_bias_than_the_log_of_a_mean():
    model, data = BinaryModel(), binary_data(400, 3)
    exact = log_loss(data, draws=3000, batch_size=400)(model).item()
    plain, fixed = (
        np.mean(
            [
                log_loss(data, draws=4, corrected=c, batch_size=400, seed=k)(
                    model
                ).item()
                for k in range(40)
            ]
        )
        for c in (False, True)
    )
    assert plain - exact > 0.01
    assert abs(fixed - exact) < 0.25 * (plain - exact)


@pytest.mark.parametrize("equation", [Brier(), NoiseAveraged()])
def test_minres_equals_the_dense_route_for_symmetric_equations(equation):
    model, data = Classifier(), classified(200, 1)
    loss = log_loss(classified(30, 2, at=2.0), draws=4, batch_size=30)
    options = WHOLE | {"ridge": 0.2}
    dense = infer(model, data, loss, equation, method="dense", **options)
    free = infer(
        model, data, loss, equation, method="matrix-free", solver="minres", **options
    )
    np.testing.assert_allclose(free.se, dense.se, rtol=1e-6)


class Plain(torch.nn.Module):
    """A linear softmax without a latent, redundant by one class; 9 parameters."""

    has_latent = False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
        self.level = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def draw_logits(self, batch, draws, generator):
        return (batch[0] @ self.weight.T + self.level).unsqueeze(0)

    def targets(self, batch):
        return batch[1]


def test_interval_of_a_penalised_root_without_a_latent_meets_the_dense_sandwich():
    """A plain model fitted towards its start: psi less the penalty vanishes.

    Oracle: the sandwich in closed form, A + ridge and scores of a softmax.
    """
    data, other, ridge = classified(150, 1), classified(20, 2, at=1.0), 0.1
    model = Plain()
    weights = list(model.parameters())
    descent = torch.optim.LBFGS(
        weights, max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        descent.zero_grad()
        logits = model.draw_logits((data.x, data.y), 1, None)[0]
        pull = sum(p.square().sum() for p in weights)
        total = torch.nn.functional.cross_entropy(logits, data.y) + ridge * pull / 2
        total.backward()
        return total

    descent.step(closure)
    loss = log_loss(other, Plain(), draws=1, batch_size=20)
    options = {"draws": 1, "parameters": "all", "batch_size": 200, "ridge": ridge}
    free = infer(
        model, data, loss, NoiseAveraged(), reference=Plain(), method="matrix-free",
        solver="minres", **options,
    )  # fmt: skip

    def parts(x, y):
        features = np.column_stack([x.numpy(), np.ones(len(x))])
        with torch.no_grad():
            q = model.draw_logits((x, y), 1, None)[0].softmax(-1).numpy()
        scores = (np.eye(3)[y.numpy()] - q)[:, :, None] * features[:, None, :]
        return features, q, scores.reshape(len(x), 9)

    features, q, psi = parts(data.x, data.y)
    blocks = np.einsum("iv,vw->ivw", q, np.eye(3)) - q[:, :, None] * q[:, None, :]
    A = np.einsum("ivw,ij,ik->vjwk", blocks, features, features).reshape(9, 9) / 150
    gradient = -parts(other.x, other.y)[2].mean(axis=0)
    rows = psi @ np.linalg.solve(A + ridge * np.eye(9), gradient)
    assert free.se.iloc[0] == pytest.approx(rows.std(ddof=1) / np.sqrt(150), rel=1e-6)
    assert free.root.residual < 1e-4
    away = infer(model, data, loss, NoiseAveraged(), method="dense", **options)
    assert away.se.iloc[0] == pytest.approx(free.se.iloc[0], rel=1e-6)
    assert away.root.residual > 0.1  # the control: the penalty counts as residual
    assert not any(f.name == "V_latent" for f in free.findings)
