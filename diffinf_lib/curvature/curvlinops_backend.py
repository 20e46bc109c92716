"""curvlinops as backend: K-FAC and EK-FAC of the same draws by another implementation (curvlinops 3.0.1).

It serves as an oracle for our own fit, and as a second opinion to whoever wants one; it is several times slower. What it
has no counterpart for is refused by name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from curvlinops import EKFACLinearOperator, KFACLinearOperator
from jaxtyping import Float
from torch import Tensor, nn

from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Expectation
from diffinf_lib.curvature.blocks import layer_blocks
from diffinf_lib.curvature.ekfac import LayerCurvature
from diffinf_lib.curvature.fitted import Curvature
from diffinf_lib.curvature.layers import (
    GRADIENTS_NOT_FINITE,
    Coverage,
    Covers,
    ForwardPass,
    Layers,
    coverage,
    differentiable,
    layer_parameters,
)
from diffinf_lib.curvature.operators import FlatDenoiser, batch_size_of, packed
from diffinf_lib.curvature.passes import check_products
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch
from diffinf_lib.diffusion.identity import weights_digest
from diffinf_lib.errors import ConfigurationError, first_few, require
from diffinf_lib.finite import all_finite, check_draws_finite
from diffinf_lib.randomness import keyed_seed
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import Condition


@dataclass(frozen=True)
class _Draws:
    """All draws of one pass, as often as curvlinops iterates over them; only one batch is in memory at a time."""

    model: Denoiser
    images: ImageSet
    draws: DrawConfig
    pass_name: str
    seed: int
    batch_size: int

    def batches(self) -> Iterator[DrawBatch]:
        """The draws, a batch at a time."""
        return Expectation(self.draws, self.pass_name, self.seed).batches(self.model, self.images, self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, Condition], Float[Tensor, "B CHW"]]]:
        return map(packed, self.batches())

    def check_finite(self, found: Iterable[Any]) -> None:
        """Refuse what is not finite and was made of these draws; they are gone through again for the one to blame."""
        tensors = [value for values in found for value in (values.values() if isinstance(values, dict) else [values])]
        if all(all_finite(tensor) for tensor in tensors):
            return
        for batch in self.batches():
            with torch.no_grad():
                check_draws_finite(self.model.predict(batch), self.model, batch, self.images.ids)
        raise ConfigurationError(f"curvlinops, {self.pass_name}: {GRADIENTS_NOT_FINITE}")

    @property
    def count(self) -> int:
        """N·S."""
        return len(self.images) * self.draws.count


@own_settings
def fit_with_curvlinops(
    model: Denoiser,
    images: ImageSet,
    config: CurvatureConfig | None = None,
    *,
    seed: int = 0,
    covers: Covers = None,
    batch_size: int = 64,
) -> Curvature:
    """Fit K-FAC or EK-FAC through curvlinops, on the very draws that `fit_curvature` takes.

    With exact labels, all positions and corrections per draw, `fit_curvature` gives the same matrices. Sampled labels are
    curvlinops' own. It always takes all positions and corrects per draw, whatever `config` says.

    Args:
        covers: as for `fit_curvature`.
        config: as for `fit_curvature`; its `correction`, `draws_per_sum`, `input_positions` and `precision` are not read.

    Raises:
        ConfigurationError: curvlinops offers nothing of the kind; the message names the option or the layer.
    """
    config = config or CurvatureConfig()
    _check_supported(config)
    covered = coverage(model, covers)
    covered.warn_of_embeddings()
    layers = covered.layers
    _check_layers(layers)

    def draws(pass_name: str, count: DrawConfig) -> _Draws:
        return _Draws(model, images, count, pass_name, seed, batch_size)

    with differentiable(model, layers):
        data = draws("factors", config.drawn_for_factors)
        _check_forward(model, layers, data)
        factors = _operator(KFACLinearOperator, model, layers, data, config, seed)
        factors.compute_kronecker_factors()
        data.check_finite([factors._input_covariances, factors._gradient_covariances])
        if config.approximation == "kfac":
            return _as_curvature(covered, config, factors, None)
        data = draws("corrections", config.draws)
        corrected = _operator(EKFACLinearOperator, model, layers, data, config, seed)
        corrected._input_covariances = dict(factors._input_covariances)
        corrected._gradient_covariances = dict(factors._gradient_covariances)
        corrected.compute_eigenvalue_correction()
        data.check_finite(corrected._corrected_eigenvalues.values())
    return replace(_as_curvature(covered, config, factors, corrected), fitted_to=weights_digest(model.network))


def _check_supported(config: CurvatureConfig) -> None:
    require(config.approximation in ("ekfac", "kfac"), f"approximation={config.approximation!r}: curvlinops fits 'ekfac' or "
            "'kfac'; use fit_curvature")  # fmt: skip
    require(config.partition != "loss_per_example", "partition='loss_per_example': curvlinops takes outer products per draw; "
            "use fit_curvature")  # fmt: skip
    for draws in (config.draws, config.drawn_for_factors):
        require(not draws.weighted, f"timestep_rule={draws.timestep_rule!r}: curvlinops does not weight a "
                "layer's inputs; use fit_curvature")  # fmt: skip


def _check_layers(layers: Layers) -> None:
    for name, layer in ((name, layer.module) for name, layer in layers.items()):
        if isinstance(layer, nn.Conv2d):
            left, right, top, bottom = layer._reversed_padding_repeated_twice
            require(layer.groups == 1, f"layer {name}: groups={layer.groups}, which curvlinops averages over; "
                    "use fit_curvature")  # fmt: skip
            require(layer.padding_mode == "zeros", f"layer {name}: padding_mode={layer.padding_mode!r}, which curvlinops "
                    "takes for zeros; use fit_curvature")  # fmt: skip
            require(left == right and top == bottom, f"layer {name}: padding={layer.padding!r} pads unequally, which "
                    "curvlinops does not; use fit_curvature")  # fmt: skip


def _check_forward(model: Denoiser, layers: Layers, data: _Draws) -> None:
    """Refuse layers that are used twice, otherwise or not at all: curvlinops' factors of them were not held against ours."""
    draw = next(data.batches()).rows(slice(0, 1))
    check_products(model, layers, draw)
    with differentiable(model, layers):
        repeated = ForwardPass(model, layers, draw).uses.repeated
    require(not repeated, f"layer {first_few(repeated)}: used twice in one forward pass, for which curvlinops was not checked; "
            "use fit_curvature")  # fmt: skip


