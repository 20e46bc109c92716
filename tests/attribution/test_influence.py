from dataclasses import replace

import numpy as np
import pytest
import torch
from annotations import unchecked
from cases import (
    assert_equal_but_for_rounding,
    by_definition,
    conv_denoiser,
    draw_batch,
    images,
    linear_denoiser,
    same_draws_for_both_passes,
    tiny_unet,
)

import diffinf_lib as di
from diffinf_lib.artifacts import file_digest
from diffinf_lib.attribution.scoring import block_scores
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, MeasurementConfig, check_dampings
from diffinf_lib.curvature import Curvature, LayerCurvature, fit_curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.curvature.exact import dense_ggn
from diffinf_lib.curvature.layers import coverage, curvature_layers, gradient_matrices, layer_parameters
from diffinf_lib.diffusion import per_draw_loss
from diffinf_lib.errors import ArtifactError, ConfigurationError

CONFIG = CurvatureConfig(draws=DrawConfig(4))
MEASUREMENT = MeasurementConfig(draws=DrawConfig(6))
DRAWS = DrawConfig(4)


def brute_force_gradients(model, data, draws, purpose):
    """∇ of each example's mean loss, flattened over all layers, `[n, P]`."""
    layers, rows = curvature_layers(model), []
    for position in range(len(data)):
        batch = draw_batch(data.subset([position]), draws, purpose=purpose)
        loss = per_draw_loss(model, batch.images, batch.timesteps, batch.noise).mean()
        gradients = torch.autograd.grad(loss, layer_parameters(layers))
        rows.append(torch.cat([matrix.flatten() for matrix in gradient_matrices(layers, gradients).values()]))
    return torch.stack(rows)


def double(data):
    return replace(data, images=data.images.double())


def test_scores_are_the_damped_inverse_between_gradients_over_n(monkeypatch):
    """In a linear denoiser EK-FAC is exact, so the scores are (1/N) ∇m (GGN + λI)⁻¹ ∇ℓ by dense algebra."""
    same_draws_for_both_passes(monkeypatch)
    model, train, queries = linear_denoiser(), images(5, 2), images(3, 2, seed=1)
    curvature = fit_curvature(model, train, by_definition(CONFIG.draws))
    scores = di.influence(
        model, curvature, train, queries, measurement=MEASUREMENT, draws=DRAWS, damping=[1e-3, 0.5], seed=0
    )
    ggn = dense_ggn(model, draw_batch(train, DRAWS, purpose="x"))
    measured = brute_force_gradients(model, queries, MEASUREMENT.draws, "measurement")
    losses = brute_force_gradients(model, train, DRAWS, "train-gradients")
    for index, damping in enumerate((1e-3, 0.5)):
        inverse = torch.linalg.inv(ggn + damping * torch.eye(len(ggn), dtype=torch.float64))
        torch.testing.assert_close(scores[index], measured @ inverse @ losses.T / 5, rtol=1e-7, atol=1e-12)


def test_scores_predict_leaving_one_out_with_their_sign():
    """A linear denoiser trained to its optimum on N images, then on N − 1: scores have the size and sign of the change.

    With common draws the loss is quadratic in the weights, its Hessian is the GGN, and removing one of N images shifts
    the optimum by about H⁻¹∇ℓ_n/N.
    """
    count, draws = 12, DrawConfig(64)
    train, queries = images(count, 2), images(4, 2, seed=1)
    measurement = MeasurementConfig(draws=DrawConfig(64))

    def optimum(data):
        model = linear_denoiser()
        batch = draw_batch(data, draws, purpose="train-gradients")

        flat = batch.state.flatten(1)
        joint = torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], dim=1)
        solution = torch.linalg.lstsq(joint, batch.noise.flatten(1)).solution.T
        with torch.no_grad():
            model.network.layers[0].weight.copy_(solution[:, :-1])
            model.network.layers[0].bias.copy_(solution[:, -1])
        return model

    model = optimum(train)
    curvature = fit_curvature(model, train, by_definition(draws))
    scores = di.influence(model, curvature, train, queries, measurement=measurement, draws=draws, damping=0.0)
    before = di.measure(model, double(queries), measurement)
    changes = []
    for left_out in range(count):
        keep = [n for n in range(count) if n != left_out]
        changes.append(di.measure(optimum(train.subset(keep)), double(queries), measurement) - before)
    actual = torch.stack(changes, dim=1)
    correlation = torch.corrcoef(torch.stack([scores.flatten(), actual.flatten()]))[0, 1]
    slope = (scores * actual).sum() / (scores * scores).sum()
    assert correlation > 0.95 and 0.8 < slope < 1.4


