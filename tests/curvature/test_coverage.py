"""Only covered parameters count: scores are those of float64 autograd over these, by dense algebra."""

import peft
import pytest
import torch
from cases import (
    by_definition,
    conv_denoiser,
    dense_blocks,
    draw_batch,
    images,
    linear_denoiser,
    same_draws_for_both_passes,
    tiny_unet,
)
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.utils import parametrizations

import diffinf_lib as di
from diffinf_lib.attribution import iterative
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Expectation, MeasurementConfig, Process
from diffinf_lib.curvature import (
    Curvature,
    curvature_layers,
    fit_curvature,
    fit_with_curvlinops,
    ggn_operator,
    hessian_operator,
    to_dense,
)
from diffinf_lib.curvature.exact import dense_ggn, dense_hessian
from diffinf_lib.diffusion import Denoiser, per_draw_loss
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import gradients_of

DRAWS = DrawConfig(4)
MEASUREMENT = MeasurementConfig(draws=DrawConfig(6))


def trainable(model):
    """The trainable weights and biases of Conv2d and Linear by name, in the model's order."""
    kinds = (nn.Conv2d, nn.Linear)
    return {
        f"{name}.{part}": getattr(module, part)
        for name, module in model.network.named_modules()
        if isinstance(module, kinds)
        for part in ("weight", "bias")
        if part in dict(module.named_parameters(recurse=False)) and getattr(module, part).requires_grad
    }


def as_rows(parts):
    """Gradients by parameter as one flat vector, a layer's bias as the last column of its matrix."""
    layers = {}
    for name, gradient in parts.items():
        layer, _, part = name.rpartition(".")
        layers.setdefault(layer, []).append(gradient.flatten(1) if part == "weight" else gradient.unsqueeze(1))
    return torch.cat([torch.cat(columns, dim=1).flatten() for columns in layers.values()])


def brute_gradients(model, data, draws, purpose):
    """∇ of each image's mean loss by autograd over what is trainable, `[n, P]`."""
    rows, wanted = [], trainable(model)
    for position in range(len(data)):
        batch = draw_batch(data.subset([position]), draws, purpose=purpose)
        loss = per_draw_loss(model, batch.images, batch.timesteps, batch.noise).mean()
        gradients = torch.autograd.grad(loss, list(wanted.values()), materialize_grads=True)
        rows.append(as_rows(dict(zip(wanted, gradients, strict=True))))
    return torch.stack(rows)


def brute_ggn(model, batch):
    """(2/C) E[JᵀJ] over what is trainable, by forward and backward mode of torch.func."""
    wanted, state = trainable(model), batch.state

    def outputs(parameters):
        found = functional_call(model.network, parameters, (state, batch.timesteps))
        return (found if isinstance(found, torch.Tensor) else found.sample).flatten()

    jacobian = jacrev(outputs)(wanted)
    stacked = torch.stack([as_rows({n: jacobian[n][row] for n in wanted}) for row in range(state.numel())])
    return stacked.T @ stacked * 2 / state[0].numel() / len(state)


def half_frozen_unet():
    model = tiny_unet(attention=True)
    for index, module in enumerate(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
        module.weight.requires_grad_(index % 3 != 0)
        if module.bias is not None:
            module.bias.requires_grad_(index % 2 == 0)
    return model


def lora_unet():
    """A UNet with adapters on its attention and on some convolutions, trained a little: B is not zero."""
    model = tiny_unet(attention=True)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "conv1"], init_lora_weights=False)
    torch.manual_seed(0)
    return Denoiser(peft.inject_adapter_in_model(config, model.network), Process()).double().eval()


CASES = [(half_frozen_unet, 4), (lora_unet, 4)]


