"""Data: images in [−1, 1] with stable ids, split into training images and queries."""

from diffinf_lib.data.digits import digits
from diffinf_lib.data.images import Dataset, DatasetConfig, ImageSet
from diffinf_lib.errors import require

_LOADERS = {"digits": digits}


def load_dataset(config: DatasetConfig | str) -> Dataset:
    """Load a dataset by name or configuration.

    Raises:
        ConfigurationError: no dataset of that name.
        DataError: its images are missing or unusable.
    """
    config = DatasetConfig(config) if isinstance(config, str) else config
    loader = _LOADERS.get(config.name.partition(":")[0])
    require(loader is not None, f"dataset={config.name!r}: no such dataset; give one of {', '.join(_LOADERS)}")
    assert loader is not None
    return loader(config)


__all__ = ["Dataset", "DatasetConfig", "ImageSet", "load_dataset"]
