"""Operators: exact curvature as linear maps, for models whose matrices do not fit into memory, through curvlinops.

An operator multiplies with a `[P, P]` matrix over the parameters of all covered layers without forming it. Its vectors are
ordered like the dense matrices of `exact`: a layer's flattened `[d_out, d_in]` gradient after the other. `flatten_layers`
and `split_layers` go between such vectors and gradients as they are kept, one matrix a layer.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import curvlinops
import torch
from curvlinops._torch_base import PyTorchLinearOperator as Operator
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffinf_lib.curvature.exact import Outer, check_outer
from diffinf_lib.curvature.layers import (
    Covers,
    Layers,
    curvature_layers,
    differentiable,
    gradient_matrices,
    layer_parameters,
    layer_shape,
)
from diffinf_lib.diffusion import Denoiser, DrawBatch, objective_values
from diffinf_lib.errors import require
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import Condition

Batches = DrawBatch | Iterable[DrawBatch]
LayerMatrices = Mapping[str, Float[Tensor, "... _O _I"]]

PRODUCT_PIXELS = 600_000
"""Pixels of all draws of a batch, times vectors multiplied side by side: what bounds the memory of a product."""


class FlatDenoiser(nn.Module):
    """A denoiser as curvlinops wants it: one mapping in, `[B, C·H·W]` out, in eval mode.

    Outputs and targets are scaled alike, so that a draw counts as often as its weight says.

    Args:
        layers: the covered ones, whose parameters need gradients.
        second_order: run attention on its math kernel; the fused ones have no forward mode and no second derivative.
    """

    def __init__(self, model: Denoiser, layers: Layers | None = None, *, second_order: bool = True):
        super().__init__()
        self.model, self.layers, self.second_order = model, layers or {}, second_order

    def forward(self, inputs: dict[str, Condition]) -> Float[Tensor, "B CHW"]:
        """The output at (x_t, t) flattened, times the draws' scale."""
        kernel = sdpa_kernel(SDPBackend.MATH) if self.second_order else nullcontext()
        with differentiable(self.model, {}), kernel:
            told = {name: inputs[name] for name in self.model.condition_names}
            return self.model(inputs["state"], inputs["timesteps"], **told).flatten(1) * inputs["scale"]


def packed(batch: DrawBatch, power: float = 0.5) -> tuple[dict[str, Condition], Float[Tensor, "B CHW"]]:
    """One batch of draws as inputs (x_t, t, conditions, scale) and targets for a `FlatDenoiser`.

    Args:
        power: weights w enter outputs and targets as w^power: 1/2 where the curvature is quadratic in these, 1/4 for the
            outer product of gradients.
    """
    scale = batch.draw_weights.to(batch.state).unsqueeze(1) ** power
    inputs = {"state": batch.state, "timesteps": batch.timesteps, "scale": scale, **(batch.conditions or {})}
    return inputs, batch.target.flatten(1) * scale


