from dataclasses import replace

import pytest
import torch
from annotations import unchecked
from cases import assert_equal_but_for_rounding

from diffinf_lib.configuration import DrawConfig, MeasurementConfig, Process
from diffinf_lib.data import load_dataset
from diffinf_lib.diffusion import example_draws, per_draw_loss
from diffinf_lib.diffusion.reverse import posterior_variance, reverse_mean
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.measurements import measure, measure_all, measure_many
from diffinf_lib.models import build_model
from diffinf_lib.presets import get_preset
from diffinf_lib.sampling import sample, sample_trajectories

PRESET = get_preset("smoke")
QUERIES = load_dataset(PRESET.dataset).queries
CONFIG = MeasurementConfig(draws=DrawConfig(16))


def test_the_measurement_is_the_mean_loss_over_the_query_s_own_draws():
    model = build_model(PRESET.unet).double()
    queries = type(QUERIES)(QUERIES.images.double(), QUERIES.labels, QUERIES.ids)
    draws = example_draws(
        int(queries.ids[2]), queries.shape, CONFIG.draws, seed=3, purpose="measurement", process=Process()
    )
    image = queries.images[2].expand(16, -1, -1, -1)
    expected = per_draw_loss(model, image, draws.timesteps, draws.noise.double()).mean()
    actual = measure(model, queries, CONFIG, seed=3)
    torch.testing.assert_close(actual[2], expected.detach(), rtol=1e-12, atol=0)


def test_values_do_not_depend_on_the_company_or_the_batch():
    model = build_model(PRESET.unet)
    together = measure(model, QUERIES, CONFIG)
    order = torch.tensor([3, 1])
    torch.testing.assert_close(measure(model, QUERIES.subset(order), CONFIG), together[order], rtol=1e-5, atol=0)
    torch.testing.assert_close(measure(model, QUERIES, CONFIG, batch_size=5), together, rtol=1e-5, atol=0)


def test_models_share_their_draws():
    """With the same draws, the difference of two close models is far smaller than between seeds of the draws."""
    model = build_model(PRESET.unet)
    other = build_model(PRESET.unet)
    with torch.no_grad():
        next(other.parameters()).add_(1e-4)
    same = (measure(model, QUERIES, CONFIG) - measure(other, QUERIES, CONFIG)).abs().mean()
    across = (measure(model, QUERIES, CONFIG) - measure(model, QUERIES, CONFIG, seed=1)).abs().mean()
    assert 0 < same < 0.05 * across


def test_an_unknown_measurement_is_refused():
    with pytest.raises(ConfigurationError, match="measurement='likes'"):
        MeasurementConfig(name="likes")


def test_the_loss_at_a_time_takes_every_draw_there():
    model = build_model(PRESET.unet)
    config = MeasurementConfig("loss_at_time", draws=DrawConfig(16), timestep=300)
    draws = example_draws(
        int(QUERIES.ids[1]), QUERIES.shape, config.expectation().draws, seed=0, purpose="measurement", process=Process()
    )
    assert (draws.timesteps == 300).all() and (draws.draw_weights == 1).all()
    with torch.no_grad():
        expected = per_draw_loss(model, QUERIES.images[1].expand(16, -1, -1, -1), draws.timesteps, draws.noise).mean()
    torch.testing.assert_close(measure(model, QUERIES, config)[1], expected.double(), rtol=1e-5, atol=0)


def test_weights_cut_the_loss_into_parts_that_add_up():
    model = build_model(PRESET.unet)
    halves = [
        MeasurementConfig("weighted_loss", draws=DrawConfig(64), loss_weights=w) for w in ((1.0, 0.0), (0.0, 1.0))
    ]
    early, late, whole = measure_all(model, QUERIES, [*halves, MeasurementConfig(draws=DrawConfig(64))])
    torch.testing.assert_close(early + late, whole)
    assert (early != 0).all() and (late != 0).all()


def test_rules_of_drawing_agree_on_the_simplified_elbo():
    """Uneven draws with their weights estimate what uniform ones do, with far less spread."""
    model = build_model(PRESET.unet)

    def estimates(rule):
        config = MeasurementConfig("simplified_elbo", draws=DrawConfig(256, timestep_rule=rule))
        return torch.stack([measure(model, QUERIES, config, seed=seed) for seed in range(12)])

    uneven, even = estimates("elbo"), estimates("stratified")
    spread = even.std(0) / 12**0.5
    assert ((uneven.mean(0) - even.mean(0)).abs() < 5 * spread).all()
    assert uneven.std(0).mean() < 0.5 * even.std(0).mean()


