import pytest
import torch

from diffinf_lib.diffusion import DrawConfig, example_draws, iterate_draws
from diffinf_lib.errors import ConfigurationError

SHAPE = (1, 4, 4)


def test_draws_depend_on_seed_stage_and_id_only():
    config = DrawConfig(8)
    reference = example_draws(5, SHAPE, config, seed=0, stage="a")
    again = example_draws(5, SHAPE, config, seed=0, stage="a")
    assert torch.equal(reference.noise, again.noise) and torch.equal(reference.timesteps, again.timesteps)
    for other in (
        example_draws(6, SHAPE, config, seed=0, stage="a"),
        example_draws(5, SHAPE, config, seed=1, stage="a"),
        example_draws(5, SHAPE, config, seed=0, stage="b"),
    ):
        assert not torch.equal(reference.noise, other.noise)


def test_antithetic_draws_are_pairs_at_one_timestep():
    draws = example_draws(0, SHAPE, DrawConfig(10), seed=0, stage="a")
    assert torch.equal(draws.timesteps[0::2], draws.timesteps[1::2])
    assert torch.equal(draws.noise[0::2], -draws.noise[1::2])


def test_stratified_timesteps_fall_one_in_each_slice():
    draws = example_draws(3, SHAPE, DrawConfig(50, noise="independent"), seed=0, stage="a")
    assert torch.equal(draws.timesteps // 20, torch.arange(50))


def test_stratified_and_uniform_timesteps_are_uniform_over_examples():
    for rule in ("stratified", "uniform"):
        config = DrawConfig(4, timesteps=rule, noise="independent")
        steps = torch.cat([example_draws(i, (1, 1, 1), config, seed=0, stage="a").timesteps for i in range(2000)])
        counts = torch.bincount(steps // 100, minlength=10)
        # 8,000 draws in ten bins: standard deviation of a bin is below 27
        assert (counts - 800).abs().max() < 120, rule
        assert steps.min() >= 0 and steps.max() <= 999


def test_grid_is_the_same_for_every_example():
    config = DrawConfig(10, timesteps="grid", noise="independent")
    steps = [example_draws(i, SHAPE, config, seed=i, stage="a").timesteps for i in range(3)]
    assert torch.equal(steps[0], steps[1]) and torch.equal(steps[0], torch.arange(50, 1000, 100))
    assert not torch.equal(
        example_draws(0, SHAPE, config, seed=0, stage="a").noise,
        example_draws(1, SHAPE, config, seed=0, stage="a").noise,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 6, 7, 24, 100])
def test_batches_hold_every_draw_in_order(batch_size):
    config, ids = DrawConfig(6), torch.tensor([9, 2, 5, 4])
    images = torch.randn(4, *SHAPE)
    batches = list(iterate_draws(images, ids, config, seed=1, stage="a", batch_size=batch_size))
    expected = [example_draws(int(i), SHAPE, config, seed=1, stage="a") for i in ids]
    assert torch.equal(torch.cat([b.noise for b in batches]), torch.cat([d.noise for d in expected]))
    assert torch.equal(torch.cat([b.timesteps for b in batches]), torch.cat([d.timesteps for d in expected]))
    example = torch.cat([b.example for b in batches])
    assert torch.equal(example, torch.arange(4).repeat_interleave(6))
    assert torch.equal(torch.cat([b.images for b in batches]), images[example])


@pytest.mark.parametrize(
    "arguments", [{"count": 0}, {"count": -2}, {"count": 7}, {"timesteps": "sorted"}, {"noise": "no"}]
)
def test_bad_configurations_are_refused(arguments):
    with pytest.raises(ConfigurationError):
        DrawConfig(**arguments)
