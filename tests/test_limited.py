"""Every setting of the paper's presets, both flavours, through every stage at the size of a trial, by the code of the whole."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from annotations import unchecked
from made_data import save_autoencoder, save_clip, write_artbench, write_cifar
from torch import nn

import diffinf_lib as di
from diffinf_lib.artifacts import plain, read_tensors
from diffinf_lib.cli import main
from diffinf_lib.compression import stored_bytes
from diffinf_lib.curvature import curvature_blocks
from diffinf_lib.data import Latents, artbench, cifar
from diffinf_lib.models import build_model
from diffinf_lib.presets import PRESETS
from diffinf_lib.runs import QUERY_SETS
from diffinf_lib.runs.attribution import keeps_training_gradients
from diffinf_lib.studies.removal import RemovalConfig, RemovalStudy
from diffinf_lib.training import stages

PAPER = [f"{name}{flavour}" for name in ("cifar2", "cifar2deq", "cifar10", "artbench10") for flavour in ("", ":as-run")]
THROUGH, BY_COMMANDS = ("cifar2", "cifar2deq:as-run", "cifar10"), "artbench10"
"""Those that go through every stage here: each kind of data, each flavour."""
FEWER = {"dataset.train_size": 10, "subsets.count": 4, "subsets.seeds": 1}
"""What the trial itself has more of, so that a user's tuning and removal have enough to choose from."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of made-up data: CIFAR's archive and ArtBench's pictures, an autoencoder, a CLIP."""
    root = tmp_path_factory.mktemp("made")
    write_cifar(root / cifar.ARCHIVE)
    write_artbench(root / artbench.NAME, each=2)
    return {"data": root, "vae": save_autoencoder(root / "vae", halvings=3), "clip": save_clip(root / "clip")}


@pytest.fixture
def data(places, monkeypatch):
    """They are there, and compiled networks are called as they are written: to compile one takes a CPU minutes."""
    monkeypatch.setenv("DIFFINF_DATA", str(places["data"]))
    digest = hashlib.md5((places["data"] / cifar.ARCHIVE).read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "MD5", digest)
    with torch.compiler.set_stance("force_eager"):
        yield places


def options_of(name, places):
    """What the test sets of a limited preset."""
    return FEWER | ({"dataset.autoencoder": str(places["vae"])} if name.startswith("artbench10") else {})


def words(options):
    return [word for pair in options.items() for word in ("--set", f"{pair[0]}={pair[1]}")]


@cache
def gradient_bytes(unet, bias, store_format):
    """Bytes of one stored gradient of a network."""
    blocks = curvature_blocks(build_model(unet, device="meta"), bias)
    return stored_bytes(store_format, [block.shape for block in blocks.values()])


CUT = {
    "name", "summary", "dataset.train_size", "dataset.query_size", "unet.block_out_channels", "unet.norm_num_groups",
    "unet.layers_per_block", "training.steps", "training.batch_size", "training.checkpoint_every", "training.keep_ema_at",
    "subsets.count", "subsets.seeds", "subsets.steps", "sampling.count", "sampling.steps", "measurement.draws.count",
    "curvature.draws.count", "curvature.factor_draws.count", "gradient_draws.count", "store_budget",
}  # fmt: skip


