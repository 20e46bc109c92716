"""Identity: all that a network's output depends on, as plain values that are the same in every process and on every device."""

import json
from ast import literal_eval
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from diffinf_lib.artifacts.arrays import tensor_digest

Settings = dict[str, str]

_SCALARS = (bool, int, float, complex, str)
_PLAIN = (*_SCALARS, tuple, list, dict, type(None), Tensor)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_NOT_OF_THE_OUTPUT = {"gradient_checkpointing", "device", "device_ids", "output_device"}
"""Attributes that say how or where a network is computed, not what."""


def network_identity(network: nn.Module) -> dict[str, Any]:
    """What the network is without its weights, and their digest."""
    tensors = network.state_dict()
    tensors |= {name: buffer for name, buffer in network.named_buffers() if name not in tensors}
    return network_plan(network) | {"weights": tensor_digest(*tensors.values())}


def network_plan(network: nn.Module) -> dict[str, Any]:
    """Configuration, settings and structure, but no weights.

    Of a network of diffusers only those settings are named that its configuration does not give it, such as the strength
    of adapters: a plain one is told by its configuration alone, whatever attributes a version of diffusers adds.
    """
    config = config_of(network)
    kind = next((k for k in type(network).__mro__ if k.__module__.startswith("diffusers.models.")), None)
    settings = _settings(network)
    if kind is not None:
        given = _settings_as_built(kind, repr({k: v for k, v in config.items() if not k.startswith("_")}))
        settings = {name: value for name, value in settings.items() if given.get(name) != value}
    return ({"settings": settings} if settings or not config else {}) | {
        "network": type(network).__name__,
        "structure": str(network),
        "config": json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, default=str)),
    }


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over all tensors of a network in float32: equal for the same weights of another type or on another device."""
    return tensor_digest(*(t.float() if t.is_floating_point() else t for t in network.state_dict().values()))


def config_of(network: nn.Module) -> Mapping[str, Any]:
    """What a network of diffusers was built from; empty for others, whose `config` may be anything."""
    config = getattr(network, "config", None)
    return config if isinstance(config, Mapping) else {}


def _settings(network: nn.Module) -> Settings:
    """Plain attributes of all modules, which the output may depend on as on the weights."""
    return {
        f"{name}.{key}": repr(_plain(value))
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if key not in _NOT_OF_THE_OUTPUT and key not in _OF_EVERY_MODULE and _is_setting(module, key, value)
    }


def _is_setting(module: nn.Module, key: str, value: Any) -> bool:
    """Private ones count if they are scalars or lists of them, as adapters keep their switches; torch's follow from others."""
    if not key.startswith("_"):
        return isinstance(value, _PLAIN)
    parts = value if isinstance(value, list | tuple) else [value]
    return not type(module).__module__.startswith("torch.") and all(isinstance(part, _SCALARS) for part in parts)


def _plain(value: Any) -> Any:
    """The value without anything that another process or device would show otherwise; of a strange object its type."""
    if isinstance(value, Tensor):
        return "meta" if value.is_meta else tensor_digest(value)
    if isinstance(value, dict):
        return {
            key if isinstance(key, _SCALARS) else type(key).__qualname__: _plain(part) for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
    return value if isinstance(value, (*_SCALARS, type(None))) else type(value).__qualname__


@lru_cache(maxsize=16)
def _settings_as_built(kind: Any, config: str) -> Settings:
    """The settings that a class of diffusers gives a network of this configuration; none where it cannot be built so."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return _settings(kind.from_config(literal_eval(config)))
    except Exception:  # whatever a class may raise; then all settings count
        return {}
