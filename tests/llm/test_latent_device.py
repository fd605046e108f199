"""A device that is not there is named before any work."""

import pytest
import torch

from eestim.llm.experiment import text_experiment


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_device_is_refused_before_texts_are_read():
    with pytest.raises(ValueError, match="`device` is 'cuda', but torch sees no GPU"):
        text_experiment(train=["no such file"], device="cuda")
