"""Arrays: tensors and arrays in files that are written whole or not at all.

Reading checks the file's own structure and turns damage into an `ArtifactError`.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffinf_lib.artifacts.files import atomic_write, json_digest
from diffinf_lib.errors import ArtifactError


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Any = None) -> None:
    """Write tensors, and `metadata` as JSON beside them, to one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = None if metadata is None else {"diffinf": json.dumps(metadata, sort_keys=True)}
    with atomic_write(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata=header)


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file.

    Raises:
        ArtifactError: the file is missing, truncated or not safetensors.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)


def read_tensor_metadata(path: Path | str) -> Any:
    """Read what `write_tensors` was given as `metadata`, or None."""
    with _opened(path) as file:
        header = (file.metadata() or {}).get("diffinf")
    return None if header is None else json.loads(header)


def write_part(
    path: Path | str, tensors: Mapping[str, Tensor], identity: Any, told: Mapping[str, Any] | None = None
) -> None:
    """Write tensors from which a stage that is not finished can go on; see `read_part`.

    Args:
        identity: all that the tensors depend on, as plain values.
        told: plain values that go with them.
    """
    here = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    write_tensors(path, here, metadata=_seal(here, identity, told or {}))


def read_part(path: Path | str, identity: Any, then: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `write_part` was given, tensors and `told`; None where there is no such file, or not the one that was written.

    A part that is truncated, that differs in a bit, or is of something else is named in a warning and deleted. Parts of before,
    which tell of their identity alone or of their content alone, are believed if what they tell is so.

    Args:
        identity: all that the tensors depend on, as `write_part` had it.
        then: what becomes of it, for the warning.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        tensors, found = read_tensors(path), read_tensor_metadata(path)
        if isinstance(found, dict) and found == _seal(tensors, identity, found.get("told") or {}):
            return tensors, found["told"]
        if found == {"content": _content(tensors)} or json_digest(found) == json_digest(identity):
            return tensors, {}
    except (ArtifactError, ValueError):
        pass
    path.unlink()
    warnings.warn(f"{path}: damaged or of something else; {then}", stacklevel=2)
    return None


def _seal(tensors: Mapping[str, Tensor], identity: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    content = json_digest([sorted(tensors), _content(tensors), dict(told)])
    return {"of": json_digest(identity), "content": content, "told": dict(told)}


def _content(tensors: Mapping[str, Tensor]) -> str:
    return tensor_digest(*(tensors[name] for name in sorted(tensors)))


@contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; run the stage that writes it first") from None
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path}: damaged or not safetensors ({reason}); delete it and run again") from None


def write_arrays(path: Path | str, **arrays: np.ndarray) -> None:
    """Write named arrays to one compressed npz file, atomically; equal arrays give equal bytes."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """Read every array of an npz file; pickled objects are refused.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; run the stage that writes it first") from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds for a damaged archive
        raise ArtifactError(f"{path}: damaged or not npz ({type(error).__name__}); delete it and run again") from None


def tensor_digest(*tensors: Tensor) -> str:
    """SHA-256 over the bytes, shapes and types of tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        # NumPy has no bfloat16; its bits serve as well
        array = (plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy()
        digest.update(f"{plain.dtype if plain.dtype == torch.bfloat16 else array.dtype}{array.shape}".encode())
        digest.update(
            array.reshape(-1).view(np.uint8).data
        )  # the bytes where they lie: a copy takes longer than the hash
    return digest.hexdigest()
