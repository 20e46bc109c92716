"""Loading: a network and the process it was trained on, from whatever a diffusers training leaves. Pickle is never loaded.

Read are pipeline folders (`model_index.json`, a network and a `scheduler` below), network folders with a scheduler inside
or beside them, and hub ids of either. A model whose meaning is not all there is refused: tensors that are missing or left
over, inputs that nothing here gives, a scheduler of an unknown process.
"""

import inspect
import json
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffinf_lib.artifacts.arrays import read_tensors
from diffinf_lib.artifacts.files import ensure_writable, read_json
from diffinf_lib.configuration import Process
from diffinf_lib.configuration.process import SCHEDULER_CONFIG
from diffinf_lib.devices import usable_device
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.diffusion.conditions import CLASS_LABELS
from diffinf_lib.diffusion.identity import config_of
from diffinf_lib.errors import ArtifactError, ConfigurationError, first_few, require, room_needed
from diffinf_lib.hub import repository
from diffinf_lib.model_sources import NETWORKS, PIPELINE, local_folder, network_folder
from diffinf_lib.settings import own_settings

WEIGHTS = "diffusion_pytorch_model.safetensors"
PLACES = ("", *(f"{name}/" for name in NETWORKS))
"""Where a network's configuration may lie, in this order: the folder itself, or a part of a pipeline."""
AUTOENCODERS = ("vae", "vqvae")
AUTOENCODER_CLASS = "AutoencoderKL"
"""The autoencoder that is read, of diffusers."""
WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before the names of a network's tensors."""


@own_settings
def load_model(
    source: Path | str,
    process: Process | Any | None = None,
    *,
    no_class: int | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """Read a network and its process from a folder of diffusers' layout or a hub id; eval mode.

    Args:
        source: a pipeline folder, the folder of its network (the scheduler is looked for beside it), or a hub id.
        process: a `Process` or a diffusers scheduler, for networks that come without one or in place of their own.
        no_class: see `Denoiser`; diffusers' files do not say it.
        device: default the CPU.

    Raises:
        ArtifactError: nothing usable is there, weights are damaged, missing or of another network, or stored as pickle.
        ConfigurationError: the network wants inputs that nothing here gives, or its process is not understood or not told.
    """
    model = read_model(source, process, no_class=no_class, device=device)
    if model.encoder:
        warnings.warn(f"model={source}: a latent model, it denoises what its {model.encoder} makes of images; give encoded "
                      "images, or the folder to di.attribute, which encodes them itself", stacklevel=3)  # fmt: skip
    return model


def read_model(
    source: Path | str,
    process: Process | Any | None = None,
    *,
    no_class: int | None = None,
    device: torch.device | str | None = None,
) -> Denoiser:
    """As `load_model`, for those who see to it themselves that a latent model gets latents."""
    device = "cpu" if device is None else usable_device(device)  # before anything is read
    folder = _local(source)
    found = network_folder(folder, source)
    process = Process.of(process) if process is not None else _process_beside(found, folder, source)
    model = Denoiser(load_network(found), process, no_class=no_class, encoder=_encoder_beside(found)).eval()
    if learned_variance(model):
        warnings.warn(f"model={source}: it predicts variances beside its target; the target is attributed, the variances are "
                      "left alone", stacklevel=4)  # fmt: skip
    return model.to(device)


def autoencoder_beside(source: Path | str) -> Path | str:
    """Where the autoencoder of a latent model is read from: its folder in the pipeline, or the pipeline's hub id.

    Raises:
        ArtifactError: the pipeline names one that is not there.
        ConfigurationError: it is of another kind than `AutoencoderKL`.
    """
    network = network_folder(_local(source), source)
    name = _encoder_beside(network)
    assert name is not None
    folder = _pipeline_of(network) / name
    kind = kind_of_module(folder)
    require(kind is not None, f"model={source}: it denoises the latents that its {name} makes of images, and there is no "
            f"{name}/config.json; put it there, or give autoencoder=PATH (--autoencoder PATH)", ArtifactError)  # fmt: skip
    require(kind == AUTOENCODER_CLASS, f"model={source}: it denoises the latents that its {name} makes of images, a "
            f"{kind}, and only an {AUTOENCODER_CLASS} is read: encode the images and score them with di.fit_curvature and "
            "di.influence")  # fmt: skip
    return source if local_folder(source) is None else folder


def kind_of_module(folder: Path) -> str | None:
    """The class of diffusers that a folder's config.json names; None where there is none."""
    config = folder / "config.json"
    return str(read_json(config).get("_class_name")) if config.exists() else None


def load_network(folder: Path | str) -> Any:
    """Read a network of diffusers from its folder, without its process; eval mode, float32, or float64 if it was stored so.

    Raises:
        ArtifactError: see `load_model`.
        ConfigurationError: the network wants inputs that nothing here gives.
    """
    folder = Path(folder)
    return read_module(_network_class(folder), folder)


def read_module(kind: Any, folder: Path, dtype: torch.dtype | None = None) -> Any:
    """A module of diffusers from its folder, every tensor of it and no other; eval mode.

    Args:
        dtype: of its weights; default float32, or float64 if they were stored so.

    Raises:
        ArtifactError: weights are damaged, missing, of another module, or stored as pickle.
    """
    variant, stored = _weights(folder)
    names, exact = list(stored), torch.float64 in stored.values()
    module, notes = _read(kind, folder, variant, dtype or (torch.float64 if exact else torch.float32))
    for problem, what in (("missing_keys", "misses"), ("unexpected_keys", "holds, beside what it needs,")):
        _refuse_strange(folder, what, list(notes[problem]), names)
    strange = [f"{name} is {tuple(stored)}, not {tuple(wanted)}" for name, stored, wanted in notes["mismatched_keys"]]
    require(not strange, f"{folder}: the weights are of another width than its config.json: {first_few(strange, 1)}; "
            "give the config.json that belongs to the weights", ArtifactError)  # fmt: skip
    return module.eval()


def learned_variance(model: Denoiser) -> bool:
    """Whether a network of diffusers gives a variance for each number of its output (Nichol & Dhariwal 2021)."""
    config = config_of(model.network)
    return "out_channels" in config and config["out_channels"] == 2 * config["in_channels"]


def check_savable(model: Denoiser) -> None:
    """Refuse a network that diffusers' layout cannot give back, before any work.

    Raises:
        ConfigurationError: it is none of diffusers, or holds tensors that its configuration does not, as adapters do.
    """
    network: Any = model.network
    kind = type(network)
    require(hasattr(network, "save_pretrained") and hasattr(kind, "from_config"), f"out: a {kind.__name__} is no network of "
            "diffusers and cannot be read back from a folder; keep its state_dict(), and train without out=")  # fmt: skip
    with torch.device("meta"):
        known = kind.from_config(network.config).state_dict().keys()
    strange = sorted(network.state_dict().keys() ^ known)
    require(not strange, f"out: {first_few(strange, 1)} is not of a plain {kind.__name__}, so a folder cannot give it back; "
            "merge adapters first, or train without out=")  # fmt: skip


def save_model(model: Denoiser, folder: Path | str) -> None:
    """Write network and process as a pipeline folder: what `load_model` and diffusers' `DDPMPipeline` read.

    Raises:
        ConfigurationError: the folder could not give the network back (see `check_savable`), or cannot be written.
    """
    import diffusers

    check_savable(model)
    folder = ensure_writable(folder)
    scheduler = model.process.scheduler()
    network: Any = model.network
    with room_needed(folder):
        network.save_pretrained(folder / "unet", safe_serialization=True)
        for weights in (folder / "unet").glob("*.safetensors"):  # which safetensors lets only the owner read
            shutil.copymode(folder / "unet" / "config.json", weights)
        if learned_variance(model):
            scheduler.register_to_config(variance_type="learned_range")
        scheduler.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "DDPMPipeline", "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", type(scheduler).__name__], "unet": ["diffusers", type(network).__name__],
        }  # fmt: skip
        (folder / PIPELINE).write_text(json.dumps(index, indent=2) + "\n")


