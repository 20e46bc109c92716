"""The plan against counts by hand, against the files of a real run, and as arithmetic; the short formula against the plan."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from made_data import save_autoencoder
from PIL import Image
from torch import nn

import diffinf_lib as di
from diffinf_lib.cli import main
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.planner import Rates, amounts_of, plan, recipe_of, stage_costs
from diffinf_lib.planner.encoding import AutoencoderCount
from diffinf_lib.planner.network import NetworkCount, network_count
from diffinf_lib.planner.plan import readable_bytes, readable_time
from diffinf_lib.presets import PRESETS

SMOKE = di.get_preset("smoke")


def planned(preset=SMOKE, **options):
    return di.planner.estimate(preset, flops_per_second=1e9, **options)


def test_the_paper_s_network_costs_what_the_paper_s_network_costs():
    """12.1 GFLOP forward, 36.3 with backward, 24.2 without weight gradients; 93 GFLOP a draw for its own correction."""
    preset = di.get_preset("cifar2")
    count = NetworkCount(preset.unet, preset.curvature)
    assert count.parameters == 38_306_691 and count.entries == 38_278_787
    assert count.forward == pytest.approx(12.1e9, rel=0.05)
    assert count.gradient == pytest.approx(36.3e9, rel=0.05)
    assert count.pulled_back == pytest.approx(24.2e9, rel=0.05)
    assert count.factor_entries * 4 == pytest.approx(1.57e9, rel=0.02)


def test_flops_of_a_convolution_by_hand():
    count = NetworkCount(SMOKE.unet, SMOKE.curvature)
    first = count.layers["conv_in"].module
    assert isinstance(first, nn.Conv2d)
    image = torch.empty(8, 1, 8, 8, device="meta")
    assert count.flops(lambda _: first(image)) == 2 * 64 * first.weight.numel()


def test_what_is_counted_once_is_what_is_counted_anew():
    """For each number of draws and each curvature its own; passes of the network alone are shared by curvatures."""
    others = [SMOKE.curvature, replace(SMOKE.curvature, sharing="reduce")]
    kept = [network_count(SMOKE.unet, curvature) for curvature in others * 2]
    draws = [(4, 8), (8, 4), (8, 4), (4, 8)]
    found = [
        {
            (name, n): count.peak_bytes(getattr(count, name), n)
            for n in order
            for name in ("factor_pass", "gradient_pass")
        }
        for count, order in zip(kept, draws, strict=True)
    ]
    anew = [NetworkCount(SMOKE.unet, curvature) for curvature in others * 2]
    for count, known in zip(anew, found, strict=True):
        assert known == {(name, n): count.peak_bytes(getattr(count, name), n) for name, n in known}
    assert found[0]["factor_pass", 4] < found[0]["factor_pass", 8] and found[0] != found[1]
    assert kept[0].flops(kept[0].factor_pass) > kept[1].flops(kept[1].factor_pass)


def test_bytes_are_those_of_a_real_run(tmp_path):
    run = di.open_run(SMOKE, tmp_path / "run", progress=False)
    expected = planned()

    def size(pattern):
        files = [p for p in run.folder.glob(f"{pattern}/**/*") if p.suffix in (".safetensors", ".npz")]
        return sum(p.stat().st_size for p in files)

    di.influence_scores(run, run.data.queries)
    assert size("curvature") == pytest.approx(expected["curvature"].disk_bytes, rel=0.15)
    assert size("gradients/train-*") == pytest.approx(expected["train gradients"].disk_bytes, rel=0.1)
    assert size("model/unet") == pytest.approx(expected["model"].disk_bytes, rel=0.25)  # names and a header


def test_trajectories_are_planned_and_sampled_where_something_is_measured_along_them(tmp_path):
    preset = replace(
        SMOKE,
        sampling=di.configuration.SamplingConfig(count=3, steps=20),
        process=di.Process(num_train_timesteps=20, beta_end=0.3),
    )
    along = replace(preset, further_measurements=(di.MeasurementConfig("trajectory_log_prob"),))
    sizes = []
    for name, each in (("without", preset), ("along", along)):
        run = di.open_run(each, tmp_path / name, progress=False)
        assert isinstance(di.runs.measured_queries(run)["generated"], di.data.Trajectories) == (name == "along")
        files = [path.stat().st_size for path in run.path("trajectories").rglob("*.safetensors")]
        sizes.append(sum(files))
        assert ("trajectories" in str(planned(each))) == (name == "along")
    assert sizes[0] == 0 and sizes[1] == pytest.approx(planned(along)["trajectories"].disk_bytes, rel=0.05)
    for name in ("cifar2", "cifar10", "cifar2deq", "artbench10", "cifar2-small", "cifar2-tiny"):
        assert not di.get_preset(name).measures_trajectories
    assert di.get_preset("digits").measures_trajectories
    short = replace(along, sampling=di.configuration.SamplingConfig(count=3, steps=10))
    assert not short.measures_trajectories and "trajectories" not in str(planned(short))


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4", "int8_tensor", "svd", "svd_int8", "projection"])
def test_bytes_of_a_stored_gradient(kind):
    form = di.StoreFormat(kind, rank=3, dimension=64)
    model = di.build_model(SMOKE.unet)
    images = di.load_dataset(SMOKE.dataset).train.subset([0, 1])
    curvature = di.fit_curvature(model, images, SMOKE.curvature)
    gradients = di.gradients_of(model, curvature, images, di.Expectation(di.DrawConfig(2))).whole()
    stored = di.compression.Compression(curvature, form).encode(gradients)
    expected = planned(replace(SMOKE, store_format=form))["train gradients"].disk_bytes / 24
    assert sum(value[0].nbytes for value in stored.values()) == expected


def test_costs_grow_as_they_should():
    small, large = planned(train_count=100, query_count=10), planned(train_count=200, query_count=10)
    for name in ("curvature", "train gradients", "scores"):
        # eigendecompositions do not grow with N
        assert large[name].flops == pytest.approx(2 * small[name].flops, rel=0.3 if name == "curvature" else 1e-9)
    assert large["curvature"].peak_bytes == small["curvature"].peak_bytes
    held = 1000 * NetworkCount(SMOKE.unet, SMOKE.curvature).entries * 4  # the larger set of queries stays in memory …
    many = planned(train_count=100, query_count=1000)
    packed = planned(replace(SMOKE, query_format=di.StoreFormat("int8")), train_count=100, query_count=1000)
    assert packed["query gradients"].disk_bytes < 0.3 * many["query gradients"].disk_bytes  # and in their store
    for name in ("train gradients", "scores"):
        assert many[name].peak_bytes > held > small[name].peak_bytes
    saved = many["train gradients"].peak_bytes - packed["train gradients"].peak_bytes
    assert saved > 0.6 * held  # … in its own format
    per_draw = planned(replace(SMOKE, curvature=replace(SMOKE.curvature, correction="per_draw")))
    assert per_draw["curvature"].flops > 1.3 * planned()["curvature"].flops
    exact = planned(replace(SMOKE, curvature=replace(SMOKE.curvature, exact_labels=True)))
    assert exact["curvature"].flops > 10 * planned()["curvature"].flops
    subsets = SMOKE.subsets
    models, one = subsets.count * subsets.seeds, planned()
    ratio = models * subsets.steps / SMOKE.training.steps
    assert one["retrained"].seconds == pytest.approx(ratio * one["model"].seconds)


@pytest.mark.parametrize("rule", ["stratified", "uniform", "grid", "signal", "elbo", "importance"])
def test_weighted_draws_cost_what_weighted_draws_cost(rule):
    """Weights forbid the short way to a convolution's factor; whether a rule has any is what its draws say."""
    draws = di.DrawConfig(4, timestep_rule=rule, proposal=(1.0, 3.0) if rule == "importance" else None)
    weights = di.diffusion.example_draws(0, (1, 2, 2), draws, seed=0, purpose="x", process=di.Process()).draw_weights
    assert draws.weighted == bool((weights != 1).any())
    config = di.CurvatureConfig(draws=draws, factor_draws=draws, input_positions=None)
    count = NetworkCount(SMOKE.unet, config)
    plain = NetworkCount(SMOKE.unet, replace(config, factor_draws=di.DrawConfig(4)))
    assert (count.input_factors > 1.2 * plain.input_factors) == draws.weighted


