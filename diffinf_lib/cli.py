"""The command line: `diffinf COMMAND …`. Bad input is one line on standard error and exit code 2."""

import argparse
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from diffinf_lib.configuration import REPORT_DAMPING, QuerySet
from diffinf_lib.errors import ConfigurationError, DiffinfError, require, room_needed
from diffinf_lib.options import (
    Device,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    WholeNumber,
    check_shard,
    checked,
    read_text,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code: 0, or 2 for bad input, or 130 when interrupted."""
    _print_in_any_encoding()
    try:
        options = _parsed(arguments)
        with _short_warnings(), room_needed("output"):
            options.command(options)
            sys.stdout.flush()
    except DiffinfError as error:
        print(f"diffinf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("diffinf: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _print_in_any_encoding() -> None:
    """A terminal that lacks a λ or a letter of a file's name shows `?` instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; files to explain may stand after options too, where argparse would leave them over."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command is not _attribute or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.queries = [*options.queries, *rest]
    return options


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Print a warning as one line, without the place in the code that gave it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


class _Parser(argparse.ArgumentParser):
    """A parser whose refusals are those of the library: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see `{self.prog} --help`")

    def add_value(self, flag: str, kind: Any = str, **settings: Any) -> None:
        """An option whose text is read, and refused, as a configuration's field of that kind."""
        name = flag.lstrip("-").replace("-", "_")
        self.add_argument(flag, type=lambda text: checked(name, read_text(name, text, kind), kind), **settings)


class _Commands:
    """The subcommands of the parser, each with its function and its one-line summary."""

    def __init__(self, parser: _Parser):
        self._added = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, function: Callable[[argparse.Namespace], None], summary: str) -> _Parser:
        added = self._added.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(command=function)
        return added


def _parser() -> _Parser:
    parser = _Parser(prog="diffinf", description="Data attribution for diffusion models.")
    commands = _Commands(parser)
    _add_attribute(commands)
    presets = commands.add("presets", _presets, "list the presets, or print one")
    presets.add_argument("name", nargs="?", help="a preset's name")
    plan = commands.add("plan", _plan, "what each stage of a run will cost: FLOPs, time, disk, memory")
    _add_preset_options(plan)
    plan.add_value("--train-count", PositiveInt, help="number of training images; default: the preset's")
    plan.add_value("--query-count", PositiveInt, help="number of held-out queries; default: the preset's")
    plan.add_value(
        "--flops", PositiveFloat, help="FLOPs a second of another machine, e.g. 20e12; default: measured here"
    )
    _add_stage_commands(commands)
    _add_template_commands(commands)
    return parser


def _add_attribute(commands: _Commands) -> None:
    added = commands.add(
        "attribute",
        _attribute,
        "explain images by the training images behind them: scores and a page that opens from disk",
    )
    added.add_argument("model", metavar="MODEL", help="a pipeline folder, a network folder, or a hub id")
    added.add_argument("images", metavar="IMAGES", help="folder of the images it was trained on, all of them")
    added.add_argument("queries", metavar="QUERIES", nargs="*", help="folder or files to explain")
    added.add_value("--generate", int, default=0, metavar="N", help="explain N samples of the model instead")
    added.add_argument("--out", default="report", help="folder of the report; default: report")
    _add_damping(added, f"λ; may be given several times; default: {REPORT_DAMPING:g}")
    added.add_value("--draws", PositiveInt, help="draws of each training gradient; default: 64")
    added.add_argument("--measurement", help="what of the queries is attributed: loss (the default), elbo, …")
    added.add_value("--image-size", PositiveInt, help="side in pixels; default: the network's own")
    added.add_value("--seed", int, default=0)
    _add_machine_options(added)
    added.add_argument("--force", action="store_true", help="take other options for a folder that holds a report")
    added.add_argument("--quiet", action="store_true", help="no plan and no progress")


