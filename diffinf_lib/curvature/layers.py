"""Layers: which parameters the curvature covers, and what a layer sees of one forward and one backward pass.

Covered are the trainable weights and biases of every `Conv2d` and `Linear`, or those that `covers` selects; a bias counts
as the weight of a constant input 1. A layer's gradient is then a matrix G = Σ_p g_p a_pᵀ, `[d_out, d_in]`, summed over the
positions p that share the weights: pixels of a convolution, tokens of an attention layer, one position of a plain linear
layer. Normalisation layers and embeddings are left out of the curvature and of the inner product alike.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf_lib.diffusion import Denoiser, DrawBatch, require_denoiser
from diffinf_lib.errors import ConfigurationError, first_few, require
from diffinf_lib.finite import all_finite
from diffinf_lib.precision import require_full_precision
from diffinf_lib.shapes import ImageBatch

Covers = Callable[[str, nn.Parameter], bool] | Collection[str] | None
"""Which parameters to cover: a rule for a parameter's name and itself, or names; None takes the trainable ones."""

NORMALISATION = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
"""Layers that are left out of the curvature and of the inner product; their weights are a share of a per cent."""

EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
"""Layers that are left out too, which a fit says in a warning: what they learned of each class may matter."""


GRADIENTS_NOT_FINITE = (
    "its gradients are not finite; check pixels and weights, and the network's output at all timesteps"
)


@dataclass(frozen=True, eq=False)
class Layer:
    """A `Conv2d` or `Linear`, and which of its parameters are covered."""

    module: nn.Module
    covers_weight: bool = True
    covers_bias: bool = True

    @property
    def weight(self) -> Float[Tensor, "O ..."] | None:
        """The weight, if it is covered."""
        return self.module.weight if self.covers_weight else None  # type: ignore[return-value]

    @property
    def bias(self) -> Float[Tensor, "O"] | None:
        """The bias, if there is one and it is covered."""
        return self.module.bias if self.covers_bias else None  # type: ignore[return-value]

    @property
    def outputs(self) -> int:
        """d_out, the number of output channels or features."""
        size = self.module.out_channels if isinstance(self.module, nn.Conv2d) else self.module.out_features
        return int(size)  # type: ignore[arg-type]


Layers = Mapping[str, Layer]
LayerInput = Float[Tensor, "B *rest"]
"""What a layer is called with: `[B, channels, height, width]` of a convolution, `[B, ..., features]` of a linear layer."""


@dataclass(frozen=True, eq=False)
class Coverage:
    """What the curvature of a model is about.

    Attributes:
        layers: the covered layers by name, in the model's own order.
        left_out: trainable parameters that are not covered, and the kind of module they belong to.
    """

    layers: dict[str, Layer]
    left_out: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the covered parameters, in the order of `layer_parameters`."""
        parts = {name: (layer.weight, layer.bias) for name, layer in self.layers.items()}
        return tuple(
            f"{name}.{part}" if name else part
            for name, both in parts.items()
            for part, tensor in zip(("weight", "bias"), both, strict=True)
            if tensor is not None
        )

    def warn_of_embeddings(self) -> None:
        """Say which trainable embeddings are left out."""
        found = [name for name, kind in self.left_out.items() if kind in {c.__name__ for c in EMBEDDING}]
        if found:
            warnings.warn(
                f"{first_few(found)}: the curvature covers Conv2d and Linear, embeddings are left out; scores are about the "
                "other parameters",
                stacklevel=3,
            )


def curvature_layers(model: Denoiser, covers: Covers = None) -> dict[str, Layer]:
    """The layers of a model with covered parameters by name, in the model's own order (see `coverage`)."""
    return coverage(model, covers).layers


