"""Ground truth: what models retrained on random subsets measure of each query."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffinf_lib.artifacts import ground_truth_folder, load_bundle, tensor_digest
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import ConfigurationError, DataError, first_few, require


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Subsets and the measurements of the models retrained on them.

    Attributes:
        masks: which training images each subset keeps, `[M, N]`, True = kept.
        measurements: m_q of subset k retrained with seed r, `[M, K, Q]`, float64.
        train_ids: ids of the N training images, in the order of the masks.
        query_ids: ids of the Q queries.
        query_images: `[Q, C, H, W]`, where they are kept.
        full_measurements: m_q of the model trained on everything, `[Q]`, where it is kept.
        provenance: where the measurements came from, in two lines.
        query_names: of the queries' files, where they are kept.
    """

    masks: Bool[Tensor, "M N"]
    measurements: Float[Tensor, "M K Q"]
    train_ids: Int[Tensor, "N"]
    query_ids: Int[Tensor, "Q"]
    query_images: Float[Tensor, "Q C H W"] | None = None
    full_measurements: Float[Tensor, "Q"] | None = None
    provenance: str = ""
    query_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        masks, measured = tuple(self.masks.shape), tuple(self.measurements.shape)
        require(
            self.masks.dtype == torch.bool and len(masks) == 2, f"masks: {self.masks.dtype} {masks}; give bool [M, N]"
        )
        require(len(measured) == 3, f"measurements of shape {measured}: give [M, K, Q]")
        require(masks[0] == measured[0], f"masks {masks} and measurements {measured}: M differs; give as many of each")
        require(masks[1] == len(self.train_ids), f"masks {masks} and {len(self.train_ids)} train ids: N differs")
        require(
            measured[2] == len(self.query_ids),
            f"measurements {measured} and {len(self.query_ids)} query ids: Q differs",
        )
        require(
            bool(torch.isfinite(self.measurements).all()),
            "measurements: some are NaN or infinite; measure again",
            DataError,
        )
        for name, values in (("query images", self.query_images), ("full measurements", self.full_measurements)):
            require(
                values is None or len(values) == measured[2],
                f"{name} of {0 if values is None else len(values)} queries, measurements of {measured[2]}: give one for each",
            )
        self._flag_training_images()
        kept = self.masks.sum(1)
        require(bool(((kept > 0) & (kept < masks[1])).all()), "masks: a subset keeps all images or none; draw it again")
        constant = (
            (self.measurements.std(0) == 0).all(0) if masks[0] > 1 else torch.zeros(measured[2], dtype=torch.bool)
        )
        if constant.any():
            names = first_few(self.query_ids[constant].tolist())
            warnings.warn(
                f"measurements of query {names} are the same for every subset; its LDS will be 0", stacklevel=3
            )

    def _flag_training_images(self) -> None:
        both = self.query_ids[torch.isin(self.query_ids, self.train_ids)].tolist()
        if both:
            warnings.warn(
                f"queries {first_few(both)} are training images ({len(both)} of {len(self.query_ids)}): their own scores "
                "dominate their LDS; give queries the model was not trained on",
                stacklevel=4,
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over subsets, measurements and queries: whatever is held against them is filed under this."""
        known = (
            self.masks,
            self.measurements,
            self.train_ids,
            self.query_ids,
            self.query_images,
            self.full_measurements,
        )
        return tensor_digest(*(values for values in known if values is not None))

    @property
    def queries(self) -> ImageSet:
        """The queries as images to be scored, without labels (−1).

        Raises:
            DataError: the ground truth was kept without its images.
        """
        if self.query_images is None:
            raise DataError("ground truth: it holds no query images; give the queries it was measured on yourself")
        return ImageSet(
            self.query_images, torch.full((len(self.query_ids),), -1), self.query_ids, names=self.query_names
        )

    def first_subsets(self, count: int) -> "GroundTruth":
        """The same ground truth with the first `count` subsets only.

        Raises:
            ConfigurationError: more are asked for than there are.
        """
        held = len(self.masks)
        require(0 < count <= held, f"subsets={count}: the ground truth holds {held}; ask for 1 to {held}")
        return replace(self, masks=self.masks[:count], measurements=self.measurements[:count])

    def select(self, subsets: Tensor) -> "GroundTruth":
        """The same ground truth with some subsets only, by position."""
        return replace(self, masks=self.masks[subsets], measurements=self.measurements[subsets])


def load_ground_truth(
    bundle: str = "digits-ground-truth",
    queries: str = "held-out",
    measurement: str = "loss",
    *,
    root: Path | str | None = None,
) -> GroundTruth:
    """The ground truth in a bundle, for one set of queries and one measurement.

    Args:
        queries: `held-out` or `generated`.
        measurement: its label, such as `loss`, `elbo` or `loss_at_time-100`.

    Raises:
        ArtifactError: no such bundle, or it is damaged.
        ConfigurationError: the bundle has no such queries, or they were not measured so.
    """
    ground_truth_folder(bundle, root)
    found = load_bundle(bundle, root=root)
    sets = sorted({key.partition("/")[0] for key in found.arrays if "/" in key})
    if queries not in sets:
        raise ConfigurationError(f"queries={queries!r}: bundle {bundle} has {', '.join(sets)}; give one of these")
    of_queries = {
        key.partition("/")[2]: values for key, values in found.arrays.items() if key.startswith(f"{queries}/")
    }
    names = of_queries.pop("names", None)
    arrays = {key: torch.from_numpy(values) for key, values in of_queries.items()}
    known = sorted(key.removeprefix("measured/") for key in arrays if key.startswith("measured/"))
    if measurement not in known:
        raise ConfigurationError(f"measurement={measurement!r}: bundle {bundle} has {', '.join(known)} for {queries} queries; "
                                 "give one of these")  # fmt: skip
    return GroundTruth(
        masks=torch.from_numpy(found.arrays["masks"]),
        measurements=arrays[f"measured/{measurement}"].double(),
        train_ids=torch.from_numpy(found.arrays["train_ids"]),
        query_ids=arrays["ids"],
        query_images=arrays["images"],
        full_measurements=arrays[f"full/{measurement}"].double(),
        provenance=found.provenance,
        query_names=None if names is None else tuple(names.tolist()),
    )
