"""Made: numbers for the cases, the same on every machine."""

import torch
from torch import Tensor

from diffinf_lib.randomness import keyed_generator


def normal(name: str, *shape: int) -> Tensor:
    """Standard normal numbers that belong to a name, float64."""
    return torch.randn(*shape, generator=keyed_generator("checks", name), dtype=torch.float64)


def positive_definite(name: str, size: int) -> Tensor:
    """A symmetric matrix with eigenvalues well above 0, float64."""
    root = normal(name, size, size)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


def orthogonal(name: str, size: int) -> Tensor:
    """An orthogonal matrix that is not symmetric, float64."""
    return torch.linalg.qr(normal(name, size, size)).Q


def numbers(*values: float) -> Tensor:
    """Numbers written by hand, float64."""
    return torch.tensor(values, dtype=torch.float64)


def with_damping(matrix: Tensor, damping: float) -> Tensor:
    """A matrix plus λI."""
    return matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)


def by_cramer(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of a linear system, a determinant for each entry."""
    replaced = []
    for column in range(len(matrix)):
        changed = matrix.clone()
        changed[:, column] = right
        replaced.append(torch.linalg.det(changed) / torch.linalg.det(matrix))
    return torch.stack(replaced)
