"""Damping: the one inverse 1/(Λ + λ) that everything here divides by, and the one idea of when there is nothing to invert."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import DEFAULT_DAMPING, Approximation, check_dampings
from diffinf_lib.curvature.fitted import Curvature
from diffinf_lib.options import checked

DampingKind = Literal["absolute", "relative"]


def damped_inverse(
    eigenvalues: Float[Tensor, "*shape"], damping: float | Float[Tensor, ""], *, rounding: float | None = None
) -> Float[Tensor, "*shape"]:
    """1/(Λ + λ), and 0 in directions that the curvature says nothing about.

    These are the ones where Λ + λ is zero, or so small beside the largest Λ that both come from rounding.

    Args:
        rounding: what may come from it, as a part of the largest eigenvalue. By default that of squares: 10 eps in a
            gradient are 100 eps² in Λ.
    """
    damped = eigenvalues + damping
    part = squared_rounding(damped.dtype) if rounding is None else rounding
    known = damped > part * eigenvalues.max()
    return torch.where(known, 1 / torch.where(known, damped, 1.0), 0.0)


def squared_rounding(kind: torch.dtype) -> float:
    """What rounding of 10 eps in numbers of a type leaves in their squares, as a part of the largest."""
    return 100 * torch.finfo(kind).eps ** 2


@dataclass(frozen=True)
class Inverses:
    """The damped inverses that scores are read with: every approximation at every damping.

    Attributes:
        damping_kind: `absolute`, λ itself; or `relative`, λ as a fraction of the mean eigenvalue of each block.
        products: one more, the last: no inverse, which leaves inner products of the gradients.
    """

    dampings: Sequence[float] = (DEFAULT_DAMPING,)
    approximations: Sequence[Approximation] = ("ekfac",)
    damping_kind: DampingKind = "absolute"
    products: bool = False

    def __post_init__(self) -> None:
        check_dampings(list(self.dampings))
        checked("damping_kind", self.damping_kind, DampingKind)

    def __len__(self) -> int:
        return len(self.dampings) * len(self.approximations) + self.products

    def each(self) -> Iterator[tuple[Approximation, float]]:
        """Every approximation with every damping, approximations outermost."""
        return ((approximation, damping) for approximation in self.approximations for damping in self.dampings)

    def factors(self, curvature: Curvature, name: str) -> Iterator[Float[Tensor, "O I"]]:
        """1/(Λ + λ) of one block, in the order of `each`, and 1 for the products."""
        for approximation, damping in self.each():
            eigenvalues = curvature.layers[name].eigenvalues(approximation)
            unit = eigenvalues.mean() if self.damping_kind == "relative" else 1.0
            yield damped_inverse(eigenvalues, damping * unit)
        if self.products:
            layer = curvature.layers[name]
            yield torch.ones_like(layer.eigenvalues(layer.best))
