r"""A causal language model whose prefix embeddings carry a Gaussian latent.

.. math:: p(y \mid x) = E_Z \, \mathrm{softmax}\, f_\beta(g_\phi(e(x), Z))

One independent latent vector perturbs each position, and a causal model lets the
prediction at a position see only the latents up to it, so the same draws serve all
positions of one teacher-forced pass. The latent acts in training *and* in prediction:
probabilities are averaged over draws, never logits.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from eestim.errors import CapabilityError, DataError
from eestim.llm.averaging import average_log_probabilities, standard_normal
from eestim.llm.documents import TokenBatch
from eestim.llm.generation import generate
from eestim.llm.perturbations import Perturbation, from_config
from eestim.llm.sites import bypassed, linear_head
from eestim.llm.surrogates import IGNORED

__all__ = ["LatentPrefixLM", "as_token_batch"]

_SETTINGS = "latent_prefix.json"
_WEIGHTS = "perturbation.safetensors"
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.safetensors.index.json")


class LatentPrefixLM(nn.Module):
    """Wrap a Hugging Face causal model with a perturbation of its embeddings.

    Parameters
    ----------
    base : transformers causal language model
        Must take `inputs_embeds`. Dropout is switched off for good: it would be a
        second latent that prediction does not average over.
    perturbation : Perturbation, optional
        None gives the plain model in the same interface.
    tokenizer : transformers tokenizer, optional
        Saved and loaded with the model.
    train_base : bool
        Whether `fit` trains the base too.

    Raises
    ------
    TypeError
        If the base does not take `inputs_embeds`.
    ValueError
        If it ignores them, or the perturbation has another width.
    """

    def __init__(
        self,
        base: Any,
        perturbation: Perturbation | None = None,
        tokenizer: Any = None,
        *,
        train_base: bool = True,
    ) -> None:
        super().__init__()
        self._head_is_linear = _check_base(base, perturbation)
        self.base = base
        self.perturbation = perturbation
        self.tokenizer = tokenizer
        self.base.requires_grad_(train_base)
        self.eval()

    def train(self, mode: bool = True) -> LatentPrefixLM:  # noqa: ARG002 - see class
        """Stay in evaluation mode, without dropout; gradients are unaffected."""
        return super().train(False)

    @property
    def has_latent(self) -> bool:
        """Whether draws differ."""
        return self.perturbation is not None

    @property
    def device(self) -> torch.device:
        """Where the embeddings live."""
        return torch.device(self.base.get_input_embeddings().weight.device)

    def widened(self, embeddings: Tensor) -> Tensor:
        """Return embeddings in the perturbation's dtype: phi stays in float32."""
        if self.perturbation is None:
            return embeddings
        return embeddings.to(next(self.perturbation.parameters()).dtype)

    def narrowed(self, perturbed: Tensor) -> Tensor:
        """Return perturbed embeddings in the base's dtype."""
        return perturbed.to(self.base.get_input_embeddings().weight.dtype)

    def embed(self, batch: Any) -> Tensor:
        """Return the clean embeddings of a batch, (B, T, width)."""
        ids = as_token_batch(batch).input_ids.to(self.device)
        return self.widened(self.base.get_input_embeddings()(ids))

    def latents(self, embeddings: Tensor, draws: int, generator: Generator) -> Tensor:
        """Return (K, B, T, r) latents, independent over draws, rows and positions."""
        if draws < 1:
            raise ValueError(f"`draws` is {draws}; it must be at least 1.")
        rank = 0 if self.perturbation is None else self.perturbation.latent
        shape = (draws, *embeddings.shape[:-1], rank)
        return standard_normal(shape, generator, embeddings)

    def perturb(self, embeddings: Tensor, latents: Tensor) -> Tensor:
        """Return (K, B, T, width) perturbed embeddings; K = 1 without a latent."""
        if self.perturbation is None:
            return embeddings.unsqueeze(0)
        moved: Tensor = self.perturbation(embeddings, latents)
        return moved

    def logits_of(self, perturbed: Tensor) -> Tensor:
        """Return (K, B, T, V) logits of perturbed embeddings (K, B, T, width)."""
        draws, rows = perturbed.shape[:2]
        self.check_context(perturbed.shape[2])
        flat = self.narrowed(perturbed.flatten(0, 1))
        logits: Tensor = self.base(inputs_embeds=flat, use_cache=False).logits
        return logits.view(draws, rows, *logits.shape[1:])

    def hidden_of(self, perturbed: Tensor) -> Tensor:
        """Return (K, B, T, width) last hidden states of perturbed embeddings."""
        with bypassed([self._head()]):
            return self.logits_of(perturbed)

    def draw_hidden(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return the (K, B, T, width) states that `head` maps to `draw_logits`.

        Raises
        ------
        CapabilityError
            If the base's logits are not a linear map of hidden states.
        """
        embeddings = self.embed(batch)
        latents = self.latents(embeddings, draws, generator)
        return self.hidden_of(self.perturb(embeddings, latents))

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of last hidden states (..., width)."""
        logits: Tensor = self._head()(hidden)
        return logits

    @property
    def head_weight(self) -> Tensor:
        """The (V, width) weight of the output head; the embedding table where tied."""
        return self._head().weight

    @property
    def head_bias(self) -> Tensor | None:
        """The (V,) bias of the output head, or None."""
        return self._head().bias

    def _head(self) -> nn.Linear:
        head = linear_head(self.base)
        if head is None or not self._head_is_linear:
            raise CapabilityError(
                f"`base` ({type(self.base).__name__}) does more than one linear map "
                "after its last hidden states (an adapter, a softcap or a scale); use "
                "draw_logits."
            )
        return head

    def draw_logits(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return logits of independent draws.

        Parameters
        ----------
        batch : (B, T) token tensor, mapping with `input_ids`, or TokenBatch
        draws : int
            K.
        generator : torch.Generator

        Returns
        -------
        (K, B, T, V) tensor
            K = 1 where there is no latent.
        """
        embeddings = self.embed(batch)
        latents = self.latents(embeddings, draws, generator)
        return self.logits_of(self.perturb(embeddings, latents))

    def forward(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return `draw_logits`."""
        return self.draw_logits(batch, draws, generator)

    def targets(self, batch: Any) -> Tensor:
        """Return the next token of each position, (B, T), or -100."""
        return as_token_batch(batch).targets.to(self.device)

    @torch.no_grad()
    def predict(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return averaged log probabilities of the next token, (B, T, V)."""
        return average_log_probabilities(self.draw_logits(batch, draws, generator))

    def check_context(self, length: int) -> None:
        """Refuse more positions than the base has."""
        limit = getattr(self.base.config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise ValueError(
                f"`batch` has {length} positions, but the base's context is {limit} "
                f"tokens; cut texts into blocks of {limit} or less."
            )

    def generate(
        self, input_ids: Tensor, max_new_tokens: int = 64, **options: Any
    ) -> Tensor:
        """Continue token sequences, averaging over the latent at every step.

        See `eestim.llm.generation.generate` for the options.
        """
        return generate(self, input_ids, max_new_tokens, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the base, the perturbation (safetensors) and its settings (JSON)."""
        folder = Path(folder)
        self.base.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        settings: dict[str, Any] = {"format": 1, "perturbation": None}
        if self.perturbation is not None:
            settings["perturbation"] = type(self.perturbation).__name__
            settings["arguments"] = self.perturbation.config()
            state = {
                name: value.detach().cpu().contiguous()
                for name, value in self.perturbation.state_dict().items()
            }
            save_file(state, folder / _WEIGHTS)
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        perturbation: Perturbation | None = None,
        *,
        train_base: bool = True,
        **arguments: Any,
    ) -> LatentPrefixLM:
        """Load a saved latent-prefix model, or wrap a Hugging Face causal model.

        Parameters
        ----------
        folder_or_id : str or Path
            What `save_pretrained` wrote, a folder of a causal model, or its id.
        perturbation : Perturbation, optional
            Used instead of a saved one.
        train_base : bool
            Whether `fit` trains the base too.
        **arguments
            Passed to ``AutoModelForCausalLM.from_pretrained`` (`dtype`,
            `gguf_file`, ...).

        Raises
        ------
        DataError
            If the folder lacks a configuration or weights.
        """
        place = Path(folder_or_id)
        if place.exists():
            _check_folder(place)
        base = AutoModelForCausalLM.from_pretrained(folder_or_id, **arguments)
        tokenizer = _tokenizer(folder_or_id, arguments.get("gguf_file"))
        settings = place / _SETTINGS
        if perturbation is None and settings.is_file():
            saved = json.loads(settings.read_text())
            if saved["perturbation"] is not None:
                perturbation = from_config(saved["perturbation"], saved["arguments"])
                perturbation.load_state_dict(load_file(place / _WEIGHTS))
        return cls(base, perturbation, tokenizer, train_base=train_base)


def as_token_batch(batch: Any) -> TokenBatch:
    """Return a TokenBatch of token ids or of a transformers batch.

    The target of a position is the next token of its row.
    """
    if isinstance(batch, TokenBatch):
        return batch
    mask = None
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        mask, ids = batch.get("attention_mask"), batch["input_ids"]
    else:
        ids = batch
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            "`batch` must be a (B, T) integer tensor, a mapping whose `input_ids` is "
            f"one, or a TokenBatch; got {type(ids).__name__}."
        )
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    if mask is not None:
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError(
                "`attention_mask` pads on the left; pad on the right, so that "
                "positions keep their place."
            )
        targets[:, :-1] = targets[:, :-1].masked_fill(mask[:, 1:] == 0, IGNORED)
    return TokenBatch(ids, targets)


def _check_base(base: Any, perturbation: Perturbation | None) -> bool:
    """Check that the base takes, and uses, embeddings of the right width.

    Return whether its logits are its head's linear map of the last hidden states.
    """
    if not isinstance(base, nn.Module) or not hasattr(base, "get_input_embeddings"):
        raise TypeError(
            f"`base` is a {type(base).__name__}; expected a Hugging Face causal "
            "language model, such as AutoModelForCausalLM gives."
        )
    if "inputs_embeds" not in inspect.signature(base.forward).parameters:
        raise TypeError(
            f"`base` ({type(base).__name__}) does not take `inputs_embeds`; a prefix "
            "can only be perturbed in a model that reads embeddings."
        )
    call: Any = base
    table = call.get_input_embeddings()
    width = table.weight.shape[1]
    if perturbation is not None and perturbation.width != width:
        raise ValueError(
            f"`perturbation` has width {perturbation.width}, but the embeddings of "
            f"`base` have {width} coordinates; build it with width={width}."
        )
    base.eval()
    ids = torch.arange(2, device=table.weight.device).unsqueeze(0)
    with torch.no_grad():
        clean = table(ids)
        given = call(inputs_embeds=clean, use_cache=False).logits
        other = call(inputs_embeds=clean.flip(-1) + 1, use_cache=False).logits
        own = call(input_ids=ids, use_cache=False).logits
    if torch.equal(given, other) or not torch.allclose(given, own, 1e-2, 1e-3):
        raise ValueError(
            f"`base` ({type(base).__name__}) ignores or alters `inputs_embeds`: its "
            "logits do not follow them. Use a model that reads its input embeddings."
        )
    head = linear_head(call)
    if head is None:
        return False
    with torch.no_grad(), bypassed([head]):
        hidden = call(inputs_embeds=clean, use_cache=False).logits
    with torch.no_grad():
        return torch.equal(head(hidden), given)


def _check_folder(folder: Path) -> None:
    """Refuse a model folder without a configuration or weights."""
    if not folder.is_dir():
        raise DataError(f"`folder_or_id` is {folder}, a file; give the model's folder.")
    has_weights = any(any(folder.glob(pattern)) for pattern in _WEIGHT_FILES)
    weights = [
        path
        for pattern in _WEIGHT_FILES
        for path in folder.glob(pattern)
        if path.name != _WEIGHTS
    ]
    is_gguf = any(folder.glob("*.gguf"))
    if not (folder / "config.json").is_file() and not is_gguf:
        raise DataError(
            f"`folder_or_id` is {folder}, which holds no config.json; give a folder "
            "that save_pretrained wrote."
        )
    if not has_weights or not weights:
        raise DataError(
            f"`folder_or_id` is {folder}, which holds no weights (*.safetensors, "
            "*.bin or *.gguf); copy them there, or save the model again."
        )


def _tokenizer(folder_or_id: str | Path, gguf_file: str | None) -> Any:
    """Return the tokenizer that lies beside a model, or None."""
    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        return AutoTokenizer.from_pretrained(folder_or_id, **extra)
    except (OSError, ValueError, KeyError):
        return None
