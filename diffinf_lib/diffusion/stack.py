"""Stack: several models of one network as one, their weights side by side along a first axis.

The network is called once for all by `torch.vmap`: a layer of G models is one operation, convolutions become grouped ones.
Nothing passes from one model to another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffinf_lib.diffusion.denoiser import Denoiser
from diffinf_lib.diffusion.identity import network_plan
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.randomness import keyed_seed
from diffinf_lib.shapes import Condition, ImageBatch, Timesteps

Weights = Float[Tensor, "G P"]
"""The trainable parameters of each model as one row."""


class DropoutCall(NamedTuple):
    """One call of a dropout layer in a pass of the network; the order of its draws is that of its input in memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    share: float


class ModelStack:
    """Places for several models of one network, of which it keeps what is not trained.

    Args:
        model: one of them; its network, process, device, and mode (training or not) are those of all.
        places: how many models there is room for.
    """

    def __init__(self, model: Denoiser, places: int):
        self.model = deepcopy(model)
        self.places = places
        named = dict(self.model.named_parameters())
        self._shapes = {name: tensor.shape for name, tensor in named.items() if tensor.requires_grad}
        fixed = {name: tensor for name, tensor in named.items() if not tensor.requires_grad}
        self._fixed = {
            name: tensor.detach().expand(places, *tensor.shape).clone()
            for name, tensor in (fixed | dict(self.model.named_buffers())).items()
        }

    def row(self, model: Denoiser) -> Float[Tensor, "P"]:
        """The trainable parameters of a model as a row of weights."""
        named = dict(model.named_parameters())
        return torch.cat([named[name].detach().flatten() for name in self._shapes])

    def put(self, place: int, model: Denoiser) -> Float[Tensor, "P"]:
        """Give a place to a model; its weights are returned.

        Raises:
            ConfigurationError: it is of another network or process.
        """
        check_alike([self.model, model])
        state = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in self._fixed.items():
            tensor[place].copy_(state[name].detach())
        return self.row(model)

    def pieces(self, row: Float[Tensor, "*G P"]) -> dict[str, Float[Tensor, "..."]]:
        """Weights as parameters by name; views."""
        parts = row.split([prod(shape) for shape in self._shapes.values()], dim=-1)
        return {
            name: part.view(*row.shape[:-1], *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def outputs(
        self,
        weights: Weights,
        noisy: Float[Tensor, "*G B C H W"],
        timesteps: Int[Tensor, "*G B"],
        conditions: Mapping[str, Shaped[Tensor, "..."]],
        masks: Sequence[Float[Tensor, "G ..."]] = (),
    ) -> Float[Tensor, "G B C H W"]:
        """The output of every model; states, timesteps and conditions are each model's own, or the same for all.

        Args:
            masks: what each dropout of the network multiplies by, see `dropout_masks`.
        """
        own = 0 if timesteps.ndim == 2 else None

        def one(state: Any, noisy: ImageBatch, timesteps: Timesteps, told: Any, masks: Any) -> Tensor:
            with _given_masks(self.model, masks):
                return torch.func.functional_call(self.model, state, (noisy, timesteps), told)  # type: ignore[no-any-return]

        call = torch.vmap(one, in_dims=(0, own, own, own, 0))
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no rule for what vmap makes of them
            try:
                return call(self.pieces(weights) | self._fixed, noisy, timesteps, dict(conditions), list(masks))
            except RuntimeError as error:
                line = _why_not_stacked(self.model, error)
                if line is None:
                    raise
                raise ConfigurationError(line) from error

    @torch.no_grad()
    def dropouts(
        self, noisy: ImageBatch, timesteps: Timesteps, conditions: Mapping[str, Condition]
    ) -> list[DropoutCall]:
        """The dropouts of one pass, in the order in which the network calls them."""
        calls: list[DropoutCall] = []

        def noted(layer: Any, given: tuple[Tensor]) -> None:
            like = torch.empty_like(given[0])  # dense, as what torch draws is
            calls.append(DropoutCall(tuple(like.shape), like.stride(), like.dtype, layer.p))

        hooks = [layer.register_forward_pre_hook(noted) for layer in _dropouts(self.model)]
        try:
            with torch.random.fork_rng():
                self.model(noisy, timesteps, **conditions)
        finally:
            for hook in hooks:
                hook.remove()
        return calls


def check_alike(models: Sequence[Denoiser]) -> None:
    """Refuse models that are not of one network.

    Raises:
        ConfigurationError: they differ in their network, process, device, or in which parameters are trainable.
    """
    for model in models[1:]:
        require(_built(model) == _built(models[0]), f"{type(model.network).__name__}: models that are computed together are of "
                "one network, process, device and choice of trainable parameters; give others a call of their own")  # fmt: skip


def dropout_masks(
    calls: Sequence[DropoutCall], seed: int, step: int, device: torch.device
) -> list[Float[Tensor, "..."]]:
    """What the dropouts of a step multiply by: the very masks that they draw in a model trained by itself.

    Sets torch's global seed, as the step of such a model does.
    """
    torch.manual_seed(keyed_seed("dropout", seed, step))
    layouts = [torch.empty_strided(call.shape, call.strides, dtype=call.dtype, device=device) for call in calls]
    return [nn.functional.dropout(layout.fill_(1), call.share) for layout, call in zip(layouts, calls, strict=True)]


def _dropouts(model: nn.Module) -> list[nn.Dropout]:
    """Those that draw anything; torch draws nothing for a share of 0."""
    found = (module for module in model.modules() if type(module) is nn.Dropout)
    return [module for module in found if module.training and module.p > 0]


@contextmanager
def _given_masks(model: nn.Module, masks: Sequence[Float[Tensor, "..."]]) -> Iterator[None]:
    """Dropouts that multiply by given masks, one after another."""
    layers, left = _dropouts(model) if masks else [], iter(masks)
    for layer in layers:
        layer.forward = lambda given: given * next(left)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _built(model: Denoiser) -> tuple[Any, ...]:
    """What models of one stack have in common."""
    tensors = [
        (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad) for name, tensor in model.named_parameters()
    ]
    return network_plan(model.network), tensors, model.process, model.classes, model.no_class, model.device


def _why_not_stacked(model: Denoiser, error: RuntimeError) -> str | None:
    """In a line why a network cannot be called for several models at once; None for reasons of its own."""
    text = " ".join(str(error).split())
    if "vmap" not in text:
        return None
    return (f"{type(model.network).__name__}: it cannot be computed for several models at once ({text[:160].rstrip('.')}); "
            "give together=1")  # fmt: skip
