"""Spectra: traces, extreme eigenvalues and eigenvalue densities of an operator, through curvlinops and SciPy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import curvlinops
import torch
from curvlinops._torch_base import PyTorchLinearOperator as Operator
from jaxtyping import Float
from scipy.sparse.linalg import eigsh
from torch import Tensor

from diffinf_lib.errors import require
from diffinf_lib.options import checked
from diffinf_lib.randomness import keyed_generator, keyed_seed
from diffinf_lib.settings import own_settings

TraceMethod = Literal["hutchinson", "hutch++", "xtrace"]


@own_settings
def trace(operator: Operator, method: TraceMethod = "hutch++", samples: int = 30, *, seed: int = 0) -> float:
    """An unbiased estimate of the trace from random vectors, through curvlinops.

    Args:
        method: `hutchinson` (1989; relative error about √(2/samples) ‖F‖/tr F), `hutch++` (Meyer et al. 2021) or `xtrace`
            (Epperly et al. 2024), which take the leading eigenvectors out first.
        samples: products with the operator, done at once; a multiple of 3 for `hutch++`, of 2 for `xtrace`.

    Raises:
        ConfigurationError: an unknown method, or a number of samples that it cannot take.
    """
    estimators = {
        "hutchinson": (curvlinops.hutchinson_trace, 1),
        "hutch++": (curvlinops.hutchpp_trace, 3),
        "xtrace": (curvlinops.xtrace, 2),
    }
    require(method in estimators, f"method={method!r}: give 'hutchinson', 'hutch++' or 'xtrace'")
    estimate, multiple = estimators[method]
    require(0 < samples < operator.shape[0] and samples % multiple == 0, f"samples={samples}: {method} takes a positive "
            f"multiple of {multiple} below the {operator.shape[0]} parameters")  # fmt: skip
    with _seeded("trace", seed):
        return float(estimate(operator, samples))


@own_settings
def extreme_eigenvalues(
    operator: Operator, count: int = 1, *, which: Literal["largest", "smallest"] = "largest", tolerance: float = 1e-6
) -> Float[Tensor, "{count}"]:  # noqa: F821
    """The algebraically largest or smallest eigenvalues by implicitly restarted Lanczos (ARPACK), ascending; float64."""
    checked("which", which, Literal["largest", "smallest"])
    require(0 < count < operator.shape[0], f"count={count}: give a positive number below {operator.shape[0]}")
    start = torch.randn(operator.shape[0], generator=keyed_generator("eigenvalues"), dtype=torch.float64).numpy()
    kind = "LA" if which == "largest" else "SA"
    values = eigsh(operator.to_scipy(), k=count, which=kind, v0=start, tol=tolerance, return_eigenvectors=False)
    return torch.as_tensor(values).sort().values


@own_settings
def eigenvalue_density(
    operator: Operator,
    *,
    lanczos_vectors: int = 64,
    points: int = 1024,
    repeats: int = 1,
    kappa: float = 3.0,
    seed: int = 0,
) -> tuple[Float[Tensor, "{points}"], Float[Tensor, "{points}"]]:  # noqa: F821
    """The density of the eigenvalues, smoothed, by Lanczos quadrature through curvlinops (Papyan 2020, algorithm 2).

    Args:
        lanczos_vectors: products with the operator a repeat; the bumps get narrower with it.
        kappa: width of the Gaussian bumps, above 1.

    Returns:
        A grid of eigenvalues and the density on it, which integrates to 1.
    """
    require(1 < lanczos_vectors < operator.shape[0], f"lanczos_vectors={lanczos_vectors}: give a number between 2 and "
            f"{operator.shape[0] - 1}, one less than the parameters")  # fmt: skip
    ends = [float(extreme_eigenvalues(operator, which=which, tolerance=1e-2)) for which in ("smallest", "largest")]
    with _seeded("density", seed):
        return curvlinops.lanczos_approximate_spectrum(
            operator,
            lanczos_vectors,
            num_points=points,
            num_repeats=repeats,
            kappa=kappa,
            boundaries=(ends[0], ends[1]),
        )


@contextmanager
def _seeded(purpose: str, seed: int) -> Iterator[None]:
    """curvlinops draws from torch's global generators: seed them by key, and put them back."""
    with torch.random.fork_rng():
        torch.manual_seed(keyed_seed(purpose, seed))
        yield