def _add_stage_commands(commands: _Commands) -> None:
    for name, function, summary in [
        ("model", _model, "train a preset's model on all training images, and draw its generated queries"),
        ("ground-truth", _ground_truth, "retrain on random subsets and measure the queries; one shard or all"),
        ("bundle", _bundle, "collect a finished ground truth into a bundle"),
        ("scores", _scores, "fit the curvature and score every training image for every query"),
        ("lds", _lds, "compare the scores with a ground truth"),
    ]:
        added = commands.add(name, function, summary)
        _add_run_options(added)
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
            _add_damping(added, "λ; may be given several times")
            several = {"action": "append"} if name == "scores" else {"default": "held-out"}
            many = "; may be given several times: one pass over the training gradients" if name == "scores" else ""
            added.add_value("--queries", QuerySet, help=f"held-out or generated; default: held-out{many}", **several)
        if name == "lds":
            added.add_argument("--ground-truth", help="a bundle's name; default: PRESET-ground-truth")
            added.add_value("--subsets", PositiveInt, help="use the first so many subsets only")


def _add_template_commands(commands: _Commands) -> None:
    launch = commands.add(
        "launch", _launch, "run an experiment template with papermill; the executed notebook is its log"
    )
    launch.add_argument("template", help="e.g. e02_ground_truth")
    launch.add_argument("--log", type=Path, help="the executed notebook; default: in the run folder's logs/")
    reproduce = commands.add("reproduce", _reproduce, "the whole ground truth: model, retrained models, bundle")
    reproduce.add_argument("preset", help="a preset's name")
    reproduce.add_value(
        "--workers", PositiveInt, default=os.cpu_count() or 1, help="shards side by side; default: cores"
    )
    for added in (launch, reproduce):
        added.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
                           help="a template's parameter, e.g. subsets=8; may be given several times")  # fmt: skip
        _add_set_option(added)


def _add_preset_options(parser: _Parser) -> None:
    parser.add_argument("preset", help="a preset's name; `diffinf presets` lists them")
    parser.add_argument("--dataset", help="another dataset for the preset, e.g. folder:PATH")
    _add_set_option(parser)
    _add_machine_options(parser)


def _add_machine_options(parser: _Parser) -> None:
    parser.add_value("--device", Device, help="cpu or cuda; default: cuda where there is one")
    parser.add_value("--threads", PositiveInt, help="CPU threads; default: all cores")


def _add_damping(parser: _Parser, help: str) -> None:
    parser.add_value("--damping", NonNegativeFloat, action="append", help=help)


def _add_set_option(parser: _Parser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", dest="options",
                        help="replace a preset's option, e.g. training.steps=300 or unet.block_out_channels=32,64")  # fmt: skip


def _add_run_options(parser: _Parser) -> None:
    _add_preset_options(parser)
    parser.add_argument("--run", type=Path, help="run folder; default: runs/PRESET")
    parser.add_value("--seed", int, default=0)
    parser.add_argument("--force", action="store_true", help="redo this stage, whatever is there")
    parser.add_argument("--quiet", action="store_true", help="no progress bars; a log file gets none anyway")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _attribute(options: argparse.Namespace) -> None:
    import diffinf_lib as di
    from diffinf_lib.report.options import options_for
    from diffinf_lib.report.sources import check_sources

    check_sources(options.model, options.images, options.queries, options.generate, options.out)
    chosen: dict[str, Any] = {
        "generate": options.generate, "seed": options.seed, "draws": options.draws, "measurement": options.measurement,
        "damping": REPORT_DAMPING if options.damping is None else options.damping,
    }  # fmt: skip
    options_for(2, **chosen)  # all is refused before torch is loaded; how many images there are does not matter to that
    _set_threads(options.threads)
    report = di.attribute(
        options.model, options.images, options.queries, options.out, **chosen, image_size=options.image_size,
        device=options.device, force=options.force, progress=not options.quiet,
    )  # fmt: skip
    print(report)


def _preset(options: argparse.Namespace) -> Any:
    import diffinf_lib as di

    preset = di.with_options(di.get_preset(options.preset), _pairs(options.options))
    if options.dataset is not None:
        preset = replace(preset, dataset=replace(preset.dataset, name=options.dataset, classes=None))
    _ = preset.dataset.folder  # refused here if it is not there
    _set_threads(options.threads)
    return preset


