"""Scores against kronfluence 1.0.1 (extra `bench`), in float64 on tiny models.

Where the conventions coincide the numbers do too: its empirical Fisher over single draws is this library's partition
`loss_per_draw` (weight sharing `expand`, bias joint); with the same draws in each pass and the same absolute damping,
EK-FAC, the diagonal and plain dot products agree to rounding, layer by layer. What does not coincide:

- *Sampled labels.* The true Fisher of both is a Monte Carlo estimate, each with its own random numbers: equal in
  expectation only, and only if the task samples targets of variance C/2 for a loss that is a mean over C outputs.
- *Scale of K-FAC.* It divides the output-gradient factor by the number of positions L as well, so a layer's K-FAC is L
  times smaller than the one whose trace is right; its EK-FAC is not. Damping λ there is damping L·λ here, and a layer's
  scores are L times ours: equal only for layers with one position.
- *Damping.* An absolute number added to every eigenvalue, 1e-8 unless told; its heuristic (`None`: a tenth of the mean
  eigenvalue of each layer) is `damping_kind="relative"` with 0.1 here.
- *Draws.* It knows data points only: no average over the draws of an example. Scores are linear in both gradients, so
  averaging its scores over draws is the same, at the price of one score for each pair of draws.
- *1/N and reduction.* The loss must be summed over the batch, and its scores lack the factor 1/N.
- *Same data in both passes* is what `fit_all_factors` does; here the two passes are called with the draws of ours.
- *Small directions.* It has no floor under Λ + λ: at damping 0 a zero eigenvalue divides zero by zero.
"""

import copy

import pytest
import torch
from cases import conv_denoiser, deep_linear_denoiser, draw_batch, images, tiny_unet
from scipy.stats import spearmanr
from torch.utils.data import TensorDataset

from diffinf_lib.attribution import gradient_dot_scores, scores_by_layer
from diffinf_lib.configuration import MEASUREMENT_PURPOSE, TRAIN_PURPOSE, CurvatureConfig, DrawConfig, Expectation
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.diffusion import per_draw_loss
from diffinf_lib.gradients import gradients_of

pytest.importorskip("kronfluence")

from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.task import Task
from kronfluence.utils.common.factor_arguments import pytest_factor_arguments
from kronfluence.utils.common.score_arguments import pytest_score_arguments

CURVATURE_DRAWS, TRAIN_DRAWS, QUERY_DRAWS = DrawConfig(10), DrawConfig(4), DrawConfig(6)
QUERIES = 3


class LossOfDraws(Task):
    """A data point is one draw; loss and measurement are the diffusion loss, summed over the batch."""

    def compute_train_loss(self, batch, model, sample=False):
        assert not sample
        pixels, timesteps, noise = batch
        return per_draw_loss(model, pixels, timesteps, noise).sum()

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)


def draws_of(data, draws, purpose):
    """Every draw of every image as a data point."""
    batch = draw_batch(data, draws, purpose=purpose)
    return TensorDataset(batch.images, batch.timesteps, batch.noise)


def peer_scores(strategy, model, data, queries, damping, folder):
    """kronfluence's scores of each layer, averaged over draws, with the factor 1/N; `[Q, N]` by layer."""
    task = LossOfDraws()
    analyzer = Analyzer(
        "test", prepare_model(copy.deepcopy(model), task), task, cpu=True, disable_tqdm=True, output_dir=str(folder)
    )
    settings = {"per_device_batch_size": 16, "factor_args": pytest_factor_arguments(strategy)}
    analyzer.fit_covariance_matrices("f", draws_of(data, CURVATURE_DRAWS, "factors"), **settings)
    analyzer.perform_eigendecomposition("f", factor_args=settings["factor_args"])
    analyzer.fit_lambda_matrices("f", draws_of(data, CURVATURE_DRAWS, "corrections"), **settings)
    arguments = pytest_score_arguments(damping)
    arguments.compute_per_module_scores = True
    points = draws_of(queries, QUERY_DRAWS, MEASUREMENT_PURPOSE), draws_of(data, TRAIN_DRAWS, TRAIN_PURPOSE)
    analyzer.compute_pairwise_scores("s", "f", *points, 8, 16, score_args=arguments)
    shape = (len(queries), QUERY_DRAWS.count, len(data), TRAIN_DRAWS.count)
    return {
        name.removeprefix("network."): pairs.view(shape).mean((1, 3)) / len(data)
        for name, pairs in analyzer.load_pairwise_scores("s").items()
    }