def coverage(model: Denoiser, covers: Covers = None) -> Coverage:
    """Which parameters of a model's network the curvature covers: trainable weights and biases of `Conv2d` and `Linear`.

    Args:
        covers: cover these instead, trainable or not.

    Raises:
        ConfigurationError: the model's process is not known, nothing is covered, a parameter has a second owner or half
            precision, or one that is wanted belongs to a module of another kind; the message names it.
    """
    network = require_denoiser(model).network
    wanted = _rule(network, covers)
    layers: dict[str, Layer] = {}
    left_out: dict[str, str] = {}
    for name, module in network.named_modules():
        found = dict(module.named_parameters(recurse=False))
        taken = {part for part, parameter in found.items() if wanted(f"{name}.{part}" if name else part, parameter)}
        plain = {"weight", "bias"} if isinstance(module, (nn.Conv2d, nn.Linear)) else set()
        if covered := taken & plain:
            layers[name] = Layer(module, "weight" in covered, "bias" in covered)
        if not isinstance(module, NORMALISATION + EMBEDDING):
            _refuse_other_parameters(name, module, sorted(taken - plain))
        left_out |= {
            f"{name}.{part}" if name else part: type(module).__name__
            for part, parameter in found.items()
            if parameter.requires_grad and part not in covered
        }
    _check_layers(network, layers, covers)
    result = Coverage(layers, left_out)
    missed = [] if covers is None or callable(covers) else sorted({*_listed(covers)} - {*result.names})
    require(not missed, f"covers: {first_few(missed)} is not the weight or bias of a Conv2d or Linear; leave it out")
    return result


def _rule(model: nn.Module, covers: Covers) -> Callable[[str, nn.Parameter], bool]:
    if covers is None:
        return lambda name, parameter: parameter.requires_grad
    if callable(covers):
        return covers
    names = frozenset(_listed(covers))
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    require(names <= known, f"covers: {type(model).__name__} has no parameter {first_few(sorted(names - known))}; give names "
            "from model.network.named_parameters()")  # fmt: skip
    return lambda name, parameter: name in names


