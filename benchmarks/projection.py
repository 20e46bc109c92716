"""Projection: TRAK's random projection against the exact inner products it estimates, as the dimension grows, on digits.

    python -m benchmarks.projection

The same gradients of the loss serve all: exact Gram matrix, own projection (signs from a hash), and traker's score
computation on the very features of the own projection. Errors are ‖scores − exact‖ / ‖exact‖ at three λ.
"""

from typing import Any

import torch

import diffinf_lib as di
from benchmarks import harness
from diffinf_lib.attribution.trak import Trak
from diffinf_lib.compression import projected
from diffinf_lib.runs import query_gradients, train_gradients

DIMENSIONS = (256, 1024, 4096)
SHARES = (0.01, 0.1, 1.0)
"""λ as shares of the mean of ‖φ_n‖²."""


def traker_scores(train: Any, queries: Any, dimension: int, damping: float) -> torch.Tensor:
    """traker's scores from the features of the own projection, without its division by the mean of its inverse."""
    from trak.score_computers import BasicScoreComputer

    features, targets = (projected(gradients, dimension).float() for gradients in (train, queries))
    computer = BasicScoreComputer(torch.float32, torch.device("cpu"), CUDA_MAX_DIM_SIZE=1024, lambda_reg=damping)
    found = torch.zeros(len(features), len(targets))
    inner = computer.get_xtx(features)
    computer.get_scores(computer.get_x_xtx_inv(features, inner.clone()), targets, found)
    scale = torch.linalg.inv((inner + damping * torch.eye(dimension)).double()).abs().mean()
    return found.T.double() * scale


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--run", help="run folder of a trained digits model; default: runs/digits, trained if need be")
    options = parser.parse_args(arguments)
    harness.settle(options)
    run = di.open_run(di.get_preset("digits"), options.run, device=options.device, progress=False)
    truth = di.load_ground_truth("digits-ground-truth")
    queries, train = query_gradients(run, truth.queries).held(), train_gradients(run).held()
    made: list[Trak] = []
    seconds = harness.timed(lambda: made.append(Trak(train)))
    unit = float(made[0].kernel.eigenvalues.sum()) / len(truth.train_ids)
    dampings = [share * unit for share in SHARES]
    exact = made[0].scores(queries, dampings)
    results: dict[str, Any] = {
        "exact": {"seconds": seconds, "lds": [di.lds(s, truth, bootstrap=2).mean for s in exact]}
    }
    for dimension in DIMENSIONS:
        made.clear()
        seconds = harness.timed(lambda k=dimension: made.append(Trak(train, dimension=k)))  # type: ignore[misc]
        scores = made[0].scores(queries, dampings)
        errors = ((scores - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).tolist()
        entry = {"seconds": seconds, "errors": errors, "lds": [di.lds(s, truth, bootstrap=2).mean for s in scores]}
        if dimension <= 1024:
            peer = traker_scores(train.whole(), queries.whole(), dimension, dampings[1])
            entry["difference_to_traker"] = float((peer - scores[1]).norm() / scores[1].norm())
        results[str(dimension)] = entry
        print(dimension, entry, flush=True)
    settings = {"preset": run.preset, "dimensions": DIMENSIONS, "shares": SHARES, "dampings": dampings}
    print(harness.write_results(options.name or "projection-digits", settings, results, options.out))


if __name__ == "__main__":
    main()