def leaves(value, path=""):
    """The parts of a plain configuration by their path; of the further measurements as a whole."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: leaf for key, item in value.items() for name, leaf in leaves(item, f"{path}.{key}".strip(".")).items()
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_limited_preset_is_cut_and_nothing_else(name):
    whole, small = PRESETS[name], di.get_preset(f"{name}:limited")
    before, after = leaves(plain(whole)), leaves(plain(small))
    differ = {key for key in before | after if before.get(key) != after.get(key)}
    assert differ <= CUT | {"further_measurements"} and small.name == f"{name}:limited"
    for one, other in zip(whole.further_measurements, small.further_measurements, strict=True):
        draws = replace(one.draws, count=other.draws.count)
        assert replace(other, likelihood=one.likelihood, draws=draws) == replace(one, draws=draws)
    assert (
        small.training.keep_ema_at[-1] == small.training.steps
        and small.measures_trajectories == whole.measures_trajectories
    )
    counts = [di.planner.plan.counts(preset, None, None)[0] for preset in (whole, small)]
    kept = [
        preset.keeps(count * gradient_bytes(preset.unet, preset.curvature.bias, preset.store_format))
        for preset, count in zip((whole, small), counts, strict=True)
    ]
    assert kept[0] == kept[1] == (name not in PAPER)


def test_no_preset_of_the_paper_has_a_setting_that_goes_through_no_stage():
    """The other flavours put together what some preset here goes through all its stages with."""
    settings = {name: {(key, str(value)) for key, value in leaves(plain(di.get_preset(f"{name}:limited"))).items()}
                for name in PAPER}  # fmt: skip
    gone_through = set().union(*(settings[name] for name in (*THROUGH, BY_COMMANDS)))
    for name in PAPER:
        assert {key for key, _ in settings[name] - gone_through} <= {"name", "summary"}, name


@pytest.mark.parametrize("name", THROUGH)
def test_every_stage_of_a_preset(name, data, tmp_path):
    """Annotations are held in the tests of what is called here; here they would take as long as the work."""
    with unchecked():
        preset = di.with_options(di.get_preset(f"{name}:limited"), options_of(name, data))
        run = di.open_run(preset, tmp_path / "run", progress=False)
        assert len(list(di.runs.ground_truth_shard(run))) == 4
        di.runs.ground_truth_bundle(run, "g", root=tmp_path)
        check_stages(run, "g", tmp_path, data)


def test_a_preset_by_single_commands_and_by_snakemake(data, tmp_path):
    """As a user tries it before he spends days, by one word: ArtBench's folder, latents, the graph of all jobs."""
    options = options_of(BY_COMMANDS, data)
    where = [
        "--run",
        str(tmp_path / "run"),
        "-p",
        f"results={tmp_path}",
        "--shards",
        "1",
        "--jobs",
        "1",
        "--flops",
        "1e10",
    ]
    command = ["experiment", BY_COMMANDS, "--limit", *where, *words(options)]
    own = {"DIFFINF_DATA": str(data["data"]), "TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "diffinf_lib", *command],
        capture_output=True,
        text=True,
        env=os.environ | own,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shared = [BY_COMMANDS, "--limit", "--run", str(tmp_path / "run"), "--quiet", *words(options)]
    with unchecked():
        for stage in ("model", "scores"):
            assert main([stage, *shared]) == 0
        preset = di.with_options(di.get_preset(f"{BY_COMMANDS}:limited"), options)
        run = di.open_run(preset, tmp_path / "run", progress=False)
        check_stages(run, f"{BY_COMMANDS}:limited-ground-truth", tmp_path, data)


def check_stages(run, bundle, root, places):
    check_model(run)
    check_measurements(run.preset, di.load_bundle(bundle, root=root).arrays)
    check_scores(run)
    assert di.runs.lds_of_run(run, di.load_ground_truth(bundle, "held-out", root=root)).keys() >= {"random"}
    if run.preset.name in ("cifar2:limited", f"{BY_COMMANDS}:limited"):
        check_clip(run, places)
    if run.preset.name == "cifar2:limited":
        check_removal(run, root)


def check_model(run):
    """Its weights are the averaged ones, kept along the way; it keeps what makes its network."""
    preset, model = run.preset, run.model.model
    rates = {module.p for module in model.network.modules() if isinstance(module, nn.Dropout)}
    assert max(rates) == preset.unet.dropout and any("attentions" in key for key, _ in model.network.named_parameters())
    steps = sorted(path.name for path in run.path("model", "ema").iterdir())
    assert steps == [f"step-{step:06d}" for step in preset.training.keep_ema_at] and len(steps) == 4
    assert isinstance(run.data.train, Latents) == (preset.dataset.autoencoder is not None)
    if preset.dataset.autoencoder:
        assert run.data.train.shape == (4, 32, 32)
        assert run.data.pixels(di.runs.generated_queries(run)).shape == (2, 3, 256, 256)


def check_measurements(preset, arrays):
    for queries, count in zip(QUERY_SETS, (3, 2), strict=True):
        for measurement in preset.measurements:
            found = torch.from_numpy(arrays[f"{queries}/measured/{measurement.label}"])
            assert found.shape == (4, 1, count) and found.isfinite().all()
            assert len(found.unique(dim=0)) == 4  # as many halves, as many models


def check_scores(run):
    """Gradients of training images as they are computed, and from a store of 8 bits; queries in 8 bits both times."""
    queries = list(di.runs.query_sets(run).values())
    once = [found["ekfac"][0] for found in di.runs.scores_of_sets(run, queries)]
    assert not keeps_training_gradients(run) and not list(run.path("gradients").glob("train-*"))
    kinds = {value.dtype for path in run.path("gradients").glob("measurement-*/*.safetensors")
             for key, value in read_tensors(path).items()}  # fmt: skip
    assert torch.int8 in kinds
    keeps = replace(run, preset=di.with_options(run.preset, {"store_budget": "1e13"}))
    stored = [found["ekfac"][0] for found in di.runs.scores_of_sets(keeps, queries)]
    (store,) = run.path("gradients").glob("train-*")
    assert torch.int8 in {value.dtype for value in read_tensors(next(store.glob("*.safetensors"))).values()}
    for one, other in zip(once, stored, strict=True):
        assert one.isfinite().all() and one.std() > 0
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.99


def check_clip(run, places):
    """Of latents the pictures that they stand for."""
    task = di.runs.task_of_run(run, run.data.queries, clip_source=str(places["clip"]))
    scores = di.attribution.get_method("clip")(task)
    assert scores.shape == (1, 3, 10) and scores.isfinite().all() and scores.std() > 0


def check_removal(run, root):
    config = RemovalConfig(queries=1, shares=(0.1,), seeds=1, full_seeds=1, random_sets=1)
    study = RemovalStudy(run, config=config)
    assert len(list(study.shard())) == len(study.cells()) >= 3
    assert di.load_bundle(study.bundle(root=root).name, root=root).metrics["mean_change"]


@pytest.mark.parametrize(
    ("name", "option", "other"),
    [
        ("cifar2", "unet.dropout", 0.0),
        ("cifar2", "training.horizontal_flip", False),
        ("cifar2", "training.lr_schedule", "constant"),
        ("cifar2", "training.weight_decay", 1e-2),
        ("cifar2:as-run", "training.weight_decay", 1e-6),
        ("cifar10", "training.lr_schedule", "cosine"),
        ("artbench10", "training.horizontal_flip", False),
    ],
)
def test_what_makes_a_preset_itself_is_felt_in_training(name, option, other, data):
    weights = []
    for changed in ({}, {option: other}):
        preset = di.with_options(di.get_preset(f"{name}:limited"), options_of(name, data) | changed)
        weights.append(trained(preset, di.load_dataset(preset.dataset).train))
    assert not torch.equal(*weights)


def trained(preset, images, seed=0):
    """All averaged weights of the preset's network after its training."""
    model = di.build_model(preset.unet, preset.process, seed=seed)
    result = di.train(model, images, preset.training, seed=seed, progress=False)
    assert any(not torch.equal(*pair) for pair in zip(model.parameters(), result.model.parameters(), strict=True))
    return torch.cat([parameter.flatten() for parameter in result.model.parameters()])


def test_latents_are_drawn_anew_in_training(data):
    preset = di.with_options(di.get_preset("artbench10:limited"), options_of("artbench10", data))
    images = di.load_dataset(preset.dataset).train
    sure = torch.full_like(images.log_variances, -60.0)
    certain = replace(images, log_variances=sure, mirrored_log_variances=sure)
    assert not torch.equal(trained(preset, images), trained(preset, certain))


@pytest.mark.parametrize("name", PAPER)
def test_a_training_is_compiled_averaged_and_rounded_as_its_preset_says(name, data, monkeypatch):
    """Of TF32 a CPU knows nothing, but it is asked for."""
    preset = di.with_options(di.get_preset(f"{name}:limited"), options_of(name, data))
    seen, advance = [], stages.Trainer.advance

    def watched(trainer):
        compiled = trainer.network._compiled_call_impl is not None
        seen.append((compiled, trainer.ema.decay, torch.get_float32_matmul_precision()))
        advance(trainer)

    monkeypatch.setattr(stages.Trainer, "advance", watched)
    model = di.build_model(preset.unet, preset.process)
    di.train(model, di.load_dataset(preset.dataset).train, preset.training, progress=False)
    assert set(seen) == {(True, PRESETS[name].training.ema_max_decay, "high")}


def test_one_graph_serves_every_model_that_is_compiled(data, monkeypatch):
    """With the bits of the one that is not compiled, averages and dropout too; another model of the network costs no graph."""
    from torch._dynamo.utils import counters

    options = {"training.steps": 3, "training.keep_ema_at": (3,), "unet.dropout": 0.3}
    preset = di.with_options(di.get_preset("smoke:limited"), options)
    data, whole = di.load_dataset(preset.dataset).train, nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: whole(module, backend="eager"))
    torch.compiler.set_stance("default")
    torch.compiler.reset()
    graphs = []
    for seed in range(3):
        with unchecked():
            alone, compiled = (trained(replace(preset, training=replace(preset.training, compile=wanted)), data, seed)
                               for wanted in (False, True))  # fmt: skip
        assert torch.equal(alone, compiled)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2] > 0


def test_one_word_means_the_limited_preset_on_every_road(capsys, tmp_path):
    assert main(["presets", "cifar10:as-run:limited"]) == 0
    shown = capsys.readouterr().out
    assert '"name": "cifar10:as-run:limited"' in shown and '"weight_decay": 0.01' in shown
    assert main(["plan", "cifar10:as-run", "--limit", "--flops", "1e9"]) == 0
    assert capsys.readouterr().out.startswith("cifar10:as-run:limited")
    assert main(["experiment", "smoke", "--limit", "--run", str(tmp_path / "run"), "--flops", "1e9", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("smoke:limited") and not list(tmp_path.iterdir())
    assert main(["presets", "smoke:limited"]) == main(["plan", "smoke:limited", "--limit", "--flops", "1e9"]) == 0
    assert main(["model", "mnist", "--limit"]) == 2
    assert "preset='mnist': no such preset" in capsys.readouterr().err