@pytest.mark.parametrize(("make", "side"), CASES)
@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize("approximation", ["ekfac", "kfac"])
def test_scores_are_those_of_the_trainable_parameters(make, side, bias, approximation):
    """Gradients by autograd over these; the curvature a block each; nothing of a frozen parameter."""
    model, train, queries = make(), images(4, side), images(2, side, seed=1)
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DRAWS, bias=bias))
    scores = di.influence(
        model,
        curvature,
        train,
        queries,
        measurement=MEASUREMENT,
        draws=DRAWS,
        damping=1e-3,
        approximation=approximation,
    )
    measured = brute_gradients(model, queries, MEASUREMENT.draws, "measurement")
    losses = brute_gradients(model, train, DRAWS, "train-gradients")
    assert sum(layer.shape[0] * layer.shape[1] for layer in curvature.layers.values()) == losses.shape[1]
    dense, matrices = torch.zeros(losses.shape[1], losses.shape[1], dtype=torch.float64), places(model)
    for name, block in curvature.blocks(model).items():
        index = block.of(matrices[block.layer_name]).flatten()
        dense[index[:, None], index] = curvature.layers[name].block(approximation)
    inverse = torch.linalg.inv(dense + 1e-3 * torch.eye(len(dense), dtype=torch.float64))
    torch.testing.assert_close(scores, measured @ inverse @ losses.T / 4, rtol=1e-7, atol=1e-13)


def layer_shapes(model):
    shapes = {}
    for name, parameter in trainable(model).items():
        layer, _, part = name.rpartition(".")
        rows, columns = shapes.get(layer, (len(parameter), 0))
        shapes[layer] = (rows, columns + (parameter[0].numel() if part == "weight" else 1))
    return shapes


