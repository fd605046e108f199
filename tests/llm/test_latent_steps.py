"""Steps of a fit: parts, devices, precision, penalties, stopping, shared draws."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_latent_training import TEXT, language_model, parameters, quick
from tolerances import EXACT

from eestim.errors import CapabilityError, ConvergenceError, DataError
from eestim.llm.checkpoints import CHECKPOINT
from eestim.llm.documents import Documents
from eestim.llm.equations import (
    Brier,
    CentredIWAE,
    NoiseAveraged,
    ScoreWeighted,
    Split,
)
from eestim.llm.protocols import split_parameters
from eestim.llm.randomness import refuse_shared_draws, step_generator
from eestim.llm.recipe import StepReport
from eestim.llm.sizes import SizePenalty
from eestim.llm.synthetic import BinaryModel, binary_data
from eestim.llm.training import fit

ROOT = Path(__file__).resolve().parents[2]
OTHER = ["a text that nobody has trained on, long enough for a row or two."]


def moved(equation=None, **options):
    """Parameters after a few steps of plain descent from one start."""
    model = language_model().double()
    settings = {"optimizer": "sgd", "learning_rate": 0.3, "clip": 1e9} | options
    quick(model, equation, **settings)
    return parameters(model)


@pytest.mark.parametrize(
    "equation", [Brier(), Split(NoiseAveraged(), Brier()), ScoreWeighted(lag=2)]
)
def test_fused_head_and_plain_route_take_the_same_steps(equation):
    fused, plain = (moved(equation, head=head) for head in ("fused", "plain"))
    torch.testing.assert_close(fused, plain, rtol=0, atol=EXACT)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_of_a_step_add_up_to_the_step(parts):
    torch.testing.assert_close(moved(accumulate=parts), moved(), rtol=0, atol=EXACT)


def test_an_accelerator_of_one_process_changes_nothing():
    accelerate = pytest.importorskip("accelerate")
    alone = moved(accelerator=accelerate.Accelerator(cpu=True))
    assert torch.equal(alone, moved())


TWO = """
    import sys, torch
    torch.set_num_threads(1)
    sys.path[:0] = {paths!r}
    from accelerate import Accelerator
    from test_latent_steps import moved
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = moved(accelerator=accelerator, checkpoint={folder!r}, every=3)
    torch.save(found, {folder!r} + f"/found{{accelerator.process_index}}.pt")
    accelerator.end_training()
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    pytest.importorskip("accelerate")
    paths = [str(ROOT / "tests" / "llm"), str(ROOT / "tests")]
    code = textwrap.dedent(TWO).format(paths=paths, folder=str(tmp_path))
    shared = os.environ | {
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20_000 + os.getpid() % 20_000),
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=shared | {"RANK": rank, "LOCAL_RANK": rank},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    one = moved()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"found{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, one, rtol=0, atol=EXACT)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == 6


def test_draws_of_a_row_do_not_depend_on_the_rows_beside_it():
    from eestim.llm.randomness import unit_generators

    model = language_model()
    units = Documents.from_texts(TEXT, model.tokenizer, 16)
    rows = np.array([3, 0, 5])
    many, one = (
        model.draw_logits(units.batch(r), 2, unit_generators(model, 7, 4, r))
        for r in (rows, rows[:1])
    )
    torch.testing.assert_close(many[:, :1], one, rtol=1e-5, atol=1e-6)
    again = model.draw_logits(units.batch(rows), 2, unit_generators(model, 7, 5, rows))
    assert not torch.allclose(many, again, rtol=1e-3)


class Sharing(BinaryModel):
    """One latent for all rows of a batch."""

    def draw_logits(self, batch, draws, generator):
        x, _ = batch
        z = torch.randn(draws, 1, generator=generator, dtype=x.dtype)
        return self.logits_of(self.perturb(x, z.expand(-1, len(x))))


def test_draws_shared_across_units_are_refused_with_the_reason():
    with pytest.raises(DataError, match=r"1 \+ n rho / K"):
        fit(Sharing(), binary_data(20, 0), Brier(), draws=2, steps=2)
    data = binary_data(20, 0)
    refuse_shared_draws(BinaryModel(), data, 2)
    refuse_shared_draws(BinaryModel(scale=None), data, 2)  # nothing to share


