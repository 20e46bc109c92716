"""Made-up data in the layouts that real data comes in: CIFAR's archive, ArtBench's folder, an autoencoder, a CLIP."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def add_to_archive(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an open archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_cifar(path: Path, each: int = 20) -> Path:
    """A small archive in CIFAR's own layout: batches of pickled dictionaries with bytes for keys, `each` images of a batch."""
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            pixels = generator.integers(256, size=(each, 3072), dtype=np.uint8)
            batch = {b"data": pixels, b"labels": [i % 10 for i in range(each)]}
            add_to_archive(tar, f"cifar-10-batches-py/{name}", pickle.dumps(batch, protocol=2))
    return path


def write_artbench(folder: Path, each: int = 3) -> Path:
    """ArtBench's folder: pictures of 256×256 by part and style, `each` for training and one for queries of each of ten."""
    generator = np.random.default_rng(0)
    for part, count in (("train", each), ("test", 1)):
        for style in range(10):
            place = folder / part / f"style_{style}"
            place.mkdir(parents=True)
            for number in range(count):
                coarse = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((256, 256)).save(place / f"{number}.jpg")
    return folder


def save_autoencoder(folder: Path, halvings: int = 2) -> Path:
    """A pipeline's folder with a tiny autoencoder: three channels to four, sides halved so many times."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = halvings + 1
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    network = AutoencoderKL(
        block_out_channels=(4,) * halvings + (8,), latent_channels=4, norm_num_groups=2, scaling_factor=0.5,
        shift_factor=0.1, **kinds,
    )  # fmt: skip
    network.save_pretrained(folder / "vae")
    return folder


CLIP_SIDE = 24


def save_clip(folder: Path) -> Path:
    """A tiny random CLIP with its preprocessor, saved as transformers saves it."""
    import transformers

    common = {"num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    text = common | {"num_hidden_layers": 1, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    vision = common | {"num_hidden_layers": 2, "image_size": CLIP_SIDE, "patch_size": 6}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": CLIP_SIDE},
        crop_size={"height": CLIP_SIDE, "width": CLIP_SIDE},
        image_mean=[0.3, 0.4, 0.6],
    )
    processor.save_pretrained(folder)
    return folder
