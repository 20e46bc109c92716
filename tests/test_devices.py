"""Everything that takes a device, run on one that refuses CPU tensors (`pretend_device`): the same numbers as on the CPU."""

import inspect
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import by_definition, conv_denoiser, dense_blocks, images, tiny_unet
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from pretend_device import DEVICE, Elsewhere, MixedDevices, pretended
from torch.utils._pytree import tree_leaves

import diffinf_lib as di
from diffinf_lib import likelihood, sampling
from diffinf_lib.attribution import iterative, trak
from diffinf_lib.curvature import exact, operators, spectra
from diffinf_lib.curvature.inverses import largest_eigenvalue
from diffinf_lib.diffusion import draws, objectives
from diffinf_lib.gradients import compute
from diffinf_lib.planner import network as planner_network, rates
from diffinf_lib.report import job, plan

PROCESS = di.Process(num_train_timesteps=6, beta_end=0.3)
FLOW = di.Process(num_train_timesteps=6, target="velocity")
FEW = di.DrawConfig(2)
SMOKE = di.get_preset("smoke")
MEASUREMENTS = [
    di.MeasurementConfig("loss", FEW), di.MeasurementConfig("loss_at_time", FEW, timestep=3),
    di.MeasurementConfig("weighted_loss", FEW, loss_weights=(1.0, 2.0)), di.MeasurementConfig("simplified_elbo", FEW),
    di.MeasurementConfig("elbo", FEW), di.MeasurementConfig("elbo", FEW, levels=17), di.MeasurementConfig("square_norm", FEW),
    di.MeasurementConfig("trajectory_log_prob", di.DrawConfig(2, noise_rule="independent")),
]  # fmt: skip
WORKS = {}


def work(of, *options, on_cpu=False):
    """A test for each of `options`: a function of a setting on one device, which returns tensors or what is made of them."""

    def keep(function):
        for option in options or ("",):
            label = "-".join(filter(None, (of, *map(str, option if isinstance(option, tuple) else (option,)))))
            WORKS[label.replace(" ", "")[:70]] = (
                (lambda s, o=option: function(s, o) if options else function(s)),
                on_cpu,
            )
        return function

    return keep


def setting(device, folder):
    """A model with its data and its curvature, all models and no images moved to the device."""
    model = conv_denoiser().to(device)
    model.process = PROCESS
    train, queries = images(3, 4), images(2, 4, seed=1)
    config = di.CurvatureConfig(draws=di.DrawConfig(4))
    curvature = di.fit_curvature(model, train, config)
    return SimpleNamespace(
        device=device, folder=folder, model=model, train=train, queries=queries, curvature=curvature,
        gradients=lambda data=train, **options: di.gradients_of(model, curvature, data, di.Expectation(FEW, **options)),
        batches=lambda: list(di.Expectation(FEW, "x").batches(model, train, 4)),
        trajectories=lambda: di.sampling.sample_trajectories(in_float32(model), 2, (1, 4, 4)),
    )  # fmt: skip


def in_float32(model):
    """A copy that samples and trains as models do."""
    return deepcopy(model).float()


def told_of_classes(device):
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(4,), norm_num_groups=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False, num_class_embeds=3,
    )  # fmt: skip
    return di.Denoiser(net, DDPMScheduler(num_train_timesteps=6)).double().eval().to(device)


def in_numbers(values):
    """Tensors of a result, wherever they lie."""
    found = []
    for value in tree_leaves(values):
        if isinstance(value, di.curvature.Curvature):
            found += in_numbers([vars(layer) for layer in value.layers.values()])
        elif isinstance(value, torch.nn.Module):
            found += value.state_dict().values()
        elif value is not None:
            found.append(value)
    return found


# curvature


@work("fit", "ekfac", "kfac", "diagonal", "identity")
def _(s, approximation):
    return di.fit_curvature(s.model, s.train, di.CurvatureConfig(approximation, FEW))


@work("fit", "model", "model exact", "loss_per_draw", "loss_per_example")
def _(s, partition):
    kind, _, labels = partition.partition(" ")
    config = di.CurvatureConfig(draws=FEW, partition=kind, exact_labels=bool(labels), sharing="reduce", bias="separate")
    return di.fit_curvature(s.model, s.train, config)


@work("fit", "batched", "per_draw")
def _(s, correction):
    config = di.CurvatureConfig(draws=FEW, correction=correction, draws_per_sum=3, input_positions=None)
    return di.fit_curvature(s.model, s.train, config)