def places(model):
    """Where each entry of a layer's matrix stands among all."""
    shapes = layer_shapes(model)
    parts = torch.arange(sum(o * i for o, i in shapes.values())).split([o * i for o, i in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("approximation", ["ekfac", "kfac"])
def test_one_part_of_a_linear_layer_has_its_exact_curvature(part, approximation, monkeypatch):
    """EK-FAC is exact in a linear denoiser, whether its weight or only its bias is trained."""
    same_draws_for_both_passes(monkeypatch)
    model, train = linear_denoiser(), images(5, 2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(part))
    curvature = fit_curvature(model, train, by_definition(DRAWS))
    expected = brute_ggn(model, draw_batch(train, DRAWS, purpose="x"))
    ((_, layer),) = curvature.layers.items()
    torch.testing.assert_close(layer.block(approximation), expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("make", "side"), [(conv_denoiser, 4), *CASES])
def test_dense_matrices_and_operators_are_over_the_trainable_parameters(make, side):
    model, batch = make(), draw_batch(images(1, side), DrawConfig(2), purpose="x")
    if make is conv_denoiser:
        model.network.down.weight.requires_grad_(False)
    expected = brute_ggn(model, batch)
    torch.testing.assert_close(dense_ggn(model, batch), expected, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(to_dense(ggn_operator(model, batch)), expected, rtol=1e-8, atol=1e-12)
    if make is conv_denoiser:
        hessian = dense_hessian(model, batch)
        torch.testing.assert_close(to_dense(hessian_operator(model, batch)), hessian, rtol=1e-8, atol=1e-12)
    assert list(dense_blocks(model, batch)) == list(layer_shapes(model))


def test_solving_is_with_the_ggn_of_what_the_curvature_covers():
    """Fitted to the adapters; a base that is thawed afterwards does not enter."""
    model, train, queries = lora_unet(), images(2, 4), images(1, 4, seed=1)
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DRAWS))
    measured = brute_gradients(model, queries, MEASUREMENT.draws, "measurement")
    losses = brute_gradients(model, train, DRAWS, "train-gradients")
    ggn = brute_ggn(model, draw_batch(train, DrawConfig(2), purpose="ggn"))
    inverse = torch.linalg.inv(ggn + 0.1 * torch.eye(len(ggn), dtype=torch.float64))
    model.requires_grad_(True)
    operator = iterative.training_ggn(model, train, DrawConfig(2), covers=curvature.covers)
    asked = gradients_of(model, curvature, queries, MEASUREMENT.expectation())
    solved, _ = iterative.solved_queries(
        model, curvature, operator, asked, damping=0.1, tolerance=1e-8, max_iterations=60
    )
    (scores,) = iterative.solved_scores([solved], gradients_of(model, curvature, train, Expectation(DRAWS)))
    torch.testing.assert_close(scores, measured @ inverse @ losses.T / 2, rtol=1e-6, atol=1e-11)


def test_self_influence_of_adapters_is_that_of_their_gradients():
    model, train = lora_unet(), images(3, 4)
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DRAWS))
    alone = di.self_influence(gradients_of(model, curvature, train, Expectation(DRAWS)), curvature, damping=1e-3)
    losses = brute_gradients(model, train, DRAWS, "train-gradients")
    dense = torch.block_diag(*(layer.block("ekfac") for layer in curvature.layers.values()))
    inverse = torch.linalg.inv(dense + 1e-3 * torch.eye(len(dense), dtype=torch.float64))
    torch.testing.assert_close(alone[0], (losses @ inverse * losses).sum(1) / 3, rtol=1e-7, atol=1e-13)


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize("make", [half_frozen_unet, lora_unet])
def test_curvlinops_covers_the_same(make, bias):
    """Weight alone, bias alone or neither: the other implementation finds the same factors and the right diagonal."""
    model, data = make(), images(2, 4)
    ours, theirs = (fit(model, data, by_definition(DRAWS, bias=bias)) for fit in (fit_curvature, fit_with_curvlinops))
    assert ours.covered == theirs.covered and list(ours.layers) == list(theirs.layers)
    dense = brute_ggn(model, draw_batch(data, DRAWS, purpose="corrections"))
    matrices, largest = places(model), float(dense.diagonal().max())
    for name, block in theirs.blocks(model).items():
        mine, other = ours.layers[name], theirs.layers[name]
        torch.testing.assert_close(other.kfac_eigenvalues, mine.kfac_eigenvalues, rtol=1e-7, atol=1e-10 * largest)
        index = block.of(matrices[block.layer_name]).flatten()
        basis = torch.kron(other.output_eigenvectors, other.input_eigenvectors)
        diagonal = (basis * (dense[index[:, None], index] @ basis)).sum(0).view(other.shape)
        torch.testing.assert_close(other.corrected_eigenvalues, diagonal, rtol=0, atol=1e-8 * largest)


def test_what_is_covered_is_kept_in_the_file_and_followed(tmp_path):
    """A rule given once to the fit decides for gradients and scores, whatever is trainable in the model they meet."""
    model, train, queries = tiny_unet(attention=True), images(3, 4), images(2, 4, seed=1)
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DRAWS), covers=lambda name, _: ".to_" in name)
    assert curvature.covered == tuple(name for name in trainable(model) if ".to_" in name)
    curvature.save(tmp_path / "curvature.safetensors")
    back = Curvature.load(tmp_path / "curvature.safetensors")
    assert (
        back.covered == curvature.covered and back.left_out == curvature.left_out and "conv_in.weight" in back.left_out
    )

    def scores(curvature):
        return di.influence(model, curvature, train, queries, measurement=MEASUREMENT, draws=DRAWS, damping=1e-3)

    found = scores(back)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".to_" in name)
    by_flags = fit_curvature(model, train, CurvatureConfig(draws=DRAWS))
    assert by_flags.covered == curvature.covered
    torch.testing.assert_close(scores(by_flags), found, rtol=1e-10, atol=1e-16)
    names = fit_curvature(model, train, CurvatureConfig(draws=DRAWS), covers=curvature.covered)
    assert names.digest == by_flags.digest