def _local(source: Path | str) -> Path:
    """The folder itself, or a hub's repository brought here; what can be neither is told at once."""
    folder, name = local_folder(source), str(source)
    if folder is not None:
        return folder
    return repository(name, lambda names: _needed(names, name), [f"{place}config.json" for place in PLACES])


def _needed(names: Sequence[str], source: str) -> list[str]:
    """Of all files of a repository those that `load_model` reads: one network's configuration and weights, and its process."""
    place = next((place for place in PLACES if f"{place}config.json" in names), None)
    if place is None:
        return []
    inside = [name.removeprefix(place) for name in names if name.startswith(place)]
    shards = [name for name in inside if name.startswith(f"{WEIGHTS}.index")]  # which shard holds which tensor
    told = [PIPELINE, *(f"{part}config.json" for part in (place, *(f"{name}/" for name in AUTOENCODERS)))]
    told += [f"{part}{SCHEDULER_CONFIG}" for part in ("scheduler/", place, "")]
    weights = [place + name for name in (*shards, *chosen_weights(inside, source)[1])]
    return [name for name in dict.fromkeys([*told, *weights]) if name in names]


def _process_beside(network: Path, folder: Path, source: Path | str) -> Process:
    """The process of the scheduler that was saved with the network."""
    for place in (folder / "scheduler", network, network.parent / "scheduler", network.parent):
        if (place / SCHEDULER_CONFIG).exists():
            return Process.read(place)
    raise ConfigurationError(
        f"model={source}: no scheduler_config.json in it or beside it, so what the network predicts is not known; put the "
        "scheduler's folder beside the network's, or give process=, such as diffusers.DDPMScheduler()"
    )


def _encoder_beside(network: Path) -> str | None:
    """What the pipeline of a network encodes images with: a part that its index names, or a folder beside the network's."""
    pipeline = _pipeline_of(network)
    index = read_json(pipeline / PIPELINE) if (pipeline / PIPELINE).exists() else {}
    parts = {name: str(part[-1]) for name, part in index.items() if isinstance(part, list) and part and part[-1]}
    named = [
        name for name, kind in parts.items() if name in AUTOENCODERS or kind.startswith(("Autoencoder", "VQModel"))
    ]
    there = [name for name in AUTOENCODERS if (pipeline / name / "config.json").exists()]
    return next(iter([*named, *there]), None)


