"""Experiments: papermill templates, their parameters checked before anything runs, the executed notebook kept as the log."""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from diffinf_lib import errors
from diffinf_lib.artifacts import project_root
from diffinf_lib.configuration import MeasurementName, MethodName
from diffinf_lib.errors import ConfigurationError, DiffinfError, require
from diffinf_lib.options import (
    PositiveFloat,
    PositiveInt,
    Range,
    Share,
    WholeNumber,
    check_shard,
    checked,
    read_text,
    words_of,
)


def templates_root() -> Path:
    """Where the templates lie: `notebooks/experiments/`."""
    return project_root() / "notebooks" / "experiments"


def template_path(name: str) -> Path:
    """The notebook of a template.

    Raises:
        ConfigurationError: no template of that name; the message lists the names.
    """
    path = templates_root() / f"{name}.ipynb"
    known = sorted(path.stem for path in templates_root().glob("e*.ipynb"))
    require(path.exists(), f"template={name!r}: no such experiment; give one of {', '.join(known) or 'none found'}")
    return path


_LABEL = Range(lambda text: text.partition("-")[0] in get_args(MeasurementName), "a measurement, such as loss or elbo")
_Label = Annotated[str, _LABEL]

KINDS: dict[str, Any] = {
    **dict.fromkeys(("preset", "run", "known", "ground_truth", "bundle", "results", "clip_source"), str),
    **dict.fromkeys(("seed", "shard"), int), **dict.fromkeys(("subsets", "seeds", "together"), WholeNumber), "options": dict,
    **dict.fromkeys(("shards", "threads", "seeds_above_128", "queries", "full_seeds", "random_sets", "bins"), PositiveInt),
    "reference": PositiveInt,
    "asked": tuple[tuple[str, int], ...], "solves": tuple[tuple[PositiveInt, PositiveFloat, PositiveInt], ...],
    "counts": tuple[PositiveInt, ...], "shares": tuple[Share, ...], "model_seeds": tuple[int, ...],
    "methods": tuple[MethodName, ...], "further": tuple[MethodName, ...], "formats": tuple[str, ...],
    "part": tuple[WholeNumber, ...], "attributed": tuple[_Label, ...], "measured": tuple[_Label, ...],
    "measurement": _Label, "rules": tuple[str, ...],
    "rungs": Literal["ladder", "budget", "budget of one training"],
}  # fmt: skip
"""What a parameter holds, in every template that has it."""


def known_parameters(name: str) -> list[str]:
    """The names that a template's cell of parameters gives; as papermill reads them, without loading it."""
    cells = json.loads(template_path(name).read_text())["cells"]
    tagged = (cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    lines = ast.parse("".join(next(tagged, ""))).body
    return [ast.unparse(line.targets[0]) for line in lines if isinstance(line, ast.Assign)]


def check_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that a template does not have; papermill itself only warns about them.

    Raises:
        ConfigurationError: an unknown parameter; the message lists those there are.
    """
    known = known_parameters(name)
    for parameter, value in parameters.items():
        require(
            parameter in known, f"parameter={parameter!r}: {name} has none of that name; give one of {', '.join(known)}"
        )
        if value is not None:
            checked(parameter, value, KINDS[parameter])
    if parameters.get("formats"):
        _check_formats(parameters["formats"])
    if "shard" in parameters:
        check_shard(parameters["shard"], parameters.get("shards", 1))


def _check_formats(names: Sequence[str]) -> None:
    from diffinf_lib.studies.compression import FORMATS  # it loads torch, which a kernel takes longer for

    unknown = [name for name in names if name not in FORMATS]
    require(not unknown, f"formats={', '.join(unknown)}: give some of {', '.join(FORMATS)}")


def launch(name: str, parameters: Mapping[str, Any], *, log: Path | str, progress: bool = True) -> Path:
    """Run a template with papermill and return the executed notebook.

    The log is written while the template runs, so a run that failed or was killed leaves what it had said so far.

    Args:
        log: where the executed notebook goes.

    Raises:
        DiffinfError: a parameter is unknown, the template refused its input, or its kernel was killed.
    """
    check_parameters(name, parameters)
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from diffinf_lib.artifacts import ensure_writable

    log = Path(log)
    ensure_writable(log.parent)
    try:
        papermill.execute_notebook(
            str(template_path(name)), str(log), parameters=dict(parameters), kernel_name="python3",
            progress_bar=progress, log_output=False, cwd=str(Path.cwd()),
        )  # fmt: skip
    except PapermillExecutionError as error:
        kind = getattr(errors, error.ename, None)
        if isinstance(kind, type) and issubclass(kind, DiffinfError):
            raise kind(error.evalue) from None
        raise
    except (
        RuntimeError
    ) as error:  # of the client and of the kernel's manager: each has words of its own for a dead kernel
        if "Kernel died" not in str(error):
            raise
        raise DiffinfError(f"{name}: its kernel died (killed, or out of memory), log {log}; the same command goes on from "
                           "here") from None  # fmt: skip
    return log


def _value_of(text: str, kind: Any) -> Any:
    """A text as JSON where it is JSON; a list also as `--set` takes it, and what holds text as it is."""
    listed = get_origin(kind) is tuple
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if kind is str and not isinstance(value, str):
        return text
    if listed and value is not None and not isinstance(value, list):
        return [read_text("", word, get_args(kind)[0]) for word in words_of(text)]
    return value


def parse_parameters(pairs: list[str], options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`["shard=0", "preset=digits"]` as a dictionary; values are read as JSON where they are JSON, else as text.

    A list is given as in JSON or, as to `--set`, by its entries: `methods=trak,das`.

    Args:
        options: of the preset, by their path; they go with those of the parameter `options`.

    Raises:
        ConfigurationError: a pair without `=`, or `options` that are no mapping.
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"parameter {pair!r}: give NAME=VALUE")
        parameters[name] = _value_of(text, KINDS.get(name))
    given = parameters.get("options", {})
    require(isinstance(given, dict), f"parameter options={given!r}: give --set OPTION=VALUE")
    return parameters | ({"options": given | dict(options)} if options else {})