def our_gradients(approximation, model, data, queries):
    """The curvature, and gradients of queries and training images in its eigenbasis."""
    config = CurvatureConfig(
        approximation, CURVATURE_DRAWS, partition="loss_per_draw", correction="per_draw", factor_draws=CURVATURE_DRAWS,
        input_positions=None,
    )  # fmt: skip
    curvature = fit_curvature(model, data, config)
    of_queries = gradients_of(model, curvature, queries, Expectation(QUERY_DRAWS, MEASUREMENT_PURPOSE))
    of_train = gradients_of(model, curvature, data, Expectation(TRAIN_DRAWS, TRAIN_PURPOSE))
    return curvature, of_queries, of_train


def case(make, side):
    return make(), images(12, side), images(QUERIES, side, seed=1)


def assert_same(ours, peers):
    """The same layers, the same numbers, and the same ranking of the sums."""
    assert ours.keys() == peers.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], peers[name], rtol=1e-6, atol=1e-9 * float(peers[name].abs().max()), msg=name
        )
    total, expected = (sum(parts.values()) for parts in (ours, peers))
    assert all(spearmanr(a, b).statistic >= 0.999 for a, b in zip(total, expected, strict=True))


def attention_unet():
    return tiny_unet(attention=True)


CONV, LINEAR, UNET = (conv_denoiser, 4), (deep_linear_denoiser, 2), (attention_unet, 4)


@pytest.mark.parametrize(
    ("approximation", "make", "side", "damping"),
    [("ekfac", *CONV, 1e-3), ("ekfac", *LINEAR, 1e-8), ("ekfac", *UNET, 1e-8), ("diagonal", *UNET, 1e-8)],
)
def test_scores_agree(approximation, make, side, damping, tmp_path):
    model, data, queries = case(make, side)
    curvature, of_queries, of_train = our_gradients(approximation, model, data, queries)
    ours = scores_by_layer(of_queries, of_train, curvature, damping=damping, approximation=approximation)
    ours = {name: share[0] for name, share in ours.items()}
    assert_same(ours, peer_scores(approximation, model, data, queries, damping, tmp_path))


@pytest.mark.parametrize(("make", "side"), [LINEAR, UNET])
def test_kfac_agrees_up_to_the_number_of_positions(make, side, tmp_path):
    """(A ⊗ B/L + λ)⁻¹ = L (A ⊗ B + Lλ)⁻¹."""
    model, data, queries = case(make, side)
    damping = 1e-3
    curvature, of_queries, of_train = our_gradients("kfac", model, data, queries)
    peers = peer_scores("kfac", model, data, queries, damping, tmp_path)
    positions = position_counts(model, data)
    ours = {}
    for name, count in positions.items():
        layer = scores_by_layer(of_queries, of_train, curvature, damping=count * damping, approximation="kfac")
        ours[name] = count * layer[name][0]
    assert_same(ours, peers)


def position_counts(model, data):
    """L of every layer, from what it puts out."""
    counts = {}

    def count(name):
        def hook(layer, inputs, output):
            channels = layer.weight.shape[0]
            counts[name] = output[0].numel() // channels

        return hook

    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    handles = [m.register_forward_hook(count(n)) for n, m in model.network.named_modules() if isinstance(m, kinds)]
    model(data.images[:1].double(), torch.tensor([5]))
    for handle in handles:
        handle.remove()
    return counts


def test_without_curvature_scores_are_dot_products(tmp_path):
    model, data, queries = case(*CONV)
    _, of_queries, of_train = our_gradients("diagonal", model, data, queries)
    peers = peer_scores("identity", model, data, queries, 0.0, tmp_path)
    ours = gradient_dot_scores(of_queries, of_train) / len(data)
    torch.testing.assert_close(ours, sum(peers.values()), rtol=1e-9, atol=1e-14)
