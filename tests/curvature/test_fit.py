"""K-FAC and EK-FAC against the dense GGN, in float64."""

import math
from dataclasses import replace

import pytest
import torch
from cases import (
    by_definition,
    conv_denoiser,
    deep_linear_denoiser,
    dense_blocks,
    draw_batch,
    images,
    linear_denoiser,
    same_draws_for_both_passes,
    tiny_unet,
)

from diffinf_lib.attribution import influence
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Expectation
from diffinf_lib.curvature import Curvature, fit_curvature, fit_with_curvlinops
from diffinf_lib.errors import ArtifactError, ConfigurationError
from diffinf_lib.gradients import gradients_of

DRAWS = DrawConfig(4)
CONFIG = CurvatureConfig(draws=DRAWS)


def relative_error(block, reference):
    return float((block - reference).norm() / reference.norm())


@pytest.mark.parametrize("make", [linear_denoiser, deep_linear_denoiser])
@pytest.mark.parametrize("approximation", ["kfac", "ekfac"])
def test_exact_in_linear_networks(make, approximation, monkeypatch):
    """A linear layer's block is J_outᵀJ_out ⊗ E[aaᵀ] with a constant J_out: Kronecker-factored, so both are exact."""
    same_draws_for_both_passes(monkeypatch)
    model, data = make(), images(3, 2)
    curvature = fit_curvature(model, data, by_definition(DRAWS))
    reference = dense_blocks(model, draw_batch(data, DRAWS, purpose="x"))
    for name, layer in curvature.layers.items():
        torch.testing.assert_close(layer.block(approximation), reference[name], rtol=1e-8, atol=1e-12, msg=name)


@pytest.mark.parametrize(("make", "side"), [(conv_denoiser, 4), (tiny_unet, 4)], ids=["conv", "unet"])
def test_ekfac_is_closer_than_kfac_and_keeps_the_trace(make, side, monkeypatch):
    same_draws_for_both_passes(monkeypatch)
    model, data = make(), images(2, side)
    curvature = fit_curvature(model, data, by_definition(DrawConfig(2)))
    reference = dense_blocks(model, draw_batch(data, DrawConfig(2), purpose="x"))
    errors = {"kfac": 0.0, "ekfac": 0.0}
    for name, layer in curvature.layers.items():
        trace = reference[name].trace()
        torch.testing.assert_close(layer.eigenvalues("ekfac").sum(), trace, rtol=1e-8, atol=1e-12, msg=name)
        for approximation in errors:
            errors[approximation] += float((layer.block(approximation) - reference[name]).square().sum())
        # the corrected diagonal is the best one in this basis, so no block gets worse
        better, worse = (relative_error(layer.block(a), reference[name]) for a in ("ekfac", "kfac"))
        assert better <= worse * (1 + 1e-9) + 1e-12, name
    assert errors["ekfac"] < 0.97 * errors["kfac"]


def test_sampled_labels_converge_to_the_exact_ones(monkeypatch):
    same_draws_for_both_passes(monkeypatch)
    model, data = conv_denoiser(), images(2, 4)
    exact = fit_curvature(model, data, by_definition(DRAWS))

    def error(labels):
        sampled = fit_curvature(model, data, by_definition(DRAWS, exact_labels=False, sampled_labels=labels))
        pairs = [(sampled.layers[name].block("ekfac"), exact.layers[name].block("ekfac")) for name in exact.layers]
        return sum(relative_error(*pair) for pair in pairs)

    few, many = error(4), error(400)
    assert many < 0.35 * few  # a hundred times the labels: a tenth of the error, up to noise
    assert many < 0.2


def test_batch_size_and_order_change_rounding_only():
    model, data = conv_denoiser(), images(5, 4)
    reference = fit_curvature(model, data, CONFIG)
    for changed in (
        fit_curvature(model, data, CONFIG, batch_size=3),
        fit_curvature(model, data.subset([4, 1, 0, 3, 2]), CONFIG),
    ):
        for name, layer in reference.layers.items():
            torch.testing.assert_close(changed.layers[name].block("ekfac"), layer.block("ekfac"), rtol=1e-8, atol=1e-12)


def stopping_after(calls, function):
    """`function` that is interrupted once it was called so many times."""
    count = iter(range(calls))

    def interrupted(*arguments, **options):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return interrupted


def test_an_interrupted_fit_goes_on_bit_for_bit(tmp_path, monkeypatch):
    from diffinf_lib.curvature import passes

    model, data = conv_denoiser(), images(4, 4)
    whole = fit_curvature(model, data, CONFIG, batch_size=2, out=tmp_path / "whole")
    for stop_at in (3, 5, 4):  # in the first pass, in the second, and in the second again
        with monkeypatch.context() as patch:
            patch.setattr(passes, "label_vectors", stopping_after(stop_at, passes.label_vectors))
            with pytest.raises(KeyboardInterrupt):
                fit_curvature(model, data, CONFIG, batch_size=2, out=tmp_path / "part", checkpoint_seconds=0)
    part = fit_curvature(model, data, CONFIG, batch_size=2, out=tmp_path / "part", checkpoint_seconds=0)
    assert part.digest == whole.digest
    assert {p.name for p in (tmp_path / "part").iterdir()} == {"curvature.safetensors", "manifest.json"}


