"""A second device without hardware: tensors that claim to be elsewhere, keep their numbers on the CPU, and do not mix with it.

What a GPU refuses is refused here with an error: an operation on tensors of both devices, a CPU generator for numbers made
elsewhere, `.numpy()` without `.cpu()`. What it allows is allowed: CPU tensors without dimensions, CPU indices, copies.
Speed, kernels and rounding of a real one are not in it.

    with pretended() as device:
        curvature = di.fit_curvature(model.to(device), images)
"""

import contextlib
from typing import ClassVar
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # known everywhere in torch, and no driver stands behind it

COPIES = {"_to_copy", "copy_", "_local_scalar_dense"}
INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
GENERATOR = torch.Generator
ITEMS = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
MAKERS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


class MixedDevices(RuntimeError):
    """What a GPU would have refused."""


class Elsewhere(torch.Tensor):
    """A tensor that reports DEVICE; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})

    def __array__(self, *args, **kwargs):
        raise MixedDevices("numpy cannot read a tensor of another device; take .cpu() first")

    numpy = __array__

    def tolist(self):
        return self.held.tolist()

    def data_ptr(self):
        return self.held.data_ptr()

    def __deepcopy__(self, memo):
        copied = Elsewhere(self.held.detach().clone())
        copied = torch.nn.Parameter(copied) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]


class _Making(type):
    """Calling the class makes a generator of torch, and such are its instances, as annotations ask."""

    def __call__(cls, device="cpu"):
        made = GENERATOR()
        if torch.device(device).type == DEVICE.type:
            cls.made[made._cdata] = made
        return made

    def __instancecheck__(cls, value):
        return isinstance(value, GENERATOR)


class _Generators(metaclass=_Making):
    """Generators of DEVICE; their numbers are the CPU's, and their addresses tell them from others."""

    made: ClassVar[dict[int, torch.Generator]] = {}


class _Operations(TorchDispatchMode):
    """Sees what is made on DEVICE out of nothing, where no argument is elsewhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})


class _Makers(TorchFunctionMode):
    """Makes tensors out of Python numbers on the CPU and moves them: torch drops the numbers of what it makes on `meta`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in ITEMS and isinstance(args[0], Elsewhere):
            return func(args[0], _indices(args[1]), *args[2:])
        if func not in MAKERS:
            return func(*args, **kwargs)
        like = args[0] if func is torch.Tensor.new_tensor or isinstance(args[0], torch.Tensor) else None
        device = kwargs.pop("device", None) or ("cpu" if like is None else like.device)
        if isinstance(like, torch.Tensor) and func is not torch.Tensor.new_tensor:
            return like.to(device, kwargs.get("dtype") or like.dtype)
        if like is not None:
            func, args, kwargs = torch.tensor, args[1:], {"dtype": like.dtype} | kwargs
        return func(*args, **kwargs, device="cpu").to(device)


@contextlib.contextmanager
def pretended():
    """DEVICE can be used inside; autocast, which knows no such device, does nothing there."""
    autocast = torch.autocast
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()

    def cast(kind, *args, **kwargs):
        return contextlib.nullcontext() if kind == DEVICE.type else autocast(kind, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("torch.autocast", cast))
        for module in ("torch", "curvlinops.kfac", "curvlinops.ekfac"):
            stack.enter_context(mock.patch(f"{module}.Generator", _Generators))
        stack.enter_context(_Makers())
        stack.enter_context(_Operations())
        # Module.to() puts new parameters in place of the old ones, whose `held` it would not know to change
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield DEVICE
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def operate(func, args, kwargs):
    """One operation, run on the CPU with the numbers of what is elsewhere; what it returns is where a GPU would leave it."""
    name = func._overloadpacket.__name__
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    device = kwargs.get("device")
    moved = any(isinstance(tensor, Elsewhere) for tensor in given)
    there = moved if device is None else torch.device(device).type == DEVICE.type
    if moved and name not in COPIES:
        _refuse_mixed(name, args, kwargs)
    generator = kwargs.get("generator")
    if generator is not None and there != (generator._cdata in _Generators.made):
        raise MixedDevices(f"{name}: numbers are made on one device, the generator is of the other")
    changes = {"device": torch.device("cpu")} if device is not None else {}
    changes |= {"pin_memory": False} if kwargs.get("pin_memory") else {}
    found = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs) | changes)
    same = {id(_numbers(tensor)): tensor for tensor in given}
    return tree_map(lambda value: _placed(name, value, same, there), found)


def _indices(index):
    """An index whose lists are tensors."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _refuse_mixed(name, args, kwargs):
    if name in INDEXED and isinstance(args[0], Elsewhere):  # a GPU reads indices from the CPU, but no values
        args = (args[0], *args[2:])
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, torch.Tensor) and not isinstance(tensor, Elsewhere) and tensor.dim() > 0:
            raise MixedDevices(
                f"{name}: found tensors of {DEVICE} and of {tensor.device}, such as {tuple(tensor.shape)}"
            )


def _numbers(value):
    return value.held if isinstance(value, Elsewhere) else value


def _placed(name, value, same, there):
    """A result: the tensor that was changed in place, or a new one on the right side."""
    if not isinstance(value, torch.Tensor):
        return value
    if id(value) in same:
        kept = same[id(value)]
        assert kept.shape == value.shape, f"{name}: shapes changed in place are not kept track of"
        return kept
    if not there:
        return value
    assert not value.is_meta, f"{name}: its numbers were lost on the way; make them on the CPU first"
    return Elsewhere(torch.zeros_like(value, device="cpu") if value._is_zerotensor() else value)
