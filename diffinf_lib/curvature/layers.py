"""Layers: which parameters the curvature covers, and what a layer sees of one forward and one backward pass.

Covered are the weight and bias of every `Conv2d` and `Linear`, the bias as the weight of a constant input 1. A layer's
gradient is then a matrix G = Σ_p g_p a_pᵀ, `[d_out, d_in]`, summed over the positions p that share the weights: pixels of
a convolution, tokens of an attention layer, one position of a plain linear layer. Normalisation layers are left out of
the curvature and of the inner product alike.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf_lib.diffusion import Denoiser, DrawBatch, require_denoiser
from diffinf_lib.errors import ConfigurationError, require

Layers = Mapping[str, nn.Module]

NORMALISATION = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
"""Layers that are left out of the curvature and of the inner product; their weights are a share of a per cent."""


def curvature_layers(model: Denoiser) -> dict[str, nn.Module]:
    """Every `Conv2d` and `Linear` of a model's network by name, in the network's own order.

    Raises:
        ConfigurationError: the model's process is not known, there is no such layer, two share a parameter, or a module of
            another kind has trainable parameters; the message names it.
    """
    network = require_denoiser(model).network
    layers: dict[str, nn.Module] = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    require(bool(layers), f"{type(network).__name__}: no Conv2d or Linear layer to fit a curvature to")
    _refuse_other_modules(network)
    _refuse_shared_parameters(layers)
    return layers


def _refuse_other_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding, *NORMALISATION)):
            continue
        trainable = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        require(not trainable, f"layer {name or '(the model itself)'}: {type(module).__name__} is not supported; to leave "
                "its parameters out of the curvature, freeze them with requires_grad_(False)")  # fmt: skip


def _refuse_shared_parameters(layers: Layers) -> None:
    owner: dict[int, str] = {}
    for name, layer in layers.items():
        for parameter in layer.parameters(recurse=False):
            first = owner.setdefault(id(parameter), name)
            require(first == name, f"layer {name}: shares a parameter with layer {first}, its curvature is not defined "
                    "here; give each a parameter of its own")  # fmt: skip


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of the layer's gradient matrix; d_in counts the bias as one more input."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0], weight[0].numel() + (layer.bias is not None)


def layer_parameters(layers: Layers) -> list[Tensor]:
    """Weights and biases of the layers, in order; a layer without a bias has only the one."""
    return [tensor for layer in layers.values() for tensor in (layer.weight, layer.bias) if isinstance(tensor, Tensor)]


def gradient_matrices(layers: Layers, gradients: tuple[Tensor, ...]) -> dict[str, Float[Tensor, "O I"]]:
    """Gradients of `layer_parameters` as one matrix `[d_out, d_in]` a layer, the bias as its last column."""
    remaining, matrices = iter(gradients), {}
    for name, layer in layers.items():
        matrix = next(remaining).flatten(1)
        matrices[name] = matrix if layer.bias is None else torch.cat([matrix, next(remaining).unsqueeze(1)], dim=1)
    return matrices


def padded_inputs(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
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
        # One element that is not finite makes the sum so, and a sum costs a thirtieth of a check of each element
        if not math.isfinite(tensor.sum()) and not bool(torch.isfinite(tensor).all()):
            raise ConfigurationError(f"layer {name}: {problem}")


def layer_inputs(layer: nn.Module, inputs: Tensor, group: int = 0) -> Float[Tensor, "B P I"]:
    """What the weights of a layer are multiplied with at each position, a constant 1 appended for the bias.

    Args:
        group: of a grouped convolution, the group whose input channels are meant.
    """
    if isinstance(layer, nn.Conv2d):
        channels = inputs.chunk(layer.groups, dim=1)[group]
        patches = F.unfold(padded_inputs(layer, channels), layer.kernel_size, layer.dilation, 0, layer.stride)
        patches = patches.transpose(1, 2)
    else:
        patches = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    return patches if layer.bias is None else F.pad(patches, (0, 1), value=1.0)


def _output_gradients(layer: nn.Module, gradients: Tensor) -> Float[Tensor, "B P O"]:
    if isinstance(layer, nn.Conv2d):
        return gradients.flatten(2).transpose(1, 2)
    return gradients.reshape(len(gradients), -1, gradients.shape[-1])


@contextmanager
def differentiable(model: nn.Module, layers: Layers) -> Iterator[None]:
    """Eval mode (no dropout) and gradients for the layers' parameters; a model's own flags are put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in layer_parameters(layers)]
    require(not torch.is_inference_mode_enabled(), "gradients under torch.inference_mode(): there are none; leave it")
    require(not any(parameter.is_inference() for parameter, _ in flags), "model: made under torch.inference_mode(), it has no "
            "gradients; build or load it outside")  # fmt: skip
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


class ForwardPass:
    """One forward pass that remembers each layer's input and output, to be pulled back several times.

    Args:
        layers: from `curvature_layers`.
        batch: the draws.

    Raises:
        ConfigurationError: a layer is called twice in the pass, or never, or what it read or wrote is changed in place
            afterwards; the message names it.
    """

    def __init__(self, model: Denoiser, layers: Layers, batch: DrawBatch):
        self.layers = layers
        self._inputs: dict[str, Tensor] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        self._outputs: dict[str, Tensor] = {}
        handles = [layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()]
        try:
            # Hooks see a layer's own tensors only where the layer runs as written, not fused by `model.compile()`
            with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
                self.prediction = model.predict(batch)
        finally:
            for handle in handles:
                handle.remove()
        for name in layers:
            require(name in self._outputs, f"layer {name}: not used in the forward pass; remove it from the model")
            now = (self._inputs[name]._version, self._outputs[name]._version)
            require(now == self._versions[name], f"layer {name}: its input or output is changed in place later in the "
                    "forward pass; use operations that make a new tensor (inplace=False)")  # fmt: skip

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def remember(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            require(name not in self._outputs, f"layer {name}: used twice in one forward pass, its curvature is not "
                    "defined here; give each use a layer of its own")  # fmt: skip
            self._inputs[name], self._outputs[name] = inputs[0].detach(), output
            self._versions[name] = (inputs[0]._version, output._version)

        return remember

    def raw_input(self, name: str) -> Tensor:
        """What a layer was called with: `[B, channels, height, width]`, or `[B, ..., features]`."""
        return self._inputs[name]

    def inputs(self, name: str) -> Float[Tensor, "B P I"]:
        """The inputs a of one layer at each position."""
        return layer_inputs(self.layers[name], self._inputs[name])

    def pull_back(self, vectors: Tensor, *, last: bool = True) -> dict[str, Float[Tensor, "B P O"]]:
        """Each layer's share of Jᵀv: the gradient of ⟨v, ε_θ⟩ with respect to the layer's output.

        Only activations are differentiated; no parameter's gradient is computed or touched.

        Args:
            vectors: v, shaped as the prediction, `[B, C, H, W]`.
            last: free the graph.

        Raises:
            ConfigurationError: a gradient is not finite; the message names the layer.
        """
        outputs = list(self._outputs.values())
        gradients = torch.autograd.grad(self.prediction, outputs, vectors, retain_graph=not last, allow_unused=True)
        found = {
            name: torch.zeros_like(output) if gradient is None else gradient
            for (name, output), gradient in zip(self._outputs.items(), gradients, strict=True)
        }
        check_finite(found, "its output gradients are not finite; check the model's weights")
        return {name: _output_gradients(layer, found[name]) for name, layer in self.layers.items()}