@pytest.mark.parametrize("make", [lambda: conv_denoiser().float(), lambda: tiny_unet().float()], ids=["conv", "unet"])
def test_scores_do_not_depend_on_batches_or_order(make):
    model, train, queries = make(), images(6, 4), images(3, 4, seed=1)
    curvature = fit_curvature(model, train, CONFIG)

    def score(train=train, queries=queries, **options):
        return di.influence(
            model, curvature, train, queries, measurement=MEASUREMENT, draws=DRAWS, damping=1e-3, **options
        )

    reference = score()
    tolerance = {"rtol": 1e-5, "atol": 1e-5 * float(reference.abs().max())}
    torch.testing.assert_close(score(batch_size=3), reference, **tolerance)
    order, query_order = [3, 1, 5, 0, 4, 2], [2, 0, 1]
    torch.testing.assert_close(score(train=train.subset(order)), reference[:, order], **tolerance)
    torch.testing.assert_close(score(queries=queries.subset(query_order)), reference[query_order], **tolerance)


def test_a_store_gives_the_same_scores_and_survives_damage(tmp_path):
    model, train, queries = tiny_unet().float(), images(30, 4), images(3, 4, seed=1)
    curvature = fit_curvature(model, train, CONFIG)
    options = {"measurement": MEASUREMENT, "draws": DRAWS, "damping": 1e-3}
    reference = di.influence(model, curvature, train, queries, **options)
    stored = di.influence(model, curvature, train, queries, store=tmp_path / "s", **options)
    assert torch.equal(stored, reference)
    shard = tmp_path / "s" / "shard-00001.safetensors"
    digest = file_digest(shard)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"shard-00001\.safetensors missing or damaged"):
        again = di.influence(model, curvature, train, queries, store=tmp_path / "s", **options)
    assert torch.equal(again, reference) and file_digest(shard) == digest
    with pytest.raises(ArtifactError, match="another configuration"):
        di.influence(model, curvature, train.subset([0, 1]), queries, store=tmp_path / "s", **options)


def test_one_pass_serves_every_damping_and_both_approximations():
    model, train, queries = conv_denoiser(), images(4, 4), images(2, 4, seed=1)
    curvature = fit_curvature(model, train, CONFIG)
    options = {"measurement": MEASUREMENT, "draws": DRAWS}
    both = di.influence(model, curvature, train, queries, damping=[1e-6, 1e-2], **options)
    for index, damping in enumerate((1e-6, 1e-2)):
        alone = di.influence(model, curvature, train, queries, damping=damping, **options)
        assert_equal_but_for_rounding(both[index], alone)
    kfac = di.influence(model, curvature, train, queries, damping=1e-2, approximation="kfac", **options)
    assert not torch.allclose(kfac, both[1])


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf"), [1e-8, -1e-9], []])
def test_bad_dampings_are_refused_before_any_work(damping):
    with unchecked(), pytest.raises(ConfigurationError, match="damping"):
        di.influence(None, None, None, None, damping=damping)


def test_bad_choices_are_refused_before_any_work(monkeypatch):
    from diffinf_lib.gradients import compute

    model, train = conv_denoiser(), images(2, 4)
    curvature = fit_curvature(model, train, CurvatureConfig("kfac", DrawConfig(4)))
    monkeypatch.setattr(compute, "example_gradient", lambda *_, **__: pytest.fail("work before the refusal"))
    for options, message in [
        ({"approximation": "kfca"}, "approximation='kfca'"),
        ({"approximation": "ekfac"}, "fitted as 'kfac'"),
        ({"measurement": "lose", "approximation": "kfac"}, "measurement='lose'"),
    ]:
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            di.influence(model, curvature, train, train, **options)


def test_a_measurement_may_be_given_by_name():
    model, train = conv_denoiser(), images(2, 4)
    curvature = fit_curvature(model, train, CONFIG)
    named = di.influence(model, curvature, train, train, measurement="loss", draws=DRAWS)
    given = di.influence(model, curvature, train, train, measurement=MeasurementConfig(), draws=DRAWS)
    assert_equal_but_for_rounding(named, given)


