"""Selection: which of many labelled images are used, by seed, the same number from each class or not."""

import torch
from jaxtyping import Int
from torch import Tensor

from diffinf_lib.errors import DataError, require
from diffinf_lib.randomness import keyed_generator


def select(labels: Int[Tensor, "n"], size: int | None, *, stratified: bool, seed: int, what: str) -> Int[Tensor, "k"]:
    """Positions of `size` images, sorted; all of them where `size` is None.

    Args:
        labels: class of each image.
        stratified: as many from each class as the size allows, the first classes one more where it does not divide.
        what: what the images are for, as the option is called; names the choice and the error.

    Raises:
        DataError: there are not so many images, or not so many of a class.
    """
    count = len(labels)
    if size is None:
        return torch.arange(count)
    require(size <= count, f"{what}={size}: there are {count} images; ask for as many or fewer", DataError)
    order = torch.randperm(count, generator=keyed_generator(f"select-{what}", seed))
    if not stratified:
        return order[:size].sort().values
    classes = labels.unique().tolist()
    chosen = []
    for index, label in enumerate(classes):
        wanted = size // len(classes) + (index < size % len(classes))
        members = order[labels[order] == label]
        require(wanted <= len(members), f"{what}={size}: needs {wanted} images of class {label}, which has {len(members)}; "
                "ask for fewer", DataError)  # fmt: skip
        chosen.append(members[:wanted])
    return torch.cat(chosen).sort().values