class MatrixOperator(Operator):
    """A symmetric operator on the layers' gradient matrices."""

    SELF_ADJOINT = True

    def __init__(self, shapes: list[tuple[int, ...]], like: Tensor):
        super().__init__(shapes, shapes)
        self._like = like

    @property
    def device(self) -> torch.device:
        """Where vectors have to be."""
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of vectors."""
        return self._like.dtype


class LayerOperator(MatrixOperator):
    """An operator of curvlinops in the order of the layers' gradient matrices.

    curvlinops puts a layer's bias after all of its weights, the matrices put it into their last column.

    Args:
        columns: vectors that are multiplied side by side; each keeps the activations of a batch of draws.
    """

    def __init__(self, inner: Operator, layers: Layers, columns: int):
        parameters = layer_parameters(layers)
        places = torch.arange(inner.shape[1]).split([parameter.numel() for parameter in parameters])
        shaped = tuple(place.view_as(parameter) for place, parameter in zip(places, parameters, strict=True))
        matrices = gradient_matrices(layers, shaped).values()
        super().__init__([tuple(matrix.shape) for matrix in matrices], parameters[0])
        self.inner, self.order = inner, torch.cat([matrix.flatten() for matrix in matrices]).to(self.device)
        self.columns = columns

    def _matmat(self, matrices: list[Float[Tensor, "_O _I n"]]) -> list[Float[Tensor, "_O _I n"]]:
        ours = torch.cat([matrix.flatten(0, 1) for matrix in matrices])
        theirs = torch.empty_like(ours).index_copy_(0, self.order, ours).split(self.columns, dim=1)
        product = torch.cat([self.inner @ part for part in theirs], dim=1)
        parts = product[self.order].split(self._in_shape_flat)
        return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]


class GradientOperator(MatrixOperator):
    """(1/n) Σ vec(G) vec(G)ᵀ of n given gradients, kept in memory as `[n, d_out, d_in]` a layer."""

    def __init__(self, gradients: LayerMatrices):
        rows = list(gradients.values())
        super().__init__([tuple(row.shape[1:]) for row in rows], rows[0])
        self.rows = torch.cat([row.flatten(1) for row in rows], dim=1)

    def _matmat(self, matrices: list[Float[Tensor, "_O _I n"]]) -> list[Float[Tensor, "_O _I n"]]:
        product = self.rows.T @ (self.rows @ torch.cat([matrix.flatten(0, 1) for matrix in matrices])) / len(self.rows)
        parts = product.split(self._in_shape_flat)
        return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]


class DoubleBackwardHessian(curvlinops.HessianLinearOperator):
    """curvlinops' Hessian with backward after backward: its forward after backward knows no SiLU and no group norm."""

    def _matmat_batch(self, X: Any, y: Tensor, M: list[Tensor]) -> list[Tensor]:
        with differentiable(self._model_func, self._model_func.layers):
            loss = self._loss_func(self._model_func(X), y)
            gradients = torch.autograd.grad(loss, self._params, create_graph=True, materialize_grads=True)
            used = [(g, m.movedim(-1, 0)) for g, m in zip(gradients, M, strict=True) if g.requires_grad]
            outputs, vectors = zip(*used, strict=True)
            products = torch.autograd.grad(
                outputs, self._params, vectors, is_grads_batched=True, materialize_grads=True
            )
        return [product.movedim(0, -1) for product in products]


@own_settings
def hessian_operator(model: Denoiser, batches: Batches, *, covers: Covers = None) -> Operator:
    """∇² of the mean over draws of the mean-dim loss; it may have negative eigenvalues."""
    return _through(DoubleBackwardHessian, model, batches, covers)


@own_settings
def ggn_operator(model: Denoiser, batches: Batches, *, covers: Covers = None) -> Operator:
    """GGN^model = (2/C) E[JᵀJ] over the given draws (Mlodozeniec et al. 2025, section 3.1).

    Args:
        batches: one batch of draws or several; they are read again for every product.
        covers: which parameters it is over, see `coverage`; `curvature.covers` for those of a fitted curvature.
    """
    return _through(curvlinops.GGNLinearOperator, model, batches, covers)


@own_settings
def empirical_fisher_operator(
    model: Denoiser,
    batches: Batches,
    *,
    per: Outer = "draw",
    covers: Covers = None,
) -> Operator:
    """GGN^loss: E[∇ℓ ∇ℓᵀ] over draws, or the mean over examples of ḡ ḡᵀ with ḡ averaged over an example's draws.

    Per example, the gradients of all N examples are computed once and kept: N·P numbers. curvlinops has no such operator,
    its terms are those of the loss.
    """
    check_outer(per)
    if per == "example":
        return GradientOperator(example_gradients(model, batches, covers=covers))
    # curvlinops' MSELoss(mean) counts C terms of 1/C each: C times the outer product of the mean-dim loss's gradient
    dimension = _as_list(batches)[0].target[0].numel()
    return _through(curvlinops.EFLinearOperator, model, batches, covers, power=0.25) * (1 / dimension)


