"""Layers: which parameters the curvature covers, and what a layer sees of one forward and one backward pass.

Covered are the weight and bias of every `Conv2d` and `Linear`, the bias as the weight of a constant input 1. A layer's
gradient is then a matrix G = Σ_p g_p a_pᵀ, `[d_out, d_in]`, summed over the positions p that share the weights: pixels of
a convolution, tokens of an attention layer, one position of a plain linear layer. Normalisation layers are left out of
the curvature and of the inner product alike.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf_lib.diffusion import Network, predict_noise
from diffinf_lib.errors import ConfigurationError, require

Layers = Mapping[str, nn.Module]


class LayerBatch(NamedTuple):
    """What one layer saw of B draws: inputs a and output gradients g at each of its P positions."""

    inputs: Float[Tensor, "B P I"]
    output_gradients: Float[Tensor, "B P O"]


def curvature_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every `Conv2d` and `Linear` of a model by name, in the model's own order.

    Raises:
        ConfigurationError: there is none, or one that is not supported; the message names it.
    """
    layers: dict[str, nn.Module] = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    require(bool(layers), f"{type(model).__name__}: no Conv2d or Linear layer to fit a curvature to")
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d):
            require(layer.groups == 1, f"layer {name}: groups={layer.groups} is not supported; use groups=1")
            require(layer.padding_mode == "zeros", f"layer {name}: padding_mode={layer.padding_mode!r}; use 'zeros'")
            require(layer.padding != "same", f"layer {name}: padding='same' is not supported; give numbers")
    return layers


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


def layer_inputs(layer: nn.Module, inputs: Tensor) -> Float[Tensor, "B P I"]:
    """What the weights of a layer are multiplied with at each position, a constant 1 appended for the bias."""
    if isinstance(layer, nn.Conv2d):
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, _padding(layer), layer.stride).transpose(1, 2)
    else:
        patches = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    return patches if layer.bias is None else F.pad(patches, (0, 1), value=1.0)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    return (0, 0) if isinstance(layer.padding, str) else (layer.padding[0], layer.padding[1])


def _output_gradients(layer: nn.Module, gradients: Tensor) -> Float[Tensor, "B P O"]:
    if isinstance(layer, nn.Conv2d):
        return gradients.flatten(2).transpose(1, 2)
    return gradients.reshape(len(gradients), -1, gradients.shape[-1])


@contextmanager
def differentiable(model: nn.Module, layers: Layers) -> Iterator[None]:
    """Eval mode (no dropout) and gradients for the layers' parameters; a model's own flags are put back at the end."""
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


class ForwardPass:
    """One forward pass that remembers each layer's input and output, to be pulled back several times.

    Args:
        layers: from `curvature_layers`.
        noisy: x_t, `[B, C, H, W]`.
        timesteps: t, `[B]`.

    Raises:
        ConfigurationError: a layer is called twice in the pass, or never, or what it read or wrote is changed in place
            afterwards; the message names it.
    """

    def __init__(self, model: Network, layers: Layers, noisy: Tensor, timesteps: Tensor):
        self.layers = layers
        self._inputs: dict[str, Tensor] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        self._outputs: dict[str, Tensor] = {}
        handles = [layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()]
        try:
            with torch.enable_grad():
                self.prediction = predict_noise(model, noisy, timesteps)
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
        pulled = {}
        for (name, output), gradient in zip(self._outputs.items(), gradients, strict=True):
            gradient = torch.zeros_like(output) if gradient is None else gradient
            if not torch.isfinite(gradient).all():
                raise ConfigurationError(
                    f"layer {name}: its output gradients are not finite; check the model's weights"
                )
            pulled[name] = _output_gradients(self.layers[name], gradient)
        return {name: pulled[name] for name in self.layers}