def _operator(kind: Any, model: Denoiser, layers: Layers, data: _Draws, config: CurvatureConfig, seed: int) -> Any:
    """curvlinops' operator over the covered parameters, with nothing computed yet."""
    sampled = config.partition == "model" and not config.exact_labels
    fisher = "mc" if sampled else "type-2" if config.partition == "model" else "empirical"
    return kind(
        FlatDenoiser(model, layers, second_order=False), nn.MSELoss(reduction="mean"), layer_parameters(layers), data,
        fisher_type=fisher, mc_samples=config.sampled_labels, kfac_approx=config.sharing,
        separate_weight_and_bias=config.bias == "separate", seed=keyed_seed("curvlinops", seed, data.pass_name),
        check_deterministic=False, num_data=data.count, num_per_example_loss_terms=1, batch_size_fn=batch_size_of,
    )  # fmt: skip


def _as_curvature(covered: Coverage, config: CurvatureConfig, factors: Any, corrected: Any) -> Curvature:
    """Its factors and corrected eigenvalues by block, in our scale."""
    found = {}
    # its empirical Fisher of MSELoss(mean) is C times the outer product of the mean-dim loss's gradient
    scale = 1.0 if config.partition == "model" else 1 / factors._data.images.images[0].numel()
    for name, block in layer_blocks(covered.layers, config.bias).items():
        module = f"model.network.{block.layer_name}"
        output_factor = factors._gradient_covariances[module]
        # a bias of its own has the constant input 1
        input_factor = output_factor.new_ones(1, 1) if block.part == "bias" else factors._input_covariances[module]
        basis = _in_eigenbasis(input_factor, output_factor, scale)
        values = None if corrected is None else scale * _corrected(corrected, module, block.part)
        found[name] = replace(basis, corrected_eigenvalues=values)
    return Curvature(found, config.bias, covered.names, tuple(covered.left_out))


def _corrected(operator: Any, module: str, part: str) -> Float[Tensor, "O I"]:
    """Corrected eigenvalues `[d_out, d_in]` of a block; with separate biases curvlinops keeps them by parameter."""
    values = operator._corrected_eigenvalues[module]
    if isinstance(values, Tensor):
        return values
    found = values[operator._mapping[module]["bias" if part == "bias" else "weight"]]
    return found.unsqueeze(1) if part == "bias" else found.flatten(1)


def _in_eigenbasis(
    input_factor: Float[Tensor, "I I"], output_factor: Float[Tensor, "O O"], scale: float
) -> LayerCurvature:
    """The factors decomposed by the call that curvlinops makes, so that the basis is that of its corrected eigenvalues."""
    input_values, input_vectors = torch.linalg.eigh(input_factor)
    output_values, output_vectors = torch.linalg.eigh(output_factor)
    eigenvalues = torch.outer(output_values.clamp(min=0), input_values.clamp(min=0))
    return LayerCurvature(input_vectors, output_vectors, scale * eigenvalues)
