"""Commands of single stages: attribute, presets, plan, model, ground-truth, bundle, scores, lds."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from diffinf_lib.cli.parser import (
    Commands,
    add_damping,
    add_machine_options,
    add_preset_options,
    add_run_options,
    preset_of,
    set_threads,
)
from diffinf_lib.configuration import REPORT_DAMPING, QuerySet
from diffinf_lib.options import PositiveFloat, PositiveInt, WholeNumber, check_shard


def add_attribute(commands: Commands) -> None:
    added = commands.add(
        "attribute",
        attribute,
        "explain images by the training images behind them: scores and a page that opens from disk",
    )
    added.add_argument("model", metavar="MODEL", help="a pipeline folder, a network folder, or a hub id")
    added.add_argument("images", metavar="IMAGES", help="folder of the images it was trained on, all of them")
    added.add_argument("queries", metavar="QUERIES", nargs="*", help="folder or files to explain")
    added.add_value("--generate", int, default=0, metavar="N", help="explain N samples of the model instead")
    added.add_argument("--out", default="report", help="folder of the report; default: report")
    add_damping(added, f"λ; may be given several times; default: {REPORT_DAMPING:g}")
    added.add_value("--draws", PositiveInt, help="draws of each training gradient; default: 64")
    added.add_argument("--measurement", help="what of the queries is attributed: loss (the default), elbo, …")
    added.add_value("--image-size", PositiveInt, help="side in pixels; default: the network's own")
    added.add_argument(
        "--autoencoder",
        metavar="PATH",
        help="folder or hub id of what encodes images for a latent model; default: the one in its pipeline",
    )
    added.add_value("--seed", int, default=0)
    add_machine_options(added)
    added.add_argument("--force", action="store_true", help="take other options for a folder that holds a report")
    added.add_argument("--quiet", action="store_true", help="no plan and no progress")


def add_presets(commands: Commands) -> None:
    """`presets` and `plan`: what there is, and what it costs."""
    presets = commands.add("presets", _presets, "list the presets, or print one")
    presets.add_argument("name", nargs="?", help="a preset's name")
    plan = commands.add("plan", _plan, "what each stage of a run will cost: FLOPs, time, disk, memory")
    add_preset_options(plan)
    plan.add_value("--train-count", PositiveInt, help="number of training images; default: the preset's")
    plan.add_value("--query-count", PositiveInt, help="number of held-out queries; default: the preset's")
    plan.add_value(
        "--flops", PositiveFloat, help="FLOPs a second of another machine, e.g. 20e12; default: measured here"
    )


def add_stage_commands(commands: Commands) -> None:
    for name, function, summary in [
        ("model", _model, "train a preset's model on all training images, and draw its generated queries"),
        ("ground-truth", _ground_truth, "retrain on random subsets and measure the queries; one shard or all"),
        ("bundle", _bundle, "collect a finished ground truth into a bundle"),
        ("scores", _scores, "fit the curvature and score every training image for every query"),
        ("lds", _lds, "compare the scores with a ground truth"),
    ]:
        added = commands.add(name, function, summary)
        add_run_options(added)
        if name in ("ground-truth", "bundle"):
            added.add_value("--subsets", PositiveInt, help="number of subsets; default: the preset's")
            added.add_value("--seeds", PositiveInt, help="trainings of each subset; default: the preset's")
        if name == "ground-truth":
            added.add_value("--shard", int, default=0, help="this shard (from 0)")
            added.add_value("--shards", PositiveInt, default=1, help="of so many shards")
            added.add_value(
                "--together", WholeNumber, default=1, help="models retrained at a time; 0: what is fastest here"
            )
        if name == "bundle":
            added.add_argument("--name", help="the bundle's name; default: PRESET-ground-truth")
            added.add_argument("--results", type=Path, help="folder of bundles; default: book/results")
        if name in ("scores", "lds"):
            add_damping(added, "λ; may be given several times")
            several = {"action": "append"} if name == "scores" else {"default": "held-out"}
            many = "; may be given several times: one pass over the training gradients" if name == "scores" else ""
            added.add_value("--queries", QuerySet, help=f"held-out or generated; default: held-out{many}", **several)
        if name == "lds":
            added.add_argument("--ground-truth", help="a bundle's name; default: PRESET-ground-truth")
            added.add_value("--subsets", PositiveInt, help="use the first so many subsets only")


def attribute(options: argparse.Namespace) -> None:
    import diffinf_lib as di
    from diffinf_lib.report.options import options_for
    from diffinf_lib.report.sources import check_sources

    check_sources(
        options.model, options.images, options.queries, options.generate, options.out, options.autoencoder
    )  # fmt: skip
    chosen: dict[str, Any] = {
        "generate": options.generate, "seed": options.seed, "draws": options.draws, "measurement": options.measurement,
        "damping": REPORT_DAMPING if options.damping is None else options.damping,
    }  # fmt: skip
    options_for(2, **chosen)  # all is refused before torch is loaded; how many images there are does not matter to that
    set_threads(options.threads)
    report = di.attribute(
        options.model, options.images, options.queries, options.out, **chosen, image_size=options.image_size,
        autoencoder=options.autoencoder, device=options.device, force=options.force, progress=not options.quiet,
    )  # fmt: skip
    print(report)


def _open(options: argparse.Namespace) -> Any:
    import diffinf_lib as di

    preset = preset_of(options)  # before `di.open_run` is looked up, which loads torch
    return di.open_run(
        preset,
        options.run,
        seed=options.seed,
        device=options.device,
        progress=not options.quiet and sys.stderr.isatty(),  # a log would get a line for every step of a bar
        force=options.force,
    )


def _presets(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    if options.name:
        print(json.dumps(di.artifacts.plain(di.get_preset(options.name)), indent=2))
        return
    for preset in di.presets.PRESETS.values():
        print(f"{preset.name:20} {preset.summary}")


def _plan(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    preset = preset_of(options)
    from diffinf_lib.devices import usable_device  # it loads torch

    plan = di.planner.estimate(
        preset, train_count=options.train_count, query_count=options.query_count,
        device=usable_device(options.device), flops_per_second=options.flops,
    )  # fmt: skip
    print(plan)


def _model(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    run = _open(options)
    if options.force:
        for stage in ("model", "samples", "trajectories"):
            run.discard(stage)
    di.runs.full_model(run)
    di.runs.generated_queries(run)
    print(run.path("model"))


def _ground_truth(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    check_shard(options.shard, options.shards)
    run = _open(options)
    if options.force:
        run.discard("retrained")
        run.discard("measurements")
    di.runs.full_model(run)
    counts = {"subsets": options.subsets, "seeds": options.seeds, "together": options.together or None}
    for subset, seed in di.runs.ground_truth_shard(run, **counts, shard=options.shard, shards=options.shards):
        if not options.quiet:
            print(f"subset {subset}, seed {seed}", flush=True)
    print(run.path("measurements"))


def _bundle(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    run = _open(options)
    print(
        di.runs.ground_truth_bundle(
            run, options.name, subsets=options.subsets, seeds=options.seeds, root=options.results
        )
    )


def _scores(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    run = _open(options)
    if options.force:
        for stage in ("curvature", "gradients", "scores"):
            run.discard(stage)
    sets = [di.runs.queries(run, name) for name in dict.fromkeys(options.queries or ["held-out"])]
    for by_approximation in di.runs.scores_of_sets(run, sets, damping=options.damping):
        for scores in by_approximation.values():
            print(f"{run.path('scores')}: {tuple(scores.shape)} dampings × queries × training images")


def _lds(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    bundle = options.ground_truth or f"{preset_of(options).name}-ground-truth"
    di.artifacts.ground_truth_folder(bundle)
    run, truth = _open(options), di.load_ground_truth(bundle, options.queries)
    if options.subsets is not None:
        truth = truth.first_subsets(options.subsets)
    for name, result in di.runs.lds_of_run(run, truth, damping=options.damping).items():
        print(f"{name:24} LDS {result}")
