from dataclasses import replace
from functools import partial

import pytest
import torch

from diffinf_lib.configuration import DrawConfig, Process
from diffinf_lib.diffusion import draws as rules
from diffinf_lib.errors import ConfigurationError

SHAPE = (1, 4, 4)
example_draws, iterate_draws, timestep_probabilities = (
    partial(function, process=Process())
    for function in (rules.example_draws, rules.iterate_draws, rules.timestep_probabilities)
)
PROPOSAL = (8.0, 4.0, 2.0, 1.0, 1.0)
TIMESTEPS = [7, 7, 14, 14, 21, 21, 25, 25, 33, 33, 43, 43]
NOISE = [-0.4434370, 0.0289107, 0.7885806, -0.4648830]
IMPORTANCE = DrawConfig(20, timestep_rule="importance", proposal=PROPOSAL)


def test_draws_depend_on_seed_stage_and_id_only():
    config = DrawConfig(8)
    reference = example_draws(5, SHAPE, config, seed=0, purpose="a")
    again = example_draws(5, SHAPE, config, seed=0, purpose="a")
    assert torch.equal(reference.noise, again.noise) and torch.equal(reference.timesteps, again.timesteps)
    for other in (
        example_draws(6, SHAPE, config, seed=0, purpose="a"),
        example_draws(5, SHAPE, config, seed=1, purpose="a"),
        example_draws(5, SHAPE, config, seed=0, purpose="b"),
    ):
        assert not torch.equal(reference.noise, other.noise)


def test_antithetic_draws_are_pairs_at_one_timestep():
    draws = example_draws(0, SHAPE, DrawConfig(10), seed=0, purpose="a")
    assert torch.equal(draws.timesteps[0::2], draws.timesteps[1::2])
    assert torch.equal(draws.noise[0::2], -draws.noise[1::2])


