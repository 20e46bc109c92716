"""CLIP similarity: training images ranked by how alike a picture-text model finds them to the query (Radford et al. 2021).

It knows neither the diffusion model nor its training, so what it finds is likeness of content, not influence: the baseline
that an attribution method has to beat to say something about the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffinf_lib.artifacts import file_digest, read_json, read_tensor_metadata
from diffinf_lib.data import ImageSet
from diffinf_lib.devices import usable_device
from diffinf_lib.errors import ArtifactError, ConfigurationError, DataError, require
from diffinf_lib.hub import repository
from diffinf_lib.model_sources import HUB_ID
from diffinf_lib.options import check_counts
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import ImageBatch, Images

WEIGHTS = "model*.safetensors"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
FILES = ("config.json", WEIGHTS, "model.safetensors.index.json", *PROCESSORS)
"""What is read of a model on the hub; weights in other formats are not even downloaded."""

Pictures = Callable[[Images], Images] | None
"""What some images stand for; None where they are pictures themselves."""


@own_settings
def clip_similarity_scores(
    train: ImageSet,
    queries: ImageSet,
    *,
    source: str | Path,
    batch_size: int = 64,
    device: str | None = None,
    pictures: Pictures = None,
) -> Float[Tensor, "Q N"]:
    """The cosine between the CLIP embeddings of query and training image; arbitrary scale, float64 on the CPU.

    It points the way influence on the loss does: the more alike, the more positive.

    Args:
        train: `[N, C, H, W]` in [−1, 1], grey or RGB.
        queries: `[Q, C, H, W]`.
        source: folder or hub id of a `transformers` CLIP model, such as `openai/clip-vit-large-patch14`.
        batch_size: images a forward pass; the result depends on it by rounding only.
        device: default a GPU if there is one.
        pictures: what some images stand for, where they are latents (see `Dataset.pictures`); default themselves.

    Raises:
        ConfigurationError: `transformers` is not installed, or the batch size is not positive.
        DataError: images that are neither grey nor RGB, or not finite.
        ArtifactError: there is no CLIP model with safetensors weights and a preprocessor, or it is damaged.
    """
    check_counts(batch_size=batch_size)
    for name, images in (("train", train), ("queries", queries)):
        _check_images(name, images, pictures)
    model, processor = load_clip(source)
    model = model.to(usable_device(device))
    rows = [
        clip_embeddings(model, processor, images, batch_size=batch_size, pictures=pictures)
        for images in (queries, train)
    ]
    return rows[0] @ rows[1].T


def clip_embeddings(
    model: Any, processor: Any, images: ImageSet, *, batch_size: int = 64, pictures: Pictures = None
) -> Float[Tensor, "N E"]:
    """CLIP image embeddings of unit length, float64 on the CPU.

    Images pass through the model's own preprocessor as 8-bit RGB, as pictures from files do.

    Args:
        model, processor: from `load_clip`.
        pictures: see `clip_similarity_scores`.
    """
    parts = []
    with torch.inference_mode():
        for batch in images.images.split(batch_size):
            shown = batch if pictures is None else pictures(batch)
            pixels = processor(list(_rgb_levels(shown)), return_tensors="pt", input_data_format="channels_first")
            pooled = model.vision_model(pixel_values=pixels["pixel_values"].to(model.device)).pooler_output
            parts.append(model.visual_projection(pooled).double().cpu())
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def load_clip(source: str | Path) -> tuple[Any, Any]:
    """A CLIP model in eval mode, float32, and its image preprocessor, from a folder or a hub id.

    A model on the hub is downloaded once; `DIFFINF_OFFLINE=1` and `HF_HUB_OFFLINE=1` forbid that.

    Raises:
        ConfigurationError: `transformers` is not installed.
        ArtifactError: nothing usable is there, or the weights are damaged.
    """
    try:
        from transformers import CLIPImageProcessor, CLIPModel
    except ImportError:
        raise ConfigurationError("CLIP similarity: transformers is not installed; install diffinf[clip]") from None
    folder = _model_folder(source)
    _check_folder(folder, source)
    try:
        with _quiet():
            loaded: Any = CLIPModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{source}: no CLIP model can be read there ({_first_line(error)}); give another") from None
    model, account = loaded
    missing = sorted(account["missing_keys"])
    require(not missing, f"{source}: {len(missing)} weights are missing, first {missing[:1]}; give a whole CLIP model",
            ArtifactError)  # fmt: skip
    return model.float().eval(), processor


def clip_identity(source: str | Path) -> dict[str, str]:
    """The digest of every file that a CLIP model is read from: the same model wherever it lies."""
    folder = _model_folder(source)
    return {path.name: file_digest(path) for pattern in FILES for path in sorted(folder.glob(pattern))}


def _model_folder(source: str | Path) -> Path:
    """The folder that holds the model: `source` itself, or where the hub's files are kept."""
    if Path(source).is_dir():
        return Path(source)
    known = isinstance(source, str) and HUB_ID.fullmatch(source)
    require(bool(known), f"model={source}: no such folder; give a CLIP model's folder or hub id", ArtifactError)

    def needed(names: Sequence[str]) -> list[str]:  # files in subfolders are other formats of the same weights
        return [name for name in names if any(fnmatch(name, pattern) for pattern in FILES) and "/" not in name]

    return repository(str(source), needed, ["config.json"])


def _missing(folder: Path) -> str | None:
    """What a CLIP model's folder lacks, or None."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any(folder.glob(WEIGHTS)):
        return "model.safetensors"
    return None if any((folder / name).is_file() for name in PROCESSORS) else PROCESSORS[0]


def _check_folder(folder: Path, source: str | Path) -> None:
    missing = _missing(folder)
    require(missing is None, f"{source}: no CLIP model with safetensors weights there, {missing} is missing; give a folder "
            "to which CLIPModel and CLIPImageProcessor were saved, or a hub id", ArtifactError)  # fmt: skip
    kind = read_json(folder / "config.json").get("model_type")
    require(kind == "clip", f"{source}: model_type={kind!r} in config.json; give a CLIP model", ArtifactError)
    for weights in sorted(folder.glob(WEIGHTS)):
        read_tensor_metadata(weights)  # refuses a truncated file


def _check_images(name: str, images: ImageSet, pictures: Pictures) -> None:
    require(len(images) > 0, f"{name}: there are no images; give at least one")
    channels = images.shape[0] if pictures is None else pictures(images.images[:1]).shape[1]
    require(channels in (1, 3), f"{name}: images of {channels} channels; CLIP needs grey or RGB images", DataError)


def _rgb_levels(images: ImageBatch) -> UInt8[Tensor, "B 3 H W"]:
    """Pixels as the 8-bit levels 0..255 that a preprocessor expects, grey ones in all three channels."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    return levels.expand(-1, 3, -1, -1)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of `transformers`; its setting is put back at the end."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")