@work("fit-unet", "expand", "reduce")
def _(s, sharing):
    model = tiny_unet(attention=True).to(s.device)
    curvature = di.fit_curvature(model, s.train, di.CurvatureConfig("kfac", FEW, sharing=sharing))
    return [layer.kfac_eigenvalues for layer in curvature.layers.values()]  # some are the same: no basis of its own


@work("fit-kept")
def _(s):
    return di.fit_curvature(s.model, s.train, di.CurvatureConfig(draws=FEW), out=s.folder / "c", checkpoint_seconds=0.0)


@work("fit-weighted", "signal", "importance")
def _(s, rule):
    proposal = (1.0, 2.0, 0.5) if rule == "importance" else None
    return di.fit_curvature(s.model, s.train, di.CurvatureConfig(draws=di.DrawConfig(4, rule, proposal=proposal)))


@work("fit-with-curvlinops", "ekfac", "kfac")
def _(s, approximation):
    return di.curvature.fit_with_curvlinops(s.model, s.train, by_definition(FEW, approximation=approximation))


@work("fit-told-of-classes")
def _(s):
    data = replace(s.train, labels=torch.tensor([2, 0, 1]))
    return di.fit_curvature(told_of_classes(s.device), data, di.CurvatureConfig("diagonal", FEW))


@work("dense", "ggn", "hessian", "empirical_fisher")
def _(s, kind):
    return getattr(exact, f"dense_{kind}")(s.model, s.batches()[0])


@work("dense-blocks")
def _(s):
    return dense_blocks(s.model, s.batches()[0])


@work("operator", "ggn", "hessian", "empirical_fisher")
def _(s, kind):
    return operators.to_dense(getattr(di.curvature, f"{kind}_operator")(s.model, s.batches()))


@work("operator-per-example")
def _(s):
    return operators.to_dense(di.curvature.empirical_fisher_operator(s.model, s.batches(), per="example"))


@work("spectra")
def _(s):
    operator = di.curvature.ggn_operator(s.model, s.batches())
    return [spectra.trace(operator, samples=3), spectra.extreme_eigenvalues(operator).cpu()]


@work("inverse", "cg", "neumann", "path")
def _(s, method):
    operator = di.curvature.ggn_operator(s.model, s.batches())
    vectors = operators.flatten_layers(operators.example_gradients(s.model, s.batches()))
    first = di.curvature.curvature_preconditioner(s.model, s.curvature, 1e-2)
    if method == "cg":
        return di.curvature.conjugate_gradient_inverse(
            operator, 1e-2, vectors, preconditioner=first, max_iterations=30
        ).vectors
    if method == "path":
        return list(di.curvature.conjugate_gradient_path(operator, 1e-2, vectors, preconditioner=first, iterations=2))
    return di.curvature.neumann_inverse(operator, 1.0, vectors, tolerance=1e-3).vectors


# gradients and stores


@work("gradients", "grouped", "separate", "one")
def _(s, how):
    config, blocks = di.Expectation(FEW), s.curvature.blocks(s.model)
    if how == "grouped":
        return compute.grouped_gradients(s.model, s.train, config, blocks)
    if how == "one":
        return di.gradients.example_gradient(
            s.model, s.train.subset(slice(0, 1)), replace(config, timestep_range=(0, 3))
        )
    return compute.separate_gradients(s.model, s.train, config, blocks, batch_size=2)


@work("gradients-of", *objectives.ObjectiveName.__args__)
def _(s, name):
    objective = di.configuration.Objective(name, loss_weights=(1.0, 2.0) if name == "weighted_loss" else None)
    data = s.trajectories() if objective.on_trajectories else s.queries
    few = di.Expectation(FEW, objective=objective)
    many = di.Expectation(di.DrawConfig(10, noise_rule="independent"), objective=objective)
    return [di.gradients_of(s.model, s.curvature, data, config).whole() for config in (few, many)]


@work("gradients-drawn", "uniform", "grid", "signal", "elbo", "shared")
def _(s, rule):
    config = di.Expectation(di.DrawConfig(4, shared=True) if rule == "shared" else di.DrawConfig(4, rule))
    return di.gradients_of(s.model, s.curvature, s.train, config).whole()


@work("store", "float32", "bfloat16", "int8", "int4", "int8_tensor", "svd", "svd_int8", "projection")
def _(s, kind):
    form = di.StoreFormat(kind, rank=2, dimension=64)
    taken = partial(
        di.gradients_of, s.model, s.curvature, s.train, di.Expectation(FEW), store_format=form, shard_size=2
    )
    shards = [list(taken(store=store).shards(1)) for store in (None, s.folder / "g", s.folder / "g")]
    assert all(torch.device(value.device) == torch.device(s.device) for _, part in shards[2] for value in part.values())
    return [part for made in shards for _, part in made]