def test_another_fit_of_other_parameters_is_another_configuration(tmp_path):
    model, data = conv_denoiser(), images(2, 4)
    fit_curvature(model, data, CurvatureConfig(draws=DRAWS), out=tmp_path)
    model.network.down.requires_grad_(False)
    with pytest.raises(di.errors.ArtifactError, match="covered"):
        fit_curvature(model, data, CurvatureConfig(draws=DRAWS), out=tmp_path)


def test_what_it_holds_is_said_in_a_few_lines():
    model = tiny_unet().float()
    text = repr(fit_curvature(model, images(2, 4), CurvatureConfig(draws=DRAWS)))
    assert text == str(fit_curvature(model, images(2, 4), CurvatureConfig(draws=DRAWS)))
    assert len(text.splitlines()) == 3 and max(map(len, text.splitlines())) < 160
    for part in (
        "ekfac of",
        "bias joint",
        "float32",
        "MB",
        "covers 2,615 weights",
        "conv_in.weight",
        "leaves out",
        "norm1",
    ):
        assert part in text, (part, text)


class WithClasses(nn.Module):
    """A convolution on images to which an embedding of one class is added."""

    def __init__(self):
        super().__init__()
        self.conv, self.classes = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(3, 16)

    def forward(self, noisy, timesteps):
        return self.conv(noisy + self.classes(timesteps % 3).view(-1, 1, 4, 4))


def test_an_embedding_is_left_out_and_named_once(recwarn):
    model, train = Denoiser(WithClasses(), Process()).double(), images(3, 4)
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DRAWS))
    di.influence(model, curvature, train, train, measurement=MEASUREMENT, draws=DRAWS, damping=1e-3)
    said = [str(warning.message) for warning in recwarn if "embeddings are left out" in str(warning.message)]
    assert len(said) == 1 and said[0].startswith("classes.weight:")
    assert curvature.covered == ("conv.weight", "conv.bias") and curvature.left_out == ("classes.weight",)


@pytest.mark.parametrize(
    ("covers", "message"),
    [
        (["down.wait"], "covers: ConvDenoiser has no parameter down.wait"),
        (["up.weight"], "layer up: ConvTranspose2d has trainable parameters"),
        ([], "among the parameters asked for"),
        (lambda name, _: name.startswith("up"), "layer up: ConvTranspose2d"),
    ],
)
def test_a_selection_that_cannot_be_covered_is_refused(covers, message):
    with pytest.raises(ConfigurationError, match=message):
        curvature_layers(conv_denoiser(), covers)


def test_nothing_trainable_is_refused_with_the_way_out():
    with pytest.raises(ConfigurationError, match="trainable; unfreeze some with requires_grad_"):
        fit_curvature(conv_denoiser().requires_grad_(False), images(2, 4))
    with pytest.raises(ConfigurationError, match="inference_mode"), torch.inference_mode():
        fit_curvature(conv_denoiser(), images(2, 4), CurvatureConfig(draws=DRAWS))


def test_a_weight_shared_with_what_is_not_covered_is_refused():
    network = WithClasses()
    network.conv = nn.Linear(16, 3)
    network.classes.weight = network.conv.weight
    model = Denoiser(network, Process())
    with pytest.raises(ConfigurationError, match=r"layer (conv|classes): shares a parameter with layer (conv|classes)"):
        curvature_layers(model)


