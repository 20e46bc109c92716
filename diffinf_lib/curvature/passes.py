"""Passes: what a fit takes of each portion of the draws, first the Kronecker factors, then the corrected eigenvalues.

A *unit* is what an outer product is taken of: a draw, or with `loss_per_example` an example's sum over its draws. A portion
holds whole units; it is worked through in chunks of at most `batch_size` draws.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffinf_lib.configuration import CurvatureConfig
from diffinf_lib.curvature.blocks import Block, layer_blocks, split_into_blocks
from diffinf_lib.curvature.covariance import input_covariance_sum
from diffinf_lib.curvature.ekfac import LayerCurvature, correction_sum
from diffinf_lib.curvature.kfac import output_gradient_factor_sum, second_moment
from diffinf_lib.curvature.label_vectors import KeyedRandomness, label_vectors
from diffinf_lib.curvature.layers import (
    GRADIENTS_NOT_FINITE,
    Covers,
    ForwardPass,
    LayerInput,
    Layers,
    check_finite,
    coverage,
    differentiable,
    gradient_matrices,
    layer_parameters,
)
from diffinf_lib.diffusion import Denoiser, DrawBatch
from diffinf_lib.errors import require
from diffinf_lib.finite import all_finite, check_draws_finite
from diffinf_lib.precision import matrix_precision
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.shapes import PerDraw

Sums = dict[str, Float[Tensor, "_rows _columns"]]
AddPortion = Callable[[Sums, DrawBatch, KeyedRandomness], None]
"""(sums, portion, randomness of the pass): add a portion's share to the sums."""


@dataclass(frozen=True)
class Chunk:
    """Some draws of a portion.

    Attributes:
        unit: which unit of the portion each draw belongs to, `[B]`; None where each is its own.
        units: number of units in the portion.
    """

    draws: DrawBatch
    unit: Int[Tensor, "B"] | None
    units: int


def check_products(model: Denoiser, layers: Layers, draw: DrawBatch) -> None:
    """Refuse layers whose gradient is not the product of their inputs and output gradients, by one draw.

    A weight that is also used elsewhere, as in `F.linear(x, layer.weight)`, or that its layer changes before use, has a
    gradient that autograd knows and the product does not.

    Raises:
        ConfigurationError: the message names the layer.
    """
    with differentiable(model, layers), matrix_precision("float32", model.device):
        forward = ForwardPass(model, layers, draw)
        if not all_finite(forward.prediction.detach()):
            return  # whoever goes on with such outputs names their cause
        vectors = torch.randn(draw.images.shape, generator=keyed_generator("check-products")).to(forward.prediction)
        gradients = torch.autograd.grad(
            forward.prediction, layer_parameters(layers), vectors, retain_graph=True, materialize_grads=True
        )
        pulled = forward.pull_back(vectors)
    matrices = gradient_matrices(layers, gradients)
    for block in layer_blocks(layers).values():
        name = block.layer_name
        fits = _is_product(block, block.of(matrices[name]), forward.raw_input(name), pulled[name])
        require(fits, f"layer {name}: its weight is used elsewhere too, or not as a plain {_plain_kind(block)} does, so its "
                "curvature is not defined here; give each use a layer of its own, or freeze it")  # fmt: skip


def _is_product(block: Block, gradient: Float[Tensor, "o i"], raw: LayerInput, pulled: Float[Tensor, "B L O"]) -> bool:
    inputs, outputs = block.inputs(raw), block.output_gradients(pulled)
    if inputs.shape[:2] != outputs.shape[:2] or inputs.shape[2] != gradient.shape[1]:
        return False
    error = (torch.einsum("bpo,bpi->oi", outputs, inputs) - gradient).norm()
    # where positions cancel, as before a normalisation, both are rounding of what was summed
    summed = (inputs.norm(dim=2) * outputs.norm(dim=2)).sum()
    return bool(error <= 1e-3 * gradient.norm() + 1e-5 * summed) or not bool(error.isfinite())


def _plain_kind(block: Block) -> str:
    return "Conv2d" if isinstance(block.layer, nn.Conv2d) else "Linear"


