"""Commands of experiments: launch, reproduce, experiment, status."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from diffinf_lib.cli.parser import Commands, Parser, add_preset, add_set_option, pairs_of
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.options import PositiveFloat, PositiveInt, WholeNumber


def add_template_commands(commands: Commands) -> None:
    """`launch`, `reproduce`, `experiment` and `status`."""
    launch = commands.add(
        "launch", _launch, "run an experiment template with papermill; the executed notebook is its log"
    )
    launch.add_argument("template", help="e.g. e02_ground_truth")
    launch.add_argument("--log", type=Path, help="the executed notebook; default: in the run folder's logs/")
    launch.add_argument(
        "--record", type=Path, help="write down which manifests it went through, once it has ended well"
    )
    launch.add_argument("--gpu-slots", nargs="?", const="", metavar="FOLDER",
                        help="wait for a free GPU of this machine, and use that one alone")  # fmt: skip
    launch.add_value("--per-gpu", PositiveInt, default=1, help="launches that may share a GPU; default: 1")
    reproduce = commands.add("reproduce", _reproduce, "the whole ground truth: model, retrained models, bundle")
    add_preset(reproduce)
    reproduce.add_value(
        "--workers", PositiveInt, default=os.cpu_count() or 1, help="shards side by side; default: cores"
    )
    for added in (launch, reproduce, _add_experiment(commands)):
        added.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
                           help="a template's parameter, e.g. subsets=8; may be given several times")  # fmt: skip
        add_set_option(added)
    status = commands.add("status", _status, "what of a run is done, running, failed, and how long it will take")
    status.add_argument("run", help="a run folder, or a preset's name for its default one")


def _add_experiment(commands: Commands) -> Parser:
    added = commands.add("experiment", _experiment, "a preset's ground truth and studies through Snakemake, on one "
                         "machine or a cluster")  # fmt: skip
    add_preset(added)
    added.add_argument("--run", help="run folder; default: runs/PRESET")
    added.add_value(
        "--shards", PositiveInt, help="of the ground truth, and of studies that can be cut; default: jobs at once"
    )
    added.add_argument(
        "--studies", default="", help="e.g. e05_methods,e08_removal, or all; default: the ground truth alone"
    )
    added.add_argument("--profile", default="workstation", help="workstation, slurm, or a folder with a config.yaml")
    added.add_value("--jobs", PositiveInt, help="at once; default: GPU slots or cores, on a cluster the profile's")
    added.add_value(
        "--gpus", WholeNumber, help="default: those of this machine; on a cluster each job asks for one if not 0"
    )
    added.add_value("--per-gpu", PositiveInt, default=1, help="jobs that share a GPU; default: 1")
    added.add_value("--flops", PositiveFloat, help="FLOPs a second of what does the work, for the plan, e.g. 20e12; "
                    "default: measured here")  # fmt: skip
    added.add_value("--retries", WholeNumber, help="of a job that failed; default: the profile's")
    added.add_argument("--dry-run", action="store_true", help="print the jobs, their hours and disk, and do nothing")
    return added


def _launch(options: argparse.Namespace) -> None:
    from diffinf_lib.experiments import check_parameters, launch, launch_recorded, parse_parameters
    from diffinf_lib.experiments.graph import default_log

    parameters = parse_parameters(options.parameter, pairs_of(options.options))
    check_parameters(options.template, parameters)
    _check_options(str(parameters.get("preset", "digits")), parameters)
    log = options.log or default_log(options.template, parameters)
    progress = sys.stderr.isatty()
    with _alone(log, options.gpu_slots, options.per_gpu):
        if options.record:
            launch_recorded(options.template, parameters, log=log, record=options.record, progress=progress)
        else:
            launch(options.template, parameters, log=log, progress=progress)
    print(log)


def _alone(log: Path, gpu_slots: str | None, per_gpu: int) -> ExitStack:
    """Wait for another launch with the same log, which a dead engine may have left at work, and then for a GPU."""
    from filelock import FileLock, Timeout

    from diffinf_lib.artifacts import ensure_writable
    from diffinf_lib.experiments.gpu_slots import gpu_slot
    from diffinf_lib.experiments.status import job_lock

    ensure_writable(log.parent)
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(job_lock(log)).acquire(timeout=0))
        except Timeout:
            print(f"diffinf: {log}: another launch is at work there; waiting until it ends", file=sys.stderr)
            stack.enter_context(FileLock(job_lock(log)))
        if gpu_slots is not None:
            stack.enter_context(gpu_slot(gpu_slots or None, per_gpu=per_gpu))
        return stack.pop_all()


def _experiment(options: argparse.Namespace) -> None:
    from diffinf_lib.experiments import Experiment, parse_parameters
    from diffinf_lib.experiments.costs import costs_of
    from diffinf_lib.experiments.engine import Engine
    from diffinf_lib.experiments.graph import with_absolute_paths
    from diffinf_lib.experiments.plans import plan_table

    parameters = with_absolute_paths(parse_parameters(options.parameter, pairs_of(options.options)))
    _check_options(options.preset, parameters)
    engine = Engine(options.profile, options.jobs, options.gpus, options.per_gpu, options.flops, options.retries)
    at_once = engine.at_once or 8  # of a cluster, whose width nobody knows here
    asked = {"preset": options.preset, "run": options.run, "studies": options.studies, "parameters": parameters}
    experiment = Experiment.of(asked | {"shards": options.shards or at_once})
    if options.dry_run:
        costs = costs_of(experiment, flops=options.flops)
        print(plan_table(experiment, costs, at_once=at_once, gpus=engine.gpu_count))
        return
    engine.start(experiment)


def _status(options: argparse.Namespace) -> None:
    from diffinf_lib.artifacts.paths import run_folder
    from diffinf_lib.experiments.status import run_status
    from diffinf_lib.limited import LIMITED
    from diffinf_lib.presets import PRESETS

    known = options.run.removesuffix(LIMITED) in PRESETS and not Path(options.run).is_dir()
    print(run_status(run_folder(options.run) if known else run_folder("", options.run)))


def _check_options(preset: str, parameters: dict[str, Any]) -> None:
    """Refuse wrong options of a template's preset before a kernel is started."""
    import diffinf_lib as di

    di.with_options(di.get_preset(preset), parameters.get("options", {}))


def _reproduce(options: argparse.Namespace) -> None:
    from diffinf_lib.experiments import parse_parameters

    parameters = {"preset": options.preset, **parse_parameters(options.parameter, pairs_of(options.options))}
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