def _pipeline_of(network: Path) -> Path:
    """The folder of the pipeline that a network's folder belongs to."""
    network = network.resolve()
    return network.parent if network.name in NETWORKS else network


def _network_class(folder: Path) -> Any:
    """The diffusers class that config.json names, if all its inputs can be given."""
    import diffusers

    config = read_json(folder / "config.json")
    name = str(config.get("_class_name"))
    kind = getattr(diffusers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    embedded = config.get("class_embed_type")
    require(embedded is None, f"{folder}: class_embed_type={embedded!r} wants conditions that images do not carry here; give a "
            "model that is unconditional or conditioned on class labels")  # fmt: skip
    require(known, f"{folder}: its config.json is of {name!r}, which is no network of diffusers; give a UNet2DModel's folder, "
            "or build the network and give di.Denoiser(network, scheduler)", ConfigurationError)  # fmt: skip
    assert kind is not None
    _, *parameters = inspect.signature(kind.forward).parameters.values()
    inputs = [parameter.name for parameter in parameters]
    timed = [place for place, parameter in enumerate(inputs) if parameter.startswith("timestep")]
    require(bool(timed), f"{folder}: a {name} takes no timestep, so it is no network that denoises; give the folder of the one "
            "that does", ConfigurationError)  # fmt: skip
    require(timed[0] == 1, f"{folder}: a {name} takes {', '.join(inputs[1 : timed[0]])} before the timestep, and only networks "
            "called with a state and a timestep are understood here; give one that is unconditional or conditioned on classes",
            ConfigurationError)  # fmt: skip
    wanted = [
        p.name for p in parameters[2:] if p.default is inspect.Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    missing = [name for name in wanted if name not in (CLASS_LABELS,)]
    require(not missing, f"{folder}: a {name} must be told {', '.join(missing)}, which images do not carry here; give a model "
            "that is unconditional or conditioned on classes", ConfigurationError)  # fmt: skip
    return kind


def _weights(folder: Path) -> tuple[str | None, dict[str, torch.dtype]]:
    """The variant of the stored weights (None is the plain one), and the types of all tensors, after reading them once."""
    variant, chosen = chosen_weights([path.name for path in folder.glob("*")], folder)
    tensors = (item for file in chosen for item in read_tensors(folder / file).items())  # refuses a damaged file
    return variant, {name: tensor.dtype for name, tensor in tensors}


def chosen_weights(files: Sequence[str], where: Path | str) -> tuple[str | None, list[str]]:
    """Of the names of all files beside a network's configuration its weights, and their variant: the plain one if there is."""
    stem = WEIGHTS.removesuffix(".safetensors")
    stored = sorted(
        name for name in files if name.startswith(stem) and name.endswith(".safetensors") and "/" not in name
    )
    if not stored:
        pickled = sorted(name for name in files if Path(name).suffix in (".bin", ".pt", ".ckpt", ".pth"))
        way_out = f"it needs {WEIGHTS}"
        if pickled:
            way_out = (f"{first_few(pickled, 1)} is pickle, which may run code and is never loaded: open it where you trust "
                       "it and save it with save_pretrained(..., safe_serialization=True)")  # fmt: skip
        raise ArtifactError(f"{where}: no safetensors weights there; {way_out}")
    variants = {_variant(name, stem): None for name in stored}
    variant = None if None in variants else next(iter(variants))
    return variant, [name for name in stored if _variant(name, stem) == variant]


def _variant(name: str, stem: str) -> str | None:
    """`fp16` of `….fp16.safetensors`; None of the plain file and of its shards."""
    middle = re.sub(r"-\d+-of-\d+", "", name.removeprefix(stem).removesuffix("safetensors")).strip(".")
    return middle or None


def _read(kind: Any, folder: Path, variant: str | None, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    try:
        return kind.from_pretrained(  # type: ignore[no-any-return]
            str(folder), use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, variant=variant,
            local_files_only=True, ignore_mismatched_sizes=True, torch_dtype=dtype,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{folder}: diffusers cannot read the network ({reason}); save it again with save_pretrained"
        ) from None


def _refuse_strange(folder: Path, what: str, strange: list[str], stored: list[str]) -> None:
    """Refuse tensors that the file lacks or has too many of, and say where the names have a wrapper's prefix."""
    prefix = next((prefix for prefix in WRAPPERS if stored and all(name.startswith(prefix) for name in stored)), None)
    hint = "the weights and the config.json beside them do not belong together"
    if prefix:
        hint = f"its names begin with {prefix!r}, a wrapper's: save the network inside it (model.{prefix.strip('.')})"
    require(not strange, f"{folder}: the weights file {what} {len(strange)} tensor(s), such as {first_few(strange, 1)}; {hint}",
            ArtifactError)  # fmt: skip
