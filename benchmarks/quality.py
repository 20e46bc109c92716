"""Quality: what each saving costs in LDS, on digits: cheaper fits of the curvature, and smaller stores of gradients.

    python -m benchmarks.quality

Training gradients are those of preset `digits`, query gradients take the measurement's own draws. Every fit is scored with
the same gradients, turned into its own eigenbasis, and compared with the per-draw EK-FAC over the same draws: the paired
difference has a bootstrap interval over subsets and queries. Formats are compared with float32 by rank correlation too.
"""

from dataclasses import replace
from typing import Any

import torch

import diffinf_lib as di
from benchmarks import harness
from diffinf_lib.compression import stored_bytes
from diffinf_lib.evaluation import spearman
from diffinf_lib.gradients import LayerGradients
from diffinf_lib.runs import query_gradients, train_gradients

REFERENCE = "per draw, nothing saved"


def fits(draws: di.DrawConfig) -> dict[str, di.CurvatureConfig]:
    """Ways to fit the curvature, the plainest first, then one saving after the other up to the default."""
    default = di.CurvatureConfig(draws=draws)
    plain = replace(default, correction="per_draw", factor_draws=draws, input_positions=None)
    few = di.DrawConfig(10)
    return {
        REFERENCE: plain,
        "batched correction": replace(plain, correction="batched"),
        "… and four positions": replace(plain, correction="batched", input_positions=4),
        "… and a third of the draws": default,
        "default, groups of 25": replace(default, draws_per_sum=25),
        "default, groups of 400": replace(default, draws_per_sum=400),
        "default, 10 draws": replace(default, draws=few),
        "per draw, 10 draws": replace(plain, draws=few, factor_draws=few),
        "GGN^loss per draw": replace(default, partition="loss_per_draw"),
        "GGN^loss per example": replace(default, partition="loss_per_example"),
        "reduce": replace(default, sharing="reduce"),
        "separate biases": replace(default, bias="separate"),
        "diagonal": replace(default, approximation="diagonal"),
        "identity": replace(default, approximation="identity"),
    }


FORMATS = {
    "float32": di.StoreFormat(),
    "bfloat16": di.StoreFormat("bfloat16"),
    "int8": di.StoreFormat("int8"),
    "int8, not whitened": di.StoreFormat("int8", whitening=1e12),
    "svd, rank 4": di.StoreFormat("svd", rank=4),
    "svd, rank 16": di.StoreFormat("svd", rank=16),
    "projection to 1,024": di.StoreFormat("projection", dimension=1024),
    "projection to 4,096": di.StoreFormat("projection", dimension=4096),
    "projection to 16,384": di.StoreFormat("projection", dimension=16384),
}


class Case:
    """A run of preset `digits`, and its gradients in the basis of the weights."""

    def __init__(self, run: di.runs.Run):
        self.run, self.curvature = run, di.runs.curvature_of_run(run)
        self.truths = {name: di.load_ground_truth("digits-ground-truth", name) for name in ("held-out", "generated")}
        self.queries = {name: self.plain(query_gradients(run, truth.queries)) for name, truth in self.truths.items()}
        self.train = self.plain(train_gradients(run))

    def plain(self, gradients: di.GradientSet) -> LayerGradients:
        """Gradients out of the eigenbasis of the run's own curvature."""
        rotated = gradients.whole()
        return {name: layer.from_eigenbasis(rotated[name]) for name, layer in self.curvature.layers.items()}

    def turned(self, gradients: LayerGradients, curvature: di.curvature.Curvature) -> di.GradientSet:
        """Gradients in the eigenbasis of another curvature, cut into its blocks."""
        parts = di.curvature.split_into_blocks(gradients, curvature.blocks(di.runs.full_model(self.run).model))
        return di.GradientSet.of({name: layer.to_eigenbasis(parts[name]) for name, layer in curvature.layers.items()})

    def scores(self, curvature: di.curvature.Curvature, approximation: Any) -> dict[str, torch.Tensor]:
        """Scores of each query set with a curvature."""
        train = self.turned(self.train, curvature)
        return {
            name: di.scores_from_gradients(
                self.turned(queries, curvature), train, curvature, damping=self.run.preset.damping,
                approximation=approximation,
            )[0]
            for name, queries in self.queries.items()
        }  # fmt: skip


def fit_results(case: Case) -> dict[str, Any]:
    """Seconds of each fit, the LDS of what it can give, and the paired difference to the plainest EK-FAC."""
    results: dict[str, Any] = {}
    reference: dict[str, torch.Tensor] = {}
    for name, config in fits(case.run.preset.curvature.draws).items():
        fitted: list[di.curvature.Curvature] = []

        def work(config: di.CurvatureConfig = config, fitted: list[di.curvature.Curvature] = fitted) -> None:
            fitted.append(di.fit_curvature(di.runs.full_model(case.run).model, case.run.data.train, config))

        results[name] = {"seconds": harness.timed(work)}
        for approximation in ("ekfac", "kfac") if config.approximation == "ekfac" else (config.approximation,):
            scores = case.scores(fitted[0], approximation)
            reference = reference or scores
            results[name][approximation] = {q: compared(scores[q], reference[q], case.truths[q]) for q in scores}
        print(name, results[name], flush=True)
    return results


def compared(scores: torch.Tensor, reference: torch.Tensor, truth: di.evaluation.GroundTruth) -> dict[str, Any]:
    """LDS with its interval, and the paired difference to a reference with its own."""
    found, (difference, interval) = di.lds(scores, truth), di.paired_difference(scores, reference, truth)
    return {"lds": found.mean, "interval": found.interval, "difference": difference, "difference_interval": interval}


def format_results(case: Case) -> dict[str, Any]:
    """Bytes of one stored gradient, rank correlation with float32's scores, and LDS."""
    train = case.turned(case.train, case.curvature)
    queries = {name: case.turned(gradients, case.curvature) for name, gradients in case.queries.items()}
    results, exact = {}, {}
    sizes = [layer.shape for layer in case.curvature.layers.values()]
    for name, form in FORMATS.items():
        packed = train.packed_as(case.curvature, form)
        entry: dict[str, Any] = {"bytes": stored_bytes(form, sizes)}
        for query_set, truth in case.truths.items():
            scores = di.scores_from_gradients(
                queries[query_set], packed, case.curvature, damping=case.run.preset.damping
            )[0]
            exact.setdefault(query_set, scores)
            rank = float(spearman(scores.numpy(), exact[query_set].numpy()).mean())
            entry[query_set] = {"rank_correlation": rank, "lds": di.lds(scores, truth, bootstrap=2).mean}
        results[name] = entry
        print(name, entry, flush=True)
    return results


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--run", help="run folder of a trained digits model; default: runs/digits, trained if need be")
    options = parser.parse_args(arguments)
    harness.settle(options)
    case = Case(di.open_run(di.get_preset("digits"), options.run, device=options.device, progress=False))
    results = {"fits": fit_results(case), "formats": format_results(case)}
    settings = {"preset": case.run.preset, "fits": fits(case.run.preset.curvature.draws), "formats": FORMATS}
    print(harness.write_results(options.name or "quality-digits", settings, results, options.out))


if __name__ == "__main__":
    main()
