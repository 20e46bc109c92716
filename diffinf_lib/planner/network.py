"""Network: what one pass of a UNet costs, counted on the meta device, where tensors have shapes and no numbers.

FLOPs are those of matrix products and convolutions, two for each multiplication and addition (`torch.utils.flop_counter`).
Memory is the most that is alive at any moment of a pass, by following every tensor's storage from birth to death; what a
kernel takes for itself (workspaces, copies in another layout) is not seen.
"""

import copy
import weakref
from collections.abc import Callable
from functools import cache, cached_property
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from diffinf_lib.configuration import CurvatureConfig, UNetConfig
from diffinf_lib.curvature import curvature_blocks, curvature_layers
from diffinf_lib.curvature.blocks import Block
from diffinf_lib.curvature.covariance import input_covariance_sum
from diffinf_lib.curvature.kfac import output_gradient_factor_sum, second_moment
from diffinf_lib.curvature.layers import LayerInput, LayerUses, differentiable, layer_parameters
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.models import build_model, count_parameters
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import ImageBatch, ImageShape, Timesteps

Pass = Callable[[int], Any]
COUNTED_DRAWS = 8
"""Draws of the pass that FLOPs are counted in; they are divided by it."""


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at once, of those made while it is on.

    Args:
        known: tensors that were there before and are not counted.
    """

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._on = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._watch, result)
        return result

    def _watch(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return tensor

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class FusedAttention(TorchFunctionMode):
    """Attention as one fused kernel, as a CPU or GPU runs it; on the meta device its tokens × tokens matrix would be kept."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args[:3], None, True)[0]
        return function(*args, **(kwargs or {}))


def flops_of(run: Pass, draws: int) -> float:
    """FLOPs a draw of a pass over so many."""
    with FlopCounterMode(display=False) as counter, FusedAttention():
        run(draws)
    return counter.get_total_flops() / draws


def peak_bytes_of(run: Pass, draws: int, network: torch.nn.Module) -> int:
    """The most bytes alive at once in a pass over so many draws, above the network's weights."""
    with LiveBytes(list(network.state_dict().values())) as live, FusedAttention():
        kept = run(draws)
    del kept
    return live.peak


OF_THE_NETWORK = ("forward_pass", "training_pass", "gradient_pass", "pulled_back_pass")
"""Passes that cost the same whatever curvature is fitted."""


@cache
@own_settings
def network_count(unet: UNetConfig, curvature: CurvatureConfig) -> "NetworkCount":
    """The counts of a configuration, which several presets share."""
    found = NetworkCount(unet, curvature)
    found.known = _known(unet)
    return found


@cache
def _known(unet: UNetConfig) -> dict[tuple[str, str, int], float]:
    """What is known of a network's own passes."""
    return {}