def test_an_interrupted_fit_does_not_go_on_with_another_batch_size(tmp_path, monkeypatch):
    """Partial sums are counted in batches: other batches would count some draws twice and leave others out."""
    from diffinf_lib.curvature import passes

    model, data = conv_denoiser(), images(4, 4)
    with monkeypatch.context() as patch:
        patch.setattr(passes, "label_vectors", stopping_after(3, passes.label_vectors))
        with pytest.raises(KeyboardInterrupt):
            fit_curvature(model, data, by_definition(DRAWS), batch_size=4, out=tmp_path, checkpoint_seconds=0)
    with pytest.raises(ArtifactError, match="batch_size is 4 there, 2 asked"):
        fit_curvature(model, data, by_definition(DRAWS), batch_size=2, out=tmp_path, checkpoint_seconds=0)


def test_nor_do_corrections_in_other_batches_follow_factors(tmp_path, monkeypatch):
    from diffinf_lib.curvature import passes

    model, data = conv_denoiser(), images(4, 4)
    with monkeypatch.context() as patch:
        patch.setattr(passes, "label_vectors", stopping_after(5, passes.label_vectors))
        with pytest.raises(KeyboardInterrupt):
            fit_curvature(model, data, CONFIG, batch_size=2, out=tmp_path, checkpoint_seconds=math.inf)
    assert {path.name for path in tmp_path.iterdir()} == {"factors.safetensors", "manifest.json"}
    with pytest.raises(ArtifactError, match="batch_size is 2 there, 4 asked"):
        fit_curvature(model, data, CONFIG, batch_size=4, out=tmp_path)


def test_exact_and_sampled_labels_are_not_taken_for_each_other(tmp_path):
    fit_curvature(conv_denoiser(), images(2, 4), CONFIG, out=tmp_path)
    with pytest.raises(ArtifactError, match="exact_labels is False there, True asked"):
        fit_curvature(conv_denoiser(), images(2, 4), replace(CONFIG, exact_labels=True), out=tmp_path)


def test_a_curvature_of_another_model_is_refused(tmp_path):
    fit_curvature(conv_denoiser(), images(2, 4), CONFIG, out=tmp_path)
    with pytest.raises(ArtifactError, match="seed is 0 there, 1 asked"):
        fit_curvature(conv_denoiser(), images(2, 4), CONFIG, seed=1, out=tmp_path)


def test_kfac_only_has_no_corrected_eigenvalues(tmp_path):
    curvature = fit_curvature(conv_denoiser(), images(2, 4), CurvatureConfig("kfac", DRAWS))
    curvature.save(tmp_path / "c.safetensors")
    back = Curvature.load(tmp_path / "c.safetensors")
    assert back.digest == curvature.digest
    with pytest.raises(ConfigurationError, match="fitted as 'kfac'"):
        back.layers["down"].eigenvalues("ekfac")


def test_a_digest_names_all_that_a_curvature_is(tmp_path, monkeypatch):
    """Blocks by name, what is covered and how the blocks were cut, not the order of the blocks; hashed once."""
    curvature = fit_curvature(conv_denoiser(), images(2, 4), CurvatureConfig(draws=DrawConfig(2)))
    (first, one), (second, other) = curvature.layers.items()
    turned = replace(curvature, layers={second: other, first: one})
    assert turned.digest == curvature.digest
    renamed = {f"{name}2": layer for name, layer in curvature.layers.items()}
    changed = [
        replace(curvature, layers=renamed),
        replace(curvature, layers={first: one}),
        replace(curvature, layers={first: one, second: replace(other, corrected_eigenvalues=other.kfac_eigenvalues)}),
        replace(curvature, layers={first: one, second: replace(other, kfac_eigenvalues=None)}),
        replace(curvature, bias="separate"),
        replace(curvature, covered=curvature.covered[:1]),
        replace(curvature, covered=None),
    ]
    assert len({curvature.digest, *(different.digest for different in changed)}) == 1 + len(changed)
    curvature.save(tmp_path / "curvature.safetensors")
    assert Curvature.load(tmp_path / "curvature.safetensors").digest == curvature.digest
    monkeypatch.setattr("diffinf_lib.curvature.fitted.tensor_digest", None)
    assert curvature.to("cpu") is curvature
    assert curvature.to("meta").digest == curvature.digest


def test_a_curvature_knows_the_weights_that_it_was_fitted_to(tmp_path):
    """Of the same shapes, other weights: the scores would be those of neither model."""
    model, data = conv_denoiser(), images(2, 4)
    curvature = fit_curvature(model, data, CONFIG, out=tmp_path)
    kept = Curvature.load(tmp_path / "curvature.safetensors")
    other = conv_denoiser()
    with torch.no_grad():
        other.network.up.weight.mul_(2)  # not covered, but the output's
    for found in (curvature, kept, kept.to("cpu"), fit_with_curvlinops(model, data, CONFIG)):
        assert influence(conv_denoiser(), found, data, data, draws=DRAWS, query_draws=DRAWS).isfinite().all()
        with pytest.raises(ConfigurationError, match="curvature: it was fitted to other weights.*fit_curvature"):
            influence(other, found, data, data, draws=DRAWS, query_draws=DRAWS)
        with pytest.raises(ConfigurationError, match="curvature: it was fitted to other weights"):
            gradients_of(other, found, data, Expectation(DRAWS))
    before = replace(kept, fitted_to=None)  # of a store that does not say it
    before.save(tmp_path / "before.safetensors")
    assert Curvature.load(tmp_path / "before.safetensors").fitted_to is None
    assert before.digest == kept.digest
    assert influence(other, before, data, data, draws=DRAWS, query_draws=DRAWS).isfinite().all()


def test_neither_type_nor_place_nor_mode_of_the_weights_makes_them_others():
    model, data = conv_denoiser(), images(2, 4)
    curvature = fit_curvature(model, data, CONFIG)
    curvature.check_fitted_to(model.train())
    curvature.check_fitted_to(model.float())
