r"""Worlds whose true law is known everywhere, and bases that are fitted to them.

A base maps perturbed embeddings u to a point h of the output space; token v has a
centre c_v there and logits :math:`-|h - c_v|^2 / (2 w^2)` (in the sequence world the
weights are tied: centres are the tokens' own embeddings). Parameters carry a leading
axis of seeds, so that all seeds of a method train at once: (S, ...).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

WIDTH = 0.35  # w, of the token kernel
Params = dict[str, Tensor]
Base = Callable[[Params, Tensor], Tensor]


def softmax_law(h: Tensor, centres: Tensor) -> Tensor:
    """Return q_v of points h (..., d), (..., V)."""
    return logits_of(h, centres).softmax(-1)


def readout(h: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (V, width of h) and offsets (V,) of logits linear in h.

    Points with one coordinate more than the centres are (h, 1) over a temperature.
    """
    offset = -centres.square().sum(-1) / 2
    if h.shape[-1] == centres.shape[-1]:
        return centres, offset
    return torch.cat([centres, offset.unsqueeze(-1)], -1), torch.zeros_like(offset)


def logits_of(h: Tensor, centres: Tensor) -> Tensor:
    """Return logits up to a constant of each row, without a (..., V, d) array."""
    weight, offset = readout(h, centres)
    return (h @ weight.T + offset) / WIDTH**2


def nodes(law: str, count: int = 2401) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of noise of variance 1: normal, or Student t with 3."""
    wide = 6.0 if law == "normal" else 60.0
    z = torch.sinh(torch.linspace(-1.0, 1.0, count, dtype=torch.float64) * 5) / (
        torch.sinh(torch.tensor(5.0, dtype=torch.float64)) / wide
    )
    density = (-z.square() / 2).exp() if law == "normal" else (1 + z.square()) ** -2.0
    gap = torch.cat([z[1:2] - z[:1], z[2:] - z[:-2], z[-1:] - z[-2:-1]])
    weight = density * gap
    return z, weight / weight.sum()


def noise(law: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw noise of variance 1."""
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if law == "normal":
        return normal
    three = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    return normal / three.square().sum(0).sqrt()  # t(3) / sqrt(3)