def test_seconds_are_counts_over_rates(monkeypatch):
    monkeypatch.setattr(plan, "measured_rates", lambda *_: Rates(1e9, 2e9, 4e9, 8e9, 1e30))
    found = di.planner.estimate(SMOKE)
    network = NetworkCount(SMOKE.unet, SMOKE.curvature)
    gradients = found["train gradients"]
    passes = 24 * SMOKE.gradient_draws.count * network.gradient
    assert gradients.seconds == pytest.approx(passes / 4e9 + 24 * network.rotation / 8e9)
    assert found["model"].seconds == pytest.approx(found["model"].flops / 2e9)
    assert found["measurements"].seconds == pytest.approx(found["measurements"].flops / 1e9)


def test_rates_of_this_machine_are_positive_numbers():
    from diffinf_lib.planner.rates import measured_rates

    rates = measured_rates(SMOKE, NetworkCount(SMOKE.unet, SMOKE.curvature), "cpu")
    assert all(0 < value < 1e15 for value in vars(rates).values())


def test_sizes_are_known_without_a_download():
    assert plan.counts(di.get_preset("cifar10"), None, None) == (50_000, 1_000)
    assert plan.counts(replace(SMOKE, dataset=di.DatasetConfig("cifar2")), None, None) == (10_000, 2_000)
    assert plan.counts(SMOKE, None, 3) == (24, 3)
    with pytest.raises(ConfigurationError, match="flops_per_second=-1"):
        di.planner.estimate(SMOKE, flops_per_second=-1)