# scores


@work("influence", 1e-3, (1e-3, 1e-1), on_cpu=True)
def _(s, damping):
    damping = list(damping) if isinstance(damping, tuple) else damping
    return di.influence(s.model, s.curvature, s.train, s.queries, measurement="loss", draws=FEW, damping=damping)


@work("influence-encoded", "bfloat16", "int8", "int4", "int8_tensor", "svd", "svd_int8", "projection", on_cpu=True)
def _(s, kind):
    form = di.StoreFormat(kind, rank=2, dimension=64)
    query_form, train_form = (None, form) if kind == "projection" else (form, di.StoreFormat("int8"))
    return di.influence(
        s.model, s.curvature, s.train, s.queries, draws=FEW, approximation=["ekfac", "kfac"], damping=[1e-3],
        damping_kind="relative", query_format=query_form, train_format=train_form, store=s.folder / "t",
        query_store=s.folder / "q",
    )  # fmt: skip


@work("influence-by-timestep", on_cpu=True)
def _(s):
    return di.attribution.influence_by_timestep(s.model, s.curvature, s.gradients(), s.queries, bins=3)


@work("scores-by-layer", on_cpu=True)
def _(s):
    return di.attribution.scores_by_layer(s.gradients(s.queries), s.gradients(), s.curvature, damping=1e-3)


@work("self-influence", on_cpu=True)
def _(s):
    shards = di.gradients_of(s.model, s.curvature, s.train, di.Expectation(FEW))
    return di.self_influence(shards, s.curvature, damping=[1e-3, 1e-1])


@work("solved", "cg", "neumann", "path", on_cpu=True)
def _(s, method):
    ggn = iterative.training_ggn(s.model, s.train, FEW)
    given = (s.model, s.curvature, ggn, s.gradients(s.queries))
    if method == "path":
        solved = list(iterative.solution_path(*given, damping=1.0, iterations=2))
    else:
        solved = [iterative.solved_queries(*given, damping=1.0, method=method)[0]]
    return iterative.solved_scores(solved, s.gradients())


@work("trak", "exact", "projected", on_cpu=True)
def _(s, what):
    made = di.attribution.Trak(s.gradients(), dimension=32 if what == "projected" else None)
    return made.scores(s.gradients(s.queries), [0.1, 1.0])


@work("gradient-products")
def _(s):
    return trak.gradient_products(s.gradients(), s.gradients(s.queries))


@work("das", on_cpu=True)
def _(s):
    probes = s.gradients(s.queries, objective=di.configuration.Objective("output_probe"))
    return di.attribution.das_scores([probes], s.gradients(), s.curvature, damping=[1e-3])


@work("renormalised", on_cpu=True)
def _(s):
    norms = di.attribution.training_norms(s.gradients(), s.curvature, damping=[1e-3])
    scores = di.scores_from_gradients(s.gradients(s.queries), s.gradients(), s.curvature, damping=[1e-3])
    return [di.attribution.renormalised_scores(scores, norm) for norm in norms]


@work("similarity", on_cpu=True)
def _(s):
    both = s.gradients(s.queries), s.gradients()
    return di.attribution.gradient_dot_scores(*both), di.attribution.gradient_cosine_scores(*both)


@work("method", *(method.name for method in di.METHODS if method.requires != "clip"), on_cpu=True)
def _(s, name):
    method = di.get_method(name)
    at = di.attribution.Checkpoint("final", s.model, s.curvature)
    queries = s.trajectories() if method.requires == "trajectories" else s.queries
    task = di.attribution.AttributionTask(
        at, s.train, queries, di.MeasurementConfig(draws=FEW), FEW, along=lambda parts: [at] * parts,
        ensemble=lambda: [at, at], folder=s.folder / "g",
    )  # fmt: skip
    return method(task, 1.0 if name == "neumann" else method.default)


# measurements, sampling, training


@work("measure", on_cpu=True)
def _(s):
    return di.measurements.measure_all(s.model, s.trajectories(), MEASUREMENTS)


@work("log-likelihood", *(("rk4", "hutchinson"), ("heun3", "exact"), ("dopri5", "hutchinson")), on_cpu=True)
def _(s, how):
    method, divergence = how
    config = di.configuration.LikelihoodConfig(method, steps=2, tolerance=1e-2, divergence=divergence, draws=2)
    return di.likelihood.log_likelihood(s.model, s.queries, config)


