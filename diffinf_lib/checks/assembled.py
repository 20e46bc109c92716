"""Check of a whole K-FAC influence: from a network and its draws to scores, all layers together (chapter 06)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional as F

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.kronecker import Factors, inverse_of_factors, inverse_of_product
from diffinf_lib.checks.made import normal, with_damping

Draws = tuple[Tensor, Tensor, Tensor, Tensor]
"""States `[N, S, 1, H, W]`, timesteps `[N, S]`, targets as the states, weights `[N, S]`."""

Seen = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of n draws in one layer: inputs a `[n, L, I]`, output gradients g `[n, C, L, O]`, weights `[n]`, errors f − y `[n, C]`."""

Inverse = Callable[[Tensor, Tensor, float], Tensor]


class _Denoiser(nn.Module):
    """Convolutions with a stride and without, a timestep layer, one bias that is missing, a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.time = nn.Linear(3, 4)
        self.down = nn.Conv2d(4, 3, 3, stride=2, padding=1, bias=False)
        self.last = nn.Conv2d(7, 1, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The guess of the noise, shaped as `noisy`."""
        phase = timesteps.to(noisy).view(-1, 1) / 100 * torch.arange(1, 4).to(noisy)
        fine = F.silu(self.norm(self.first(noisy) + self.time(phase.sin())[:, :, None, None]))
        coarse = F.silu(self.down(fine)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.last(torch.cat([fine, coarse], dim=1))


class _OneLayer(nn.Module):
    """One convolution, deaf to time: its loss is quadratic in its weights, and K-FAC is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The guess of the noise, shaped as `noisy`."""
        return self.last(noisy)


def _made(kind: type[nn.Module]) -> nn.Module:
    """A network with numbers of its own, float64; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        network = kind().double()
    for name, parameter in network.named_parameters():
        parameter.data = 0.5 * normal(f"assembled-{name}", *parameter.shape)
    return network


def _draws(name: str, images: int, draws: int, *, weighted: bool) -> Draws:
    """Draws of some images of 4×4 pixels."""
    states, targets = (normal(f"{name}-{what}", images, draws, 1, 4, 4) for what in ("states", "targets"))
    timesteps = 37 * torch.arange(images * draws).view(images, draws) % 1000
    weights = 0.3 + normal(f"{name}-weights", images, draws).square()
    return states, timesteps, targets, weights if weighted else torch.ones_like(weights)


def _flat(draws: Draws) -> Draws:
    """All draws of all images, one after the other."""
    states, timesteps, targets, weights = (part.flatten(0, 1) for part in draws)
    return states, timesteps, targets, weights


# --- a solution in pieces


def _of_layers(network: nn.Module, layers: Sequence[nn.Module], draws: Draws) -> Iterator[Seen]:
    """What each layer sees of the draws; a 1 stands behind the inputs of a layer with a bias."""
    states, timesteps, targets, weights = _flat(draws)
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def remember(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen[layer] = given[0].detach(), output

    hooks = [layer.register_forward_hook(remember) for layer in layers]
    errors = (network(states, timesteps) - targets).flatten(1)
    for hook in hooks:
        hook.remove()
    outputs = [seen[layer][1] for layer in layers]
    back = [torch.autograd.grad(math.sqrt(2) * one.sum(), outputs, retain_graph=True) for one in errors.T]
    for layer, of_outputs in zip(layers, zip(*back, strict=True), strict=True):
        gradients = torch.stack([one.view(*one.shape[:2], -1).mT for one in of_outputs], dim=1)
        yield _inputs(layer, seen[layer][0]), gradients, weights, errors.detach()


def _inputs(layer: nn.Module, given: Tensor) -> Tensor:
    """A layer's inputs at its positions, with the 1 of its bias."""
    inputs = given.unsqueeze(1)
    if isinstance(layer, nn.Conv2d):
        inputs = F.unfold(given, layer.kernel_size, padding=layer.padding, stride=layer.stride).mT  # type: ignore[arg-type]
    return inputs if layer.bias is None else F.pad(inputs, (0, 1), value=1.0)


def _expanded(seen: Seen) -> Factors:
    inputs, gradients, weights, _ = seen
    a, b = (_second_moment(weights, rows) for rows in (inputs, gradients))
    return a / inputs.shape[1], b / gradients.shape[1]


def _second_moment(weights: Tensor, of_draws: Tensor) -> Tensor:
    """The weighted mean over draws of Σ r rᵀ, from `[n, ..., d]`."""
    rows = torch.einsum("n,n...->n...", weights.sqrt(), of_draws).flatten(0, -2)
    return rows.T @ rows / len(weights)


def _joined(*parts: Tensor) -> Tensor:
    """A layer's gradient as one matrix, a row for each output, the bias last."""
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


@dataclass(frozen=True)
class _Solution:
    """A whole solution; the right one where no piece is exchanged.

    Attributes:
        covered: kinds of layers that the scores are summed over.
        fitted_to: which of the draws given the curvature is of.
        factors: A and B from what a layer sees.
        loss: of the errors f − y `[N, S, C]`, for each draw.
        over_draws: an image's loss `[N]` from those of its draws and their weights.
        joined: a layer's gradient matrix from those of its weight and bias.
        inverse: the damped inverse from A, B and λ.
        of_norms: the damped inverse of a normalisation's block from its GGN and λ; None leaves normalisations out.
        ending: scores from the sum over layers and N.
    """

    covered: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    fitted_to: int = 0
    factors: Callable[[Seen], Factors] = _expanded
    loss: Callable[[Tensor], Tensor] = lambda errors: errors.square().mean(2)
    over_draws: Callable[[Tensor, Tensor], Tensor] = lambda losses, weights: (weights * losses).mean(1)
    joined: Callable[..., Tensor] = _joined
    inverse: Inverse = inverse_of_product
    of_norms: Callable[[Tensor, float], Tensor] | None = None
    ending: Callable[[Tensor, int], Tensor] = lambda total, count: total / count

    def __call__(self, network: nn.Module, factor: Draws, train: Draws, query: Draws, damping: float) -> Tensor:
        """The scores `[Q, N]`."""
        layers = [module for module in network.modules() if isinstance(module, self.covered)]
        total = torch.zeros(len(query[0]), len(train[0]), dtype=torch.float64)
        for layer, seen in zip(
            layers, _of_layers(network, layers, (factor, train, query)[self.fitted_to]), strict=True
        ):
            of_queries, of_images = (self.gradients(network, layer, draws) for draws in (query, train))
            total += of_queries @ self.inverse(*self.factors(seen), damping) @ of_images.T
        if self.of_norms is not None:
            total += self.norm_shares(network, factor, train, query, damping)
        return self.ending(total, len(train[0]))

    def gradients(self, network: nn.Module, layer: nn.Module, draws: Draws) -> Tensor:
        """The gradient of each image's loss in a layer's parameters, a row each."""
        states, timesteps, targets, weights = draws
        outputs = network(states.flatten(0, 1), timesteps.flatten())
        losses = self.over_draws(self.loss((outputs.view_as(targets) - targets).flatten(2)), weights)
        parameters = list(layer.parameters())
        return torch.stack([
            self.joined(*torch.autograd.grad(one, parameters, retain_graph=True)).flatten() for one in losses
        ])  # fmt: skip

    def norm_shares(self, network: nn.Module, factor: Draws, train: Draws, query: Draws, damping: float) -> Tensor:
        """The normalisations' share of the scores, had they a block: scale and shift together."""
        assert self.of_norms is not None
        total = torch.zeros(len(query[0]), len(train[0]), dtype=torch.float64)
        for layer in (module for module in network.modules() if isinstance(module, nn.GroupNorm)):
            states, timesteps, _, weights = _flat(factor)
            outputs, parameters = network(states, timesteps).flatten(1), list(layer.parameters())
            rows = [torch.autograd.grad(one, parameters, retain_graph=True) for one in outputs.flatten()]
            jacobians = torch.stack([self.joined(*row).flatten() for row in rows]).view(*outputs.shape, -1)
            ggn = 2 / outputs.shape[1] * torch.einsum("n,ncp,ncq->pq", weights, jacobians, jacobians) / len(weights)
            of_queries, of_images = (self.gradients(network, layer, draws) for draws in (query, train))
            total += of_queries @ self.of_norms(ggn, damping) @ of_images.T
        return total


# --- mistakes


def _changed(change: Callable[[Tensor, Tensor, Seen], Factors]) -> Callable[[Seen], Factors]:
    """The right factors, changed."""
    return lambda seen: change(*_expanded(seen), seen)


def _seen_as(change: Callable[[Tensor, Tensor, Tensor, Tensor], Seen]) -> Callable[[Seen], Factors]:
    """The right rule for other inputs, output gradients, weights or errors."""
    return lambda seen: _expanded(change(*seen))


def _reduced(a: Tensor, g: Tensor, w: Tensor, e: Tensor) -> Seen:
    return a.mean(1, keepdim=True), g.sum(2, keepdim=True), w, e


def _averaged(a: Tensor, g: Tensor, w: Tensor, e: Tensor) -> Seen:
    """The means over draws, in place of the draws."""
    means = [torch.einsum("n,n...->...", w, of).unsqueeze(0) / len(w) for of in (a, g)]
    return means[0], means[1], torch.ones_like(w[:1]), e


def _at_targets(a: Tensor, g: Tensor, w: Tensor, e: Tensor) -> Seen:
    """The gradient of the loss in place of those of the outputs."""
    return a, torch.einsum("nc,ncpo->npo", math.sqrt(2) / e.shape[1] * e, g).unsqueeze(1), w, e


def _unweighted(a: Tensor, g: Tensor, w: Tensor, e: Tensor) -> Seen:
    return a, g, torch.ones_like(w), e


def _without_bias(layer_sees: Seen) -> Factors:
    a, b = _expanded(layer_sees)
    ones = bool((layer_sees[0][..., -1] == 1).all())
    return (a[:-1, :-1] if ones else a), b


MISTAKES = {
    "the √2 in g is missing: the curvature of a square is 2 JᵀJ": _Solution(
        factors=_changed(lambda a, b, seen: (a, b / 2))
    ),
    "B is a sum over the C outputs; it is their mean": _Solution(
        factors=_changed(lambda a, b, seen: (a, b * seen[1].shape[1]))
    ),
    "A is a sum over positions, as B is; A is a mean over them": _Solution(
        factors=_changed(lambda a, b, seen: (a * seen[0].shape[1], b))
    ),
    "B is a mean over positions, as A is; B is a sum over them": _Solution(
        factors=_changed(lambda a, b, seen: (a, b / seen[0].shape[1]))
    ),
    "this is reduce; expand is asked for: take the products at each position, before the sum over them": _Solution(
        factors=_seen_as(_reduced)
    ),
    "the factors are sums over draws; give means": _Solution(
        factors=_changed(lambda a, b, seen: (a * len(seen[2]), b * len(seen[2])))
    ),
    "one of the factors is a sum over draws; give means": _Solution(
        factors=_changed(lambda a, b, seen: (a, b * len(seen[2])))
    ),
    "the mean over draws is taken before the outer product; a draw is a datum of its own": _Solution(
        factors=_seen_as(_averaged)
    ),
    "g is the gradient of the loss, at the targets; the GGN takes √2 times that of each output": _Solution(
        factors=_seen_as(_at_targets)
    ),
    "the factors are not of factor_draws, but of the training draws": _Solution(fitted_to=1),
    "the weights of the draws are missing in both factors": _Solution(
        factors=_seen_as(_unweighted)
    ),
    "the weights of the draws are in A alone; each factor is a mean over draws, so B has them too": _Solution(
        factors=lambda seen: (_expanded(seen)[0], _expanded(_unweighted(*seen))[1])
    ),
    "the weights of the draws are in B alone; each factor is a mean over draws, so A has them too": _Solution(
        factors=lambda seen: (_expanded(_unweighted(*seen))[0], _expanded(seen)[1])
    ),
    "the factors are divided by the sum of the weights; divide by the number of draws": _Solution(
        factors=_seen_as(lambda a, g, w, e: (a, g, w / w.mean(), e))
    ),
    "the weights of the draws are missing in the gradients": _Solution(over_draws=lambda losses, weights: losses.mean(1)),
    "the gradients are divided by the sum of the weights; divide by the number of draws": _Solution(
        over_draws=lambda losses, weights: (weights * losses).sum(1) / weights.sum(1)
    ),
    "the weights of the draws are missing in the factors and in the gradients": _Solution(
        factors=_seen_as(_unweighted), over_draws=lambda losses, weights: losses.mean(1)
    ),
    "an image's loss is a sum over its draws; it is their mean": _Solution(
        over_draws=lambda losses, weights: (weights * losses).sum(1)
    ),
    "a draw's loss is a sum over the C pixels; it is their mean": _Solution(loss=lambda errors: errors.square().sum(2)),
    "loss and curvature are for a sum over the C pixels; the loss is their mean": _Solution(
        loss=lambda errors: errors.square().sum(2), factors=_changed(lambda a, b, seen: (a, b * seen[1].shape[1]))
    ),
    "the bias's column stands first in the gradients and last in A": _Solution(
        joined=lambda *parts: _joined(*parts[::-1])
    ),
    "the biases are left out": _Solution(joined=lambda *parts: _joined(parts[0]), factors=_without_bias),
    "the sum is over convolutions alone; Linear layers have a share too": _Solution(covered=(nn.Conv2d,)),
    "normalisation layers are included, with a block of their own; leave them out": _Solution(
        of_norms=lambda ggn, damping: torch.linalg.inv(with_damping(ggn, damping))
    ),
    "normalisation layers are included, divided by λ alone; leave them out": _Solution(
        of_norms=lambda ggn, damping: torch.eye(len(ggn), dtype=ggn.dtype) / damping
    ),
    "each factor is damped by √λ; λ is added to the eigenvalues of B ⊗ A": _Solution(inverse=inverse_of_factors),
    "the sign is the other way round": _Solution(ending=lambda total, count: -total / count),
    "1/N is missing": _Solution(ending=lambda total, count: total),
}  # fmt: skip


@exercise(gives="the scores", mistakes=MISTAKES)
def kfac_influence() -> Iterator[Case]:
    """`kfac_influence(network, factor_draws, train_draws, query_draws, damping)` → scores `[Q, N]`, all of K-FAC influence.

    network: a float64 module of `Conv2d`, `Linear` and `GroupNorm`, called as `network(states, timesteps)`; positions are
    treated by *expand*, a bias is its layer's last column, and `GroupNorm` is left out. Each of the draws is a tuple (states
    `[N, S, 1, H, W]`, timesteps `[N, S]`, targets as the states, weights `[N, S]`), S draws of each of N images, or of Q:
    factor_draws are what A and B are means over, train_draws and query_draws those of the gradients, each with an S of its
    own. The loss of an image is the mean over its draws of weight · squared error, which is a mean over pixels; the query's
    measurement is its loss. damping λ is added to every eigenvalue of B ⊗ A.
    """
    exact = _made(_OneLayer)
    factor, train, query = _three(weighted=True)
    factor = (*factor[:3], factor[3] / factor[3].mean())
    expected = _by_hessian(exact, factor, train, query, 0.1)
    yield Case(
        "one convolution, by the Hessian of its loss", expected, (exact, factor, train, query, 0.1), _sizes(train)
    )
    for name, weighted in (("plain draws", False), ("weighted draws", True)):
        draws = _three(weighted=weighted)
        expected = _Solution()(_made(_Denoiser), *draws, 0.02)
        yield Case(f"a denoiser, {name}", expected, (_made(_Denoiser), *draws, 0.02), _sizes(draws[1]))


def _three(*, weighted: bool) -> tuple[Draws, Draws, Draws]:
    """Draws for the factors, for the training gradients and for the queries."""
    wanted = (("factor", 3, 2), ("train", 3, 4), ("query", 2, 3))
    factor, train, query = (_draws(f"assembled-{name}", n, s, weighted=weighted) for name, n, s in wanted)
    return factor, train, query


def _sizes(train: Draws) -> dict[str, float]:
    return {"N": len(train[0]), "S": train[0].shape[1], "C": train[0][0, 0].numel()}


def _by_hessian(network: nn.Module, factor: Draws, train: Draws, query: Draws, damping: float) -> Tensor:
    """Scores with the Hessian of the training loss, by automatic differentiation in all weights at once."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    start = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    def losses(theta: Tensor, draws: Draws) -> Tensor:
        """Of each image."""
        states, timesteps, targets, weights = draws
        parts = theta.split([shape.numel() for shape in shapes.values()])
        given = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        outputs = functional_call(network, given, (states.flatten(0, 1), timesteps.flatten()))
        return (weights * (outputs.view_as(targets) - targets).square().flatten(2).mean(2)).mean(1)

    curvature = with_damping(hessian(lambda theta: losses(theta, factor).mean(), start), damping)
    of_queries, of_images = (jacobian(partial(losses, draws=draws), start) for draws in (query, train))
    return of_queries @ torch.linalg.solve(curvature, of_images.T) / len(of_images)