def test_several_measurements_are_those_taken_one_by_one():
    model = build_model(PRESET.unet)
    uneven = DrawConfig(16, timestep_rule="elbo")
    configs = [CONFIG, MeasurementConfig("elbo", draws=uneven, levels=17), MeasurementConfig("square_norm", draws=CONFIG.draws),
               MeasurementConfig("simplified_elbo", draws=uneven)]  # fmt: skip
    together = measure_all(model, QUERIES, configs)
    for row, config in zip(together, configs, strict=True):
        assert_equal_but_for_rounding(row, measure(model, QUERIES, config))


def test_the_trajectory_s_log_probability_is_the_sum_over_its_steps():
    process = Process(num_train_timesteps=12, beta_end=0.2)
    model = build_model(PRESET.unet, process)
    samples = sample_trajectories(model, 3, QUERIES.shape)
    torch.testing.assert_close(samples.images, sample(model, 3, QUERIES.shape, steps=12))
    config = MeasurementConfig(
        "trajectory_log_prob", draws=DrawConfig(12, timestep_rule="grid", noise_rule="independent")
    )
    actual = measure(model, samples, config)
    total = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for place, t in enumerate(range(11, -1, -1)):
            state, step = samples.states[:, place], torch.full((3,), t)
            mean = reverse_mean(state, model(state, step), step, process, clip=True)
            normal = torch.distributions.Normal(mean.double(), posterior_variance(process)[t].sqrt())
            total += normal.log_prob(samples.states[:, place + 1].double()).flatten(1).sum(1)
    expected = total / 12 / QUERIES.images[0].numel() / torch.tensor(2.0).log()
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_directions_and_refusals():
    assert MeasurementConfig("elbo").direction == "more likely"
    assert MeasurementConfig("square_norm").direction == "neither"
    assert MeasurementConfig("loss").direction == "less likely"
    for options, message in [
        ({"name": "loss_at_time"}, "timestep=None"),
        ({"name": "loss", "timestep": 3}, "timestep=3"),
        ({"name": "weighted_loss"}, "loss_weights=None"),
        ({"name": "loss", "dequantised": True}, "dequantised=True"),
        ({"name": "elbo", "levels": 1}, "levels=1"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            MeasurementConfig(**options)
    with pytest.raises(ConfigurationError, match="evaluation only"):
        _ = MeasurementConfig("log_likelihood").objective
    with pytest.raises(ConfigurationError, match="timestep=1000: give a number from 0 to 999"):
        measure(build_model(PRESET.unet), QUERIES, MeasurementConfig("loss_at_time", timestep=1000))
    with pytest.raises(ConfigurationError, match="give Trajectories"):
        measure(build_model(PRESET.unet), QUERIES, "trajectory_log_prob")


def test_what_is_none_of_its_kind_is_refused_in_one_line():
    model = build_model(PRESET.unet)
    for given, options, message in [
        (QUERIES.images, {}, "images: a Tensor is no ImageSet; give di.ImageSet"),
        (QUERIES, {"config": 7}, "measurement=7: give a name, such as 'loss', or a MeasurementConfig"),
        (QUERIES, {"config": "lost"}, "measurement='lost': give loss, "),
        (QUERIES, {"batch_size": "a"}, "batch_size='a': give a positive whole number"),
    ]:
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            measure(model, given, **options)
    with unchecked(), pytest.raises(ConfigurationError, match="measurement=7"):
        measure_all(model, QUERIES, [CONFIG, 7])


def test_several_models_measure_as_each_does_alone():
    """Exactly where they take turns, to rounding where they are stacked, dropout off in both."""
    models = [build_model(replace(PRESET.unet, dropout=0.2), seed=seed).double() for seed in (0, 1)]
    configs = [CONFIG, MeasurementConfig("elbo", draws=DrawConfig(4), levels=17), PRESET.further_measurements[-1]]
    alone = torch.stack([measure_all(model, QUERIES, configs) for model in models])
    assert torch.equal(measure_many(models[::-1], QUERIES, configs, stacked=False), alone.flip(0))
    stacked = measure_many(models, QUERIES, configs[:2], stacked=True)
    torch.testing.assert_close(stacked, alone[:, :2], rtol=1e-9, atol=0)
    with pytest.raises(ConfigurationError, match="models that are computed together are of one network"):
        measure_many([models[0], build_model(PRESET.unet)], QUERIES, configs)
