"""Per-example gradients against brute force, and what a store of them does when something goes wrong."""

import pytest
import torch
from cases import conv_denoiser, draw_batch, images, tiny_unet

import diffinf_lib as di
from diffinf_lib.artifacts import file_digest
from diffinf_lib.configuration import TRAIN_PURPOSE, CurvatureConfig, DrawConfig, Expectation
from diffinf_lib.curvature import Curvature, fit_curvature
from diffinf_lib.diffusion import per_draw_loss
from diffinf_lib.errors import ArtifactError, ConfigurationError
from diffinf_lib.gradients import example_gradient, gradients_of

CONFIG = Expectation(DrawConfig(10))
CURVATURE = CurvatureConfig(draws=DrawConfig(2))


def stored(model, curvature, data, folder, shard_size=2, config=CONFIG):
    return gradients_of(model, curvature, data, config, shard_size=shard_size, store=folder).whole()


def test_a_gradient_is_that_of_the_mean_loss_over_its_own_draws():
    model, data = tiny_unet(attention=True), images(3, 4)
    batch = draw_batch(data.subset([1]), CONFIG.draws, purpose=TRAIN_PURPOSE)
    model.zero_grad()
    per_draw_loss(model, batch.images, batch.timesteps, batch.noise).mean().backward()
    expected = {
        name: torch.cat([layer.weight.grad.flatten(1)] + [layer.bias.grad.unsqueeze(1)] * (layer.bias is not None), 1)
        for name, layer in di.curvature.curvature_layers(model).items()
    }
    for batch_size in (10, 4, 1):
        gradient = example_gradient(model, data.subset([1]), CONFIG, batch_size=batch_size)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-13)


def test_the_eigenbasis_keeps_inner_products():
    model, data = conv_denoiser(), images(4, 4)
    curvature = fit_curvature(model, data, CURVATURE)
    rotated = gradients_of(model, curvature, data, CONFIG).whole()
    for position in range(len(data)):
        plain = example_gradient(model, data.subset([position]), CONFIG)
        for name, gradient in plain.items():
            back = curvature.layers[name]
            back = back.output_eigenvectors @ rotated[name][position] @ back.input_eigenvectors.T
            torch.testing.assert_close(back, gradient, rtol=1e-9, atol=1e-13)


def test_a_killed_store_goes_on_and_computes_only_what_is_missing(tmp_path, monkeypatch):
    from diffinf_lib.gradients import compute

    model, data = conv_denoiser().float(), images(5, 4)
    curvature = fit_curvature(model, data, CURVATURE)
    stored(model, curvature, data, tmp_path / "whole")
    calls = []
    original = compute._mean_gradient

    def watched(model, layers, image, *arguments):
        if len(calls) == 3:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append(int(image.ids))
        return original(model, layers, image, *arguments)

    monkeypatch.setattr(compute, "_mean_gradient", watched)
    with pytest.raises(KeyboardInterrupt):
        stored(model, curvature, data, tmp_path / "part")
    stored(model, curvature, data, tmp_path / "part")
    assert calls == [0, 1, 2, "killed", 2, 3, 4]
    for shard in (tmp_path / "whole").glob("shard-*"):
        assert file_digest(shard) == file_digest(tmp_path / "part" / shard.name)


def test_a_store_of_other_draws_or_of_another_curvature_is_refused(tmp_path):
    model, data = conv_denoiser().float(), images(3, 4)
    curvature = fit_curvature(model, data, CURVATURE)
    stored(model, curvature, data, tmp_path)
    with pytest.raises(ArtifactError, match=r"gradients\.draws\.count is 10 there, 4 asked"):
        stored(model, curvature, data, tmp_path, config=Expectation(DrawConfig(4)))
    with pytest.raises(ArtifactError, match="curvature is"):
        stored(model, fit_curvature(model, data, CURVATURE, seed=1), data, tmp_path)


def test_a_curvature_read_from_its_file_opens_the_same_store(tmp_path):
    model, data = tiny_unet().float(), images(2, 4)
    curvature = fit_curvature(model, data, CURVATURE)
    curvature.save(tmp_path / "curvature.safetensors")
    reference = stored(model, curvature, data, tmp_path / "store")
    again = stored(model, Curvature.load(tmp_path / "curvature.safetensors"), data, tmp_path / "store")
    assert all(torch.equal(again[name], reference[name]) for name in reference)


def test_a_curvature_of_other_layers_is_refused():
    data = images(2, 4)
    curvature = fit_curvature(tiny_unet(), data, CURVATURE)
    with pytest.raises(
        ConfigurationError, match=r"conv_in.weight, conv_in.bias, .*in the curvature, but not in the model"
    ):
        gradients_of(conv_denoiser(), curvature, data, CONFIG)
