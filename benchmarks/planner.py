"""Planner: what `diffinf plan` says that a stage costs, beside what it took.

    python -m benchmarks.planner

Every stage runs once in a fresh folder, at the size of the preset (the ground truth at four retrained models, scaled).
"""

import tempfile
from collections.abc import Callable
from typing import Any

import diffinf_lib as di
from benchmarks import harness
from diffinf_lib.runs import query_gradients, train_gradients

MODELS = 4
"""Retrained models that are really made; time is proportional to their number."""


def stages(run: di.runs.Run) -> dict[str, Callable[[], Any]]:
    """The stages of a run in order; each finds what the earlier ones left."""
    sets = run.preset.subsets

    def scores() -> None:
        train, curvature = train_gradients(run).held(), di.runs.curvature_of_run(run)
        for queries in di.runs.query_sets(run).values():
            gradients = query_gradients(run, queries).held()
            taken["scores"] += harness.timed(
                lambda gradients=gradients: di.scores_from_gradients(
                    gradients, train, curvature, damping=run.preset.damping
                )
            )

    taken = {"scores": 0.0}
    work: dict[str, Callable[[], Any]] = {
        "model": lambda: di.runs.full_model(run),
        "samples": lambda: di.runs.generated_queries(run),
        **({"trajectories": lambda: di.runs.generated_trajectories(run)} if run.preset.measures_trajectories else {}),
        "curvature": lambda: di.runs.curvature_of_run(run),
        "train gradients": lambda: stored(train_gradients(run)),
        "query gradients": lambda: [stored(query_gradients(run, q)) for q in di.runs.query_sets(run).values()],
    }
    assert sets.count * sets.seeds >= MODELS
    work["retrained"] = lambda: [di.runs.retrained_model(run, subset, 0) for subset in range(MODELS)]
    work["measurements"] = lambda: [di.runs.retrained_measurements(run, subset, 0) for subset in range(MODELS)]
    work["scores"] = lambda: (scores(), taken["scores"])[1]
    return work


def stored(gradients: di.GradientSet) -> None:
    """Make a store of gradients, holding one shard at a time."""
    for _ in gradients.shards(1):
        pass


def measured(run: di.runs.Run) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of each stage."""
    results = {}
    scale = run.preset.subsets.count * run.preset.subsets.seeds / MODELS
    for name, work in stages(run).items():
        held: list[Any] = []

        def once(work: Callable[[], Any] = work, held: list[Any] = held) -> None:
            held.append(work())

        seconds: list[float] = []
        peak = harness.peak_bytes(lambda once=once, seconds=seconds: seconds.append(harness.timed(once)))
        taken = held[0] if name == "scores" else seconds[0]
        results[name] = {
            "seconds": taken * (scale if name in ("retrained", "measurements") else 1),
            "peak_bytes": peak or 0,
        }
        held.clear()
        print(name, results[name], flush=True)
    return results


def main(arguments: list[str] | None = None) -> None:
    """Estimate, run, print the table, write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--preset", default="digits")
    options = parser.parse_args(arguments)
    harness.settle(options)
    preset = di.get_preset(options.preset)
    plan = di.planner.estimate(preset, device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        run = di.open_run(preset, folder, device=options.device, progress=False)
        found = measured(run)
    results = {
        name: {
            "estimated_seconds": plan[name].seconds, "seconds": taken["seconds"],
            "estimated_peak_bytes": plan[name].peak_bytes, "peak_bytes": taken["peak_bytes"],
        }
        for name, taken in found.items()
    }  # fmt: skip
    rows = [
        (name, row["estimated_seconds"], row["seconds"], row["estimated_seconds"] / row["seconds"],
         row["estimated_peak_bytes"] / 2**20, row["peak_bytes"] / 2**20)
        for name, row in results.items()
    ]  # fmt: skip
    print(harness.table(rows, ["", "estimated s", "measured s", "ratio", "estimated MiB", "measured MiB"]))
    settings = {"preset": preset, "models": MODELS, "device": options.device}
    print(harness.write_results(options.name or f"planner-{options.preset}", settings, results, options.out))


if __name__ == "__main__":
    main()
