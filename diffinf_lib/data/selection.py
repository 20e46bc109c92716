"""Selection: which of many labelled images are used, by seed, the same number from each class or not."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from diffinf_lib.errors import DataError, require
from diffinf_lib.randomness import keyed_generator, keyed_seed


def random_order(ids: Int[Tensor, "n"], *, seed: int, what: str) -> Int[Tensor, "n"]:
    """A random order of images, for sets that never grow: it depends on their number only."""
    return torch.randperm(len(ids), generator=keyed_generator(f"select-{what}", seed))


def order_by_id(ids: Int[Tensor, "n"], *, seed: int, what: str) -> Int[Tensor, "n"]:
    """A random order in which another image more or less changes nobody else's rank: by a hash of id and seed."""
    ranks = [keyed_seed(f"select-{what}", seed, i) for i in ids.tolist()]
    return torch.tensor(sorted(range(len(ranks)), key=ranks.__getitem__), dtype=torch.int64)


def evenly_spaced(count: int, total: int) -> list[int]:
    """`count` of the positions 0 … `total` − 1, at the middle of as many equal parts."""
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def even_shares(held: Sequence[int], size: int) -> list[int]:
    """How many to take of each class so that they are `size`, as even as the classes have them; the first ones one more."""
    shares = [0] * len(held)
    for _ in range(size):
        _, chosen = min((share, index) for index, share in enumerate(shares) if share < held[index])
        shares[chosen] += 1
    return shares


def take(labels: Int[Tensor, "n"], order: Int[Tensor, "n"], shares: Sequence[int]) -> Int[Tensor, "k"]:
    """Positions of the first images of each class in `order`, so many of each, sorted."""
    members = [order[labels[order] == label] for label in labels.unique().tolist()]
    return torch.cat([part[:share] for part, share in zip(members, shares, strict=True)]).sort().values


def select(
    labels: Int[Tensor, "n"],
    size: int | None,
    *,
    order: Int[Tensor, "n"],
    stratified: bool,
    what: str,
    class_names: Sequence[str],
    exactly: bool = True,
) -> Int[Tensor, "k"]:
    """Positions of `size` images, sorted; all of them where `size` is None.

    Args:
        labels: class of each image.
        order: the order in which images are chosen.
        stratified: as many from each class as the size allows, the first classes one more where it does not divide.
        what: what the images are for, as the option is called.
        exactly: refuse where a class has too few; otherwise the others give more.

    Raises:
        DataError: there are not so many images, or not so many of a class.
    """
    if size is None:
        return torch.arange(len(labels))
    require(size <= len(labels), f"{what}={size}: there are {len(labels)} images; ask for as many or fewer", DataError)
    if not stratified:
        return order[:size].sort().values
    classes, held = (values.tolist() for values in labels.unique(return_counts=True))
    for index, (label, count) in enumerate(zip(classes, held, strict=True)):
        fair = size // len(classes) + (index < size % len(classes))
        require(fair <= count or not exactly, f"{what}={size}: needs {fair} images of class {class_names[label]!r}, which has "
                f"{count}; ask for {min(held) * len(held)} or fewer, or give stratified=false", DataError)  # fmt: skip
    return take(labels, order, even_shares(held, size))