def _listed(names: Collection[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _refuse_other_parameters(name: str, module: nn.Module, wanted: list[str]) -> None:
    where = name or "(the model itself)"
    require(not wanted, f"layer {where}: {type(module).__name__} has trainable parameters ({first_few(wanted)}), but the "
            "curvature covers the weight and bias of Conv2d and Linear only; freeze them with requires_grad_(False) if scores "
            "may leave them out, or select others with covers=")  # fmt: skip


def _check_layers(model: nn.Module, layers: Layers, covers: Covers) -> None:
    kind = type(model).__name__
    there = any(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules())
    require(there, f"{kind}: no Conv2d or Linear layer to fit a curvature to")
    require(bool(layers), f"{kind}: no weight or bias of its Conv2d and Linear layers is "
            + ("trainable; unfreeze some with requires_grad_(True), or select them with covers="
               if covers is None else "among the parameters asked for; give covers= others"))  # fmt: skip
    _refuse_inference_tensors(model)
    require_full_precision(model)
    _refuse_shared_parameters(model, layers)


def _refuse_inference_tensors(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        require(not parameter.is_inference(), f"parameter {name}: made in inference mode, it cannot be differentiated; build "
                "the model outside torch.inference_mode()")  # fmt: skip


def _refuse_shared_parameters(model: nn.Module, layers: Layers) -> None:
    covered = {id(parameter) for parameter in layer_parameters(layers)}
    owner: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            first = owner.setdefault(id(parameter), name)
            shared = first != name and id(parameter) in covered
            require(not shared, f"layer {name}: shares a parameter with layer {first}, its curvature is not defined here; give "
                    "each a parameter of its own, or freeze it")  # fmt: skip


def layer_shape(layer: Layer) -> tuple[int, int]:
    """(d_out, d_in) of the layer's gradient matrix; d_in counts the bias as one more input."""
    inputs = 0 if layer.weight is None else layer.weight[0].numel()
    return layer.outputs, inputs + (layer.bias is not None)


def layer_parameters(layers: Layers) -> list[Tensor]:
    """Covered weights and biases of the layers, in order."""
    return [tensor for layer in layers.values() for tensor in (layer.weight, layer.bias) if tensor is not None]


def gradient_matrices(layers: Layers, gradients: tuple[Tensor, ...]) -> dict[str, Shaped[Tensor, "_O _I"]]:
    """Gradients of `layer_parameters`, or what is shaped like them, as one matrix `[d_out, d_in]` a layer, bias last."""
    remaining, matrices = iter(gradients), {}
    for name, layer in layers.items():
        columns = [next(remaining).flatten(1)] if layer.weight is not None else []
        columns += [next(remaining).unsqueeze(1)] if layer.bias is not None else []
        matrices[name] = columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
    return matrices


def padded_inputs(layer: nn.Conv2d, inputs: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """The images a convolution slides over: padded as the layer pads them, whatever its mode."""
    amounts = layer._reversed_padding_repeated_twice
    if not any(amounts):
        return inputs
    return F.pad(inputs, amounts, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)


def check_finite(tensors: Mapping[str, Tensor], problem: str) -> None:
    """Refuse tensors that hold NaN or infinity.

    Raises:
        ConfigurationError: `layer NAME: problem`, for the first that does.
    """
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise ConfigurationError(f"layer {name}: {problem}")


def layer_inputs(layer: Layer, inputs: LayerInput, group: int = 0) -> Float[Tensor, "B L I"]:
    """What the covered weights are multiplied with at each position, a constant 1 appended for a covered bias.

    Args:
        group: of a grouped convolution, the group whose input channels are meant.
    """
    module = layer.module
    if isinstance(module, nn.Conv2d):
        channels = inputs.chunk(module.groups, dim=1)[group]
        patches = F.unfold(padded_inputs(module, channels), module.kernel_size, module.dilation, 0, module.stride)
        patches = patches.transpose(1, 2)
    else:
        patches = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    patches = patches if layer.covers_weight else patches[..., :0]
    return patches if layer.bias is None else F.pad(patches, (0, 1), value=1.0)


def _output_gradients(layer: Layer, gradients: LayerInput) -> Float[Tensor, "B L O"]:
    return gradients.flatten(2).transpose(1, 2) if isinstance(layer.module, nn.Conv2d) else _as_positions(gradients)


@contextmanager
def differentiable(model: nn.Module, layers: Layers) -> Iterator[None]:
    """Eval mode (no dropout) and gradients for the covered parameters; a model's own flags are put back at the end.

    Raises:
        ConfigurationError: in inference mode.
    """
    require(not torch.is_inference_mode_enabled(), "torch.inference_mode: nothing can be differentiated in it; use "
            "torch.no_grad() instead")  # fmt: skip
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in layer_parameters(layers)]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)


class LayerUses:
    """What the layers read and wrote in one forward pass; of a `Linear` that is called several times, every use.

    Its uses are positions that share the weights, as those of a sequence are (Eschenhagen et al. 2023).

    Raises:
        ConfigurationError: a convolution is called twice, or a `Linear` with other numbers of rows; the message names it.
    """

    def __init__(self, layers: Layers):
        self.layers = layers
        self._inputs: dict[str, list[Tensor]] = {}
        self._outputs: dict[str, list[Tensor]] = {}
        self._versions: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note every use within."""
        handles = [layer.module.register_forward_hook(partial(self._note, name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before = self._inputs.get(name, [])
        require(not before or isinstance(module, nn.Linear), f"layer {name}: a convolution that is used twice in one forward "
                "pass, its curvature is not defined here; give each use a layer of its own")  # fmt: skip
        sizes = {len(use) for use in (*before, inputs[0])}
        require(len(sizes) == 1, f"layer {name}: used for batches of {' and '.join(map(str, sorted(sizes)))} rows in one "
                "forward pass, its curvature is not defined here; give each use a layer of its own")  # fmt: skip
        self._inputs.setdefault(name, []).append(inputs[0].detach())
        self._outputs.setdefault(name, []).append(output)
        self._versions.setdefault(name, []).append((inputs[0]._version, output._version))

    @property
    def repeated(self) -> list[str]:
        """Names of the layers that are called several times."""
        return [name for name, uses in self._outputs.items() if len(uses) > 1]

    def check(self) -> None:
        """Refuse a layer that was not used, and one whose input or output was changed after its use."""
        for name in self.layers:
            require(
                name in self._outputs,
                f"layer {name}: not used in the forward pass; freeze it with requires_grad_(False)",
            )
            uses = zip(self._inputs[name], self._outputs[name], strict=True)
            now = [(read._version, wrote._version) for read, wrote in uses]
            require(now == self._versions[name], f"layer {name}: its input or output is changed in place later in the "
                    "forward pass; use operations that make a new tensor (inplace=False)")  # fmt: skip

    def raw_input(self, name: str) -> LayerInput:
        """What a layer was called with; several uses are positions, one use after the other."""
        uses = self._inputs[name]
        return uses[0] if len(uses) == 1 else torch.cat([_as_positions(use) for use in uses], dim=1)

    def output_gradients(
        self, prediction: ImageBatch, vectors: ImageBatch, *, retain_graph: bool
    ) -> dict[str, Float[Tensor, "B _L _O"]]:
        """The gradient of ⟨v, prediction⟩ with respect to each layer's output at each position, and no other."""
        outputs = [output for uses in self._outputs.values() for output in uses]
        found = torch.autograd.grad(prediction, outputs, vectors, retain_graph=retain_graph, allow_unused=True)
        each = iter(
            torch.zeros_like(output) if gradient is None else gradient
            for output, gradient in zip(outputs, found, strict=True)
        )
        by_layer = {name: [next(each) for _ in uses] for name, uses in self._outputs.items()}
        positions = {
            name: [_output_gradients(layer, gradient) for gradient in by_layer[name]]
            for name, layer in self.layers.items()
        }
        return {name: uses[0] if len(uses) == 1 else torch.cat(uses, dim=1) for name, uses in positions.items()}


def _as_positions(values: LayerInput) -> Float[Tensor, "B L I"]:
    return values.reshape(len(values), -1, values.shape[-1])


class ForwardPass:
    """One forward pass that remembers each layer's input and output, to be pulled back several times.

    Args:
        layers: from `curvature_layers`.
        batch: the draws.

    Raises:
        ConfigurationError: a layer is not called in the pass, a convolution twice, or what a layer read or wrote is changed
            in place afterwards; the message names it.
    """

    def __init__(self, model: Denoiser, layers: Layers, batch: DrawBatch):
        self.layers, self.uses = layers, LayerUses(layers)
        # Hooks see a layer's own tensors only where the layer runs as written, not fused by `model.compile()`
        with self.uses.noted(), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            self.prediction = model.predict(batch)
        self.uses.check()

    def raw_input(self, name: str) -> LayerInput:
        """What a layer was called with."""
        return self.uses.raw_input(name)

    def inputs(self, name: str) -> Float[Tensor, "B L I"]:
        """The inputs a of one layer at each position."""
        return layer_inputs(self.layers[name], self.raw_input(name))

    def pull_back(self, vectors: ImageBatch, *, last: bool = True) -> dict[str, Float[Tensor, "B _L _O"]]:
        """Each layer's share of Jᵀv: the gradient of ⟨v, ε_θ⟩ with respect to the layer's output.

        Only activations are differentiated; no parameter's gradient is computed or touched.

        Args:
            vectors: v, shaped as the prediction, `[B, C, H, W]`.
            last: free the graph.

        Raises:
            ConfigurationError: a gradient is not finite; the message names the layer.
        """
        found = self.uses.output_gradients(self.prediction, vectors, retain_graph=not last)
        check_finite(found, GRADIENTS_NOT_FINITE)
        return found