class Uses(nn.Module):
    """A layer, and what is made of it."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, noisy, timesteps):
        return self.function(self.layer, noisy)


class Scaled(nn.Conv2d):
    """A convolution that standardises its weight before use."""

    def forward(self, images):
        return self._conv_forward(images, self.weight / self.weight.norm(), self.bias)


class PadsItself(nn.Conv2d):
    """A convolution that pads its input inside."""

    def forward(self, images):
        return super().forward(nn.functional.pad(images, (1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.Linear(4, 4), lambda layer, x: layer(x) + 0.1 * nn.functional.linear(x.tanh(), layer.weight)),
        (nn.Linear(4, 4), lambda layer, x: layer(x) + 0.1 * layer.bias.square()),
        (Scaled(1, 1, 3, padding=1), lambda layer, x: layer(x)),
        (PadsItself(1, 1, 3), lambda layer, x: layer(x)),
    ],
    ids=["weight", "bias", "standardised", "pads"],
)
@pytest.mark.parametrize("fit", [fit_curvature, fit_with_curvlinops])
def test_a_weight_that_acts_otherwise_than_hooks_see_is_refused(layer, function, fit):
    with pytest.raises(ConfigurationError, match="layer layer: its weight is used elsewhere too, or not as a plain"):
        fit(Denoiser(Uses(layer, function), Process()).double(), images(2, 4), CurvatureConfig(draws=DRAWS))


def test_a_gradient_that_is_zero_but_for_rounding_is_not_taken_for_another_use():
    """A bias before a normalisation of each channel has no gradient; float32 leaves rounding of it."""
    layer = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.GroupNorm(2, 2), nn.Conv2d(2, 1, 1))
    model = Denoiser(Uses(layer, lambda layer, x: layer(x)), Process())
    model.network.layer[0].weight.requires_grad_(False)
    fit_curvature(model, images(2, 4), CurvatureConfig(draws=DRAWS))


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.weight_norm, nn.utils.weight_norm])
def test_reparametrised_layers_are_refused_until_frozen(wrap):
    """Frozen, they are part of the network like any other; their plain bias may still be covered."""
    torch.manual_seed(0)
    layers = nn.Sequential(wrap(nn.Conv2d(1, 2, 3, padding=1)), nn.Conv2d(2, 1, 1)).double()
    model = Denoiser(Uses(layers, lambda layer, x: layer(x)), Process())
    with pytest.raises(ConfigurationError, match=r"layer layer.0.*has trainable parameters \((original|weight_g)"):
        curvature_layers(model)
    train, queries = images(3, 4), images(2, 4, seed=1)
    first = model.network.layer[0]
    for name, parameter in first.named_parameters():
        parameter.requires_grad_(name == "bias")
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DRAWS))
    assert curvature.covered == ("layer.0.bias", "layer.1.weight", "layer.1.bias")
    scores = di.influence(model, curvature, train, queries, measurement=MEASUREMENT, draws=DRAWS, damping=1e-3)
    model.eval()
    measured = brute_gradients(model, queries, MEASUREMENT.draws, "measurement")
    losses = brute_gradients(model, train, DRAWS, "train-gradients")
    dense = torch.block_diag(*(layer.block("ekfac") for layer in curvature.layers.values()))
    inverse = torch.linalg.inv(dense + 1e-3 * torch.eye(len(dense), dtype=torch.float64))
    torch.testing.assert_close(scores, measured @ inverse @ losses.T / 3, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("name", ["cg", "neumann"])
def test_methods_that_iterate_follow_what_the_curvature_covers(name):
    """A base that is thawed after the fit changes no score."""
    model, train, queries = lora_unet(), images(3, 4), images(2, 4, seed=1)
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DRAWS))
    at = di.attribution.Checkpoint("final", model, curvature)
    task = di.attribution.AttributionTask(at, train, queries, MEASUREMENT, DRAWS)
    before = di.get_method(name)(task)
    model.requires_grad_(True)
    torch.testing.assert_close(di.get_method(name)(task), before, rtol=1e-9, atol=0)


class WithUnusedHead(nn.Module):
    """A layer that runs, and whose output goes nowhere."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1)

    def forward(self, noisy, timesteps):
        self.unused(noisy)
        return self.used(noisy)


def test_a_layer_that_does_not_reach_the_output_has_no_part_in_scores():
    torch.manual_seed(0)
    model, train = Denoiser(WithUnusedHead(), Process()).double(), images(3, 4)
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DRAWS))
    gradients = gradients_of(model, curvature, train, Expectation(DrawConfig(12))).whole()
    assert not bool(gradients["unused"].any()) and bool(gradients["used"].any())
