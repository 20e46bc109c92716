"""Study: an experiment of the book over one run, as cells that are computed once and kept, and a bundle of all of them.

A cell is kept through `Study.kept` alone. Its identity names the model, the images, the run's configuration, the queries and
the ground truths, whatever the study itself says; a study adds what its cells depend on besides. A killed study goes on with
the next cell, and shards share nothing but the run folder.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch

from diffinf_lib.artifacts import write_bundle
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import ArtifactError, DataError, require
from diffinf_lib.evaluation import GroundTruth, ceiling
from diffinf_lib.options import check_shard
from diffinf_lib.runs import Kept, Run, check_training_images, measured_queries
from diffinf_lib.runs.run import configuration_of

Cell = TypeVar("Cell")
Arrays = dict[str, np.ndarray]

ELSEWHERE = ("name", "summary", "dataset")
"""Parts of a preset that say nothing of a result; the images themselves are named by their digest."""


@dataclass(eq=False)
class Study(Generic[Cell]):
    """One study of one run.

    Attributes:
        truths: ground truths by set of queries, or by `<set>/<measurement>`, from `load_ground_truth`.
        name: the folder of its cells in the run, and the end of its bundle's name.
        holds_scores: cells hold scores alone, which no ground truth has a part in: more subsets leave them as they are.
        takes_queries_of_truths: scores are of the ground truths' own images; else of the run's, which must be the same.

    Raises:
        DataError: a ground truth was made with other training images than the run's.
    """

    run: Run
    truths: Mapping[str, GroundTruth] = field(default_factory=dict)

    name: ClassVar[str]
    holds_scores: ClassVar[bool] = False
    takes_queries_of_truths: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, truth in self.truths.items():
            check_training_images(self.run, truth, name)

    # --- what a study says of itself

    @cached_property
    def queries(self) -> dict[str, ImageSet]:
        """The queries by set: the ground truths' own, or the run's."""
        if self.takes_queries_of_truths:
            return {name: truth.queries for name, truth in self.truths.items()}
        return self._checked(measured_queries(self.run))

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they are best computed."""
        raise NotImplementedError

    def computed(self, cell: Cell) -> Arrays:
        """What is kept of a cell."""
        raise NotImplementedError

    def depends(self, cell: Cell) -> dict[str, Any]:
        """What a cell depends on beside itself and what `kept` always names."""
        return {}

    def label(self, cell: Cell) -> str:
        """The cell's name, for people and in files."""
        values = vars(cell).values() if is_dataclass(cell) else [cell]
        return re.sub(r"[^\w.]+", "-", " ".join(map(str, values))).strip("-")

    def options(self) -> dict[str, Any]:
        """What the study was asked for, as its bundle records it."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("run", "truths")}

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and metrics of the bundle, from kept cells."""
        raise NotImplementedError

    # --- what every study does

    def kept(self, cell: Cell) -> Kept:
        """The place of a cell in the run."""
        return self.kept_besides(self.label(cell), self.depends(cell) | {"cell": cell})

    def kept_besides(self, label: str, depends: Mapping[str, Any]) -> Kept:
        """The place of something that is no cell; its identity names what that of every cell does."""
        always = {
            "preset": {key: value for key, value in self._preset.items() if key not in ELSEWHERE},
            "queries": {name: images.digest for name, images in self.queries.items()},
            "truths": {} if self.holds_scores else self._truth_digests,
        }
        return self.run.kept(self.name, label, **dict(depends) | always)

    def arrays(self, cell: Cell) -> Arrays:
        """A cell, computed by the first call and kept."""
        return self.kept(cell).arrays(lambda: self.computed(cell))

    def shard(self, shard: int = 0, shards: int = 1) -> Iterator[Cell]:
        """Compute every cell of one shard, yielding each when it is done.

        Raises:
            ConfigurationError: there is no such shard.
        """
        check_shard(shard, shards)
        for cell in self.cells()[shard::shards]:
            self.arrays(cell)
            yield cell

    def missing(self) -> list[Cell]:
        """The cells that are not there yet."""
        return [cell for cell in self.cells() if not self.kept(cell).finished]

    def bundle(self, name: str | None = None, root: Path | str | None = None) -> Path:
        """Collect the finished study into a bundle and return its folder.

        Args:
            name: of the bundle; default `<preset>-<study>`.
            root: folder of bundles; default `book/results/`.

        Raises:
            ArtifactError: some cells are missing; the message counts them.
        """
        self.require_finished()
        arrays, metrics = self.contents()
        manifests = [self.kept(cell).manifest for cell in self.cells()]
        metrics |= {"commits": sorted({manifest["environment"]["git_commit"] for manifest in manifests})}
        configuration = {
            "preset": self.run.preset, "seed": self.run.seed, "dataset_digest": self.run.data.digest,
            "model": self.run.model_identity, "truths": self._truth_digests, **self.options(),
        }  # fmt: skip
        name = name or f"{self.run.preset.name}-{self.name}"
        return write_bundle(name, arrays, metrics, configuration, made_in=manifests[0]["environment"], root=root)

    def require_finished(self) -> None:
        """Refuse to go on while cells are missing."""
        missing, total = self.missing(), len(self.cells())
        first = [self.label(cell) for cell in missing[:1]]
        require(not missing, f"{self.run.folder}: {len(missing)} of {total} cells of study {self.name!r} are missing, first "
                f"{first}; run it to its end", ArtifactError)  # fmt: skip

    def seconds(self) -> float:
        """What all cells took."""
        return round(sum(self.kept(cell).seconds for cell in self.cells()), 1)

    def ceilings(self) -> dict[str, float]:
        """The ceiling of each ground truth."""
        return {name: ceiling(truth) for name, truth in self.truths.items()}

    @cached_property
    def _preset(self) -> dict[str, Any]:
        return configuration_of(self.run.preset)

    @cached_property
    def _truth_digests(self) -> dict[str, str]:
        return {name: truth.digest for name, truth in self.truths.items()}

    def _checked(self, queries: dict[str, ImageSet]) -> dict[str, ImageSet]:
        """Refuse ground truths of other queries than the run's: scores of one image say nothing of another."""
        for name, truth in self.truths.items():
            own = queries[name.partition("/")[0]]
            same = torch.equal(truth.query_ids, own.ids)
            if same and truth.query_images is not None:
                same = torch.allclose(truth.query_images, own.images, atol=1e-3)
            require(same, f"ground truth of {name}: its queries are not those of this run; make it anew with this run",
                    DataError)  # fmt: skip
        return queries
