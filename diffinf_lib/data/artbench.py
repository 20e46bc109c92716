"""ArtBench-10: 60,000 paintings of ten styles, 256×256 (Liao et al. 2022)."""

from dataclasses import replace

from diffinf_lib.artifacts import data_root
from diffinf_lib.configuration import DatasetConfig
from diffinf_lib.data.download import extract
from diffinf_lib.data.folder import dataset_from_folder
from diffinf_lib.data.images import Dataset
from diffinf_lib.errors import DownloadError, require

SOURCE = "https://artbench.eecs.berkeley.edu/files/artbench-10-imagefolder-split.tar"
NAME = "artbench-10-imagefolder-split"


def artbench_dataset(config: DatasetConfig) -> Dataset:
    """ArtBench-10 from `artbench-10-imagefolder-split/` (`train/STYLE`, `test/STYLE`) or the `.tar` of it.

    The archive is not downloaded by this library: its authors publish no digest to check it by.

    Raises:
        DownloadError: neither is below the data folder; the message says what to place where.
    """
    archive, folder = data_root() / f"{NAME}.tar", data_root() / NAME
    if not folder.is_dir() and archive.exists():
        unpacked = extract(archive, data_root() / f"{NAME}.unpacked")
        folder = unpacked / NAME if (unpacked / NAME).is_dir() else unpacked
    require(folder.is_dir(), f"dataset=artbench10: place {archive.name} (from {SOURCE}) in {data_root()}, or its content "
            f"in {folder}/train/STYLE and test/STYLE", DownloadError)  # fmt: skip
    return dataset_from_folder(folder, replace(config, name="artbench10"), by_content=False)
