import pytest
import torch

from diffinf_lib.data import load_dataset
from diffinf_lib.diffusion import DrawConfig, example_draws, per_draw_loss
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.measurements import MeasurementConfig, measure
from diffinf_lib.models import build_unet
from diffinf_lib.presets import get_preset

PRESET = get_preset("smoke")
QUERIES = load_dataset(PRESET.dataset).queries
CONFIG = MeasurementConfig(draws=DrawConfig(16))


def test_the_measurement_is_the_mean_loss_over_the_query_s_own_draws():
    model = build_unet(PRESET.unet).double()
    queries = type(QUERIES)(QUERIES.images.double(), QUERIES.labels, QUERIES.ids)
    draws = example_draws(int(queries.ids[2]), queries.shape, CONFIG.draws, seed=3, stage="measurement")
    image = queries.images[2].expand(16, -1, -1, -1)
    expected = per_draw_loss(model, image, draws.timesteps, draws.noise.double()).mean()
    actual = measure(model, queries, CONFIG, seed=3)
    torch.testing.assert_close(actual[2], expected.detach(), rtol=1e-12, atol=0)


def test_values_do_not_depend_on_the_company_or_the_batch():
    model = build_unet(PRESET.unet)
    together = measure(model, QUERIES, CONFIG)
    order = torch.tensor([3, 1])
    torch.testing.assert_close(measure(model, QUERIES.subset(order), CONFIG), together[order], rtol=1e-5, atol=0)
    torch.testing.assert_close(measure(model, QUERIES, CONFIG, batch_size=5), together, rtol=1e-5, atol=0)


def test_models_share_their_draws():
    """With the same draws, the difference of two close models is far smaller than between seeds of the draws."""
    model = build_unet(PRESET.unet)
    other = build_unet(PRESET.unet)
    with torch.no_grad():
        next(other.parameters()).add_(1e-4)
    same = (measure(model, QUERIES, CONFIG) - measure(other, QUERIES, CONFIG)).abs().mean()
    across = (measure(model, QUERIES, CONFIG) - measure(model, QUERIES, CONFIG, seed=1)).abs().mean()
    assert 0 < same < 0.05 * across


def test_an_unknown_measurement_is_refused():
    with pytest.raises(ConfigurationError, match="measurement='likes'"):
        MeasurementConfig(name="likes")
