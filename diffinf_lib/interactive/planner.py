"""Planner: what a run costs, stage by stage, while everything that costs is moved."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from diffinf_lib.errors import first_few, require
from diffinf_lib.figures.style import subplots
from diffinf_lib.interactive.controls import Choice, Control, Slider, State
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.lines import COLOURS
from diffinf_lib.interactive.numbers import text
from diffinf_lib.interactive.stills import chart
from diffinf_lib.planner.recipe import (
    LIMITS,
    STAGES,
    Amounts,
    Recipe,
    StageCost,
    amounts_of,
    recipe_of,
    stage_costs,
)
from diffinf_lib.presets import STORE_BUDGET, Preset as Experiment

NAMES = (
    "model", "samples", "retrained models", "measurements", "curvature", "training gradients", "query gradients", "scores",
)  # fmt: skip
"""The stages as readers see them."""
TRUTH = ("retrained", "measurements")
LOOKS = ((5, 1.0), (5, 0.55), (0, 1.0), (1, 1.0), (4, 1.0), (2, 1.0), (3, 1.0), (5, 0.3))
"""Of each stage the colour of its series, and how much of it covers the ground."""
EXPERIMENT, STORE, RATE = "Network and training", "Training gradients", "TFLOP/s of each"
SLIDERS = {
    "train": "Training images",
    "queries": "Queries",
    "gradient_draws": "Draws of a training gradient",
    "measurement_draws": "Draws of a measurement",
    "models": "Retrained models",
    "devices": "Devices",
}
STEPS: dict[str, tuple[float, ...]] = {
    "train": (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000),
    "queries": (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000),
    "gradient_draws": (2, 4, 8, 16, 32, 64, 125, 250, 500, 1_000),
    "measurement_draws": (8, 16, 32, 64, 128, 250, 500, 1_000, 2_000, 2_500, 5_000, 10_000),
    "models": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000),
    "devices": (1, 2, 4, 8, 16, 32, 64),
    RATE: (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 150, 200, 500, 1_000),
}
"""Steps of the sliders, beside what the presets ask for."""
BUDGETS = (STORE_BUDGET, float("inf"))
KEPT = ("kept up to 20 GB", "kept, whatever they take")
UNITS = {
    "time": ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s")),
    "disk": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
}


def in_units(value: float, kind: str) -> str:
    """Seconds (`time`) or bytes (`disk`) in the largest unit that leaves a number of one or more."""
    size, unit = next((pair for pair in UNITS[kind] if value >= pair[0]), UNITS[kind][-1])
    return f"{text(value / size, '.3g')} {unit}"


@dataclass(frozen=True, eq=False)
class Planner(Figure):
    """Time and disk of every stage of a run, by the formula of `planner.stage_costs`.

    Networks and their training come from presets; images, queries, draws, models, devices and their speed have sliders.

    Attributes:
        experiments: presets of the library; their own amounts are among the steps of the sliders.
    """

    experiments: Sequence[Experiment]

    kind: ClassVar[str] = "planner"

    def __post_init__(self) -> None:
        names = [preset.name for preset in self.experiments]
        require(bool(names), "experiments: none given; give at least one preset")
        require(len(set(names)) == len(names), f"experiments={first_few(names)}: one is there twice; give each once")
        other = [preset.name for preset in self.experiments if preset.store_budget != STORE_BUDGET]
        require(
            not other, f"experiments={first_few(other)}: of another store_budget; leave it out and choose in the figure"
        )

    @cached_property
    def recipes(self) -> tuple[Recipe, ...]:
        """The constants of each preset."""
        return tuple(recipe_of(preset) for preset in self.experiments)

    @cached_property
    def own_controls(self) -> tuple[Control, ...]:
        """The preset, its amounts, the machine, the store."""
        own = [amounts_of(preset, 1.0) for preset in self.experiments]
        titles = [
            f"{preset.name}: {text(recipe.parameters / 1e6, '.3g')}M weights"
            for preset, recipe in zip(self.experiments, self.recipes, strict=True)
        ]
        sliders = [
            Slider(title, sorted({*STEPS[name], *(getattr(amounts, name) for amounts in own)}))
            for name, title in SLIDERS.items()
        ]
        return (Choice(EXPERIMENT, tuple(titles)), *sliders, Slider(RATE, STEPS[RATE]), Choice(STORE, KEPT))

    def asked(self, name: str, tflops: float, *, keep: bool = False, **amounts: int) -> dict[str, Any]:
        """The state of a preset, for a button or the start.

        Args:
            name: of the preset.
            tflops: of each device.
            keep: whether training gradients are kept, whatever they take.
            amounts: others than the preset's, by their names in `planner.Amounts`.

        Raises:
            ConfigurationError: no such preset in this figure.
        """
        names = [preset.name for preset in self.experiments]
        require(name in names, f"preset={name!r}: not in this figure; give one of {first_few(names, 8)}")
        place = names.index(name)
        wanted = replace(amounts_of(self.experiments[place], 1.0), **amounts)
        chosen = {title: getattr(wanted, field) for field, title in SLIDERS.items()}
        return {EXPERIMENT: place} | chosen | {RATE: tflops, STORE: KEPT[keep]}

    def amounts(self, state: State) -> Amounts:
        """What a state asks for."""
        values = {control.name: control.values for control in self.own_controls if isinstance(control, Slider)}
        chosen = {field: int(values[title][state[title]]) for field, title in SLIDERS.items()}
        rate = 1e12 * values[RATE][state[RATE]]
        return Amounts(**chosen, flops_per_second=rate, store_budget=BUDGETS[state[STORE]])

    def costs(self, state: State) -> dict[str, StageCost]:
        """What each stage takes in a state, by the clock and on disk."""
        return stage_costs(self.recipes[state[EXPERIMENT]], self.amounts(state))

    def tell(self, state: State) -> str:
        """The whole, and what takes most of it."""
        costs, amounts = self.costs(state), self.amounts(state)
        seconds = sum(cost.seconds for cost in costs.values())
        truth = sum(costs[name].seconds for name in TRUTH)
        longest = max(STAGES, key=lambda name: costs[name].seconds)
        largest = max(STAGES, key=lambda name: costs[name].disk_bytes)
        devices = "one device" if amounts.devices == 1 else f"{amounts.devices} devices"
        return (
            f"{in_units(seconds, 'time')} on {devices}, and {in_units(_disk(costs), 'disk')} of disk. "
            f"The ground truth takes {text(truth / seconds, '.1%')} of the time. Longest: {_named(longest)}, "
            f"{in_units(costs[longest].seconds, 'time')}. Largest: {_named(largest)}, "
            f"{in_units(costs[largest].disk_bytes, 'disk')}."
        )

    def payload(self) -> dict[str, Any]:
        """The constants, the values behind the sliders, and how stages look."""
        values = {control.name: control.values for control in self.own_controls if isinstance(control, Slider)}
        return {
            "recipes": [asdict(recipe) for recipe in self.recipes],
            "sliders": {field: {"control": title, "values": values[title]} for field, title in SLIDERS.items()},
            "rate": {"control": RATE, "values": values[RATE]},
            "experiment": EXPERIMENT,
            "store": {"control": STORE, "budgets": [None if budget == BUDGETS[-1] else budget for budget in BUDGETS]},
            "limits": LIMITS,
            "stages": [
                {"key": key, "name": name, "series": series, "opacity": opacity}
                for key, name, (series, opacity) in zip(STAGES, NAMES, LOOKS, strict=True)
            ],
            "truth": TRUTH,
            "units": UNITS,
        }

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return self.alternative or "Two stacked bars: time and disk of each stage of a run"

    def still(self, state: State) -> str:
        """The bars, and a table of all stages."""
        costs = self.costs(state)
        rows = "".join(
            f"<tr><th>{html.escape(_named(name))}</th><td>{in_units(cost.seconds, 'time')}</td>"
            f"<td>{in_units(cost.disk_bytes, 'disk')}</td></tr>"
            for name, cost in costs.items()
        )
        return self._bars(costs) + f"<table>{rows}</table>"

    def _bars(self, costs: Mapping[str, StageCost]) -> str:
        figure, axes = subplots(figsize=(6, 1.9))
        for row, measure in enumerate(("disk_bytes", "seconds")):
            values = [getattr(cost, measure) for cost in costs.values()]
            left = 0.0
            for value, name, (series, opacity) in zip(values, NAMES, LOOKS, strict=True):
                share = value / sum(values)
                axes.barh(row, share, left=left, color=COLOURS[series], alpha=opacity, label=name if row else None)
                left += share
        axes.set_yticks([0, 1], ["disk", "time"])
        axes.set_xlabel("share")
        axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.35))
        return chart(figure, self.own_alternative)


def _named(stage: str) -> str:
    return NAMES[STAGES.index(stage)]


def _disk(costs: Mapping[str, StageCost]) -> float:
    return sum(cost.disk_bytes for cost in costs.values())
