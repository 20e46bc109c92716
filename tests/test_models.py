import pytest
import torch

from diffinf_lib.errors import ArtifactError
from diffinf_lib.models import build_unet, count_parameters, load_unet, save_unet
from diffinf_lib.presets import get_preset


@pytest.mark.parametrize(
    ("preset", "parameters", "in_layers"),
    [("digits", 159_697, None), ("cifar2", 38_306_691, 38_278_787), ("artbench10", 37_398_532, None)],
)
def test_presets_build_the_published_sizes(preset, parameters, in_layers):
    with torch.device("meta"):
        model = build_unet(get_preset(preset).unet)
    assert count_parameters(model) == parameters
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert in_layers is None or sum(map(count_parameters, layers)) == in_layers


def test_weights_depend_on_the_seed_only():
    config = get_preset("smoke").unet
    first = build_unet(config, seed=1).state_dict()
    torch.randn(10)
    again, other = build_unet(config, seed=1).state_dict(), build_unet(config, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    build_unet(get_preset("smoke").unet)
    assert torch.equal(torch.randn(3), expected)


def test_a_model_comes_back(tmp_path):
    model = build_unet(get_preset("smoke").unet)
    save_unet(model, tmp_path)
    back = load_unet(tmp_path)
    assert not back.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    assert not list(tmp_path.glob("*.bin"))


def test_truncated_weights_are_refused(tmp_path):
    save_unet(build_unet(get_preset("smoke").unet), tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="damaged"):
        load_unet(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no UNet2DModel"):
        load_unet(tmp_path)