@work("log-likelihood-of-a-flow", on_cpu=True)
def _(s):
    s.model.process = FLOW
    return di.measure(
        s.model,
        s.queries,
        di.MeasurementConfig("log_likelihood", likelihood=di.configuration.LikelihoodConfig(steps=2)),
    )


@work("sample", "ddpm", "ddim", "euler", on_cpu=True)
def _(s, method):
    s.model.process = FLOW if method == "euler" else PROCESS
    return di.sampling.sample_states(in_float32(s.model), 2, (1, 4, 4), method=method, steps=3)


@work("sample-of-classes", on_cpu=True)
def _(s):
    return di.sample(in_float32(told_of_classes(s.device)), 2, (1, 4, 4), steps=3, labels=[0, 2])


@work("trajectories", on_cpu=True)
def _(s):
    made = s.trajectories()
    return made.images, made.states, made.guesses


@work("train")
def _(s):
    config = di.TrainingConfig(steps=3, batch_size=2, learning_rate=1e-3, checkpoint_every=1, keep_ema_at=(2,))
    return [_trained(model.float(), s, config) for model in (tiny_unet(), told_of_classes("cpu"))]


def _trained(model, s, config):
    """Three steps, the second of which ends the process: what is trained goes on from a checkpoint."""
    data, folder = (
        replace(s.train, labels=torch.tensor([2, 0, 1])),
        s.folder / type(model.network).__name__ / str(model.classes),
    )
    save = di.training.Trainer.save

    class Killed(Exception):
        pass

    def killed(*arguments):
        save(*arguments)
        raise Killed

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(di.training.Trainer, "save", killed)
        with pytest.raises(Killed):
            di.train(model, data, config, out=folder, device=s.device, progress=False)
    assert model.device == torch.device(s.device)
    model.load_state_dict(before)
    result = di.train(model, data, config, out=folder, device=s.device, progress=False)
    return result.model, torch.from_numpy(result.losses)


@work("load")
def _(s):
    di.save_model(tiny_unet(), s.folder / "m")
    return di.load_model(s.folder / "m", device=s.device)


# around it


@work("timestep-proposal", "plain", "whitened", "shared")
def _(s, how):
    curvature, pilot = s.curvature if how == "whitened" else None, di.DrawConfig(16, shared=how == "shared")
    return di.importance.timestep_proposal(s.model, s.train, curvature=curvature, draws=pilot, slices=4)


@work("rates")
def _(s):
    found = rates.measured_rates(SMOKE, counted(), str(s.device))
    return [value > 0 for value in vars(found).values()]


@cache
def counted():
    """What a pass costs, asked for on the CPU first: it is counted with tensors that have no numbers at all."""
    count = planner_network.NetworkCount(SMOKE.unet, SMOKE.curvature)
    assert count.forward > 0 and count.gradient > 0
    return count