class NetworkCount:
    """FLOPs a draw and bytes a batch of the passes that the stages are made of.

    Args:
        unet: the configuration of a UNet, or a model.
        shape: (C, H, W) of one image, of a model that is given as it is.
    """

    def __init__(self, unet: UNetConfig | Denoiser, curvature: CurvatureConfig, shape: ImageShape | None = None):
        if isinstance(unet, UNetConfig):
            self.model = build_model(unet, device="meta")
            shape = (unet.in_channels, unet.sample_size, unet.sample_size)
        else:
            self.model = copy.deepcopy(unet).to("meta").eval()
        assert shape is not None
        self.curvature = curvature
        self.layers = curvature_layers(self.model)
        self.blocks: dict[str, Block] = curvature_blocks(self.model, curvature.bias)
        self.shape = shape
        self.parameters = count_parameters(self.model)
        self.known: dict[tuple[str, str, int], float] = {}
        self._own: dict[tuple[str, str, int], float] = {}

    # --- sizes

    @property
    def entries(self) -> int:
        """Entries of one gradient, over all blocks."""
        return sum(o * i for o, i in self.block_shapes.values())

    @property
    def factor_entries(self) -> int:
        """Entries of all Kronecker factors; as many as of all eigenvectors."""
        return sum(o * o + i * i for o, i in self.block_shapes.values())

    @cached_property
    def block_shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of each block."""
        return {name: block.shape for name, block in self.blocks.items()}

    # --- passes, each a function of the number of draws

    def _inputs(self, draws: int) -> tuple[ImageBatch, Timesteps]:
        noisy = torch.empty(draws, *self.shape, device="meta")
        return noisy, torch.zeros(draws, dtype=torch.int64, device="meta")

    def _output(self, draws: int) -> ImageBatch:
        noisy, timesteps = self._inputs(draws)
        return self.model(noisy, timesteps, **dict.fromkeys(self.model.condition_names, timesteps))

    def forward_pass(self, draws: int) -> ImageBatch:
        """The prediction alone, nothing kept for a backward pass: measuring and sampling."""
        with torch.no_grad():
            return self._output(draws)

    def training_pass(self, draws: int) -> None:
        """The loss and its gradients of all parameters, dropout on."""
        self.model.train()
        try:
            self._output(draws).square().mean().backward()
        finally:
            self.model.eval().zero_grad(set_to_none=True)

    def gradient_pass(self, draws: int) -> tuple[Tensor, ...]:
        """The loss and its gradients of the layers' weights and biases."""
        with differentiable(self.model, self.layers):
            loss = self._output(draws).square().mean()
            return torch.autograd.grad(loss, layer_parameters(self.layers))

    def pulled_back_pass(self, draws: int) -> tuple[dict[str, LayerInput], dict[str, Float[Tensor, "B _L _O"]]]:
        """Each layer's inputs and output gradients; no weight gradients."""
        uses = LayerUses(self.layers)
        with uses.noted(), differentiable(self.model, self.layers):
            prediction = self._output(draws)
        pulled = uses.output_gradients(prediction, torch.empty_like(prediction), retain_graph=False)
        return {name: uses.raw_input(name) for name in self.layers}, pulled

    def factor_pass(self, draws: int) -> None:
        """What the first pass of a curvature fit takes of some draws, for one label vector."""
        inputs, pulled = self.pulled_back_pass(draws)
        for block in self.blocks.values():
            self._input_factor(block, inputs[block.layer_name])
            self._output_factor(block, pulled[block.layer_name])

    def _input_factor(self, block: Block, raw: LayerInput) -> Float[Tensor, "I I"]:
        config = self.curvature
        if config.sharing == "reduce":
            return second_moment(block.inputs(raw).mean(1))
        places = None if config.input_positions is None else raw.new_zeros(len(raw), config.input_positions)
        draw_weights = raw.new_ones(len(raw)) if config.drawn_for_factors.weighted else None
        return input_covariance_sum(block, raw, places=places, draw_weights=draw_weights)

    def _output_factor(self, block: Block, pulled: Float[Tensor, "B L O"]) -> Float[Tensor, "o o"]:
        gradients = block.output_gradients(pulled)
        return (
            second_moment(gradients.sum(1))
            if self.curvature.sharing == "reduce"
            else output_gradient_factor_sum(gradients)
        )

    def correction_pass(self, draws: int) -> None:
        """What the second pass takes of some draws, each draw's gradient on its own; for one label vector."""
        inputs, pulled = self.pulled_back_pass(draws)
        for block in self.blocks.values():
            gradients = block.output_gradients(pulled[block.layer_name]).transpose(1, 2)
            self._rotated(block, gradients @ block.inputs(inputs[block.layer_name])).square().sum(0)

    def rotation_pass(self, draws: int) -> None:
        """Gradients of all blocks into the eigenbasis, one for each draw."""
        for block in self.blocks.values():
            self._rotated(block, torch.empty(draws, *block.shape, device="meta"))

    def _rotated(self, block: Block, matrices: Float[Tensor, "B O I"]) -> Float[Tensor, "B O I"]:
        if not self.curvature.has_factors:
            return matrices
        outputs, inputs = block.shape
        left, right = (torch.empty(size, size, device="meta") for size in (outputs, inputs))
        return left.T @ matrices @ right

    # --- what they cost

    def flops(self, run: Pass) -> float:
        """FLOPs a draw of a pass."""

        return self._remembered("flops", run, COUNTED_DRAWS, lambda: flops_of(run, COUNTED_DRAWS))

    def peak_bytes(self, run: Pass, draws: int) -> int:
        """The most bytes alive at once in a pass over so many draws, above the weights."""

        return int(self._remembered("bytes", run, draws, lambda: peak_bytes_of(run, draws, self.model)))

    def _remembered(self, what: str, run: Pass, draws: int, count: Callable[[], float]) -> float:
        """A count of one of the passes here is made once; one of the network alone serves other curvatures too."""
        if not isinstance(run, MethodType) or run.__self__ is not self:
            return count()
        key = (what, run.__name__, draws)
        known = self.known if run.__name__ in OF_THE_NETWORK else self._own
        if key not in known:
            known[key] = count()
        return known[key]

    @cached_property
    def forward(self) -> float:
        """FLOPs a draw of a forward pass."""
        return self.flops(self.forward_pass)

    @cached_property
    def gradient(self) -> float:
        """FLOPs a draw of forward and backward, weight gradients included."""
        return self.flops(self.gradient_pass)

    @cached_property
    def pulled_back(self) -> float:
        """FLOPs a draw of forward and backward without weight gradients."""
        return self.flops(self.pulled_back_pass)

    @cached_property
    def rotation(self) -> float:
        """FLOPs of one gradient's way into the eigenbasis."""
        return self.flops(self.rotation_pass)

    @cached_property
    def input_factors(self) -> float:
        """FLOPs a draw of the input factors of all blocks, by the ways that `covariance` picks."""
        inputs, _ = self.pulled_back_pass(COUNTED_DRAWS)
        return self.flops(lambda _: [self._input_factor(b, inputs[b.layer_name]) for b in self.blocks.values()])

    @cached_property
    def output_factors(self) -> float:
        """FLOPs a draw and label vector of the output-gradient factors of all blocks."""
        _, pulled = self.pulled_back_pass(COUNTED_DRAWS)
        return self.flops(lambda _: [self._output_factor(b, pulled[b.layer_name]) for b in self.blocks.values()])

    @cached_property
    def draw_gradients(self) -> float:
        """FLOPs a draw and label vector of a gradient matrix of its own for every block, from inputs and output gradients."""
        inputs, pulled = self.pulled_back_pass(COUNTED_DRAWS)

        def run(_: int) -> None:
            for block in self.blocks.values():
                gradients = block.output_gradients(pulled[block.layer_name]).transpose(1, 2)
                gradients @ block.inputs(inputs[block.layer_name])

        return self.flops(run)