def test_a_model_in_training_frozen_or_without_grad_gives_the_same_scores_and_is_left_as_it_was():
    model, train, queries = tiny_unet(), images(3, 4), images(2, 4, seed=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3

    names = coverage(model).names

    def score():
        curvature = fit_curvature(model, train, CONFIG, covers=names)
        return di.influence(model, curvature, train, queries, measurement=MEASUREMENT, draws=DRAWS, damping=1e-3)

    reference = score()
    model.train().requires_grad_(False)
    with torch.no_grad():
        assert_equal_but_for_rounding(score(), reference)
    assert all(module.training for module in model.modules())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def scores_of_one_block(queries, train, eigenvalues):
    """Undamped scores of gradients in the basis of the given eigenvalues."""
    curvature = Curvature({"layer": LayerCurvature(corrected_eigenvalues=eigenvalues)})
    ((_, scores),) = block_scores({"layer": queries}, {"layer": train}, curvature, Inverses([0.0], ["diagonal"]))
    return scores[0]


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_without_damping_rounding_noise_is_not_scored(kind, tolerance):
    """Directions that no gradient has are zero but for rounding; dividing rounding by its own square would swamp scores."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    gradients = (torch.randn(20, 1, 3, generator=generator, dtype=torch.float64) @ basis[:3]).to(kind)
    rotated = gradients @ basis.T.to(kind)  # the last three directions hold rounding only
    eigenvalues = rotated.square().mean(0)
    exact = rotated[..., :3].double()
    expected = (exact[:4] / exact.square().mean(0)).flatten(1) @ exact.flatten(1).T
    scores = scores_of_one_block(rotated[:4], rotated, eigenvalues)
    torch.testing.assert_close(scores, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_no_curvature_and_no_damping_contribute_nothing():
    queries, train = torch.ones(1, 1, 2), torch.ones(1, 1, 2)
    scores = scores_of_one_block(queries, train, torch.tensor([[0.0, 2.0]]))
    assert scores.tolist() == [[0.5]]


def test_gradients_that_are_not_finite_are_named():
    model, train = conv_denoiser(), images(2, 4)
    curvature = fit_curvature(model, train, CONFIG)
    with torch.no_grad():
        model.network.middle.weight[0, 0, 1, 1] = float("nan")
    with pytest.raises(ConfigurationError, match=r"middle.weight: some of the model's weights"):
        di.influence(
            model, curvature, train, train, measurement=MeasurementConfig(draws=DrawConfig(10)), draws=DrawConfig(10)
        )


def test_input_of_the_wrong_kind_is_refused_in_one_line():
    model, train = conv_denoiser(), images(2, 4)
    curvature = fit_curvature(model, train, CONFIG)
    for options, message in [
        ({"draws": 4}, "draws=4: give a DrawConfig"),
        ({"batch_size": 0}, "batch_size=0: give a positive whole number"),
        ({"batch_size": 2.5}, "batch_size=2.5: give a positive whole number"),
        ({"damping": "1e-8"}, "damping='1e-8': give a number >= 0"),
        ({"damping": None}, "damping=None: give a number >= 0"),
        ({"damping": [1e-8, "x"]}, "damping='x': give a number >= 0"),
        ({"measurement": 3}, "measurement=3: give a name, such as 'loss', or a MeasurementConfig"),
        ({"measurement": 0}, "measurement=0: give a name"),
        ({"train_format": "int8"}, r"train_format='int8': give a StoreFormat, such as StoreFormat\('int8'\)"),
        ({"query_format": "int8"}, "query_format='int8': give a StoreFormat"),
        ({"store": 3}, "store=3: give a folder, or None"),
        ({"query_store": 3}, "query_store=3: give a folder, or None"),
        ({"queries": train.images}, "queries: a Tensor is no ImageSet; give di.ImageSet"),
        ({"queries": images(0, 4)}, "queries: there are no images"),
        ({"train": images(0, 4)}, "train: there are no images"),
    ]:
        arguments = {"train": train, "queries": train, "measurement": MEASUREMENT} | options
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            di.influence(model, curvature, **arguments)
    with pytest.raises(ConfigurationError, match="draws=4: give a DrawConfig"):
        CurvatureConfig(draws=4)
    with unchecked(), pytest.raises(ConfigurationError, match="curvature='ekfac': give a CurvatureConfig or None"):
        fit_curvature(model, train, "ekfac")
    with unchecked(), pytest.raises(ConfigurationError, match="images: a Tensor is no ImageSet"):
        fit_curvature(model, train.images)
    with unchecked(), pytest.raises(ConfigurationError, match="store_format='int8': give a StoreFormat"):
        di.gradients_of(model, curvature, train, di.Expectation(DRAWS), store_format="int8")
    with pytest.raises(ConfigurationError, match="count=0: give N"):
        di.self_influence(di.gradients_of(model, curvature, train, di.Expectation(DRAWS)), curvature, count=0)


def test_dampings_are_numbers_of_any_library():
    wanted = [0.5, 0.25]
    for given in (wanted, tuple(wanted), np.array(wanted, dtype=np.float32), torch.tensor(wanted)):
        with unchecked():
            assert check_dampings(given) == wanted
    with unchecked():
        assert check_dampings(np.float32(0.5)) == [0.5]
    assert check_dampings(1) == [1.0]
