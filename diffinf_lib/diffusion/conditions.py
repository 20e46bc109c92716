"""Conditions: what a network is told besides state and time, by name. This is the one place that knows which there are.

Today they are the classes of images. Anything else that belongs to an image, such as the embedding of a text, enters here:
its name, what images and samples are told, and what stands for none.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from diffinf_lib.data import ImageSet
from diffinf_lib.errors import first_few, require
from diffinf_lib.shapes import Condition

CLASS_LABELS = "class_labels"

Conditions = Mapping[str, Condition]
"""Each condition by name, one row a draw."""
Labels = Sequence[int] | Int[Tensor, "n"] | None
"""Classes that samples are asked for, one a sample; None where the network is told none."""


def condition_names(classes: int) -> tuple[str, ...]:
    """Names of the conditions that a network of so many classes must be told."""
    return () if classes == 0 else (CLASS_LABELS,)


def conditions_of_images(images: ImageSet, classes: int) -> dict[str, Condition]:
    """What the network is told of each image, `[N, ...]` by name; empty where it is told nothing.

    Raises:
        ConfigurationError: a label is none of the network's classes.
    """
    if classes == 0:
        return {}
    strange = (images.labels < 0) | (images.labels >= classes)
    require(not bool(strange.any()), f"labels: {int(strange.sum())} of {len(images)} images have none of the network's "
            f"{classes} classes (label {int(images.labels[strange][0]) if strange.any() else ''}); give images with "
            f"labels from 0 to {classes - 1}")  # fmt: skip
    return {CLASS_LABELS: images.labels}


def conditions_of_samples(labels: Labels, count: int, classes: int) -> dict[str, Condition]:
    """What the network is told of each sample that it draws, `[count, ...]` by name.

    Raises:
        ConfigurationError: there is not one class of the network's for each sample.
    """
    if classes == 0:
        require(labels is None, "labels: this network is not told classes; leave them out")
        return {}
    require(labels is not None, f"labels: this network is told one of {classes} classes; give one a sample")
    told = torch.as_tensor(labels)
    require(told.shape == (count,), f"labels: {tuple(told.shape)} of them for {count} samples; give one a sample")
    fits = bool(((told >= 0) & (told < classes)).all())
    require(fits, f"labels={first_few(told.tolist())}: give numbers from 0 to {classes - 1}")
    return {CLASS_LABELS: told}


def drop_conditions(told: Conditions, dropped: Bool[Tensor, "B"], no_class: int | None) -> dict[str, Condition]:
    """The same conditions, with what stands for none in the rows `dropped` (classifier-free guidance, Ho & Salimans 2022)."""
    if no_class is None or CLASS_LABELS not in told:
        return dict(told)
    labels = told[CLASS_LABELS]
    return {**told, CLASS_LABELS: labels.masked_fill(dropped.to(labels.device), no_class)}
