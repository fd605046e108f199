r"""A causal language model whose prefix states carry a Gaussian latent.

.. math:: p(y \mid x) = E_Z \, \mathrm{softmax}\, f_\beta(g_\phi(e(x), Z))

The latent perturbs the embeddings, or the states after a block, of each position. A
causal model lets the prediction at a position see only the latents up to it, so the
same draws serve all positions of one teacher-forced pass. The latent acts in training
*and* in prediction: probabilities are averaged over draws, never logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from eestim.errors import CapabilityError
from eestim.llm import saving
from eestim.llm.averaging import average_log_probabilities, standard_normal
from eestim.llm.batches import as_token_batch, check_targets_known, check_tokens
from eestim.llm.discrete import TokenPerturbation
from eestim.llm.documents import TokenBatch
from eestim.llm.generation import generate
from eestim.llm.limits import (
    check_base,
    check_context,
    check_device,
    check_memory,
    check_perturbation,
    check_site,
    check_tokenizer,
)
from eestim.llm.perturbations import Perturbation
from eestim.llm.sites import Site, bypassed, linear_head, site_index
from eestim.llm.surprise import Reference

__all__ = ["LatentPrefixLM", "as_token_batch"]


class LatentPrefixLM(nn.Module):
    """Wrap a Hugging Face causal model with a perturbation of its prefixes.

    Parameters
    ----------
    base : transformers causal language model
        Must take `inputs_embeds`. Dropout is switched off for good: it would be a
        second latent that prediction does not average over.
    perturbation : Perturbation or TokenPerturbation, optional
        None gives the plain model in the same interface.
    tokenizer : transformers tokenizer, optional
        Saved and loaded with the model.
    site : "embeddings" or int
        What is perturbed: the input embeddings, or the states after block l (from 1).
        The blocks below a site run once for all K draws.
    latent : {"position", "sequence"}
        One independent latent for each position, or one for each document. With
        "sequence" the law of a next token is still an average over the latent's
        prior: the tokens before it do not reweight the draws.
    train_base : bool
        Whether `fit` trains the base too; of a base adapted by peft, its adapters.
    reference : transformers causal language model, optional
        What a `SurpriseGated` perturbation reads the clean prefix with; a frozen copy
        of it is kept. By default the base as it is now.

    Raises
    ------
    TypeError
        If the base does not take `inputs_embeds`.
    ValueError
        If it ignores them, the perturbation has another width, the tokenizer has more
        tokens than the base, the reference other tokens, or there is no such site.
    """

    def __init__(
        self,
        base: Any,
        perturbation: Perturbation | TokenPerturbation | None = None,
        tokenizer: Any = None,
        *,
        site: str | int = "embeddings",
        latent: Literal["position", "sequence"] = "position",
        train_base: bool = True,
        reference: Any = None,
    ) -> None:
        super().__init__()
        check_perturbation(perturbation)
        width = perturbation.width if isinstance(perturbation, Perturbation) else None
        self._head_is_linear = check_base(base, width)
        if tokenizer is not None:
            check_tokenizer(tokenizer, base)
        if latent not in ("position", "sequence"):
            raise ValueError(
                f"`latent` is {latent!r}; expected 'position' or 'sequence'."
            )
        self.base = base
        self.perturbation: Any = perturbation
        self.tokenizer = tokenizer
        self.site = site_index(site, base)
        self.latent = latent
        self.reference = _reference(perturbation, base, reference)
        if self.site and isinstance(perturbation, TokenPerturbation):
            raise ValueError(
                f"`site` is {site!r}, but {perturbation} changes tokens; leave `site` "
                "at 'embeddings'."
            )
        check_site(self._site())
        if not train_base:
            self.base.requires_grad_(False)
        elif not hasattr(base, "peft_config"):  # peft has chosen what trains
            self.base.requires_grad_(True)
        self.eval()

    def train(self, mode: bool = True) -> LatentPrefixLM:  # noqa: ARG002 - see class
        """Stay in evaluation mode, without dropout; gradients are unaffected."""
        return super().train(False)

    def silence(self) -> None:
        """Switch dropout off again where the base was set to train by itself."""
        if any(module.training for module in self.modules()):
            self.eval()

    def cuda(self, device: int | torch.device | None = None) -> LatentPrefixLM:
        """Move to a GPU; one that is not there is refused."""
        place: Any = device
        if device is None or isinstance(device, int):
            place = f"cuda:{device or 0}"
        return self.to(place)

    def to(self, *arguments: Any, **options: Any) -> LatentPrefixLM:
        """Move or convert as a torch module; a GPU that is not there is refused."""
        place = options.get("device", arguments[0] if arguments else None)
        if isinstance(place, str | torch.device):
            check_device(place)
        return super().to(*arguments, **options)

    @property
    def has_latent(self) -> bool:
        """Whether draws differ."""
        return self.perturbation is not None

    @property
    def independent_draws(self) -> bool:
        """Whether the K draws are independent, as unbiased equations need."""
        return getattr(self.perturbation, "independent_draws", True)

    @property
    def device(self) -> torch.device:
        """Where the embeddings live."""
        return torch.device(self.base.get_input_embeddings().weight.device)

    def without_latent(self) -> LatentPrefixLM:
        """Return the plain model on the same base, for prediction without noise."""
        plain = object.__new__(LatentPrefixLM)
        nn.Module.__init__(plain)
        plain.base, plain.perturbation = self.base, None
        plain.tokenizer, plain.site, plain.latent = self.tokenizer, 0, "position"
        plain._head_is_linear, plain.reference = self._head_is_linear, None
        return plain.eval()

    def summary(self) -> str:
        """Return the base, the site and the perturbation with their sizes.

        Examples
        --------
        >>> from eestim.llm import LowRank, byte_model
        >>> base = byte_model(8, width=8, layers=2, heads=2)
        >>> print(LatentPrefixLM(base, LowRank(8, rank=2), site=1).summary())
        base          LlamaForCausalLM, 3,632 parameters, 3,632 trained
        perturbation  LowRank(width=8, rank=2, size=1.0, ...; 16 parameters)
        site          after block 1 of 2
        latent        one for each position
        """
        counts = [(p.numel(), p.requires_grad) for p in self.base.parameters()]
        total, trained = sum(n for n, _ in counts), sum(n for n, on in counts if on)
        blocks = getattr(self.base.config, "num_hidden_layers", "?")
        site = f"after block {self.site} of {blocks}" if self.site else "embeddings"
        inner = getattr(self.base, "get_base_model", lambda: self.base)()
        read = []
        if self.reference is not None:
            size = sum(p.numel() for p in self.reference.parameters())
            read = [f"reference     frozen, {size:,} parameters"]
        return "\n".join(
            [
                f"base          {type(inner).__name__}, {total:,} parameters, "
                f"{trained:,} trained",
                f"perturbation  {self.perturbation}",
                *read,
                f"site          {site}",
                f"latent        one for each {self.latent}",
            ]
        )

    def widened(self, embeddings: Tensor) -> Tensor:
        """Return embeddings in the perturbation's dtype: phi stays in float32."""
        if not isinstance(self.perturbation, Perturbation):
            return embeddings
        first = next(self.perturbation.parameters(), None)
        return embeddings.to(torch.float32 if first is None else first.dtype)

    def narrowed(self, perturbed: Tensor) -> Tensor:
        """Return perturbed embeddings in the base's dtype."""
        return perturbed.to(self.base.get_input_embeddings().weight.dtype)

    def embed(self, batch: Any) -> Tensor:
        """Return the clean states of a batch at the site, (B, T, width)."""
        rows = as_token_batch(batch)
        table = self.base.get_input_embeddings()
        check_tokens(rows.input_ids, table.weight.shape[0])
        self.check_context(rows.input_ids.shape[1])
        return self.states_of(rows.input_ids.to(self.device), self._start(batch))

    def states_of(self, ids: Tensor, start: Tensor | None = None) -> Tensor:
        """Return what the perturbation sees of tokens: `embed` without its checks.

        These are the clean states at the site, (B, T, width), with the features of the
        reference behind them where there is one.
        """
        embeddings = self.base.get_input_embeddings()(ids)
        states = self.widened(self._site().states(embeddings, start))
        if self.reference is None:
            return states
        known = self.reference.features(ids, start).to(states.dtype)
        return torch.cat([states, known], -1)

    def latents(
        self, embeddings: Tensor, draws: int, generator: Generator, batch: Any = None
    ) -> Tensor:
        """Return (K, B, T, r) latents, independent over draws, rows and positions.

        Where the latent is one for each sequence, the positions of a document share
        it; `batch` tells the documents of packed rows apart.
        """
        if draws < 1:
            raise ValueError(f"`draws` is {draws}; it must be at least 1.")
        known = isinstance(self.perturbation, Perturbation)
        rank = self.perturbation.latent if known else 0
        shape = (draws, *embeddings.shape[:-1], rank)
        start = None if batch is None else self._start(batch)
        if self.latent == "position":
            return standard_normal(shape, generator, embeddings)
        if start is None:
            one = (*shape[:-2], 1, rank)
            return standard_normal(one, generator, embeddings).expand(shape)
        drawn = standard_normal(shape, generator, embeddings)
        return drawn.gather(-2, start.unsqueeze(-1).expand(shape))

    def perturb(self, embeddings: Tensor, latents: Tensor, batch: Any = None) -> Tensor:
        """Return (K, B, T, width) perturbed states; K = 1 without a latent."""
        start = None if batch is None else self._start(batch)
        return self.moved(embeddings, latents, start)

    def moved(self, states: Tensor, latents: Tensor, start: Tensor | None) -> Tensor:
        """Return perturbed states where documents begin at `start`."""
        if self.perturbation is None:
            return states.unsqueeze(0)
        where = () if start is None else (start,)
        moved: Tensor = self.perturbation(states, latents, *where)
        return moved

    def logits_of(self, perturbed: Tensor, batch: Any = None) -> Tensor:
        """Return (K, B, T, V) logits of perturbed states (K, B, T, width).

        `batch` is needed where rows are packed.
        """
        draws, rows = perturbed.shape[:2]
        self.check_context(perturbed.shape[2])
        start = None if batch is None else self._start(batch)
        flat = self.narrowed(perturbed.flatten(0, 1))
        logits = self._site().logits(flat, start)
        return logits.view(draws, rows, *logits.shape[1:])

    def hidden_of(self, perturbed: Tensor, batch: Any = None) -> Tensor:
        """Return (K, B, T, width) last hidden states of perturbed states."""
        with bypassed([self._head()]):
            return self.logits_of(perturbed, batch)

    def draw_hidden(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return the (K, B, T, width) states that `head` maps to `draw_logits`.

        Raises
        ------
        CapabilityError
            If the base's logits are not a linear map of hidden states.
        """
        with bypassed([self._head()]):
            return self._draw(batch, draws, generator)

    def draw_hidden_apart(
        self, batch: Any, sizes: tuple[int, ...], generator: Generator
    ) -> list[Tensor]:
        """Return the states of `draw_hidden` in groups of draws.

        Each group, of the size given, is on a graph of its own from the site upwards.
        """
        rows = as_token_batch(batch)
        states = self.embed(rows)
        latents = self.latents(states, sum(sizes), generator, rows)
        return [
            self.hidden_of(self.perturb(states, some, rows), rows)
            for some in torch.split(latents, list(sizes))
        ]

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

        Raises
        ------
        ValueError
            If a token is unknown, the rows exceed the base's context, or the logits
            would not fit into memory.
        """
        self.check_memory(as_token_batch(batch), draws)
        return self._draw(batch, draws, generator)

    def forward(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return `draw_logits`."""
        return self.draw_logits(batch, draws, generator)

    def targets(self, batch: Any) -> Tensor:
        """Return the next token of each position, (B, T), or -100.

        Raises
        ------
        ValueError
            If one is neither -100 nor a token of the base.
        """
        found = as_token_batch(batch).targets
        check_targets_known(found, self.base.get_input_embeddings().weight.shape[0])
        return found.to(self.device)

    @torch.no_grad()
    def predict(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return averaged log probabilities of the next token, (B, T, V)."""
        return average_log_probabilities(self.draw_logits(batch, draws, generator))

    def check_memory(self, batch: TokenBatch, draws: int) -> None:
        """Refuse a batch whose logits would not fit into memory."""
        table = self.base.get_input_embeddings().weight
        like = table.new_empty(1, 1).expand(batch.input_ids.shape)
        check_memory(draws if self.has_latent else 1, like, table.shape[0])

    def check_context(self, length: int) -> None:
        """Refuse more positions than the base, or its reference, has."""
        check_context(self.base, length)
        if self.reference is not None:
            check_context(self.reference.base, length)

    def generate(
        self, input_ids: Any, max_new_tokens: int | None = None, **options: Any
    ) -> Tensor:
        """Continue token sequences, averaging over the latent at every step.

        See `eestim.llm.generation.generate` for the options.
        """
        return generate(self, input_ids, max_new_tokens, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the base, its adapter, the perturbation (safetensors) and a JSON."""
        settings = {"site": self.site, "latent": self.latent}
        saving.save(folder, self.base, self.tokenizer, self.perturbation, settings)
        if self.reference is not None:
            saving.save_reference(folder, self.reference.base)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        perturbation: Perturbation | TokenPerturbation | None = None,
        *,
        site: str | int | None = None,
        latent: Literal["position", "sequence"] | None = None,
        train_base: bool = True,
        device: str | torch.device | None = None,
        **arguments: Any,
    ) -> LatentPrefixLM:
        """Load a saved latent-prefix model, or wrap a Hugging Face causal model.

        Parameters
        ----------
        folder_or_id : str or Path
            What `save_pretrained` wrote, a folder of a causal model, or its id.
        perturbation : Perturbation, optional
            Used instead of a saved one.
        site, latent, train_base
            As for the class; by default what was saved.
        device : str, optional
            Where to put the model.
        **arguments
            Passed to ``AutoModelForCausalLM.from_pretrained`` (`dtype`,
            `gguf_file`, ...).

        Raises
        ------
        DataError
            If the folder lacks a configuration or weights.
        ValueError
            If there is no such device.
        """
        place = None if device is None else check_device(device)
        base, tokenizer = saving.load_base(folder_or_id, train_base, arguments)
        saved, settings = saving.load_settings(folder_or_id)
        chosen: Any = saved if perturbation is None else perturbation
        reference = saving.load_reference(folder_or_id, arguments)
        model = cls(
            base,
            chosen,
            tokenizer,
            site=settings.get("site", 0) if site is None else site,
            latent=latent or settings.get("latent", "position"),
            train_base=train_base,
            reference=reference,
        )
        return model if place is None else model.to(place)

    def _site(self) -> Site:
        return Site(self.base, self.site)

    def _start(self, batch: Any) -> Tensor | None:
        """Return where each token's document starts, where rows hold several."""
        start = as_token_batch(batch).start
        return None if start is None else start.to(self.device)

    def _head(self) -> nn.Linear:
        head = linear_head(self.base)
        if head is None or not self._head_is_linear:
            raise CapabilityError(
                f"`base` ({type(self.base).__name__}) does more than one linear map "
                "after its last hidden states (an adapter, a softcap or a scale); use "
                "draw_logits."
            )
        return head

    def _draw(self, batch: Any, draws: int, generator: Generator) -> Tensor:
        """Return the base's outputs at perturbed states of a batch."""
        if self.base.training:
            self.silence()
        rows = as_token_batch(batch)
        if isinstance(self.perturbation, TokenPerturbation):
            if rows.start is not None:
                raise CapabilityError(
                    f"{self.perturbation} changes tokens, which packed rows do not "
                    "take; give one document a row."
                )
            count, length = rows.input_ids.shape
            noise = self.perturbation.noise(draws, count, length, generator)
            return self.of_changed(rows.input_ids, noise)
        states = self.embed(rows)
        latents = self.latents(states, draws, generator, rows)
        return self.logits_of(self.perturb(states, latents, rows), rows)

    def of_changed(self, ids: Tensor, noise: Tensor) -> Tensor:
        """Return the outputs (K, B, T, ...) of rows whose tokens are changed."""
        table = self.base.get_input_embeddings()
        check_tokens(ids, table.weight.shape[0])
        self.check_context(ids.shape[1])
        rows = self.perturbation.change(ids.to(self.device), noise.to(self.device))
        flat = rows.tokens.flatten(0, 1)
        # A mask of ones says that repeated positions are no new document.
        output = self.base(
            inputs_embeds=table(flat),
            attention_mask=torch.ones_like(flat),
            position_ids=rows.positions.flatten(0, 1),
            use_cache=False,
        ).logits[:, -flat.shape[1] :]
        read = rows.read.flatten(0, 1).unsqueeze(-1).expand(-1, -1, output.shape[-1])
        found: Tensor = output.gather(1, read)
        return found.view(*rows.read.shape, output.shape[-1])


def _reference(perturbation: Any, base: Any, given: Any) -> Reference | None:
    """Return the frozen reader of prefixes that a perturbation needs, else None."""
    if not getattr(perturbation, "needs_reference", False):
        return None
    chosen = base if given is None else given
    rows, known = (
        model.get_input_embeddings().weight.shape[0] for model in (base, chosen)
    )
    if rows != known:
        raise ValueError(
            f"`reference` has {known} embeddings, but `base` has {rows}: they must "
            "read the same tokens. Give an earlier copy of the base, or leave it out."
        )
    return Reference(chosen)
