"""Data: images in [−1, 1] with stable ids, split into training images and queries."""

import warnings

from diffinf_lib.configuration import DATASETS, DatasetConfig
from diffinf_lib.data.artbench import artbench_dataset
from diffinf_lib.data.cifar import cifar_dataset
from diffinf_lib.data.digits import digits_dataset
from diffinf_lib.data.fashion import fashion_dataset
from diffinf_lib.data.folder import FolderImages, image_folder, read_image_folder
from diffinf_lib.data.images import Dataset, ImageSet, to_unit_range
from diffinf_lib.data.latents import Latents
from diffinf_lib.data.trajectories import Trajectories
from diffinf_lib.errors import first_few, require
from diffinf_lib.settings import own_settings

_LOADERS = {
    "digits": digits_dataset,
    "cifar2": cifar_dataset,
    "cifar10": cifar_dataset,
    "cifar2deq": cifar_dataset,
    "cifar10deq": cifar_dataset,
    "fashion": fashion_dataset,
    "artbench10": artbench_dataset,
    "folder": image_folder,
}


@own_settings
def load_dataset(config: DatasetConfig | str) -> Dataset:
    """Load a dataset by name or configuration.

    What was decided about a folder's images, and which queries are training images too, is said in warnings.

    Raises:
        ConfigurationError: no dataset of that name.
        DataError: its images are missing or unusable.
    """
    require(
        isinstance(config, str | DatasetConfig),
        f"dataset={config!r}: give one of {', '.join(DATASETS)}, or a DatasetConfig",
    )
    config = DatasetConfig(config) if isinstance(config, str) else config
    dataset = _LOADERS[config.name.partition(":")[0]](config)
    for note in dataset.notes:
        warnings.warn(f"dataset={config.name}: {note}", stacklevel=3)
    repeated = [dataset.queries.describe(position) for position in dataset.repeated_queries()]
    if repeated:
        warnings.warn(
            f"dataset={config.name}: {len(repeated)} of {len(dataset.queries)} queries are training images too "
            f"({first_few(repeated)}); their own scores dominate: remove the copies, or leave these queries out",
            stacklevel=3,
        )
    return dataset


__all__ = [
    "Dataset",
    "FolderImages",
    "ImageSet",
    "Latents",
    "Trajectories",
    "load_dataset",
    "read_image_folder",
    "to_unit_range",
]
