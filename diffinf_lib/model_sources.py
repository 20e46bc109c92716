"""Model sources: a folder of diffusers' layout or a hub id, told apart before anything large is loaded."""

import os
import re
from pathlib import Path

from diffinf_lib.artifacts.paths import spelt_out
from diffinf_lib.errors import ArtifactError, require

PIPELINE = "model_index.json"
NETWORKS = ("unet", "transformer")
"""What a pipeline calls the network that it denoises with."""
WAYS_OUT = {
    "model": "a pipeline folder, the folder of a network, or a hub id such as google/ddpm-cifar10-32",
    "autoencoder": "its folder, that of a pipeline with one, or a hub id such as stabilityai/sd-vae-ft-mse",
}
"""What may be given for each."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""What a hub's repository is called: OWNER/NAME."""


def check_model_source(source: Path | str) -> None:
    """Refuse what can be no model: neither a folder with a network's configuration nor a hub id; no hub is asked.

    Raises:
        ConfigurationError: it is no path.
        ArtifactError: there is no such folder, or no network in it.
    """
    folder = local_folder(source)
    if folder is not None:
        network_folder(folder, source)


def local_folder(source: Path | str, what: str = "model") -> Path | None:
    """The folder that a source names; None for a hub id.

    Args:
        what: messages call it by: `model` or `autoencoder`.
    """
    there = ", and for a network that is there di.Denoiser(network, scheduler)" if what == "model" else ""
    require(isinstance(source, str | os.PathLike), f"{what}: a {type(source).__name__} is no path; give a folder or a hub id"
            f"{there}")  # fmt: skip
    folder = spelt_out(source)
    if os.path.isdir(folder):  # pathlib's own raises for a name that is too long
        return folder
    require(not os.path.exists(folder), f"{what}={source}: that is a file; give the folder that holds config.json or "
            f"{PIPELINE}", ArtifactError)  # fmt: skip
    name = str(source)
    require(bool(HUB_ID.fullmatch(name)) and not name.startswith("."), f"{what}={source}: there is no such folder; give "
            f"{WAYS_OUT[what]}", ArtifactError)  # fmt: skip
    return None


def network_folder(folder: Path, source: Path | str) -> Path:
    """Where the network's config.json is: the folder itself, or the part of a pipeline that denoises."""
    if (folder / "config.json").exists():
        return folder
    found = [folder / name for name in NETWORKS if (folder / name / "config.json").exists()]
    require(bool(found), f"model={source}: neither config.json nor {' nor '.join(f'{name}/config.json' for name in NETWORKS)} "
            "is there; give the folder that save_pretrained wrote", ArtifactError)  # fmt: skip
    return found[0]