def _open(options: argparse.Namespace) -> Any:
    import diffinf_lib as di

    preset = _preset(options)  # before `di.open_run` is looked up, which loads torch
    return di.open_run(
        preset,
        options.run,
        seed=options.seed,
        device=options.device,
        progress=not options.quiet and sys.stderr.isatty(),  # a log would get a line for every step of a bar
        force=options.force,
    )


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs, strict=True):
        require(bool(name and equals), f"option {text!r}: give OPTION=VALUE")
    return {name: value for name, _, value in pairs}


def _presets(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    if options.name:
        print(json.dumps(di.artifacts.plain(di.get_preset(options.name)), indent=2))
        return
    for preset in di.presets.PRESETS.values():
        print(f"{preset.name:20} {preset.summary}")


def _plan(options: argparse.Namespace) -> None:
    import diffinf_lib as di

    preset = _preset(options)
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

    bundle = options.ground_truth or f"{_preset(options).name}-ground-truth"
    di.artifacts.ground_truth_folder(bundle)
    run, truth = _open(options), di.load_ground_truth(bundle, options.queries)
    if options.subsets is not None:
        truth = truth.first_subsets(options.subsets)
    for name, result in di.runs.lds_of_run(run, truth, damping=options.damping).items():
        print(f"{name:24} LDS {result}")


def _launch(options: argparse.Namespace) -> None:
    from diffinf_lib.experiments import check_parameters, launch, parse_parameters

    parameters = parse_parameters(options.parameter, _pairs(options.options))
    check_parameters(options.template, parameters)
    _check_options(str(parameters.get("preset", "digits")), parameters)
    log = options.log or _default_log(options.template, parameters)
    print(launch(options.template, parameters, log=log, progress=sys.stderr.isatty()))


def _check_options(preset: str, parameters: dict[str, Any]) -> None:
    """Refuse wrong options of a template's preset before a kernel is started."""
    import diffinf_lib as di

    di.with_options(di.get_preset(preset), parameters.get("options", {}))


def _default_log(template: str, parameters: dict[str, Any]) -> Path:
    import diffinf_lib as di

    preset = di.get_preset(str(parameters.get("preset", "digits")))
    folder = di.artifacts.run_folder(preset.name, parameters.get("run"))
    shard = f"-{parameters['shard']}-of-{parameters.get('shards', 1)}" if "shard" in parameters else ""
    return folder / "logs" / f"{template}{shard}.ipynb"


def _reproduce(options: argparse.Namespace) -> None:
    from diffinf_lib.experiments import parse_parameters

    parameters = {"preset": options.preset, **parse_parameters(options.parameter, _pairs(options.options))}
    _check_options(options.preset, parameters)
    chosen = _parameters_of_each(("e01_model", "e02_ground_truth", "e03_bundle"), parameters)
    shards = [[f"shard={i}", f"shards={options.workers}"] for i in range(options.workers)]
    _run_side_by_side([["e01_model", *chosen["e01_model"]]])
    _run_side_by_side([["e02_ground_truth", *chosen["e02_ground_truth"], *shard] for shard in shards])
    _run_side_by_side([["e03_bundle", *chosen["e03_bundle"]]])


def _parameters_of_each(templates: Sequence[str], parameters: dict[str, Any]) -> dict[str, list[str]]:
    """Each template's share of the parameters; one that none of them has is refused."""
    from diffinf_lib.experiments import known_parameters

    known = {name: known_parameters(name) for name in templates}
    everything = sorted({parameter for names in known.values() for parameter in names})
    for name in parameters:
        require(name in everything, f"parameter={name!r}: none of that name; give one of {', '.join(everything)}")
    return {
        template: [f"{name}={json.dumps(value)}" for name, value in parameters.items() if name in names]
        for template, names in known.items()
    }


def _run_side_by_side(launches: list[list[str]]) -> None:
    """Each launch in a process of its own; all are waited for, and the first failure is reported."""
    prefix = [sys.executable, "-m", "diffinf_lib", "launch"]
    threads = {"OMP_NUM_THREADS": "1"} if len(launches) > 1 else {}
    processes = [
        subprocess.Popen([*prefix, name, *(word for pair in pairs for word in ("-p", pair))], env=os.environ | threads)
        for name, *pairs in launches
    ]
    failed = [arguments for arguments, process in zip(launches, processes, strict=True) if process.wait() != 0]
    if failed:
        raise ConfigurationError(f"{failed[0][0]} stopped early, see above; the same command goes on from here")
