"""Devices: where tensors live and work is done, refused in a line where this machine has none such."""

import torch

from diffinf_lib.errors import ConfigurationError


def usable_device(device: torch.device | str | None) -> str:
    """The name of a device that holds tensors here; None is a GPU where there is one, else the CPU.

    Raises:
        ConfigurationError: there is no such device here.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.ones(1, device=device)
        found.item()  # `meta` has no numbers to give
    except (RuntimeError, AssertionError, NotImplementedError):  # torch has several kinds for what is not there
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise ConfigurationError(
            f"device={str(device)!r}: there is no such device here; give {' or '.join(here)}"
        ) from None
    return "cpu" if found.device.type == "cpu" else str(device)
