"""Digits: 1,797 handwritten digits of 8×8 pixels that ship inside scikit-learn (UCI ML hand-written digits)."""

import numpy as np
import torch

from diffinf_lib.configuration import DatasetConfig
from diffinf_lib.data.images import Dataset, ImageSet, to_unit_range
from diffinf_lib.errors import DataError, require
from diffinf_lib.randomness import keyed_generator

TRAIN_SHARE = 0.84


def digits_dataset(config: DatasetConfig) -> Dataset:
    """The digits of some classes, split at random into training images and queries.

    An image's id is its place in scikit-learn's array. Without sizes, 84% of the images are for training.

    Raises:
        DataError: no such class, or more images asked for than there are.
    """
    from sklearn.datasets import load_digits  # takes longer to load than everything else here

    source = load_digits()
    classes = tuple(range(10)) if config.classes is None else tuple(_digit(name) for name in config.classes)
    ids = torch.from_numpy(np.flatnonzero(np.isin(source.target, classes)))
    train_size = config.train_size or int(TRAIN_SHARE * len(ids))
    query_size = config.query_size or len(ids) - train_size
    require(query_size > 0 and train_size + query_size <= len(ids),
            f"train_size={train_size}, query_size={query_size}: digits {classes} have {len(ids)} images in all; "
            "ask for fewer", DataError)  # fmt: skip
    order = ids[torch.randperm(len(ids), generator=keyed_generator("digits-split", config.seed))]
    images, targets = torch.from_numpy(source.images), torch.from_numpy(source.target)

    def chosen(part: torch.Tensor) -> ImageSet:
        part = part.sort().values
        labels = torch.tensor([classes.index(int(target)) for target in targets[part]])
        return ImageSet(to_unit_range(images[part], 16.0).unsqueeze(1), labels, part)

    parts = chosen(order[:train_size]), chosen(order[train_size : train_size + query_size])
    return Dataset("digits", *parts, class_names=tuple(map(str, classes)), split=f"at random, seed {config.seed}")


def _digit(name: str | int) -> int:
    require(str(name) in "0123456789" and len(str(name)) == 1, f"classes: {name!r} is no digit; give 0 to 9", DataError)
    return int(name)
