"""Every curvature there is to choose, against brute force in float64: values, scale, and the fast ways in expectation."""

from dataclasses import replace

import pytest
import torch
from cases import (
    by_definition,
    conv_denoiser,
    draw_batch,
    images,
    linear_denoiser,
    same_draws_for_both_passes,
    tiny_unet,
)
from torch import nn

from diffinf_lib.attribution import influence
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Process
from diffinf_lib.curvature import curvature_blocks, fit, fit_curvature
from diffinf_lib.curvature.exact import dense_ggn, layer_slices
from diffinf_lib.curvature.label_vectors import KeyedRandomness
from diffinf_lib.curvature.layers import curvature_layers, gradient_matrices, layer_parameters
from diffinf_lib.diffusion import Denoiser, per_draw_loss
from diffinf_lib.errors import ConfigurationError

DRAWS = DrawConfig(4)


class GroupedDenoiser(nn.Module):
    """Grouped and dilated convolutions, and a linear layer over tokens."""

    def __init__(self):
        super().__init__()
        self.spread = nn.Conv2d(1, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.mix = nn.Linear(4, 1)

    def forward(self, noisy, timesteps):
        hidden = self.grouped(torch.tanh(self.spread(noisy)))
        return self.mix(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def grouped_denoiser():
    torch.manual_seed(0)
    return Denoiser(GroupedDenoiser(), Process()).double()


def draw_gradients(model, data, draws):
    """∇ of each draw's loss, `[N·S, P]`, parameters ordered as in the dense matrices."""
    layers, batch, rows = curvature_layers(model), draw_batch(data, draws, purpose="x"), []
    losses = per_draw_loss(model, batch.images, batch.timesteps, batch.noise)
    for loss in losses:
        gradients = torch.autograd.grad(loss, layer_parameters(layers), retain_graph=True)
        rows.append(torch.cat([matrix.flatten() for matrix in gradient_matrices(layers, gradients).values()]))
    return torch.stack(rows)


def dense(model, data, partition):
    """The matrix that a partition means, by brute force."""
    if partition == "model":
        return dense_ggn(model, draw_batch(data, DRAWS, purpose="x"))
    gradients = draw_gradients(model, data, DRAWS)
    if partition == "loss_per_example":
        gradients = gradients.view(len(data), DRAWS.count, -1).mean(1)
    return gradients.T @ gradients / len(gradients)


PARTITIONS = ["model", "loss_per_draw", "loss_per_example"]


def definition(partition, **options):
    return by_definition(DRAWS, partition=partition, exact_labels=partition == "model", **options)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize(("make", "side"), [(linear_denoiser, 2), (conv_denoiser, 4), (grouped_denoiser, 4)])
def test_diagonal_identity_and_trace_are_those_of_the_dense_matrix(make, side, bias, partition, monkeypatch):
    """One scale for every choice: the diagonal is the diagonal, and all others keep each block's trace."""
    same_draws_for_both_passes(monkeypatch)
    model, data = make(), images(3, side)
    reference, slices = dense(model, data, partition), layer_slices(model)
    config = definition(partition, bias=bias)
    diagonal = fit_curvature(model, data, replace(config, approximation="diagonal"), batch_size=5)
    ekfac = fit_curvature(model, data, config, batch_size=5)
    for name, block in curvature_blocks(model, bias).items():
        whole = (block.layer.weight.shape[0], -1)
        expected = block.of(reference.diagonal()[slices[block.layer_name]].view(whole))
        torch.testing.assert_close(diagonal.layers[name].eigenvalues("diagonal"), expected, rtol=1e-9, atol=1e-14)
        mean = expected.mean().expand_as(expected)
        for curvature in (diagonal, ekfac):
            torch.testing.assert_close(curvature.layers[name].eigenvalues("identity"), mean, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_corrected_eigenvalues_are_the_diagonal_in_the_eigenbasis(partition, sharing, monkeypatch):
    same_draws_for_both_passes(monkeypatch)
    model, data = grouped_denoiser(), images(3, 4)
    reference, slices = dense(model, data, partition), layer_slices(model)
    curvature = fit_curvature(model, data, definition(partition, sharing=sharing), batch_size=5)
    for name, block in curvature.blocks(model).items():
        layer, place = curvature.layers[name], slices[block.layer_name]
        index = block.of(torch.arange(place.start, place.stop).view(block.layer.weight.shape[0], -1)).flatten()
        basis = torch.kron(layer.output_eigenvectors, layer.input_eigenvectors)
        expected = (basis.T @ reference[index][:, index] @ basis).diagonal().view(block.shape)
        torch.testing.assert_close(layer.corrected_eigenvalues, expected, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_one_position_makes_kfac_reduce_and_expand_the_same(partition, monkeypatch):
    same_draws_for_both_passes(monkeypatch)
    if partition == "loss_per_example":
        pytest.skip("draws are positions there")
    model, data = linear_denoiser(), images(3, 2)
    expand, reduce = (fit_curvature(model, data, definition(partition, sharing=s)) for s in ("expand", "reduce"))
    for name, layer in expand.layers.items():
        torch.testing.assert_close(reduce.layers[name].block("kfac"), layer.block("kfac"), rtol=1e-9, atol=1e-13)


def test_kfac_reduce_is_its_definition(monkeypatch):
    """A = E[ā āᵀ] and B = E[ĝ ĝᵀ] from the gradient matrices alone: ĝ is the bias column of G."""
    same_draws_for_both_passes(monkeypatch)
    model, data = conv_denoiser(), images(2, 4)
    curvature = fit_curvature(
        model, data, by_definition(DRAWS, partition="loss_per_draw", exact_labels=False, sharing="reduce")
    )
    place = layer_slices(model)["down"]
    bias_gradients = draw_gradients(model, data, DRAWS)[:, place].view(-1, 3, 10)[:, :, -1]
    expected = bias_gradients.T @ bias_gradients / len(bias_gradients)
    layer = curvature.layers["down"]
    # the input factor's constant column makes the lower right entry of A one, so B stands in the block's bias corner
    block = layer.block("kfac").view(3, 10, 3, 10)[:, -1, :, -1]
    torch.testing.assert_close(block, expected, rtol=1e-9, atol=1e-14)


def test_an_example_with_one_draw_is_a_draw(monkeypatch):
    same_draws_for_both_passes(monkeypatch)
    model, data, one = conv_denoiser(), images(5, 4), DrawConfig(1, noise_rule="independent")
    per_draw, per_example = (
        fit_curvature(model, data, replace(definition(partition), draws=one, factor_draws=one))
        for partition in PARTITIONS[1:]
    )
    for name, layer in per_example.layers.items():
        torch.testing.assert_close(layer.block("ekfac"), per_draw.layers[name].block("ekfac"), rtol=1e-9, atol=1e-14)


def seeded(monkeypatch, seed):
    """Fits from here on take their labels, signs and positions from this seed; draws stay."""
    monkeypatch.setattr(fit, "KeyedRandomness", lambda ids, draws, _, name: KeyedRandomness(ids, draws, seed, name))


def assert_unbiased(samples, expected, name, within):
    """The mean of independent samples `[R, …]` is off by its own standard error, not by more, and that is small."""
    error = float((samples.mean(0) - expected).norm())
    standard_error = float((samples.var(0).sum() / len(samples)).sqrt())
    assert error < 2.5 * standard_error + 1e-12, name
    assert error < within * float(expected.norm()), name


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("exact_labels", [True, False])
def test_batched_correction_agrees_with_per_draw_in_expectation(partition, exact_labels, monkeypatch):
    """Averaged over many seeds of the signs or labels, squares of sums are sums of squares, cross terms and all."""
    if exact_labels and partition != "model":
        pytest.skip("GGN^loss has no labels")
    same_draws_for_both_passes(monkeypatch)
    model, data = conv_denoiser(), images(3, 4)
    config = replace(definition(partition), approximation="diagonal")
    reference = fit_curvature(model, data, config)
    batched = replace(config, correction="batched", draws_per_sum=6, exact_labels=exact_labels)
    fits = []
    for seed in range(150):
        seeded(monkeypatch, seed)
        fits.append(fit_curvature(model, data, batched, batch_size=4))
    for name, layer in reference.layers.items():
        samples = torch.stack([curvature.layers[name].corrected_eigenvalues for curvature in fits])
        assert_unbiased(samples, layer.corrected_eigenvalues, name, within=0.3)


def test_without_signs_cross_terms_would_show():
    """The control of the test above: loss gradients of one batch are not centred, their plain sum squares to more."""
    gradients = draw_gradients(conv_denoiser(), images(3, 4), DRAWS)
    assert float(gradients.sum(0).square().sum() / gradients.square().sum()) > 1.5


def test_sampled_positions_agree_with_all_in_expectation(monkeypatch):
    same_draws_for_both_passes(monkeypatch)
    model, data = tiny_unet(), images(2, 4)
    config = by_definition(DRAWS, approximation="kfac")

    def factors(**options):
        return fit._Fit(model, data, replace(config, **options), 0, 64, False).factors(None, None)

    samples = []
    for seed in range(200):
        seeded(monkeypatch, seed)
        samples.append(factors(input_positions=3))
    for name, factor in factors().items():
        assert_unbiased(torch.stack([sample[name] for sample in samples]), factor, name, within=0.1)


def test_groups_do_not_depend_on_the_batch_size():
    model, data = conv_denoiser(), images(5, 4)
    for partition in PARTITIONS:
        config = CurvatureConfig(draws=DRAWS, draws_per_sum=10, partition=partition)
        whole, parts = (fit_curvature(model, data, config, batch_size=size) for size in (64, 3))
        for name, layer in whole.layers.items():
            torch.testing.assert_close(parts.layers[name].block("ekfac"), layer.block("ekfac"), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "los"}, "partition='los': give model, loss_per_draw or loss_per_example"),
        ({"sharing": "sum"}, "sharing='sum'"),
        ({"correction": "none"}, "correction='none'"),
        ({"bias": "no"}, "bias='no'"),
        ({"draws_per_sum": 0}, "draws_per_sum=0: give a positive whole number"),
        ({"sampled_labels": 2, "partition": "loss_per_draw"}, "sampled_labels=2"),
        ({"sampled_labels": 2, "exact_labels": True}, "sampled_labels=2"),
        ({"exact_labels": True, "partition": "loss_per_draw"}, "has no labels"),
        ({"partition": "loss_per_example", "factor_draws": DRAWS}, "leave factor_draws=None"),
        ({"precision": "float8"}, "precision='float8'"),
    ],
)
def test_bad_choices_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        CurvatureConfig(**options)


def test_factors_take_a_third_of_the_draws_unless_told_otherwise():
    def drawn(*draws, **options):
        return CurvatureConfig(draws=DrawConfig(*draws), **options).drawn_for_factors.count

    assert drawn(30) == 10
    assert drawn(32) == 12  # antithetic pairs
    assert drawn(32, "uniform", "independent") == 11
    assert drawn(2) == 2
    assert drawn(30, partition="loss_per_example") == 30
    assert drawn(30, factor_draws=DrawConfig(4)) == 4


def test_bfloat16_rounds_a_little_and_keeps_sums_in_float32():
    model, data = tiny_unet().float(), images(4, 4)
    exact, rounded = (
        fit_curvature(model, data, CurvatureConfig(draws=DRAWS, precision=precision))
        for precision in ("float32", "bfloat16")
    )
    assert all(layer.corrected_eigenvalues.dtype == torch.float32 for layer in rounded.layers.values())
    before, after = (
        sum(float(layer.corrected_eigenvalues.sum()) for layer in curvature.layers.values())
        for curvature in (exact, rounded)
    )
    assert 0 < abs(after / before - 1) < 0.05


def test_no_images_and_no_batch_are_refused():
    with pytest.raises(ConfigurationError, match="no images"):
        fit_curvature(conv_denoiser(), images(0, 4))
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        fit_curvature(conv_denoiser(), images(1, 4), batch_size=0)


@pytest.mark.parametrize("approximation", ["ekfac", "diagonal"])
@pytest.mark.parametrize("correction", ["batched", "per_draw"])
def test_weights_that_are_not_finite_are_named(approximation, correction):
    model = conv_denoiser()
    with torch.no_grad():
        model.network.middle.weight[0, 0, 1, 1] = float("inf")
    config = CurvatureConfig(approximation, DRAWS, correction=correction)
    with pytest.raises(ConfigurationError, match=r"middle.weight: some of the model's weights"):
        fit_curvature(model, images(2, 4), config)


def test_a_layer_that_nothing_reaches_has_no_curvature_and_no_score():
    """A weight of zero behind a layer cuts its gradients off: eigenvalues are zero, and scores stay finite without damping."""
    model, data = conv_denoiser(), images(3, 4)
    with torch.no_grad():
        model.network.middle.weight.zero_()
    curvature = fit_curvature(model, data, CurvatureConfig(draws=DRAWS))
    assert float(curvature.layers["down"].corrected_eigenvalues.max()) == 0
    whole = influence(model, curvature, data, data, draws=DRAWS, damping=[0.0, 1e-8])
    assert bool(torch.isfinite(whole).all()) and float(whole.abs().max()) > 0


def test_channels_last_changes_rounding_only():
    """Over enough draws: few leave factors of low rank, and within a null space rounding chooses EK-FAC's basis."""
    model, data = tiny_unet(attention=True), images(3, 4)
    config = CurvatureConfig(draws=DrawConfig(64))

    def scored():
        return influence(model, fit_curvature(model, data, config), data, data, draws=DrawConfig(10), damping=1e-4)

    expected = scored()
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(scored(), expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


def test_a_compiled_model_gives_the_same_scores():
    """Traced and cut as for compiling, without the C++ step; layers are watched in a pass that runs as written."""
    model, data = tiny_unet(), images(3, 4)
    config = CurvatureConfig(draws=DrawConfig(64))

    def scored():
        return influence(model, fit_curvature(model, data, config), data, data, draws=DrawConfig(10), damping=1e-4)

    expected = scored()
    model.compile(backend="aot_eager")
    torch.testing.assert_close(scored(), expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))