def variance_of_mean_psi(model, n, steps=300):
    """Variance over draws of the mean psi (of b) of n equal units: rho = 1."""
    x, y = binary_data(5, 1).batch(np.zeros(n, dtype=np.int64))
    found = []
    for step in range(steps):
        loss = Brier().loss(model.draw_logits((x, y), 2, step_generator(0, step)), y)
        found.append(torch.autograd.grad(loss, model.b)[0])
    return float(torch.stack(found).var())


def test_shared_draws_inflate_the_variance_by_the_stated_factor():
    """Equal units, so the factor is n; the error of a variance is by its kurtosis."""
    one = variance_of_mean_psi(Sharing(), 1, steps=4000)
    shared = variance_of_mean_psi(Sharing(), 50, steps=4000)
    own = variance_of_mean_psi(BinaryModel(), 50, steps=4000)
    assert shared == pytest.approx(one, rel=1e-6)  # no gain at all from 50 units
    assert abs(shared / own / 50 - 1) < 4 * (2 * 4 / 4000) ** 0.5


def test_bf16_moves_float32_parameters_and_agrees_roughly():
    full, half = language_model(), language_model()
    start = parameters(full)
    quick(full, Split(NoiseAveraged(), Brier()), steps=4)
    quick(half, Split(NoiseAveraged(), Brier()), steps=4, precision="bf16")
    assert all(p.dtype == torch.float32 for p in half.parameters())
    step, other = parameters(full) - start, parameters(half) - start
    assert not torch.equal(step, other)
    assert torch.cosine_similarity(step, other, dim=0) > 0.9


def test_a_bfloat16_base_keeps_its_dtype_and_phi_stays_float32():
    model = language_model()
    model.base.bfloat16()
    quick(model, Split(NoiseAveraged(), Brier()), steps=3)
    base, phi = split_parameters(model)
    assert {p.dtype for p in base.values()} == {torch.bfloat16}
    assert {p.dtype for p in phi.values()} == {torch.float32}
    with pytest.raises(ValueError, match=r"call model\.perturbation\.float\(\)"):
        quick(model.bfloat16())


def test_monitor_reports_loss_size_and_rate():
    reports = []
    record = quick(
        language_model(), Split(NoiseAveraged(), Brier()), monitor=reports.append,
        held_out=OTHER, validate_every=3,
    )  # fmt: skip
    assert len(reports) == 6
    assert all(isinstance(r, StepReport) for r in reports)
    assert [r.loss for r in reports] == record.losses.tolist()
    assert reports[0].perturbation_size == pytest.approx(1.0, rel=1e-5)
    assert all(r.tokens_per_second > 0 and min(r.gradient_norms) > 0 for r in reports)
    assert [r.step for r in reports if r.held_out_loss is not None] == [3, 6]
    assert "tokens/s" in str(reports[-1])
    assert "held out" in str(reports[-1])


def test_monitor_does_not_change_the_steps():
    assert torch.equal(moved(monitor=lambda report: None), moved())


def test_penalty_pulls_the_size_to_its_moving_target():
    model = language_model(train_base=False)
    sizes = []
    quick(
        model, steps=80, learning_rate=0.05,
        penalty=SizePenalty(0.5, weight=100.0, start=1.0, ramp=0.5),
        monitor=lambda report: sizes.append(report.perturbation_size),
    )  # fmt: skip
    free = language_model(train_base=False)
    quick(free, steps=80, learning_rate=0.05)
    last = free.perturbation.squared_size(torch.zeros(16)).sqrt().item()
    assert sizes[20] == pytest.approx(0.5**0.5, rel=0.1)
    assert sizes[-1] == pytest.approx(0.5, rel=0.05)
    assert last > 1.0  # the control: nothing else takes it there


def test_gradient_of_the_penalty_is_its_derivative():
    penalty = SizePenalty(2.0, weight=0.7)
    squared = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(penalty.value(squared, 0, 10), squared)
    assert slope.item() == pytest.approx(0.7 * np.log(5 / 4) / 5, rel=1e-12)


def overfitted(model=None, **options):
    """Fit one short text at a rate at which the held-out loss soon gets worse."""
    model = model or language_model()
    settings = {
        "draws": 2, "steps": 60, "learning_rate": 0.02, "warmup": 2,
        "held_out": OTHER, "validate_every": 5, "patience": 2,
    }  # fmt: skip
    return model, quick(model, NoiseAveraged(), **(settings | options))


def test_early_stopping_leaves_the_best_parameters():
    path, model = {}, language_model()
    _, record = overfitted(
        model, progress=lambda step, steps, loss: path.update({step: parameters(model)})
    )
    looks, losses = record.validation.T
    assert len(record.losses) < 60
    assert record.best_step == looks[losses.argmin()]
    assert len(looks) - 1 - losses.argmin() == 2
    assert torch.equal(parameters(model), path[record.best_step])
    assert not torch.equal(parameters(model), path[len(record.losses)])