@work("evaluation", on_cpu=True)
def _(s):
    """Scores that are still elsewhere are judged all the same."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(12, 8, generator=generator) < 0.5
    truth = di.evaluation.GroundTruth(
        masks, torch.rand(12, 3, 2, generator=generator), torch.arange(8), torch.arange(2) + 8, torch.zeros(2, 1, 4, 4)
    )
    scores = torch.randn(2, 8, generator=generator).to(s.device)
    options = [scores, 2 * scores]
    judged = [
        di.lds(scores, truth).mean,
        di.evaluation.predicted_changes(scores, truth),
        di.attribution.average_scores(options),
        di.tuned_lds(torch.stack(options), truth, options=[1.0, 2.0], default=1.0).tuned.value,
    ]
    return judged


@work("attribute")
def _(s):
    """From files to the page; how much fits the device is planned with tensors that have no numbers, and is given here."""
    network = in_float32(told_of_classes("cpu")).network
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=6)).save_pretrained(s.folder / "pipeline")
    for name, data in (("photos", s.train), ("asked", s.queries)):
        for index, image in enumerate(data.images):
            path = s.folder / name / f"class-{index}" / f"{index}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(((image[0] + 1) * 127).byte().numpy()).save(path)
    sizes = plan.Sizes(fit_batch=4, batch=4, keep=True, pack_queries=False, sketch=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "JobPlan", lambda *given: SimpleNamespace(sizes=lambda folder: sizes))
        patch.setattr(job._Job, "_sizes", lambda *given: sizes)
        options = {
            "draws": 2,
            "curvature": di.CurvatureConfig(draws=FEW),
            "measurement": di.MeasurementConfig(draws=FEW),
        }
        made = di.attribute(
            s.folder / "pipeline",
            s.folder / "photos",
            s.folder / "asked",
            s.folder / "out",
            device=str(s.device),
            **options,
        )
    return made.scores


@work("largest-eigenvalue")
def _(s):
    operator = di.curvature.ggn_operator(s.model, s.batches())
    like = torch.ones(operator.shape[1], dtype=torch.float64).to(s.device)
    return largest_eigenvalue(lambda v: operator @ v, like, iterations=3)


@pytest.mark.parametrize("name", WORKS)
def test_the_same_numbers(name, tmp_path):
    function, on_cpu = WORKS[name]
    expected = in_numbers(function(setting(torch.device("cpu"), tmp_path / "cpu")))
    with pretended() as device:
        found = in_numbers(function(setting(device, tmp_path / "there")))
        if on_cpu:
            assert not any(isinstance(value, Elsewhere) for value in found)
        found = [value.cpu() if isinstance(value, torch.Tensor) else value for value in found]
    assert len(expected) > 0
    for there, here in zip(found, expected, strict=True):
        single = (
            isinstance(here, torch.Tensor) and here.dtype == torch.float32
        )  # a fused optimizer rounds in its own way
        torch.testing.assert_close(there, here, rtol=1e-5 if single else 1e-9, atol=1e-6 if single else 1e-12)


# the test can fail


def wrong_device(s):
    """A tensor is made without saying where."""
    return s.model(torch.zeros(2, 1, 4, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64).to(s.device))


def wrong_values(s):
    torch.zeros(3).to(s.device)[torch.tensor([0, 1])] = torch.ones(2)


def wrong_index(s):
    torch.zeros(3)[torch.tensor([0]).to(s.device)]


def wrong_generator(s):
    torch.randn(3, device=s.device, generator=torch.Generator())


def to_numpy(s):
    next(s.model.parameters()).detach().numpy()


def into_numpy(s):
    np.asarray(next(s.model.parameters()).detach())


def joined(s):
    torch.cat([torch.zeros(1), torch.zeros(1).to(s.device)])


def added_up(s):
    torch.zeros(2).add_(torch.zeros((), device=s.device))


@pytest.mark.parametrize(
    "wrong", [wrong_device, wrong_values, wrong_index, wrong_generator, to_numpy, into_numpy, joined, added_up]
)
def test_what_a_gpu_refuses_is_refused(wrong, tmp_path):
    with pretended() as device, pytest.raises(MixedDevices):
        wrong(setting(device, tmp_path))


def test_what_a_gpu_allows_is_allowed():
    with pretended() as device:
        there = torch.arange(4.0).to(device)
        assert there.device == DEVICE and (there * torch.tensor(2.0)).tolist() == [0, 2, 4, 6]
        assert there[torch.tensor([3])].item() == 3 and there[[1, -1]].tolist() == [1, 3]
        assert torch.tensor([1.5], device=device).item() == 1.5 and there.new_tensor([2]).device == DEVICE
        assert not isinstance(there.cpu(), Elsewhere)
        target = torch.zeros(4)
        target.copy_(there)
        assert target.tolist() == [0, 1, 2, 3]
        assert torch.randn(2, device=device, generator=torch.Generator(device)).device == DEVICE


FORGOTTEN = [
    (draws, "_batch", "drawn.noise.to(pixels)", "drawn.noise.to(pixels.dtype)", "fit-ekfac"),
    (sampling, "_one_batch", ".to(model.device, model.dtype)", "", "sample-ddpm"),
    (likelihood, "_log_density", "images.to(model.device, torch.float64)", "images.double()", "log-likelihood-rk4-hutchinson"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name", "right", "wrong", "noticed_by"), FORGOTTEN, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_tensor_left_on_the_cpu_is_noticed(module, name, right, wrong, noticed_by, tmp_path, monkeypatch):
    """The library's own function with one device forgotten runs on the CPU, and raises here."""
    source = inspect.getsource(getattr(module, name))
    assert right in source
    namespace = dict(vars(module))
    exec(source.replace(right, wrong), namespace)
    monkeypatch.setattr(module, name, namespace[name])
    function, _ = WORKS[noticed_by]
    function(setting(torch.device("cpu"), tmp_path / "cpu"))
    with pretended() as device, pytest.raises(MixedDevices):
        function(setting(device, tmp_path / "there"))
