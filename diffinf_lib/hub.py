"""Hub: of a repository of models the files that are read; without a network, those that were downloaded before."""

import glob
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from diffinf_lib.data.download import is_offline
from diffinf_lib.errors import ArtifactError, require

TIMEOUT_SECONDS = 10.0


def repository(
    name: str, needed: Callable[[Sequence[str]], Sequence[str]], certain: Sequence[str], *, what: str = "model"
) -> Path:
    """The folder of a hub's repository in the hub's own cache, after what is needed of it was downloaded.

    Without a network, or where `DIFFINF_OFFLINE=1` or `HF_HUB_OFFLINE=1` forbids one, the files of an earlier download serve.
    The token of `hf auth login` or `HF_TOKEN` goes with every question.

    Args:
        name: OWNER/NAME.
        needed: gives of the names of all files those that are wanted.
        certain: names of files by which an earlier download is known; one of them is enough.
        what: messages call it by.

    Raises:
        ArtifactError: there is no such repository, or the hub cannot be asked and nothing was downloaded before.
    """
    from huggingface_hub import constants

    kept = kept_repository(name, certain)
    if is_offline() or constants.HF_HUB_OFFLINE:
        variable = "DIFFINF_OFFLINE" if is_offline() else "HF_HUB_OFFLINE"
        if kept is None:
            raise ArtifactError(f"{what}={name}: there is no such folder, nothing of that name was downloaded before, and "
                                f"{variable}=1 forbids asking a hub for it; give the folder of one")  # fmt: skip
        return kept
    try:
        return _downloaded(name, needed, what)
    except ArtifactError:
        raise
    except Exception as error:  # the hub's client raises kinds of its own, and those of the client that it is built on
        reason = " ".join(str(error).split())[:120] or type(error).__name__
    if kept is None:
        raise ArtifactError(
            f"{what}={name}: there is no such folder, and the hub cannot be asked ({reason}); give the folder of one"
        )
    warnings.warn(
        f"{what}={name}: the hub cannot be asked ({reason}); what was downloaded before is taken", stacklevel=6
    )
    return kept


def kept_repository(name: str, certain: Sequence[str]) -> Path | None:
    """Where the cache has the newest version of a repository that was downloaded; None where it has none. No hub is asked."""
    from huggingface_hub import try_to_load_from_cache

    for file in certain:
        path = try_to_load_from_cache(name, file)
        if isinstance(path, str):
            return Path(path).parents[file.count("/")]
    return None


def _downloaded(name: str, needed: Callable[[Sequence[str]], Sequence[str]], what: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = HfApi().model_info(name, timeout=TIMEOUT_SECONDS)  # at once or not: a download would try five times
    except HfHubHTTPError as error:
        status = error.response.status_code
        require(status not in (401, 403, 404), f"{what}={name}: there is no such folder, and the hub gives nothing of that "
                f"name (it answers {status}); check the name, or log in with `hf auth login` if it is not public",
                ArtifactError)  # fmt: skip
        raise
    names = needed([file.rfilename for file in found.siblings or []])
    return Path(snapshot_download(name, allow_patterns=[glob.escape(file) for file in names]))
