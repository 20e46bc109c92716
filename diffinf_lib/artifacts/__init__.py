"""Artifacts: where files lie, how they are written, and what says how they came about."""

from diffinf_lib.artifacts.bundles import Bundle, load_benchmark, load_bundle, write_bundle
from diffinf_lib.artifacts.files import (
    atomic_write,
    ensure_writable,
    file_digest,
    json_digest,
    read_arrays,
    read_json,
    read_tensor_metadata,
    read_tensors,
    tensor_digest,
    write_arrays,
    write_json,
    write_tensors,
)
from diffinf_lib.artifacts.manifest import check_same, environment, is_finished, plain, show_versions, stage
from diffinf_lib.artifacts.paths import benchmarks_root, data_root, project_root, results_root, runs_root

__all__ = [
    "Bundle",
    "atomic_write",
    "benchmarks_root",
    "check_same",
    "data_root",
    "ensure_writable",
    "environment",
    "file_digest",
    "is_finished",
    "json_digest",
    "load_benchmark",
    "load_bundle",
    "plain",
    "project_root",
    "read_arrays",
    "read_json",
    "read_tensor_metadata",
    "read_tensors",
    "results_root",
    "runs_root",
    "show_versions",
    "stage",
    "tensor_digest",
    "write_arrays",
    "write_bundle",
    "write_json",
    "write_tensors",
]
