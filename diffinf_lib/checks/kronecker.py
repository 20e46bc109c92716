"""Checks of K-FAC: its two factors, and scores with its damped inverse (chapter 06)."""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from diffinf_lib.checks.answers import Function
from diffinf_lib.checks.exercise import Case, Mistakes, exercise
from diffinf_lib.checks.made import normal, positive_definite, with_damping
from diffinf_lib.configuration import Sharing
from diffinf_lib.options import checked

DampedPart = Literal["product", "factors"]
Factors = tuple[Tensor, Tensor]
FactorRule = Callable[[Tensor, Tensor], Factors]
Rest = Callable[[Tensor], Tensor]

# --- K-FAC's factors


def _with_bias(inputs: Tensor, bias: bool, first: bool = False) -> Tensor:
    if not bias:
        return inputs
    ones = torch.ones_like(inputs[..., :1])
    return torch.cat([ones, inputs] if first else [inputs, ones], dim=-1)


def _moment(rows: Tensor) -> Tensor:
    """The mean outer product over draws, of `[S, n, d]` summed over n."""
    return torch.einsum("dni,dnj->ij", rows, rows) / len(rows)


def _expand(inputs: Tensor, gradients: Tensor) -> Factors:
    return _moment(inputs) / inputs.shape[1], _moment(gradients)


def _reduce(inputs: Tensor, gradients: Tensor) -> Factors:
    return _moment(inputs.mean(1, keepdim=True)), _moment(gradients.sum(1, keepdim=True))


def _centred(inputs: Tensor, gradients: Tensor) -> Factors:
    """Covariances in place of second moments."""
    return inputs - inputs.mean((0, 1)), gradients - gradients.mean((0, 1))


def _kfac_mistakes(sharing: Sharing = "expand", bias: bool = False) -> Mistakes:
    rule, other = (_expand, _reduce) if sharing == "expand" else (_reduce, _expand)

    def made(change: Callable[[Factors, Tensor], Factors]) -> FactorRule:
        """The right factors, changed."""
        return lambda inputs, gradients: change(rule(_with_bias(inputs, bias), gradients), gradients)

    def swapped(inputs: Tensor, gradients: Tensor) -> Factors:
        a, b = rule(_with_bias(inputs, bias), gradients)
        return b, a

    aside = {
        "expand": "expand is asked for: A is a mean over positions of a aᵀ, and B the sum over positions of g gᵀ",
        "reduce": "reduce is asked for: average the inputs and add the output gradients over positions before the products",
    }[sharing]
    shared: dict[str, Function] = {
        "A and B stand in the other order: inputs first, then output gradients": swapped,
        "B is divided by the number of positions; output gradients are added up over them, not averaged": made(
            lambda f, g: (f[0], f[1] / g.shape[1] ** (1 if sharing == "expand" else 2))
        ),
        "1/positions is missing: inputs are averaged over them, not added up": made(
            lambda f, g: (f[0] * g.shape[1] ** (1 if sharing == "expand" else 2), f[1])
        ),
        "these are sums over draws, in both factors; give means": made(lambda f, g: (f[0] * len(g), f[1] * len(g))),
        "one of the factors is a sum over draws; give means": made(lambda f, g: (f[0] * len(g), f[1])),
        "these are covariances; curvature takes second moments, without subtracting the mean": lambda inputs, gradients: (
            rule(*_centred(_with_bias(inputs, bias), gradients))
        ),
        "the mean over draws is taken before the outer product": lambda inputs, gradients: rule(
            _with_bias(inputs, bias).mean(0, keepdim=True), gradients.mean(0, keepdim=True)
        ),
        aside: lambda inputs, gradients: other(_with_bias(inputs, bias), gradients),
    }
    return shared | (_mistakes_with_bias(rule) if bias else _mistakes_without_bias(rule))


def _mistakes_without_bias(rule: FactorRule) -> dict[str, Function]:
    return {
        "a 1 for the bias is among the inputs; here the layer has none": lambda inputs, gradients: rule(
            _with_bias(inputs, True), gradients
        )
    }


def _mistakes_with_bias(rule: FactorRule) -> dict[str, Function]:
    return {
        "the bias is missing: it is one more input that is always 1": rule,
        "the 1 of the bias stands first; put it last, where the gradient's column is": lambda inputs, gradients: rule(
            _with_bias(inputs, True, first=True), gradients
        ),
    }