@own_settings
def example_gradients(
    model: Denoiser, batches: Batches, *, covers: Covers = None
) -> dict[str, Float[Tensor, "N _O _I"]]:
    """∇ℓ of each example averaged over its draws in all batches, in the order of first appearance."""
    layers = curvature_layers(model, covers)
    sums: dict[int, tuple[Tensor, ...]] = {}
    counts: dict[int, int] = {}
    for batch in _as_list(batches):
        for example in dict.fromkeys(batch.example.tolist()):
            rows = torch.nonzero(batch.example == example).squeeze(1).to(batch.images.device)
            gradients = _loss_gradients(model, layers, batch.rows(rows))
            before = sums.get(example)
            sums[example] = gradients if before is None else tuple(map(torch.add, before, gradients))
            counts[example] = counts.get(example, 0) + len(rows)
    means = [gradient_matrices(layers, tuple(g / counts[n] for g in sums[n])) for n in sums]
    return {name: torch.stack([mean[name] for mean in means]) for name in layers}


def flatten_layers(matrices: LayerMatrices) -> Float[Tensor, "P *n"]:
    """Gradients as kept, `[d_out, d_in]` or `[n, d_out, d_in]` a layer, as one vector `[P]` or n columns `[P, n]`."""
    return torch.cat([matrix.flatten(-2) for matrix in matrices.values()], dim=-1).movedim(-1, 0)


def split_layers(
    model: Denoiser, vectors: Float[Tensor, "P *n"], covers: Covers = None
) -> dict[str, Float[Tensor, "*n _O _I"]]:
    """The inverse of `flatten_layers`: one vector or n columns as one matrix, or n, a layer.

    Raises:
        ConfigurationError: there are more or fewer numbers than the model has in its layers.
    """
    shapes = {name: torch.Size(layer_shape(layer)) for name, layer in curvature_layers(model, covers).items()}
    sizes = [shape.numel() for shape in shapes.values()]
    require(len(vectors) == sum(sizes), f"vectors: {len(vectors)} rows, but the model's layers have {sum(sizes)} covered "
            "parameters; give vectors of this model, and the same covers=")  # fmt: skip
    parts = vectors.movedim(0, -1).split(sizes, dim=-1)
    return {name: part.unflatten(-1, shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}


@own_settings
def to_dense(operator: Operator, columns: int = 128) -> Float[Tensor, "P P"]:
    """The matrix of an operator, so many columns at a time; for a few thousand parameters."""
    basis = torch.eye(operator.shape[1], dtype=operator.dtype, device=operator.device)
    return torch.cat([operator @ part for part in basis.split(columns, dim=1)], dim=1)


def _as_list(batches: Batches) -> list[DrawBatch]:
    made = [batches] if isinstance(batches, DrawBatch) else list(batches)
    require(bool(made), "batches: give at least one batch of draws")
    return made


def _through(kind: Any, model: Denoiser, batches: Batches, covers: Covers, power: float = 0.5) -> Operator:
    """An operator of curvlinops over the covered parameters; the loss is the mean over draws and dimensions."""
    data = [packed(batch, power) for batch in _as_list(batches)]
    layers = curvature_layers(model, covers)
    inner = kind(
        FlatDenoiser(model, layers), nn.MSELoss(reduction="mean"), layer_parameters(layers), data,
        check_deterministic=False, num_data=sum(len(targets) for _, targets in data), batch_size_fn=batch_size_of,
    )  # fmt: skip
    largest = max(targets.numel() for _, targets in data)
    return LayerOperator(inner, layers, columns=max(1, PRODUCT_PIXELS // largest))


def batch_size_of(inputs: Mapping[str, Condition]) -> int:
    """How many draws the inputs of a `FlatDenoiser` hold."""
    return len(inputs["state"])


def _loss_gradients(model: Denoiser, layers: Layers, batch: DrawBatch) -> tuple[Tensor, ...]:
    """∇ of the weighted sum of the losses of a batch."""
    with differentiable(model, layers):
        losses = objective_values(model, batch)
        weighted = (batch.draw_weights.to(losses) * losses).sum()
        return torch.autograd.grad(weighted, layer_parameters(layers), materialize_grads=True)
