"""Make the README's picture from the bundle that carries the landing page: `python book/readme_picture.py`.

The file says which bundle it was made from, so that a test tells when one was made anew without the other.
"""

import hashlib
from pathlib import Path

import torch

import diffinf_lib as di

BUNDLE, PICTURE = Path("book/results/fashion-removal"), Path("book/_static/top-influence.png")
QUERY = 5  # the bag of the generated ones: the first row shows what influence is at a glance


def source() -> str:
    """SHA-256 of the arrays that are drawn."""
    return hashlib.sha256((BUNDLE / "arrays.npz").read_bytes()).hexdigest()


def main() -> None:
    arrays = di.load_bundle(BUNDLE.name).arrays
    images, ids, scores = (torch.from_numpy(arrays[name]) for name in ("images", "ids", "scores"))
    train = di.load_dataset(di.get_preset("fashion").dataset).train
    queries = di.ImageSet(images, torch.full_like(ids, -1), ids)
    figure = di.figures.top_influence(train, queries, scores, query=QUERY)
    figure.savefig(PICTURE, dpi=110, metadata={"Source": source()})


if __name__ == "__main__":
    main()