@exercise(
    gives="B ⊗ A",
    mistakes=_kfac_mistakes,
    options=tuple({"sharing": s, "bias": b} for s in ("expand", "reduce") for b in (False, True)),
)
def kfac(sharing: Sharing = "expand", bias: bool = False) -> Iterator[Case]:
    """`kfac(inputs, output_gradients)` → (A, B): the Kronecker factors of one layer.

    inputs a `[draws, positions, d_in]`; output_gradients g `[draws, positions, d_out]`. A `[d_in, d_in]` is of the inputs and
    B `[d_out, d_out]` of the output gradients; with `bias=True` the layer has a bias, and A `[d_in + 1, d_in + 1]` has it as
    its last row and column. B ⊗ A is compared with the exact block E[vec(G) vec(G)ᵀ], G = Σ_p g_p a_pᵀ flattened row by row,
    on layers where K-FAC is exact; how a scale is split between A and B is free.

    Args:
        sharing: how positions are treated, `expand` or `reduce` (Eschenhagen et al. 2023).
        bias: whether the layer has a bias; its 1 is yours to append.
    """
    checked("sharing", sharing, Sharing)
    checked("bias", bias, bool)
    for name, plain, rest in _exact_layers(sharing):
        inputs = _with_bias(plain, bias)
        weights = normal("layer", 2, inputs.shape[-1])
        gradients = _output_gradients(inputs, weights, rest)
        rows = plain.repeat_interleave(len(gradients) // len(plain), dim=0)
        sizes = {"draws": len(rows), "positions": rows.shape[1]}
        yield Case(name, _exact_block(inputs, weights, rest), (rows, gradients), sizes, ask=_kronecker_product)


def _kronecker_product(function: Callable[..., Factors], inputs: Tensor, gradients: Tensor) -> Tensor:
    input_factor, output_gradient_factor = function(inputs, gradients)
    return torch.kron(output_gradient_factor, input_factor)


def _exact_layers(sharing: Sharing) -> Iterator[tuple[str, Tensor, Rest]]:
    """Layers on which K-FAC is exact: inputs `[S, L, I]`, and the rest of the network from the layer's `[L, O]` output."""
    images, before, after = normal("images", 5, 1, 3), normal("before", 3, 4), normal("after", 3, 2)
    yield "one draw", images[:1] @ before, lambda s: torch.tanh(s @ after.T).flatten()
    yield "a layer inside a linear network", images @ before, lambda s: (s @ after.T).flatten()
    if sharing == "expand":
        yield "the last layer, over a ReLU", torch.relu(images @ before), lambda s: s.flatten()
        yield "a 1×1 convolution among linear ones", normal("pixels", 4, 5, 3), lambda s: (s @ after.T).flatten()
        return
    of_positions = normal("positions", 2, 4, 2)
    agreeing = (images[:1] @ before).expand(-1, 4, -1)
    yield "one draw whose positions agree", agreeing, lambda s: torch.einsum("cpo,po->c", of_positions, s)
    pixels, taps = normal("pixels", 4, 6, 1), normal("taps", 3, 3, 2)
    patches = torch.cat([pixels.roll(shift, 1) for shift in (-1, 0, 1)], dim=2)

    def pooled(outputs: Tensor) -> Tensor:
        """One more circular convolution, and the mean over positions."""
        return torch.stack([outputs.roll(k - 1, 0) @ taps[:, k].T for k in range(3)]).sum(0).mean(0)

    yield "a circular convolution under a mean pool", patches, pooled


def _output_gradients(inputs: Tensor, weights: Tensor, rest: Rest) -> Tensor:
    """√2 times each output's derivative in the layer's, `[S · C, L, O]`: the mean over rows of their G Gᵀ is the GGN."""
    return math.sqrt(2) * vmap(jacrev(rest))(inputs @ weights.T).flatten(0, 1)


def _exact_block(inputs: Tensor, weights: Tensor, rest: Rest) -> Tensor:
    """(2/C) E[JᵀJ] in the layer's weights, by differentiating the whole network in them, a draw at a time."""

    def outputs(weights: Tensor, draw: Tensor) -> Tensor:
        return rest(draw @ weights.T)

    jacobians = torch.stack([jacrev(outputs)(weights, draw).flatten(1) for draw in inputs])
    return 2 / jacobians.shape[1] * torch.einsum("dcp,dcq->pq", jacobians, jacobians) / len(jacobians)


# --- scores with K-FAC's inverse


def _kfac_scores(
    inverse: Callable[[Tensor, Tensor, float], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]:
    """Scores with an inverse of the block, dense, from A, B and λ."""

    def kfac_score(query: Tensor, train: Tensor, a: Tensor, b: Tensor, damping: float) -> Tensor:
        return train.flatten(1) @ inverse(a, b, damping) @ query.flatten() / len(train)

    return kfac_score


def inverse_of_product(a: Tensor, b: Tensor, damping: float) -> Tensor:
    """(B ⊗ A + λI)⁻¹, dense."""
    return torch.linalg.inv(with_damping(torch.kron(b, a), damping))


def inverse_of_factors(a: Tensor, b: Tensor, damping: float) -> Tensor:
    """((B + √λI) ⊗ (A + √λI))⁻¹, dense."""
    return torch.linalg.inv(torch.kron(with_damping(b, damping**0.5), with_damping(a, damping**0.5)))


def _by_eigenvectors(eigenvalues: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The damped inverse of the product, with a function of the factors' eigenvalues in their place."""

    def inverse(a: Tensor, b: Tensor, damping: float) -> Tensor:
        (in_values, q_a), (out_values, q_b) = torch.linalg.eigh(a), torch.linalg.eigh(b)
        damped = torch.outer(eigenvalues(out_values), eigenvalues(in_values)).flatten() + damping
        basis = torch.kron(q_b, q_a)
        return basis @ (basis.T / damped.unsqueeze(1))

    return inverse


def _on_wrong_sides(
    inverse: Callable[[Tensor, Tensor, float], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]:
    """The factors multiplied from each other's side, which layers that are not square refuse."""

    def kfac_score(query: Tensor, train: Tensor, a: Tensor, b: Tensor, damping: float) -> Tensor:
        _ = a @ query @ b
        return _kfac_scores(inverse)(query, train, b, a, damping)

    return kfac_score


def _kfac_score_mistakes(damped: DampedPart = "product") -> Mistakes:
    right, other = (
        (inverse_of_product, inverse_of_factors) if damped == "product" else (inverse_of_factors, inverse_of_product)
    )
    aside = {
        "product": "the factors are damped by √λ each; (A + √λ I) ⊗ (B + √λ I) is not A ⊗ B + λ I",
        "factors": "the product is damped, B ⊗ A + λ I; here each factor is, by √λ",
    }[damped]
    scores = _kfac_scores(right)
    below = "an eigenvalue below 0 is divided by; it comes from rounding and counts as 0"
    return ({below: _kfac_scores(_by_eigenvectors(lambda values: values))} if damped == "product" else {}) | {
        "the sign is the other way round": lambda *given: -scores(*given),
        "1/N is missing": lambda query, train, *given: scores(query, train, *given) * len(train),
        aside: _kfac_scores(other),
        "each factor is damped by λ; their product is then damped by far more": _kfac_scores(
            lambda a, b, damping: inverse_of_factors(a, b, damping**2)
        ),
        "the damping is missing": _kfac_scores(lambda a, b, damping: inverse_of_product(a, b, 0.0)),
        "this is A ⊗ B; gradients flattened row by row go with B ⊗ A": _kfac_scores(
            lambda a, b, damping: right(b, a, damping)
        ),
        "A and B stand on each other's side of G: it is B⁻¹ G A⁻¹": _on_wrong_sides(right),
        "λ is added to the inverse; it belongs under it": _kfac_scores(
            lambda a, b, damping: with_damping(inverse_of_product(a, b, 0.0), damping)
        ),
        "the inverse is missing": _kfac_scores(lambda a, b, damping: torch.linalg.inv(right(a, b, damping))),
        "the curvature is missing: these are dot products": _kfac_scores(
            lambda a, b, damping: with_damping(0 * torch.kron(b, a), 1.0)
        ),
    }  # fmt: skip


@exercise(gives="the scores", mistakes=_kfac_score_mistakes, options=({"damped": "product"}, {"damped": "factors"}))
def kfac_score(damped: DampedPart = "product") -> Iterator[Case]:
    """`kfac_score(query_gradient, train_gradients, A, B, damping)` → scores `[N]` of one layer, the 1/N included.

    query_gradient `[d_out, d_in]`; train_gradients `[N, d_out, d_in]`; the factors A `[d_in, d_in]` of the inputs and B
    `[d_out, d_out]` of the output gradients; damping λ, a number. A factor has no eigenvalue below 0 but by rounding: such
    a one counts as 0.

    Args:
        damped: `product`, where λ is added to every eigenvalue of B ⊗ A, as in this library and the paper; or `factors`,
            where √λ is added to those of A and of B (Martens & Grosse 2015, section 6.3, with π = 1).
    """
    checked("damped", damped, DampedPart)
    inverse = {"product": inverse_of_product, "factors": inverse_of_factors}[damped]
    for outputs, inputs, count, damping in ((3, 3, 4, 0.5), (2, 4, 3, 0.04)):
        query, train = normal("query", outputs, inputs), normal("train", count, outputs, inputs)
        a, b = positive_definite("input-factor", inputs), positive_definite("output-factor", outputs)
        expected = torch.stack([one.flatten() @ inverse(a, b, damping) @ query.flatten() / count for one in train])
        name = f"a layer of {inputs} inputs and {outputs} outputs, {count} images, against the dense inverse"
        yield Case(name, expected, (query, train, a, b, damping))
    if damped == "product":
        yield _rounded()


def _rounded() -> Case:
    """A factor of fewer draws than inputs, rounded to float32: what should be 0 comes out below, and below −λ."""
    query, train, rows = normal("query", 2, 4), normal("train", 3, 2, 4), normal("rounded", 3, 4)
    a, b, damping = (rows.T @ rows / 3).float().double(), positive_definite("output-factor", 2), 1e-8
    scores = _kfac_scores(_by_eigenvectors(lambda values: values.clamp(min=0)))
    given = (query, train, a, b, damping)
    return Case("an empty direction, in float32 an eigenvalue below 0", scores(*given), given, last=True)