class Passes:
    """The two passes of a fit over the covered parameters of one model."""

    def __init__(self, model: Denoiser, config: CurvatureConfig, batch_size: int, covers: Covers = None):
        self.model, self.config, self.batch_size = model, config, batch_size
        self.coverage = coverage(model, covers)
        self.layers = self.coverage.layers
        self.blocks = layer_blocks(self.layers, config.bias)

    @property
    def per_example(self) -> bool:
        """Whether a unit is an example."""
        return self.config.partition == "loss_per_example"

    def portion_size(self, draws: int, batched: bool) -> int:
        """Draws in a portion: as configured where their gradients are summed, else what fits a batch; whole units."""
        size = self.config.draws_per_sum if batched else self.batch_size
        return -(-size // draws) * draws if self.per_example else size

    def chunks(self, portion: DrawBatch) -> Iterator[Chunk]:
        """A portion in even pieces of at most `batch_size` draws."""
        unit = portion.example - portion.example[0] if self.per_example else None
        count = math.ceil(len(portion.images) / self.batch_size)
        size = math.ceil(len(portion.images) / count)
        for start in range(0, len(portion.images), size):
            part = slice(start, start + size)
            draws = portion.rows(part)
            yield Chunk(draws, None if unit is None else unit[part], 0 if unit is None else int(unit[-1]) + 1)

    def forward(self, draws: DrawBatch) -> ForwardPass:
        """A forward pass whose layers' inputs and outputs are remembered."""
        with differentiable(self.model, self.layers):
            return ForwardPass(self.model, self.layers, draws)

    def pulled_back(
        self, chunk: Chunk, random: KeyedRandomness
    ) -> tuple[ForwardPass, Iterator[dict[str, Float[Tensor, "B _L _O"]]]]:
        """The forward pass of a chunk, and each label vector's output gradients by layer."""
        forward = self.forward(chunk.draws)
        check_draws_finite(forward.prediction, self.model, chunk.draws, random.example_ids)
        vectors = label_vectors(forward.prediction, chunk.draws, self.config, random)
        return forward, (forward.pull_back(v, last=i == len(vectors) - 1) for i, v in enumerate(vectors))

    # --- first pass

    def add_factors(self, sums: Sums, portion: DrawBatch, random: KeyedRandomness) -> None:
        """Add a portion's share of A and B of every block."""
        add = self._add_expanded if self.config.sharing == "expand" else self._add_reduced
        add(sums, portion, random)

    def _add_expanded(self, sums: Sums, portion: DrawBatch, random: KeyedRandomness) -> None:
        for chunk in self.chunks(portion):
            forward, vectors = self.pulled_back(chunk, random)
            draw_weights, places = self._draw_weights(chunk.draws), self._places(chunk, random)
            for name, block in self.blocks.items():
                raw = forward.raw_input(block.layer_name)
                _add(sums, f"{name}/A", input_covariance_sum(block, raw, places=places, draw_weights=draw_weights))
            for pulled in vectors:
                for name, block in self.blocks.items():
                    gradients = block.output_gradients(pulled[block.layer_name])
                    _add(sums, f"{name}/B", output_gradient_factor_sum(gradients))

    def _add_reduced(self, sums: Sums, portion: DrawBatch, random: KeyedRandomness) -> None:
        units: dict[str, Float[Tensor, "_units ..."]] = {}
        for chunk in self.chunks(portion):
            forward, vectors = self.pulled_back(chunk, random)
            scale = chunk.draws.draw_weights / random.draws if self.per_example else chunk.draws.draw_weights.sqrt()
            for name, block in self.blocks.items():
                mean = block.inputs(forward.raw_input(block.layer_name)).mean(1) * scale.unsqueeze(1)
                _add_units(units, f"{name}/A", mean, chunk)
            for index, pulled in enumerate(vectors):
                for name, block in self.blocks.items():
                    total = block.output_gradients(pulled[block.layer_name]).sum(1)
                    _add_units(units, f"{name}/B/{index}", total, chunk)
        for name, rows in units.items():
            # A is a mean over units, but sums are divided by the number of draws
            share = random.draws if self.per_example and name.endswith("/A") else 1
            _add(sums, name if name.endswith("/A") else name.rpartition("/")[0], share * second_moment(rows))

    def _draw_weights(self, draws: DrawBatch) -> PerDraw | None:
        return None if bool((draws.draw_weights == 1).all()) else draws.draw_weights

    def _places(self, chunk: Chunk, random: KeyedRandomness) -> Float[Tensor, "B n"] | None:
        count = self.config.input_positions
        # in the type they are drawn in: fewer bits would move positions, and out of the image at last
        return None if count is None else random.places(chunk.draws, count).to(chunk.draws.images.device)

    # --- second pass

    def corrections(self, bases: dict[str, LayerCurvature]) -> AddPortion:
        """The second pass in some bases; sums are by block."""
        batched = self.config.correction == "batched"
        add = self._add_batched if batched else self._add_each

        def add_corrections(sums: Sums, portion: DrawBatch, random: KeyedRandomness) -> None:
            add(bases, sums, portion, random)

        return add_corrections

    def _add_each(
        self, bases: dict[str, LayerCurvature], sums: Sums, portion: DrawBatch, random: KeyedRandomness
    ) -> None:
        """The definition: square the rotated gradient of each unit."""
        units: dict[str, Float[Tensor, "_units ..."]] = {}
        for chunk in self.chunks(portion):
            forward, vectors = self.pulled_back(chunk, random)
            for index, pulled in enumerate(vectors):
                for name, block in self.blocks.items():
                    gradients = block.output_gradients(pulled[block.layer_name]).transpose(1, 2)
                    matrices = gradients @ block.inputs(forward.raw_input(block.layer_name))
                    if chunk.unit is None:
                        _add(sums, name, correction_sum(bases[name], matrices))
                    else:
                        _add_units(units, f"{name}/{index}", matrices, chunk)
        for name, matrices in units.items():
            _add(sums, name.rpartition("/")[0], correction_sum(bases[name.rpartition("/")[0]], matrices))

    def _add_batched(
        self, bases: dict[str, LayerCurvature], sums: Sums, portion: DrawBatch, random: KeyedRandomness
    ) -> None:
        """Square the rotated gradient of a sum of units with independent vectors of mean zero: cross terms vanish.

        For sampled labels E[(Σ_d J_dᵀ v_d)²] = Σ_d E[(J_dᵀ v_d)²], because the v_d are independent with mean zero. Any other
        vectors are made so by a random sign for each unit. One ordinary backward pass serves the whole batch.
        """
        totals: dict[int, Sequence[Tensor]] = {}
        parameters = layer_parameters(self.layers)
        for chunk in self.chunks(portion):
            with differentiable(self.model, self.layers):
                prediction = self.model.predict(chunk.draws)
                check_draws_finite(prediction, self.model, chunk.draws, random.example_ids)
                vectors = label_vectors(prediction, chunk.draws, self.config, random)
                if self.config.partition != "model" or self.config.exact_labels:
                    signs = random.signs(chunk.draws, per_example=self.per_example)
                    vectors = vectors * signs.to(vectors).view(1, -1, 1, 1, 1)
                for index, vector in enumerate(vectors):
                    last = index == len(vectors) - 1
                    found = torch.autograd.grad(
                        prediction, parameters, vector, retain_graph=not last, materialize_grads=True
                    )
                    totals[index] = (
                        [a + b for a, b in zip(totals[index], found, strict=True)] if index in totals else list(found)
                    )
        for total in totals.values():
            matrices = gradient_matrices(self.layers, tuple(total))
            check_finite(matrices, GRADIENTS_NOT_FINITE)
            for name, matrix in split_into_blocks(matrices, self.blocks).items():
                _add(sums, name, correction_sum(bases[name], matrix.unsqueeze(0)))


def _add(sums: Sums, name: str, value: Float[Tensor, "rows columns"]) -> None:
    """Sums are kept in float64: there are many draws, and a resumed sum must be the same sum."""
    if name in sums:
        sums[name].add_(value)
    else:
        sums[name] = value.double()


def _add_units(
    units: dict[str, Float[Tensor, "_units ..."]], name: str, values: Float[Tensor, "B ..."], chunk: Chunk
) -> None:
    """Add draws to their units."""
    if chunk.unit is None:
        units[name] = torch.cat([units[name], values]) if name in units else values
        return
    if name not in units:
        units[name] = values.new_zeros(chunk.units, *values.shape[1:])
    units[name].index_add_(0, chunk.unit.to(values.device), values)