def drawn(q: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a token of each row of probabilities (n, V)."""
    return torch.multinomial(q, 1, generator=generator).squeeze(1)


# ------------------------------------------------------------------------- the index


@dataclass(frozen=True)
class IndexWorld:
    r"""One number in, a token out: g(u) = .2 + .6 u + .55 max(u, 0)^2, seen on [0, 2].

    `place` is "pre" for g(x + s Z) and "post" for g(x) + Z: the second has no noise
    that a perturbation of x could represent. `law` is the law of Z.
    """

    place: str = "pre"
    law: str = "normal"
    n: int = 3000
    scale: float = 0.6
    width: int = 1  # of an embedding
    regions = ("inside", "2 to 3", "3 to 4")

    @property
    def centres(self) -> Tensor:
        """Centres of the tokens, (V, d)."""
        return torch.linspace(0.0, 14.0, 21, dtype=torch.float64).unsqueeze(-1)

    def _points(self, x: Tensor, z: Tensor) -> Tensor:
        if self.place == "pre":
            x = x + self.scale * z
        g = 0.2 + 0.6 * x + 0.55 * x.clamp_min(0).square()
        return (g if self.place == "pre" else g + z).unsqueeze(-1)

    def data(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return embeddings (n, 1, 1) and tokens (n, 1): units of one position."""
        generator = torch.Generator().manual_seed(10_000 + seed)
        x = 2 * torch.rand(self.n, generator=generator, dtype=torch.float64)
        z = noise(self.law, (self.n,), generator)
        y = drawn(softmax_law(self._points(x, z), self.centres), generator)
        return x.view(-1, 1, 1), y.view(-1, 1)

    def places(self, region: str) -> tuple[Tensor, Tensor]:
        """Return embeddings (m, 1, 1) of a region and their true laws (m, V)."""
        low, high = {"inside": (0, 2), "2 to 3": (2, 3), "3 to 4": (3, 4)}[region]
        x = torch.linspace(low, high, 52, dtype=torch.float64)[1:]
        z, weight = nodes(self.law)
        q = softmax_law(self._points(x, z.unsqueeze(1)), self.centres)
        return x.view(-1, 1, 1), torch.einsum("k,kmv->mv", weight, q)


# ---------------------------------------------------------------------- the sequences


@dataclass(frozen=True)
class SequenceWorld:
    r"""Sequences of tokens with noise on their embeddings, prefixes seen in a corner.

    A token's embedding is (position, topic). The next token is drawn around
    :math:`(g(c_1), c_2)`, :math:`c = .7 u_t + .3 u_{t-1}`, u = e + s Z along the
    position; "post" puts noise of the same size at the output instead. A training
    sequence ends where its prefix first leaves positions up to 2 or topics up to .7.
    """

    place: str = "pre"
    n: int = 1500
    length: int = 7
    scale: float = 0.6
    width: int = 2
    law = "normal"
    regions = ("inside", "position 2 to 3", "position 3 to 4", "unseen topic")

    @property
    def centres(self) -> Tensor:
        """Centres of the tokens, (V, d)."""
        position = torch.linspace(0.0, 8.0, 17, dtype=torch.float64)
        return torch.cartesian_prod(position, torch.tensor([0.0, 0.7, 1.4]).double())

    def _points(self, c: Tensor, z: Tensor) -> Tensor:
        """Return h of contexts c (..., 2) and context noise z (...)."""
        spread = self.scale * (0.7**2 + 0.3**2) ** 0.5
        first = c[..., 0] + (spread * z if self.place == "pre" else 0.0)
        g = 0.3 + 0.55 * first + 0.15 * first.clamp_min(0).square()
        if self.place == "post":
            g = g + spread * z
        return torch.stack([g, c[..., 1].expand_as(g)], -1)

    def data(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return embeddings (n, T, 2) and next tokens (n, T), -100 where none."""
        generator = torch.Generator().manual_seed(20_000 + seed)
        centres, seen = self.centres, self._seen()
        pick = torch.randint(len(seen), (2, self.n), generator=generator)
        tokens = [*seen[pick]]
        inside = torch.zeros(len(centres), dtype=torch.bool)
        inside[seen] = True
        alive, targets = torch.ones(self.n, dtype=torch.bool), [tokens[1]]
        for _ in range(self.length - 1):
            c = 0.7 * centres[tokens[-1]] + 0.3 * centres[tokens[-2]]
            z = noise("normal", (self.n,), generator)
            tokens.append(drawn(softmax_law(self._points(c, z), centres), generator))
            alive = alive & inside[tokens[-2]]
            targets.append(torch.where(alive, tokens[-1], -100))
        targets[0] = torch.full_like(targets[0], -100)  # it has one token of prefix
        return centres[torch.stack(tokens[:-1], 1)], torch.stack(targets, 1)

    def _seen(self) -> Tensor:
        e = self.centres
        return ((e[:, 0] <= 2.0) & (e[:, 1] < 1.0)).nonzero().squeeze(1)

    def places(self, region: str) -> tuple[Tensor, Tensor]:
        """Return pairs of embeddings (m, 2, 2) and the true laws after them."""
        e = self.centres
        low, high = {"position 2 to 3": (2, 3), "position 3 to 4": (3, 4)}.get(
            region, (-1, 2)
        )
        known = (e[:, 1] < 1.0) if region != "unseen topic" else (e[:, 1] > 1.0)
        kept = e[(e[:, 0] > low) & (e[:, 0] <= high) & known]
        pairs = kept[torch.cartesian_prod(*[torch.arange(len(kept))] * 2)]
        c = 0.7 * pairs[:, 1] + 0.3 * pairs[:, 0]
        z, weight = nodes("normal", 801)
        q = softmax_law(self._points(c, z.unsqueeze(1)), e)
        return pairs, torch.einsum("k,kmv->mv", weight, q)


World = IndexWorld | SequenceWorld


# --------------------------------------------------------------------------- bases


def per_seed(values: Tensor, u: Tensor) -> Tensor:
    """Return parameters (S, ...) shaped against u (K, S, ...)."""
    return values.view(1, len(values), *[1] * (u.ndim - 2))


def bent(params: Params, u: Tensor) -> Tensor:
    """Return alpha + exp(beta) u + exp(gamma) max(u, 0)^2."""
    slope, bend = params["log_slope"].exp(), params["log_bend"].exp()
    return (
        per_seed(params["intercept"], u)
        + per_seed(slope, u) * u
        + per_seed(bend, u) * u.clamp_min(0).square()
    )


def index_curve(params: Params, u: Tensor) -> Tensor:
    """Return the three-parameter monotone index; u (K, S, B, 1, 1)."""
    return bent(params, u)


def index_spline(params: Params, u: Tensor) -> Tensor:
    """Return a quadratic spline with five knots and free coefficients."""
    value = per_seed(params["intercept"], u) + per_seed(params["slope"], u) * u
    for j, knot in enumerate((-1.0, 0.0, 1.0, 2.0, 3.0)):
        bend = (u - knot).clamp_min(0).square()
        value = value + per_seed(params["bends"][:, j], u) * bend
    return value


def sequence_curve(params: Params, u: Tensor) -> Tensor:
    """Return the true form: the last two tokens mixed, then the monotone index."""
    share = per_seed(params["recency"].sigmoid(), u)
    before = torch.cat([u[..., :1, :], u[..., :-1, :]], -2)
    c = share * u + (1 - share) * before
    return torch.cat([bent(params, c[..., :1]), c[..., 1:]], -1)


def sequence_transformer(params: Params, u: Tensor) -> Tensor:
    """Return one block: causal attention with a bias for each lag, a hidden layer."""
    length = u.shape[-2]
    lag = torch.arange(length)[:, None] - torch.arange(length)

    def along(name: str, x: Tensor) -> Tensor:
        return torch.einsum("ksbti,sij->ksbtj", x, params[name])

    x = along("embed", u)
    score = along("query", x) @ along("key", x).transpose(-1, -2)
    bias = params["lags"][:, lag.clamp_min(0)][None, :, None]
    weight = (score + bias).masked_fill(lag < 0, -torch.inf).softmax(-1)
    x = x + weight @ along("value", x)
    inner = softplus(along("in", x) + params["shift"][None, :, None, None])
    return along("read", x) + along("out", inner) + params["end"][None, :, None, None]


def start(base: str, seeds: list[int], length: int = 1) -> Params:
    """Return the parameters of a base before training, (S, ...), float32."""
    rows = [_start_one(base, torch.Generator().manual_seed(s), length) for s in seeds]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _start_one(base: str, generator: torch.Generator, length: int) -> Params:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[0] ** 0.5

    zero = torch.tensor(0.0)
    if base.endswith("curve"):
        made = {
            "intercept": zero,
            "log_slope": zero,
            "log_bend": torch.tensor(0.3).log(),
        }
        return made | ({"recency": zero} if base.startswith("sequence") else {})
    if base == "index spline":
        return {
            "intercept": zero,
            "slope": torch.tensor(1.0),
            "bends": torch.tensor([0.0, 0.3, 0.0, 0.0, 0.0]),
        }
    return {
        "embed": normal(2, 8),
        "query": normal(8, 8) / 2,
        "key": normal(8, 8) / 2,
        "value": normal(8, 8),
        "lags": -torch.arange(float(length)),
        "in": normal(8, 24),
        "shift": torch.randn(24, generator=generator),
        "out": normal(24, 2),
        "read": normal(8, 2),
        "end": torch.zeros(2),
    }


def points(base: str, params: Params, u: Tensor) -> Tensor:
    """Return what a base makes of u, over the temperature where there is one."""
    h = BASES[base](params, u)
    if "log_temperature" not in params:
        return h
    h = torch.cat([h, torch.ones_like(h[..., :1])], -1)
    return h * per_seed((-params["log_temperature"]).exp(), h)


BASES: dict[str, Base] = {
    "index curve": index_curve,
    "index spline": index_spline,
    "sequence curve": sequence_curve,
    "sequence transformer": sequence_transformer,
}