def test_the_table_reads_well(capsys):
    assert main(["plan", "cifar2", "--flops", "20e12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["model", "samples", "retrained"] and lines[-1].startswith("all")
    assert "days" in lines[3]
    assert (readable_bytes(2.5e9), readable_bytes(12)) == ("2.5 GB", "12 B")
    assert (readable_time(5), readable_time(90), readable_time(7200), readable_time(86_400)) == (
        "5 s",
        "1.5 min",
        "2 h",
        "1 days",
    )


def test_latents_are_planned_as_they_are_encoded(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path / "data"))
    generator = np.random.default_rng(0)
    for part, count in (("train", 5), ("test", 3)):
        (tmp_path / "images" / part).mkdir(parents=True)
        for place in range(count):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / part / f"{place}.png")
    coder = save_autoencoder(tmp_path / "coder")
    dataset = di.configuration.DatasetConfig(f"folder:{tmp_path / 'images'}", autoencoder=str(coder))
    found = planned(replace(SMOKE, dataset=dataset))["latents"]
    (rows,) = (tmp_path / "data" / "latents").glob("*/rows.npy")  # of the images that were counted
    assert found.disk_bytes == rows.stat().st_size - 128  # the header of the file
    assert found.flops == 8 * 2 * AutoencoderCount.of_preset(replace(SMOKE, dataset=dataset)).encoding


def test_latents_are_planned_by_stable_diffusion_s_autoencoder_where_another_is_not_at_hand(monkeypatch):
    monkeypatch.setattr("diffinf_lib.autoencoder.kept_repository", lambda *_: None)
    preset = di.get_preset("artbench10")
    count = AutoencoderCount.of_preset(preset)
    assert count.image == (3, 256, 256) and count.latent == (4, 32, 32) and count.parameters == 83_653_863
    found = planned(preset)["latents"]
    assert found.flops == 2 * 51_000 * count.encoding and found.disk_bytes == 4 * 4 * 51_000 * 4 * 32**2


PAPER = [f"{name}{flavour}" for name in ("cifar2", "cifar2deq", "cifar10", "artbench10") for flavour in ("", ":as-run")]


@pytest.mark.parametrize("name", PAPER)
def test_every_stage_of_the_paper_fits_a_card_of_20_gb_and_the_run_a_disk_of_200(name):
    preset = di.get_preset(name)
    found = di.planner.estimate(preset, flops_per_second=150e12)
    largest = max(found.stages, key=lambda stage: stage.peak_bytes)
    assert largest.peak_bytes < 20e9, largest
    assert sum(stage.disk_bytes for stage in found.stages) < 200e9
    assert found["query gradients"].disk_bytes < 80e9  # 2,000 queries in 8 bits