def test_early_stopping_resumes_to_the_same_bits(tmp_path):
    whole, record = overfitted()

    def stop(step, steps, loss):
        if step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        overfitted(checkpoint=tmp_path, every=4, progress=stop)
    resumed, other = overfitted(checkpoint=tmp_path, every=4)
    assert other.resumed_from == 12
    assert np.array_equal(other.validation, record.validation)
    assert torch.equal(parameters(resumed), parameters(whole))
    once_more, third = overfitted(checkpoint=tmp_path, every=4)  # already stopped
    assert third.resumed_from == len(record.losses)
    assert torch.equal(parameters(once_more), parameters(whole))


def test_held_out_documents_that_are_trained_on_are_refused():
    with pytest.raises(DataError, match="`held_out` holds 'document 0', the same"):
        quick(language_model(), held_out=TEXT[:1])


SCRIPT = """
    import sys, time, torch
    torch.set_num_threads(1)
    sys.path[:0] = {paths!r}
    from test_latent_steps import everything
    everything({folder!r}, lambda report: time.sleep(0.05))
"""


def everything(folder=None, monitor=None):
    """A fit that uses every piece of state that a checkpoint holds."""
    model = language_model()
    record = quick(
        model, ScoreWeighted(lag=4), draws=4, steps=40, accumulate=2, every=3,
        average_from=0.2, checkpoint=folder, monitor=monitor, held_out=OTHER,
        validate_every=5, patience=50, penalty=SizePenalty(1.5, start=1.0),
    )  # fmt: skip
    return model, record


def test_killed_at_any_step_it_resumes_to_the_same_bits(tmp_path):
    paths = [str(ROOT / "tests" / "llm"), str(ROOT / "tests")]
    code = textwrap.dedent(SCRIPT).format(paths=paths, folder=str(tmp_path))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / CHECKPOINT).is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert 0 < saved["step"] < 40
    assert saved["step"] % 3 == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, _ = everything()
        resumed, record = everything(str(tmp_path))
    finally:
        torch.set_num_threads(threads)
    assert record.resumed_from == saved["step"]
    assert torch.equal(parameters(whole), parameters(resumed))


def test_parameters_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    model = language_model()

    def poison(step, steps, loss):
        if step == 3:
            with torch.no_grad():
                model.base.model.norm.weight.fill_(float("inf"))

    with pytest.raises(ConvergenceError, match="not finite"):
        quick(model, every=2, checkpoint=tmp_path, progress=poison)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2


def test_weights_of_an_older_copy_find_the_true_root():
    model = BinaryModel(a=0.0, b=1.0, scale=0.9)
    fit(
        model, binary_data(20_000, seed=3), ScoreWeighted(lag=50), draws=4, steps=400,
        batch_size=500, learning_rate=0.05, average_from=0.5, clip=10.0,
    )  # fmt: skip
    found = torch.tensor([model.a.item(), model.b.item(), np.log(model.scale)])
    sd = torch.tensor([3.5, 5.2, 6.1]) / 20_000**0.5
    truth = torch.tensor([0.3, 2.0, np.log(0.5)])
    assert ((found - truth).abs() < 4.5 * sd).all()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="`accumulate` is 9, but a step has only"):
        quick(language_model(), accumulate=9)
    with pytest.raises(ValueError, match="`precision` is 'fp8'"):
        quick(language_model(), precision="fp8")
    with pytest.raises(ValueError, match="`head` is 'big'"):
        quick(language_model(), head="big")
    with pytest.raises(CapabilityError, match="`head` is 'fused'"):
        fit(BinaryModel(), binary_data(9, 0), CentredIWAE(1), draws=2, head="fused")
    with pytest.raises(ValueError, match="`patience` is 0"):
        quick(language_model(), held_out=OTHER, patience=0)
    with pytest.raises(ValueError, match="`target` is -1"):
        SizePenalty(-1.0)
    with pytest.raises(ValueError, match="`ramp` is 0"):
        SizePenalty(1.0, ramp=0.0)
    with pytest.raises(CapabilityError, match="`penalty` needs a perturbation"):
        fit(
            BinaryModel(scale=None), binary_data(9, 0), NoiseAveraged(), draws=1,
            penalty=SizePenalty(1.0),
        )  # fmt: skip