def test_stratified_timesteps_fall_one_in_each_slice():
    draws = example_draws(3, SHAPE, DrawConfig(50, noise_rule="independent"), seed=0, purpose="a")
    assert torch.equal(draws.timesteps // 20, torch.arange(50))


def test_stratified_and_uniform_timesteps_are_uniform_over_examples():
    for rule in ("stratified", "uniform"):
        config = DrawConfig(4, timestep_rule=rule, noise_rule="independent")
        steps = torch.cat([example_draws(i, (1, 1, 1), config, seed=0, purpose="a").timesteps for i in range(2000)])
        counts = torch.bincount(steps // 100, minlength=10)
        # 8,000 draws in ten bins: standard deviation of a bin is below 27
        assert (counts - 800).abs().max() < 120, rule
        assert steps.min() >= 0 and steps.max() <= 999


def test_grid_is_the_same_for_every_example():
    config = DrawConfig(10, timestep_rule="grid", noise_rule="independent")
    steps = [example_draws(i, SHAPE, config, seed=i, purpose="a").timesteps for i in range(3)]
    assert torch.equal(steps[0], steps[1]) and torch.equal(steps[0], torch.arange(50, 1000, 100))
    assert not torch.equal(
        example_draws(0, SHAPE, config, seed=0, purpose="a").noise,
        example_draws(1, SHAPE, config, seed=0, purpose="a").noise,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 6, 7, 24, 100])
@pytest.mark.parametrize("config", [DrawConfig(6), replace(IMPORTANCE, count=6), DrawConfig(6, shared=True)])
def test_batches_hold_every_draw_in_order(batch_size, config):
    ids = torch.tensor([9, 2, 5, 4])
    images = torch.randn(4, *SHAPE)
    batches = list(iterate_draws(images, ids, config, seed=1, purpose="a", batch_size=batch_size))
    expected = [example_draws(int(i), SHAPE, config, seed=1, purpose="a") for i in ids]
    assert torch.equal(torch.cat([b.noise for b in batches]), torch.cat([d.noise for d in expected]))
    assert torch.equal(torch.cat([b.timesteps for b in batches]), torch.cat([d.timesteps for d in expected]))
    assert torch.equal(torch.cat([b.draw_weights for b in batches]), torch.cat([d.draw_weights for d in expected]))
    example = torch.cat([b.example for b in batches])
    assert torch.equal(example, torch.arange(4).repeat_interleave(6))
    assert torch.equal(torch.cat([b.images for b in batches]), images[example])


def test_timesteps_and_noise_of_the_shipped_ground_truth_never_change():
    draws = example_draws(0, SHAPE, DrawConfig(256), seed=0, purpose="measurement")
    assert draws.timesteps[:12].tolist() == TIMESTEPS
    torch.testing.assert_close(draws.noise[0, 0, 0].double(), torch.tensor(NOISE).double(), rtol=0, atol=1e-6)
    assert torch.equal(draws.draw_weights, torch.ones(256))


@pytest.mark.parametrize("slices", [1, 3, 5, 16, 37])
@pytest.mark.parametrize("total", [10, 1000])
def test_timestep_probabilities_are_the_integral_of_the_density(slices, total):
    heights = torch.linspace(1, 3, slices, dtype=torch.float64).tolist()
    found = rules.timestep_probabilities(
        DrawConfig(timestep_rule="importance", proposal=tuple(heights)), Process(num_train_timesteps=total)
    )
    # Midpoint rule on a grid that both the slices and the timesteps divide
    fine = torch.tensor(heights, dtype=torch.float64).repeat_interleave(total)
    expected = fine.view(total, slices).sum(1) / fine.sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_importance_draws_timesteps_in_proportion_to_the_proposal():
    steps = torch.cat([example_draws(i, (1, 1, 1), IMPORTANCE, seed=0, purpose="a").timesteps for i in range(1000)])
    counts = torch.bincount(steps // 200, minlength=5)
    # Twenty draws are ten pairs, one in each tenth of the CDF: (5, 2.5, 1.25, 0.625, 0.625) pairs a slice
    assert (counts - 2000 * torch.tensor([5.0, 2.5, 1.25, 0.625, 0.625])).abs().max() < 150
    assert steps.min() == 0 and steps.max() == 999


def test_weights_make_importance_sampling_unbiased():
    """The exact mean of a function over all timesteps, against the weighted mean of draws and that without weights."""
    steps = torch.arange(1000, dtype=torch.float64)
    value = 1 + (-steps / 100).exp() * 20 + steps / 500
    exact = value.mean()
    config = DrawConfig(6, timestep_rule="importance", proposal=PROPOSAL)
    draws = [example_draws(i, (1, 1, 1), config, seed=0, purpose="a") for i in range(3000)]
    weighted = torch.stack([(d.draw_weights.double() * value[d.timesteps]).mean() for d in draws])
    plain = torch.stack([value[d.timesteps].mean() for d in draws])
    error = weighted.std() / len(draws) ** 0.5
    assert (weighted.mean() - exact).abs() < 4 * error
    assert (plain.mean() - exact).abs() > 40 * error
    mean_weight = torch.stack([d.draw_weights.double().mean() for d in draws])
    assert (mean_weight.mean() - 1).abs() < 4 * mean_weight.std() / len(draws) ** 0.5


def test_importance_has_less_variance_than_stratified_for_its_integrand():
    """A zero-mean noise whose size falls with t as the proposal does: the optimal proposal is its standard deviation."""
    size = torch.tensor(PROPOSAL, dtype=torch.float64).repeat_interleave(200)

    def variance(config):
        draws = [example_draws(i, (1, 1, 1), config, seed=0, purpose="a") for i in range(4000)]
        values = [(d.draw_weights.double() * size[d.timesteps] * d.noise.double().flatten()).mean() for d in draws]
        return torch.stack(values).square().mean()

    plain = DrawConfig(8, noise_rule="independent")
    ratio = variance(replace(plain, timestep_rule="importance", proposal=PROPOSAL)) / variance(plain)
    expected = size.mean() ** 2 / size.square().mean()
    assert expected < 0.6 and (ratio / expected - 1).abs() < 0.1


@pytest.mark.parametrize("total", [10, 1000])
def test_signal_draws_timesteps_where_something_is_left_of_the_image(total):
    process, config = Process(num_train_timesteps=total), DrawConfig(timestep_rule="signal")
    found = timestep_probabilities(config, process=process)
    left = process.alphas_cumprod.double()
    torch.testing.assert_close(found, 0.9 * left / left.sum() + 0.1 / total)
    draws = [example_draws(i, (1, 1, 1), config, seed=0, purpose="a", process=process) for i in range(100)]
    steps, weights = torch.cat([d.timesteps for d in draws]), torch.cat([d.draw_weights for d in draws])
    torch.testing.assert_close(weights.double(), 1 / (total * found[steps]), rtol=1e-6, atol=0)
    assert weights.max() <= 10
    share = torch.bincount(steps, minlength=total).double() / len(steps)
    # Of 12,500 pairs only the 100 of one slice can fall on either side of a timestep: standard deviation below 0.0004
    assert (share.cumsum(0) - found.cumsum(0)).abs().max() < 0.002


def test_a_flat_proposal_is_stratified_sampling():
    flat = DrawConfig(50, timestep_rule="importance", noise_rule="independent", proposal=(3.0, 3.0))
    draws = example_draws(3, SHAPE, flat, seed=0, purpose="a")
    assert torch.equal(draws.timesteps // 20, torch.arange(50))
    torch.testing.assert_close(draws.draw_weights, torch.ones(50))


def test_importance_follows_the_length_of_the_schedule():
    draws = example_draws(0, SHAPE, IMPORTANCE, seed=0, purpose="a", process=Process(num_train_timesteps=10))
    assert draws.timesteps.max() <= 9
    assert draws.draw_weights[draws.timesteps < 2].unique().item() == pytest.approx(16 / 5 / 8)


def test_shared_draws_are_the_same_for_every_example():
    config = DrawConfig(6, shared=True)
    reference = example_draws(1, SHAPE, config, seed=0, purpose="a")
    assert all(map(torch.equal, reference, example_draws(2, SHAPE, config, seed=0, purpose="a")))
    for other in (
        example_draws(1, SHAPE, config, seed=1, purpose="a"),
        example_draws(1, SHAPE, config, seed=0, purpose="b"),
        example_draws(1, SHAPE, replace(config, shared=False), seed=0, purpose="a"),
    ):
        assert not torch.equal(reference.noise, other.noise)


def test_shared_draws_keep_what_examples_have_in_common_out_of_their_differences():
    """Losses of a network that returns its input: (√ᾱ x + (√(1 − ᾱ) − 1) ε)², alike for examples close to each other."""
    pixels = torch.tensor([0.5, 0.6], dtype=torch.float64).view(2, 1, 1, 1)

    def losses(config, seed):
        ids = torch.tensor([0, 1])
        (batch,) = iterate_draws(pixels, ids, config, seed=seed, purpose="a", batch_size=16)
        each = (batch.target - batch.state).square().flatten(1).mean(1)
        return torch.zeros(2, dtype=torch.float64).index_add(0, batch.example, each) / config.count

    own, shared = (torch.stack([losses(DrawConfig(8, shared=s), seed) for seed in range(1500)]) for s in (False, True))
    torch.testing.assert_close(own.mean(0), shared.mean(0), rtol=0.1, atol=0)
    torch.testing.assert_close(own.var(0), shared.var(0), rtol=0.25, atol=0)
    assert shared.diff(dim=1).var() < own.diff(dim=1).var() / 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 0}, "draws=0"),
        ({"count": -2}, "draws=-2"),
        ({"count": 7}, "draws=7"),
        ({"timestep_rule": "sorted"}, "timestep_rule='sorted'"),
        ({"noise_rule": "no"}, "noise_rule='no'"),
        ({"timestep_rule": "importance"}, "proposal=None"),
        ({"proposal": (1.0,)}, "timestep_rule='stratified'"),
        *(
            ({"timestep_rule": "importance", "proposal": proposal}, "proposal=.*positive")
            for proposal in ((), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (float("inf"), 1.0), "1,2")
        ),
    ],
)
def test_bad_configurations_are_refused(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        DrawConfig(**arguments)


def test_the_elbo_s_weights_of_noise_that_says_nothing_are_refused():
    with pytest.raises(ConfigurationError, match="such a model is trained with target='v'"):
        timestep_probabilities(DrawConfig(timestep_rule="elbo"), process=Process(zero_terminal_snr=True))