def test_memory_of_scores_does_not_grow_with_images_or_queries():
    """Beyond what is held of either; the store of training gradients is refused by its size and offered by an option."""
    preset = di.get_preset("cifar2")
    few, many = (planned(preset, train_count=n, query_count=q) for n, q in ((1_000, 1_000), (100_000, 20_000)))
    matrix = [8 * (1_000 + q) * n for n, q in ((1_000, 1_000), (100_000, 20_000))]
    for stage in ("train gradients", "query gradients", "scores"):
        flat = [
            plan[stage].peak_bytes - (stage != "query gradients") * size
            for plan, size in zip((few, many), matrix, strict=True)
        ]
        assert flat[0] == flat[1]
    assert few["scores"].seconds < many["scores"].seconds / 1_000  # the queries are read for every part of the images
    assert many["train gradients"].disk_bytes == matrix[1]  # scores alone
    kept = planned(replace(preset, store_budget=1e13), train_count=100_000)
    assert kept["train gradients"].disk_bytes == pytest.approx(100_000 * 38.4e6, rel=0.01)
    assert kept["train gradients"].peak_bytes < few["train gradients"].peak_bytes


# --- the short formula

RATE = 2e13
recipe = cache(recipe_of)


def together(plan):
    """Seconds and bytes by stage, trajectories with the samples."""
    found = {stage.name: (stage.seconds, stage.disk_bytes) for stage in plan.stages}
    found.pop("latents", None)  # which the formula leaves out
    more = found.pop("trajectories", (0.0, 0.0))
    found["samples"] = tuple(a + b for a, b in zip(found["samples"], more, strict=True))
    return found


def assert_same(costs, plan):
    expected = together(plan)
    assert list(costs) == list(expected)
    for name, (seconds, size) in expected.items():
        assert costs[name].seconds == pytest.approx(seconds, rel=1e-12), name
        assert costs[name].disk_bytes == pytest.approx(size, rel=1e-12), name


@pytest.mark.parametrize("name", PRESETS)
def test_the_formula_is_the_plan_of_every_preset(name):
    preset = di.get_preset(name)
    assert_same(
        stage_costs(recipe(preset), amounts_of(preset, RATE)), di.planner.estimate(preset, flops_per_second=RATE)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"train": 400},
        {"train": 123_456},
        {"queries": 1_200},  # few enough to stay on the device
        {"queries": 90},
        {"gradient_draws": 8},
        {"measurement_draws": 250},
        {"models": 6},
        {"store_budget": 1e13},
        {"store_budget": 1e13, "queries": 90, "train": 100_000},
    ],
)
def test_it_is_the_plan_where_amounts_are_moved(change):
    preset = di.get_preset("cifar2")
    moved = replace(amounts_of(preset, RATE), **change)
    half = moved.queries // 2
    options = {
        "gradient_draws.count": moved.gradient_draws, "measurement.draws.count": moved.measurement_draws,
        "subsets.count": moved.models // 2, "subsets.seeds": 2, "sampling.count": half, "store_budget": moved.store_budget,
    }  # fmt: skip
    plan = di.planner.estimate(
        di.with_options(preset, options), train_count=moved.train, query_count=half, flops_per_second=RATE
    )
    assert_same(stage_costs(recipe(preset), moved), plan)


def test_devices_share_the_retrained_models_and_nothing_else():
    preset = di.get_preset("digits")
    one = amounts_of(preset, RATE)
    alone, seven = (stage_costs(recipe(preset), replace(one, devices=count)) for count in (1, 7))
    for name in alone:
        share = 28 / 192 if name in ("retrained", "measurements") else 1  # the longest shard of seven
        assert seven[name].seconds == pytest.approx(share * alone[name].seconds)
        assert seven[name].disk_bytes == alone[name].disk_bytes


def test_amounts_are_positive():
    preset = di.get_preset("smoke")
    with pytest.raises(ConfigurationError, match="models=0: give a positive number"):
        stage_costs(recipe(preset), replace(amounts_of(preset, RATE), models=0))
